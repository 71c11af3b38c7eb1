//! The connection to one server of a cluster: a topic's live channel by SSUBSCRIBE, and its public channel by
//! SUBSCRIBE, on one connection, so that a payload comes right after its envelope.
//!
//! The connection speaks RESP3, and the client answers a subscription with the confirmation that it received.
//! A server that gives a slot away ends the subscriptions of its channels without being asked, and the client
//! takes that for the answer to the oldest command. So each confirmation is compared with its command. After
//! a confirmation that does not fit, nothing is believed until a PING has come back.

use std::collections::HashSet;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Msg, PushInfo, PushKind, RedisResult, Value, from_redis_value_ref};
use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{Duration, MissedTickBehavior, interval};

use super::inbox::InboxSender;
use super::reader::{Classifier, TOO_FAST};
use super::standing::Standing;
use super::writer::{Command, Confirm, SubscribeError};
use crate::event::Topic;
use crate::redis::connect::Connected;
use crate::redis::endpoint::Endpoint;
use crate::redis::error_text::error_text;
use crate::redis::keys::Keys;
use crate::redis::reply_codes;
use crate::redis::settings::Settings;

/// How often the connection is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// Topics that are subscribed to at once.
const TOPICS_AT_ONCE: usize = 256;
/// Pings after which a connection is given up whose answers do not fit its commands.
const PINGS_TO_FIT: u32 = 1000;

/// A report of a server's tasks.
#[derive(Debug)]
pub(super) enum Report {
    /// The connection ended, or could not be made.
    Ended(Endpoint, String),
    /// The server ended the subscription of a topic: its slot has moved.
    GaveAway(Endpoint, Topic),
}

/// Serves one server until its connection ends, and returns the reason.
pub(super) async fn run(
    settings: Settings,
    endpoint: Endpoint,
    commands: mpsc::UnboundedReceiver<Command>,
    inbox: InboxSender,
    reports: mpsc::UnboundedSender<Report>,
    standing: Standing,
) {
    let (pushes, pushed) = mpsc::unbounded_channel();
    let reason = match settings.subscribe_at(&endpoint, pushes).await {
        Err(error) => {
            standing.failed(&endpoint, error.to_string());
            error.to_string()
        }
        Ok(Connected { connection, .. }) => {
            standing.connected(&endpoint);
            let writer = Writer { connection, keys: settings.keys(), pings: 0 };
            let classifier = Classifier { keys: settings.keys(), is_of_cluster: true, twin: None };
            // No message may follow the report of the end: both halves end here.
            tokio::select! {
                reason = read(pushed, classifier, &endpoint, &inbox, &reports) => reason,
                reason = writer.run(&settings, commands) => reason,
            }
        }
    };
    let _sent = reports.send(Report::Ended(endpoint, reason));
}

/// Reads the messages that the server sends on its own.
async fn read(
    mut pushed: mpsc::UnboundedReceiver<PushInfo>,
    mut classifier: Classifier,
    endpoint: &Endpoint,
    inbox: &InboxSender,
    reports: &mpsc::UnboundedSender<Report>,
) -> String {
    while let Some(push) = pushed.recv().await {
        match push.kind {
            PushKind::Message | PushKind::SMessage => {
                let Some(message) = Msg::from_push_info(push) else { continue };
                let found = classifier.classify(message.get_channel_name(), message.get_payload_bytes());
                if found.is_some_and(|message| !inbox.push(message)) {
                    return TOO_FAST.to_owned();
                }
            }
            PushKind::SUnsubscribe => {
                let channel = push.data.first().and_then(|it| from_redis_value_ref::<String>(it).ok());
                let topic = channel.as_deref().and_then(|channel| classifier.keys.topic_of_live(channel));
                if let Some(topic) = topic.and_then(|topic| Topic::new(topic).ok()) {
                    let _sent = reports.send(Report::GaveAway(endpoint.clone(), topic));
                }
            }
            PushKind::Disconnection => return "the connection was closed".to_owned(),
            _ => {}
        }
    }
    "the connection was closed".to_owned()
}

/// The write half of a connection.
struct Writer {
    connection: MultiplexedConnection,
    keys: Keys,
    pings: u64,
}

impl Writer {
    /// Sends commands until one fails or no more can come, and returns the reason.
    async fn run(mut self, settings: &Settings, mut commands: mpsc::UnboundedReceiver<Command>) -> String {
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut received = Vec::with_capacity(TOPICS_AT_ONCE);
        loop {
            let done = tokio::select! {
                count = commands.recv_many(&mut received, TOPICS_AT_ONCE) => {
                    if count == 0 {
                        return "the server has no slots any more".to_owned();
                    }
                    self.execute(settings, std::mem::take(&mut received)).await
                }
                _ = ping.tick() => self.fit().await,
            };
            if let Err(reason) = done {
                return reason;
            }
        }
    }

    /// Executes commands. Of one topic only the last counts, and each earlier subscription is lost.
    async fn execute(&mut self, settings: &Settings, commands: Vec<Command>) -> Result<(), String> {
        let (mut last, mut seen) = (Vec::new(), HashSet::new());
        for command in commands.into_iter().rev() {
            let topic = match &command {
                Command::Subscribe(topic, _) | Command::Unsubscribe(topic) => topic.clone(),
            };
            if seen.insert(topic) {
                last.push(command);
            }
        }
        let (mut wanted, mut unwanted) = (Vec::new(), Vec::new());
        for command in last {
            match command {
                Command::Subscribe(topic, confirm) => wanted.push((topic, confirm)),
                Command::Unsubscribe(topic) => unwanted.push(topic),
            }
        }
        // The public channel first: a payload never comes without its envelope.
        for (command, channel) in
            [("UNSUBSCRIBE", Keys::public as fn(&Keys, &Topic) -> String), ("SUNSUBSCRIBE", Keys::live)]
        {
            let channels: Vec<String> = unwanted.iter().map(|topic| channel(&self.keys, topic)).collect();
            self.each(command, &channels).await?;
        }
        self.subscribe(settings, wanted).await
    }

    async fn subscribe(&mut self, settings: &Settings, wanted: Vec<(Topic, Confirm)>) -> Result<(), String> {
        let live: Vec<String> = wanted.iter().map(|(topic, _)| self.keys.live(topic)).collect();
        let public: Vec<String> = wanted.iter().map(|(topic, _)| self.keys.public(topic)).collect();
        let mut answers = self.each("SSUBSCRIBE", &live).await?;
        for (answer, of_public) in answers.iter_mut().zip(self.each("SUBSCRIBE", &public).await?) {
            if answer.is_ok() {
                *answer = of_public;
            }
        }
        for ((_, confirm), answer) in wanted.into_iter().zip(answers) {
            if answer == Err(SubscribeError::Lost) {
                settings.topology.doubt();
            }
            // The caller may have given up meanwhile.
            let _sent = confirm.send(answer);
        }
        Ok(())
    }

    /// Sends a command for each channel, all at once, and returns whether the server confirmed it.
    async fn each(
        &mut self,
        command: &str,
        channels: &[String],
    ) -> Result<Vec<Result<(), SubscribeError>>, String> {
        let asked = channels.iter().map(|channel| {
            let mut connection = self.connection.clone();
            async move { ::redis::cmd(command).arg(channel).query_async::<Value>(&mut connection).await }
        });
        let replies = join_all(asked).await;
        let mut fits = true;
        let mut answers = Vec::with_capacity(replies.len());
        for (channel, reply) in channels.iter().zip(replies) {
            answers.push(match reply {
                Ok(value) if is_confirmation(&value, command, channel) => Ok(()),
                Ok(_other) => {
                    fits = false;
                    Err(SubscribeError::Lost)
                }
                Err(error) => match error.code() {
                    None => return Err(error_text(&error)),
                    Some(code) if reply_codes::is_about_slots(code) => Err(SubscribeError::Lost),
                    Some(_) => Err(SubscribeError::Refused(error_text(&error))),
                },
            });
        }
        if !fits {
            // A refusal may be the answer to another command.
            answers.iter_mut().filter(|it| it.is_err()).for_each(|it| *it = Err(SubscribeError::Lost));
            self.fit().await?;
        }
        Ok(answers)
    }

    /// Pings until a reply matches its ping. Replies and commands are in step again from then on.
    async fn fit(&mut self) -> Result<(), String> {
        for _ in 0..PINGS_TO_FIT {
            self.pings += 1;
            let nonce = format!("aftercommit-{}", self.pings);
            let pong: RedisResult<Value> =
                ::redis::cmd("PING").arg(&nonce).query_async(&mut self.connection).await;
            match pong {
                Ok(Value::BulkString(text)) if text == nonce.as_bytes() => return Ok(()),
                Ok(_other) => {}
                Err(error) if error.code().is_some() => {}
                Err(error) => return Err(error_text(&error)),
            }
        }
        Err("its answers do not fit its commands".to_owned())
    }
}

/// Whether a reply confirms this command for this channel.
fn is_confirmation(reply: &Value, command: &str, channel: &str) -> bool {
    let Value::Push { kind, data } = reply else { return false };
    kind.to_string().eq_ignore_ascii_case(command)
        && matches!(data.first(), Some(Value::BulkString(name)) if name == channel.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_is_of_the_same_command_and_channel() {
        let push = |kind, channel: &str| Value::Push {
            kind,
            data: vec![Value::BulkString(channel.as_bytes().to_vec()), Value::Int(1)],
        };
        assert!(is_confirmation(&push(PushKind::SSubscribe, "a"), "SSUBSCRIBE", "a"));
        assert!(is_confirmation(&push(PushKind::Unsubscribe, "a"), "UNSUBSCRIBE", "a"));
        assert!(!is_confirmation(&push(PushKind::SUnsubscribe, "a"), "SSUBSCRIBE", "a"));
        assert!(!is_confirmation(&push(PushKind::SSubscribe, "b"), "SSUBSCRIBE", "a"));
        assert!(!is_confirmation(&Value::Okay, "SSUBSCRIBE", "a"));
    }
}
