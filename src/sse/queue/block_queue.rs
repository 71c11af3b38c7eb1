//! The blocks that wait for one connection, and when that connection counts as slow. Pure: no locks, no
//! waking.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use tokio::time::{Duration, Instant};

use crate::sse::queue::byte_budget::ByteBudget;
use crate::sse::wire::frame::Block;
use crate::sse::wire::multi_topic::StreamCursors;

/// Small blocks that wait together are sent together, up to this many bytes.
const TOGETHER_BYTES: usize = 16 * 1024;

/// Bytes that a cursor and a reset may take, with the ids of as many topics as a stream may have.
pub(super) const SMALL_BYTES: usize = 4 * 1024;

/// Whether the queue has accepted a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    Queued,
    /// The stream is over.
    Gone,
    /// There was no room. The connection has been cut off; the client reconnects for the rest.
    CutOff,
}

/// The blocks of one connection, in order.
#[derive(Debug)]
pub(super) struct BlockQueue {
    /// Bytes that may wait. A larger block is accepted if no more than half of them are taken.
    limit: usize,
    /// The client's cursors, if the stream has several topics.
    cursors: Option<StreamCursors>,
    blocks: VecDeque<Bytes>,
    bytes: usize,
    taken_bytes: u64,
    /// No more blocks are accepted; the stream ends when the queue is empty.
    is_ending: bool,
    last_put: Instant,
    /// Since when the connection has taken nothing although a block waits.
    waiting_since: Option<Instant>,
}

impl BlockQueue {
    pub(super) fn new(limit: usize, cursors: Option<StreamCursors>) -> Self {
        Self {
            limit,
            cursors,
            blocks: VecDeque::new(),
            bytes: 0,
            taken_bytes: 0,
            is_ending: false,
            last_put: Instant::now(),
            waiting_since: None,
        }
    }

    /// Adds a block of the stream's topic with this number. `budget` counts the bytes that are made for this
    /// stream alone.
    pub(super) fn put(&mut self, topic: usize, block: &Block, budget: &ByteBudget) -> Put {
        let accepted = self.accept(block.is_event().then(|| block.len()));
        if accepted == Put::Queued {
            match &mut self.cursors {
                None => self.push(block.bytes.clone()),
                Some(cursors) => {
                    let (own, shared) = cursors.write(topic, block);
                    self.push(budget.hold(own));
                    self.push(shared);
                }
            }
        }
        accepted
    }

    /// Adds bytes that belong to no topic.
    pub(super) fn put_bytes(&mut self, bytes: Bytes) -> Put {
        let accepted = self.accept(Some(bytes.len()));
        if accepted == Put::Queued {
            self.push(bytes);
        }
        accepted
    }

    /// Decides about a block of this many bytes. Cursor-only blocks and resets (`None`) bypass the limit:
    /// each topic of a stream has one at its begin, before the client can have read anything, and behind an
    /// event as large as the queue it would have the client cut off again and again.
    fn accept(&mut self, bytes: Option<usize>) -> Put {
        if self.is_ending {
            return Put::Gone;
        }
        // While no more than half of the queue is taken any block is accepted, also behind a cursor and a
        // reset, so that a payload as large as the queue can be delivered. Otherwise its client would be cut
        // off for ever.
        let is_half_full = self.bytes > self.limit / 2 + SMALL_BYTES;
        if is_half_full && bytes.is_some_and(|bytes| self.bytes + bytes > self.limit) {
            return Put::CutOff;
        }
        let now = Instant::now();
        self.waiting_since.get_or_insert(now);
        self.last_put = now;
        Put::Queued
    }

    fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.blocks.push_back(bytes);
        }
    }

    /// Adds a last block, behind which the stream ends.
    pub(super) fn finish(&mut self, last: Bytes) {
        if !self.is_ending {
            self.push(last);
            self.waiting_since.get_or_insert_with(Instant::now);
            self.is_ending = true;
        }
    }

    /// Accepts no more blocks.
    pub(super) fn end(&mut self) {
        self.is_ending = true;
    }

    /// Accepts no more blocks and drops those that wait.
    pub(super) fn clear(&mut self) {
        self.is_ending = true;
        self.blocks.clear();
        self.bytes = 0;
    }

    /// Takes the first block, together with the blocks behind it as long as they are small.
    pub(super) fn take(&mut self, budget: &ByteBudget) -> Option<Bytes> {
        let first = self.blocks.pop_front()?;
        let taken = self.together_with(first, budget);
        self.bytes -= taken.len();
        self.taken_bytes += taken.len() as u64;
        // The connection took something: what is left has only begun to wait.
        self.waiting_since = (!self.blocks.is_empty()).then(Instant::now);
        Some(taken)
    }

    fn together_with(&mut self, first: Bytes, budget: &ByteBudget) -> Bytes {
        let fits = |size: usize, next: Option<&Bytes>| next.is_some_and(|b| size + b.len() <= TOGETHER_BYTES);
        if !fits(first.len(), self.blocks.front()) {
            return first;
        }
        let mut together = BytesMut::from(first.as_ref());
        while fits(together.len(), self.blocks.front()) {
            if let Some(next) = self.blocks.pop_front() {
                together.extend_from_slice(&next);
            }
        }
        budget.hold(together.freeze())
    }

    pub(super) fn is_ending(&self) -> bool {
        self.is_ending
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that the connection has taken in all.
    pub(super) fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// Whether this many bytes can be added with no more than half of the queue taken; for more bytes than
    /// that, whether next to nothing waits.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        let half = self.limit / 2;
        self.bytes <= half.saturating_sub(bytes).max(SMALL_BYTES.min(half))
    }

    /// Whether nothing was added for this long, and nothing waits.
    pub(super) fn is_quiet(&self, now: Instant, long: Duration) -> bool {
        self.blocks.is_empty() && now.saturating_duration_since(self.last_put) >= long
    }

    /// How long the connection has taken nothing although a block waits; `None` if none does.
    pub(super) fn stuck(&self, now: Instant) -> Option<Duration> {
        self.waiting_since.map(|since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(limit: usize) -> BlockQueue {
        BlockQueue::new(limit, None)
    }

    fn take(queue: &mut BlockQueue) -> Option<Bytes> {
        queue.take(&ByteBudget::default())
    }

    #[test]
    fn blocks_come_out_in_order_and_small_ones_together() {
        let mut queue = queue(1_000_000);
        for block in ["a", "b"] {
            assert_eq!(queue.put_bytes(block.into()), Put::Queued);
        }
        assert_eq!(queue.put_bytes(vec![b'c'; TOGETHER_BYTES].into()), Put::Queued);
        assert_eq!(queue.put_bytes("d".into()), Put::Queued);
        assert_eq!(take(&mut queue), Some("ab".into()));
        assert_eq!(take(&mut queue), Some(vec![b'c'; TOGETHER_BYTES].into()));
        assert_eq!(take(&mut queue), Some("d".into()));
        assert_eq!((take(&mut queue), queue.bytes(), queue.taken_bytes()), (None, 0, 16 * 1024 + 3));
    }

    #[test]
    fn a_block_as_large_as_the_queue_is_taken_behind_a_few_bytes() {
        let mut queue = queue(10_000);
        queue.put_bytes(vec![0; 5000].into());
        assert!(queue.has_room_for(0));
        queue.put_bytes(vec![0; SMALL_BYTES].into());
        assert_eq!(queue.put_bytes(vec![0; 10_000].into()), Put::Queued);
        assert_eq!(queue.put_bytes("x".into()), Put::CutOff);
    }

    #[test]
    fn there_is_room_for_bytes_that_fit_into_half_of_the_queue_and_for_more_once_it_is_next_to_empty() {
        let mut queue = queue(20_000);
        queue.put_bytes(vec![0; 4000].into());
        assert!(queue.has_room_for(6000) && queue.has_room_for(1_000_000));
        queue.put_bytes(vec![0; 1000].into());
        assert!(queue.has_room_for(5000) && !queue.has_room_for(6000) && !queue.has_room_for(1_000_000));
    }

    #[test]
    fn a_finished_queue_ends_after_the_blocks_that_wait() {
        let mut queue = queue(100);
        queue.put_bytes("a".into());
        queue.finish("z".into());
        assert_eq!(queue.put_bytes("late".into()), Put::Gone);
        assert_eq!(take(&mut queue), Some("az".into()));
        assert!(take(&mut queue).is_none() && queue.is_ending());
    }

    #[test]
    fn a_connection_is_stuck_when_it_takes_nothing_while_a_block_waits() {
        let mut queue = queue(100_000);
        let long = Duration::from_secs(20);
        let begun = Instant::now();
        let is_stuck = |queue: &BlockQueue, at| queue.stuck(at).is_some_and(|stuck| stuck >= long);
        assert!(!is_stuck(&queue, begun + long * 2), "nothing waits");
        assert!(queue.is_quiet(begun + long, long), "made before that");
        queue.put_bytes(vec![b'a'; TOGETHER_BYTES].into());
        queue.put_bytes("b".into());
        assert!(!queue.is_quiet(begun + long, long));
        assert!(!queue.is_quiet(Instant::now() + long, long), "no heartbeat behind a block that waits");
        assert!(!is_stuck(&queue, begun + long / 2));
        assert!(is_stuck(&queue, Instant::now() + long));
        let before_the_take = Instant::now();
        assert!(take(&mut queue).is_some());
        assert!(!is_stuck(&queue, before_the_take + long), "it took a block meanwhile");
        assert!(is_stuck(&queue, Instant::now() + long));
        assert!(take(&mut queue).is_some());
        assert!(!is_stuck(&queue, Instant::now() + long), "nothing waits");
    }
}
