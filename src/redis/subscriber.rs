//! One subscriber connection for a process. It only drains, so that Redis never has to drop it for a full buffer, and
//! tells twins from messages of others.
//!
//! A topic has two channels. The relay's script publishes an event's envelope on the live one and its bare payload on the
//! public one, in that order and with nothing in between. So a bare message right behind its envelope is its twin, and
//! any other bare message came from somebody else. Both channels are subscribed and unsubscribed by one command each, so
//! that no twin can come alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::redis::aio::{PubSubSink, PubSubStream};
use ::redis::{Msg, RedisResult};
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::complaint::said;
use super::envelope;
use super::keys::Keys;
use super::settings::Settings;
use crate::event::{PAYLOAD_BYTES_MAX, Topic};

/// What a subscriber hears.
#[derive(Debug)]
pub enum PubSubMessage {
    /// An envelope on a topic's live channel.
    Envelope {
        /// The topic.
        topic: String,
        /// The envelope's text.
        text: String,
    },
    /// A message that somebody else published on a topic's public channel.
    Foreign {
        /// The topic.
        topic: String,
        /// The message; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// The connection ended: no topic is subscribed any more, and messages may have been missed.
    Interrupted,
}

impl PubSubMessage {
    fn bytes(&self) -> usize {
        match self {
            Self::Envelope { text, .. } | Self::Foreign { text, .. } => text.len(),
            Self::Interrupted => 0,
        }
    }
}

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

/// Messages that may wait to be taken; beyond it the connection is given up and everything joined anew.
const QUEUE_MESSAGES: usize = 65_536;
/// The same in bytes of text.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of one message at most: more than an envelope of the largest event has. A larger one is not of the relay, and is
/// dropped: a few of them would fill the queue, and have every topic joined anew.
const MESSAGE_BYTES: usize = PAYLOAD_BYTES_MAX + 64 * 1024;
/// How often an idle connection is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// Topics that one SUBSCRIBE or UNSUBSCRIBE names at most.
const TOPICS_AT_ONCE: usize = 256;
/// Waits between attempts to connect: from the first, doubling, to the second.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

enum Command {
    Subscribe(Topic, oneshot::Sender<Result<(), SubscribeError>>),
    Unsubscribe(Topic),
}

/// A handle on the subscriber connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Subscriber {
    /// Never waited for: what is asked for while there is no connection is bounded by the topics in use.
    commands: mpsc::UnboundedSender<Command>,
}

/// What the subscriber heard, in order.
#[derive(Debug)]
pub struct Inbox {
    messages: mpsc::Receiver<PubSubMessage>,
    bytes: Arc<AtomicUsize>,
}

impl Inbox {
    /// The next thing heard; `None` when the subscriber has been stopped.
    pub async fn next(&mut self) -> Option<PubSubMessage> {
        let message = self.messages.recv().await?;
        self.bytes.fetch_sub(message.bytes(), Ordering::Relaxed);
        Some(message)
    }
}

impl Subscriber {
    /// Starts the connection's task. It connects, and connects again, until `stop`.
    pub fn start(settings: Settings, stop: CancellationToken) -> (Self, Inbox) {
        let (commands, received) = mpsc::unbounded_channel();
        let (sender, messages) = mpsc::channel(QUEUE_MESSAGES);
        let bytes = Arc::new(AtomicUsize::new(0));
        tokio::spawn(keep_connected(settings, received, InboxSender { sender, bytes: bytes.clone() }, stop));
        (Self { commands }, Inbox { messages, bytes })
    }

    /// Subscribes to a topic and waits for Redis's confirmation. Waits for a connection as long as there is none.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn subscribe(&self, topic: Topic) -> Result<(), SubscribeError> {
        let (confirm, confirmed) = oneshot::channel();
        self.commands.send(Command::Subscribe(topic, confirm)).map_err(|_stopped| SubscribeError::Lost)?;
        confirmed.await.map_err(|_stopped| SubscribeError::Lost)?
    }

    /// Unsubscribes from a topic, in order with later subscriptions. Does not wait.
    pub fn unsubscribe(&self, topic: Topic) {
        // A stopped subscriber has no subscriptions.
        let _stopped = self.commands.send(Command::Unsubscribe(topic));
    }
}

/// Where the connection's reader puts what it reads: bounded in messages and bytes, and never waiting.
#[derive(Debug, Clone)]
struct InboxSender {
    sender: mpsc::Sender<PubSubMessage>,
    bytes: Arc<AtomicUsize>,
}

impl InboxSender {
    /// False if there is no room: then what follows must not be told either.
    fn send(&self, message: PubSubMessage) -> bool {
        let bytes = message.bytes();
        if self.bytes.load(Ordering::Relaxed) + bytes > QUEUE_BYTES {
            return false;
        }
        // Counted before it is sent: the taker may be quicker than this line.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_sent = self.sender.try_send(message).is_ok();
        if !is_sent {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_sent
    }
}

async fn keep_connected(
    settings: Settings,
    mut commands: mpsc::UnboundedReceiver<Command>,
    inbox: InboxSender,
    stop: CancellationToken,
) {
    let mut wait = RECONNECT.0;
    loop {
        let connected = tokio::select! {
            () = stop.cancelled() => return,
            connected = connect(&settings) => connected,
        };
        match connected {
            Ok((sink, stream)) => {
                let since = Instant::now();
                let ended = tokio::select! {
                    () = stop.cancelled() => return,
                    ended = serve(&settings, sink, stream, &mut commands, &inbox) => ended,
                };
                tracing::warn!(reason = %ended, "the subscription to Redis ended; every topic is joined anew");
                // One that ends at once, as with a wrong password, is not tried again at once.
                if since.elapsed() > RECONNECT.1 {
                    wait = RECONNECT.0;
                }
                // Waits for room, unlike messages: this one must not be lost.
                if inbox.sender.send(PubSubMessage::Interrupted).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "no subscription to Redis yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RECONNECT.1),
        }
    }
}

async fn connect(settings: &Settings) -> Result<(PubSubSink, PubSubStream), String> {
    let client = settings.client().map_err(|error| error.to_string())?;
    match timeout(settings.connect_timeout(), client.get_async_pubsub()).await {
        Ok(Ok(pubsub)) => Ok(pubsub.split()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err("Redis did not answer in time".to_owned()),
    }
}

/// Serves one connection to its end, and says why it ended.
async fn serve(
    settings: &Settings,
    mut sink: PubSubSink,
    stream: PubSubStream,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    inbox: &InboxSender,
) -> String {
    let keys = settings.keys();
    let reading = read(stream, &keys, inbox);
    tokio::pin!(reading);
    let mut ping = interval(PING_INTERVAL);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(TOPICS_AT_ONCE);
    loop {
        // The reader is polled throughout, also while a command waits for its confirmation: it must never fall behind.
        tokio::select! {
            ended = &mut reading => return ended.to_owned(),
            taken = commands.recv_many(&mut batch, TOPICS_AT_ONCE) => {
                if taken == 0 {
                    return "nobody listens".to_owned();
                }
                let executing = execute(settings, &mut sink, &mut batch);
                tokio::pin!(executing);
                let executed = tokio::select! {
                    executed = &mut executing => executed,
                    ended = &mut reading => return ended.to_owned(),
                };
                if let Err(reason) = executed {
                    return reason;
                }
            }
            _ = ping.tick() => {
                let asking = timeout(settings.response_timeout(), sink.ping::<::redis::Value>());
                tokio::pin!(asking);
                let answered = tokio::select! {
                    answered = &mut asking => answered,
                    ended = &mut reading => return ended.to_owned(),
                };
                if let Err(failed) = in_time(answered) {
                    return failed.to_string();
                }
            }
        }
    }
}

/// Reads to the end of the connection, or until there is no room for what it reads.
async fn read(mut stream: PubSubStream, keys: &Keys, inbox: &InboxSender) -> &'static str {
    let mut twin = None;
    while let Some(message) = stream.next().await {
        if let Some(message) = classify(&message, keys, &mut twin)
            && !inbox.send(message)
        {
            return "messages came faster than they could be taken";
        }
    }
    "the connection was closed"
}

/// The bare payload that follows an envelope: its topic, and the payload.
type Twin = (String, String);

/// What a message is; `None` for a twin, and for a message that is dropped. `twin` is what the next message would be.
fn classify(message: &Msg, keys: &Keys, twin: &mut Option<Twin>) -> Option<PubSubMessage> {
    let channel = message.get_channel_name();
    let expected = twin.take();
    let bytes = message.get_payload_bytes();
    if bytes.len() > MESSAGE_BYTES {
        tracing::warn!(
            channel,
            bytes = bytes.len(),
            limit = MESSAGE_BYTES,
            "a message of another program is too large; dropped"
        );
        return None;
    }
    let text = String::from_utf8_lossy(bytes).into_owned();
    if let Some(topic) = keys.topic_of_live(channel) {
        let topic = topic.to_owned();
        *twin = envelope::twin_of(&text).map(|payload| (topic.clone(), payload.to_owned()));
        return Some(PubSubMessage::Envelope { topic, text });
    }
    let topic = keys.topic_of_public(channel)?;
    let is_twin = expected.is_some_and(|(of, payload)| of == topic && payload == text);
    (!is_twin).then(|| PubSubMessage::Foreign { topic: topic.to_owned(), text })
}

/// Carries out commands in their order, those of one kind in a row together.
async fn execute(settings: &Settings, sink: &mut PubSubSink, batch: &mut Vec<Command>) -> Result<(), String> {
    let keys = settings.keys();
    let mut commands = batch.drain(..).peekable();
    while let Some(first) = commands.next() {
        match first {
            Command::Subscribe(topic, confirm) => {
                let mut wanted = vec![(topic, confirm)];
                while let Some(Command::Subscribe(..)) = commands.peek() {
                    if let Some(Command::Subscribe(topic, confirm)) = commands.next() {
                        wanted.push((topic, confirm));
                    }
                }
                subscribe(settings, sink, &keys, wanted).await?;
            }
            Command::Unsubscribe(topic) => {
                let mut channels = channels_of(&keys, &topic).to_vec();
                while let Some(Command::Unsubscribe(_)) = commands.peek() {
                    if let Some(Command::Unsubscribe(topic)) = commands.next() {
                        channels.extend(channels_of(&keys, &topic));
                    }
                }
                in_time(timeout(settings.response_timeout(), sink.unsubscribe(channels)).await)
                    .map_err(|failed| failed.to_string())?;
            }
        }
    }
    Ok(())
}

/// Subscribes to topics by one command. Where Redis refuses that, it does not say because of which topic: then each is asked
/// for alone, and only those that are refused alone are refused.
async fn subscribe(
    settings: &Settings,
    sink: &mut PubSubSink,
    keys: &Keys,
    wanted: Vec<(Topic, oneshot::Sender<Result<(), SubscribeError>>)>,
) -> Result<(), String> {
    let channels: Vec<String> = wanted.iter().flat_map(|(topic, _)| channels_of(keys, topic)).collect();
    let together = in_time(timeout(settings.response_timeout(), sink.subscribe(channels)).await);
    if let Err(Failed::Connection(reason)) = together {
        return Err(reason); // Dropping the senders says that the connection was lost.
    }
    for (topic, confirm) in wanted {
        let alone = match &together {
            Ok(()) => Ok(()),
            Err(_) => in_time(
                timeout(settings.response_timeout(), sink.subscribe(&channels_of(keys, &topic))).await,
            ),
        };
        let answer = match alone {
            Ok(()) => Ok(()),
            Err(Failed::Refused(reason)) => Err(SubscribeError::Refused(reason)),
            Err(Failed::Connection(reason)) => return Err(reason),
        };
        // Nobody waits any more where the topic was given up meanwhile.
        let _gone = confirm.send(answer);
    }
    Ok(())
}

fn channels_of(keys: &Keys, topic: &Topic) -> [String; 2] {
    [keys.live(topic), keys.public(topic)]
}

/// Why a command over the subscriber connection failed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// Redis answered: the connection works.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Connection(String),
}

fn in_time<T>(answer: Result<RedisResult<T>, tokio::time::error::Elapsed>) -> Result<T, Failed> {
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.code().is_some() => Err(Failed::Refused(said(&error))),
        Ok(Err(error)) => Err(Failed::Connection(said(&error))),
        Err(_elapsed) => Err(Failed::Connection("Redis did not answer in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> PubSubMessage {
        PubSubMessage::Foreign { topic: "t".to_owned(), text: "x".repeat(bytes) }
    }

    #[tokio::test]
    async fn what_waits_to_be_taken_is_bounded_in_bytes_and_in_messages() {
        let (sender, messages) = mpsc::channel(3);
        let bytes = Arc::new(AtomicUsize::new(0));
        let mut inbox = Inbox { messages, bytes: bytes.clone() };
        let sender = InboxSender { sender, bytes: bytes.clone() };
        assert!(sender.send(message(QUEUE_BYTES - 10)) && sender.send(message(10)));
        assert!(!sender.send(message(1)), "there is no room for another byte");
        assert!(inbox.next().await.is_some());
        assert!(sender.send(message(1)) && sender.send(message(1)));
        assert!(!sender.send(message(1)), "nor for another message");
        assert_eq!(bytes.load(Ordering::Relaxed), 12, "what was not taken in does not count");
    }
}
