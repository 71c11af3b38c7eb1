//! The events of a client that wants only the newest ones while it is behind: one of each topic and type waits,
//! and the older ones are dropped and counted. Never changes the order.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::event::Topic;

/// The topic's number in the stream, and the hash of the event's type.
pub(super) type Key = (usize, u64);

/// A block that waits until the kernel has taken all blocks before it.
#[derive(Debug)]
pub(super) struct ReplaceableBlock {
    /// The event's key; `None` for a block that is never dropped.
    pub(super) key: Option<Key>,
    /// The beginning that is the client's own, and the text that all clients share.
    pub(super) parts: [Bytes; 2],
    /// Older events in whose place it stands.
    pub(super) skipped: u64,
}

impl ReplaceableBlock {
    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

/// The blocks of a client that is behind.
#[derive(Debug)]
pub(super) struct Newest {
    /// The stream's topics, by number.
    topics: Arc<[Topic]>,
    /// Whether an event reports the dropped events; otherwise a comment does.
    tells: bool,
    held: VecDeque<ReplaceableBlock>,
    /// The kernel had no room at the last write.
    kernel_is_full: bool,
}

impl Newest {
    pub(super) fn new(topics: Arc<[Topic]>, tells: bool) -> Self {
        Self { topics, tells, held: VecDeque::new(), kernel_is_full: false }
    }

    /// Whether the client does not keep up. While it does, it gets every event.
    pub(super) fn is_behind(&self) -> bool {
        self.kernel_is_full || !self.held.is_empty()
    }

    pub(super) fn set_kernel_is_full(&mut self, is_full: bool) {
        self.kernel_is_full = is_full;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Drops the older event of this key, if it waits. Returns the number of events that the newer one
    /// replaces by now, and the bytes of the event that was dropped just now.
    pub(super) fn drop_older(&mut self, key: Key) -> (u64, usize) {
        let older = self.held.iter().position(|held| held.key == Some(key));
        match older.and_then(|at| self.held.remove(at)) {
            Some(older) => (older.skipped + 1, older.bytes()),
            None => (0, 0),
        }
    }

    pub(super) fn hold(&mut self, held: ReplaceableBlock) {
        self.held.push_back(held);
    }

    /// Takes the next block out, in three parts: the report of dropped events (empty if there are none), and
    /// the block's own two parts.
    pub(super) fn next(&mut self) -> Option<[Bytes; 3]> {
        let ReplaceableBlock { key, parts: [own, shared], skipped } = self.held.pop_front()?;
        if self.held.is_empty() {
            self.held = VecDeque::new();
        }
        let topic = key.and_then(|(topic, _)| self.topics.get(topic));
        let about = match topic.filter(|_| skipped > 0) {
            None => String::new(),
            Some(topic) if self.tells => {
                format!("event: skipped\ndata: {{\"count\":{skipped},\"topic\":\"{topic}\"}}\n\n")
            }
            // A comment within the event's own block.
            Some(_) => format!(": skipped {skipped}\n"),
        };
        Some([about.into(), own, shared])
    }

    pub(super) fn clear(&mut self) {
        self.held.clear();
    }
}
