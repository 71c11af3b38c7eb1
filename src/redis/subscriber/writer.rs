//! The commands of a subscriber connection: SUBSCRIBE and UNSUBSCRIBE in their order, and PING while it is
//! idle.

use std::time::Duration;

use ::redis::RedisResult;
use ::redis::aio::PubSubSink;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::event::Topic;
use crate::redis::error_text::error_text;
use crate::redis::keys::Keys;
use crate::redis::settings::Settings;

/// How often the connection is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// Topics that one SUBSCRIBE or UNSUBSCRIBE names at most.
const TOPICS_AT_ONCE: usize = 256;

/// Why there is no subscription.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The connection was lost before Redis confirmed: ask again.
    #[error("the subscription was lost before Redis confirmed it")]
    Lost,
    /// Redis refuses this topic, and only this one.
    #[error("Redis refuses the subscription: {0}")]
    Refused(String),
}

/// Where the answer to a subscription goes. Dropping it reports [`SubscribeError::Lost`].
pub(super) type Confirm = oneshot::Sender<Result<(), SubscribeError>>;

pub(super) enum Command {
    Subscribe(Topic, Confirm),
    Unsubscribe(Topic),
}

/// Commands of one kind, for several topics.
enum Batch {
    Subscribe(Vec<(Topic, Confirm)>),
    Unsubscribe(Vec<Topic>),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// Redis answered with an error: the connection works.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Connection(String),
}

/// The write half of a connection.
pub(super) struct Writer {
    sink: PubSubSink,
    keys: Keys,
    /// How long Redis may take to answer a command.
    timeout: Duration,
}

impl Writer {
    pub(super) fn new(settings: &Settings, sink: PubSubSink) -> Self {
        Self { sink, keys: settings.keys(), timeout: settings.response_timeout() }
    }

    /// Sends commands until one fails or no more can come, and returns the reason.
    pub(super) async fn run(mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> String {
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut received = Vec::with_capacity(TOPICS_AT_ONCE);
        loop {
            let done = tokio::select! {
                count = commands.recv_many(&mut received, TOPICS_AT_ONCE) => {
                    if count == 0 {
                        return "no handle on the subscriber is left".to_owned();
                    }
                    self.execute(received.drain(..)).await
                }
                _ = ping.tick() => self.ping().await,
            };
            if let Err(error) = done {
                return error.to_string();
            }
        }
    }

    /// Any failure ends the connection: an idle connection has no other way to show that it is broken.
    async fn ping(&mut self) -> Result<(), CommandError> {
        answer(timeout(self.timeout, self.sink.ping::<::redis::Value>()).await).map(|_pong| ())
    }

    /// Executes commands in their order; those of one kind in a row are sent as one.
    async fn execute(&mut self, commands: impl Iterator<Item = Command>) -> Result<(), CommandError> {
        for batch in batches(commands) {
            match batch {
                Batch::Subscribe(requests) => self.subscribe(requests).await?,
                Batch::Unsubscribe(topics) => {
                    let channels = channels_of(&self.keys, &topics);
                    answer(timeout(self.timeout, self.sink.unsubscribe(channels)).await)?;
                }
            }
        }
        Ok(())
    }

    /// Subscribes to topics by one command. Where Redis refuses that, it does not say because of which topic:
    /// then each topic is subscribed alone, and only the topics that Redis refuses alone are refused.
    async fn subscribe(&mut self, requests: Vec<(Topic, Confirm)>) -> Result<(), CommandError> {
        let together = self.subscribe_to(requests.iter().map(|(topic, _)| topic)).await;
        if let Err(lost @ CommandError::Connection(_)) = together {
            return Err(lost);
        }
        for (topic, confirm) in requests {
            let alone = match &together {
                Ok(()) => Ok(()),
                Err(_refused) => self.subscribe_to([&topic]).await,
            };
            let answer = match alone {
                Ok(()) => Ok(()),
                Err(CommandError::Refused(reason)) => Err(SubscribeError::Refused(reason)),
                Err(lost @ CommandError::Connection(_)) => return Err(lost),
            };
            // The caller may have given up meanwhile.
            let _sent = confirm.send(answer);
        }
        Ok(())
    }

    async fn subscribe_to(&mut self, topics: impl IntoIterator<Item = &Topic>) -> Result<(), CommandError> {
        let channels = channels_of(&self.keys, topics);
        answer(timeout(self.timeout, self.sink.subscribe(channels)).await)
    }
}

/// Groups commands of one kind that follow each other.
fn batches(commands: impl Iterator<Item = Command>) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for command in commands {
        match (batches.last_mut(), command) {
            (Some(Batch::Subscribe(requests)), Command::Subscribe(topic, confirm)) => {
                requests.push((topic, confirm));
            }
            (Some(Batch::Unsubscribe(topics)), Command::Unsubscribe(topic)) => topics.push(topic),
            (_, Command::Subscribe(topic, confirm)) => {
                batches.push(Batch::Subscribe(vec![(topic, confirm)]));
            }
            (_, Command::Unsubscribe(topic)) => batches.push(Batch::Unsubscribe(vec![topic])),
        }
    }
    batches
}

fn channels_of<'a>(keys: &Keys, topics: impl IntoIterator<Item = &'a Topic>) -> Vec<String> {
    topics.into_iter().flat_map(|topic| [keys.live(topic), keys.public(topic)]).collect()
}

fn answer<T>(answer: Result<RedisResult<T>, tokio::time::error::Elapsed>) -> Result<T, CommandError> {
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.code().is_some() => Err(CommandError::Refused(error_text(&error))),
        Ok(Err(error)) => Err(CommandError::Connection(error_text(&error))),
        Err(_elapsed) => Err(CommandError::Connection("Redis did not answer in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_one_kind_in_a_row_are_sent_as_one_and_none_overtakes_another() {
        let topic = |name| Topic::new(name).expect("a topic");
        let subscribe = |name| Command::Subscribe(topic(name), oneshot::channel().0);
        let commands = [
            subscribe("a"),
            subscribe("b"),
            Command::Unsubscribe(topic("a")),
            Command::Unsubscribe(topic("c")),
            subscribe("a"),
        ];
        let sent: Vec<String> = batches(commands.into_iter())
            .into_iter()
            .map(|batch| match batch {
                Batch::Subscribe(requests) => {
                    requests.iter().map(|(topic, _)| format!("+{topic}")).collect::<String>()
                }
                Batch::Unsubscribe(topics) => topics.iter().map(|topic| format!("-{topic}")).collect(),
            })
            .collect();
        assert_eq!(sent, ["+a+b", "-a-c", "+a"]);
    }
}
