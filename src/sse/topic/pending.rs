//! The messages of a topic that is joining: kept until the history has been read, within limits of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::event::StreamId;
use crate::sse::wire::frame::{Block, Frame};

/// Bytes that may wait for one topic, and for all topics together.
const OF_A_TOPIC: usize = 4 * 1024 * 1024;
const OF_ALL: usize = 64 * 1024 * 1024;

/// A message on one of a topic's channels.
#[derive(Debug, Clone)]
pub(crate) enum TopicMessage {
    /// An event, with the id of the topic's event before it. `is_restored`: Redis had forgotten it.
    Event { prev: Option<StreamId>, is_restored: bool, frame: Frame },
    /// A message of another program: it has no place in the order.
    Foreign(Block),
}

impl TopicMessage {
    /// The id of an event.
    pub(crate) fn id(&self) -> Option<StreamId> {
        match self {
            Self::Event { frame, .. } => Some(frame.id),
            Self::Foreign(_) => None,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Event { frame, .. } => frame.block.len(),
            Self::Foreign(block) => block.len(),
        }
    }
}

/// Messages in the order in which they came.
#[derive(Debug)]
pub(crate) struct PendingMessages {
    messages: Vec<TopicMessage>,
    bytes: usize,
    /// Bytes that wait for all topics of the process.
    all_bytes: Arc<AtomicUsize>,
}

impl PendingMessages {
    /// Nothing yet.
    pub(crate) fn new(all_bytes: Arc<AtomicUsize>) -> Self {
        Self { messages: Vec::new(), bytes: 0, all_bytes }
    }

    /// Keeps a message. Returns false if there is no room: all messages are dropped, and the history has to
    /// be read again.
    pub(crate) fn push(&mut self, message: TopicMessage) -> bool {
        let bytes = message.bytes();
        let of_all = self.all_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bytes += bytes;
        self.messages.push(message);
        let fits = self.bytes <= OF_A_TOPIC && of_all <= OF_ALL;
        if !fits {
            drop(self.take());
        }
        fits
    }

    /// How many messages wait.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Takes all messages out.
    pub(crate) fn take(&mut self) -> Vec<TopicMessage> {
        self.all_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
        std::mem::take(&mut self.messages)
    }
}

impl Drop for PendingMessages {
    fn drop(&mut self) {
        drop(self.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::wire::frame;

    fn message(bytes: usize) -> TopicMessage {
        TopicMessage::Foreign(frame::foreign(&"x".repeat(bytes)))
    }

    #[test]
    fn a_topic_keeps_so_much_and_all_topics_together_so_much() {
        let all_bytes = Arc::new(AtomicUsize::new(0));
        let mut one = PendingMessages::new(all_bytes.clone());
        assert!(one.push(message(10)) && !one.push(message(OF_A_TOPIC)));
        assert_eq!((one.take().len(), all_bytes.load(Ordering::Relaxed)), (0, 0));

        let mut others: Vec<PendingMessages> =
            (0..OF_ALL / OF_A_TOPIC + 1).map(|_| PendingMessages::new(all_bytes.clone())).collect();
        let kept = others
            .iter_mut()
            .filter_map(|pending| pending.push(message(OF_A_TOPIC - 100)).then_some(()))
            .count();
        assert_eq!(kept, OF_ALL / OF_A_TOPIC);
        drop(others);
        assert_eq!(all_bytes.load(Ordering::Relaxed), 0);
    }
}
