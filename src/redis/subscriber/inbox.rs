//! The messages that have been read from Redis and not yet processed: bounded in number and in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::event::Topic;

/// Messages that may wait. Beyond this the connection is given up and every topic is joined anew.
const QUEUE_MESSAGES: usize = 65_536;
/// The same in bytes of text.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// A message from the subscriber connection.
#[derive(Debug)]
pub enum PubSubMessage {
    /// An envelope on a topic's live channel.
    Envelope {
        /// The topic.
        topic: String,
        /// The envelope's text.
        text: String,
    },
    /// A message that another program published on a topic's public channel.
    Foreign {
        /// The topic.
        topic: String,
        /// The message; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// A bare payload that came alone from a cluster: of another program, or of an event whose envelope went
    /// another way, because the slot of its topic is moving.
    Bare {
        /// The topic.
        topic: String,
        /// The message; bytes that are not UTF-8 are replaced.
        text: String,
    },
    /// The connection ended: no topic is subscribed any more, and messages may have been missed.
    Interrupted,
    /// The same for some topics: their server is gone, or their slots have moved.
    Moved(Vec<Topic>),
}

impl PubSubMessage {
    fn bytes(&self) -> usize {
        match self {
            Self::Envelope { text, .. } | Self::Foreign { text, .. } | Self::Bare { text, .. } => text.len(),
            Self::Interrupted | Self::Moved(_) => 0,
        }
    }
}

/// The receiving end. Messages arrive in the order in which Redis sent them.
#[derive(Debug)]
pub struct Inbox {
    messages: mpsc::Receiver<PubSubMessage>,
    bytes: Arc<AtomicUsize>,
}

impl Inbox {
    /// Returns the next message, or `None` when the subscriber has been stopped.
    pub async fn next(&mut self) -> Option<PubSubMessage> {
        let message = self.messages.recv().await?;
        self.bytes.fetch_sub(message.bytes(), Ordering::Relaxed);
        Some(message)
    }
}

/// The sending end, held by the reader of the connection.
#[derive(Debug, Clone)]
pub(super) struct InboxSender {
    messages: mpsc::Sender<PubSubMessage>,
    bytes: Arc<AtomicUsize>,
}

impl InboxSender {
    /// Adds a message without waiting. Returns false if there is no room: no later message may be added then.
    pub(super) fn push(&self, message: PubSubMessage) -> bool {
        let bytes = message.bytes();
        if self.bytes.load(Ordering::Relaxed) + bytes > QUEUE_BYTES {
            return false;
        }
        // Count before sending: the receiver may take the message before the next line runs.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_sent = self.messages.try_send(message).is_ok();
        if !is_sent {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_sent
    }

    /// Reports that topics are not subscribed any more. Waits as [`InboxSender::interrupted`] does.
    pub(super) async fn moved(&self, topics: Vec<Topic>) -> bool {
        self.messages.send(PubSubMessage::Moved(topics)).await.is_ok()
    }

    /// Reports the end of a connection. Waits for room, because this message must not be lost. Returns false
    /// if nobody receives any more.
    pub(super) async fn interrupted(&self) -> bool {
        self.messages.send(PubSubMessage::Interrupted).await.is_ok()
    }
}

/// Makes an empty inbox.
pub(super) fn channel() -> (InboxSender, Inbox) {
    channel_of(QUEUE_MESSAGES)
}

fn channel_of(capacity: usize) -> (InboxSender, Inbox) {
    let (sender, receiver) = mpsc::channel(capacity);
    let bytes = Arc::new(AtomicUsize::new(0));
    (InboxSender { messages: sender, bytes: bytes.clone() }, Inbox { messages: receiver, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> PubSubMessage {
        PubSubMessage::Foreign { topic: "t".to_owned(), text: "x".repeat(bytes) }
    }

    #[tokio::test]
    async fn the_inbox_is_bounded_in_bytes_and_in_messages() {
        let (sender, mut inbox) = channel_of(3);
        assert!(sender.push(message(QUEUE_BYTES - 10)) && sender.push(message(10)));
        assert!(!sender.push(message(1)), "there is no room for another byte");
        assert!(inbox.next().await.is_some());
        assert!(sender.push(message(1)) && sender.push(message(1)));
        assert!(!sender.push(message(1)), "nor for another message");
        assert_eq!(inbox.bytes.load(Ordering::Relaxed), 12, "a rejected message does not count");
    }
}
