//! What is heard of a topic while it is joining: kept until the history has been read, within limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::event::StreamId;
use crate::sse::wire::frame::{Block, Frame};

/// What may wait for one topic, and for all topics together, in bytes.
const OF_A_TOPIC: usize = 4 * 1024 * 1024;
const OF_ALL: usize = 64 * 1024 * 1024;

/// Something heard on a topic's channels.
#[derive(Debug, Clone)]
pub(crate) enum TopicMessage {
    /// An event, with the id of the topic's event before it. Redis had forgotten one that is restored.
    Event { prev: Option<StreamId>, is_restored: bool, frame: Frame },
    /// A message of somebody else's: no place in the order, told as it comes.
    Foreign(Block),
}

impl TopicMessage {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Event { frame, .. } => frame.block.len(),
            Self::Foreign(block) => block.len(),
        }
    }
}

/// Messages in the order in which they were heard.
#[derive(Debug)]
pub(crate) struct PendingMessages {
    messages: Vec<TopicMessage>,
    bytes: usize,
    /// What all topics of the process keep.
    all_bytes: Arc<AtomicUsize>,
}

impl PendingMessages {
    /// Nothing yet.
    pub(crate) fn new(all_bytes: Arc<AtomicUsize>) -> Self {
        Self { messages: Vec::new(), bytes: 0, all_bytes }
    }

    /// Keeps a message. False if there is no room for it: then nothing is kept, and the history has to be read again.
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

    /// All of it; nothing is kept any more.
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
