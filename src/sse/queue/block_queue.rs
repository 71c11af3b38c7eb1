//! The blocks that wait for one connection, how they are written, and when that connection counts as slow. No
//! locks, no waking.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::time::{Duration, Instant};

use super::newest::{Newest, ReplaceableBlock};
use crate::event::{PAYLOAD_BYTES_MAX, Topic};
use crate::sse::queue::byte_budget::ByteBudget;
use crate::sse::wire::frame::Block;
use crate::sse::wire::multi_topic::StreamCursors;

/// Blocks that one call writes together.
const TOGETHER: usize = 64;

/// Bytes that are written before other connections have their turn.
const TURN_BYTES: usize = 256 * 1024;

/// Bytes that may wait beyond the limit: the largest event, as lines of text, and the cursors after it.
const OVER_LIMIT_MAX: usize = 8 * PAYLOAD_BYTES_MAX;

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

/// The state of a queue after a turn of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    Nothing,
    /// The kernel has no room. It tells when it has.
    Blocked,
    /// There may be room, and others are next.
    More,
}

/// The blocks of one connection, in order.
#[derive(Debug)]
pub(super) struct BlockQueue {
    /// Bytes that may wait. A larger block is accepted if no more than half of them are taken.
    limit: usize,
    /// The client's cursors, if the stream has several topics.
    cursors: Option<Box<StreamCursors>>,
    /// The client wants only the newest events while it is behind: those wait here, after all blocks.
    newest: Option<Box<Newest>>,
    blocks: VecDeque<Bytes>,
    bytes: usize,
    taken_bytes: u64,
    /// No more blocks are accepted; the stream ends when the queue is empty.
    is_ending: bool,
    last_put: Instant,
    /// Since when the kernel has taken nothing although a block waits.
    waiting_since: Option<Instant>,
}

impl BlockQueue {
    pub(super) fn new(limit: usize, cursors: Option<StreamCursors>) -> Self {
        Self {
            limit,
            cursors: cursors.map(Box::new),
            newest: None,
            blocks: VecDeque::new(),
            bytes: 0,
            taken_bytes: 0,
            is_ending: false,
            last_put: Instant::now(),
            waiting_since: None,
        }
    }

    /// Keeps only the newest event of each topic and type while the client is behind. With `tells` the page
    /// is told of the others by an event.
    pub(super) fn keep_newest(&mut self, topics: Arc<[Topic]>, tells: bool) {
        self.newest = Some(Box::new(Newest::new(topics, tells)));
    }

    pub(super) fn keeps_newest(&self) -> bool {
        self.newest.is_some()
    }

    /// Adds a block of the stream's topic with this number. `budget` counts the bytes that are made for this
    /// stream alone.
    pub(super) fn put(&mut self, topic: usize, block: &Block, budget: &ByteBudget) -> Put {
        let key = block.type_hash().map(|type_hash| (topic, type_hash));
        let behind = self.newest.as_mut().filter(|newest| newest.is_behind());
        let (skipped, dropped) = behind.zip(key).map_or((0, 0), |(newest, key)| newest.drop_older(key));
        self.bytes -= dropped;
        let accepted = self.accept(block.is_event().then(|| block.len()));
        if accepted == Put::Queued {
            let (own, shared) = match &mut self.cursors {
                None => (Bytes::new(), block.bytes.clone()),
                Some(cursors) => cursors.write(topic, block),
            };
            self.add(ReplaceableBlock { key, parts: [budget.hold(own), shared], skipped });
        }
        accepted
    }

    /// Adds a block after all others.
    fn add(&mut self, held: ReplaceableBlock) {
        match self.newest.as_mut().filter(|newest| newest.is_behind()) {
            Some(newest) => {
                self.bytes += held.bytes();
                newest.hold(held);
            }
            None => held.parts.into_iter().for_each(|part| self.push(part)),
        }
    }

    /// Adds bytes that belong to no topic.
    pub(super) fn put_bytes(&mut self, bytes: Bytes) -> Put {
        let accepted = self.accept(Some(bytes.len()));
        if accepted == Put::Queued {
            self.push(bytes);
        }
        accepted
    }

    /// Decides about a block of this many bytes. Cursor-only blocks and resets (`None`) bypass the limit.
    /// Each topic of a stream begins with such a block, before the client can have read anything. After an
    /// event as large as the queue, such a block would cut the client off again and again.
    fn accept(&mut self, bytes: Option<usize>) -> Put {
        if self.is_ending {
            return Put::Gone;
        }
        // While no more than half of the queue is taken any block is accepted, also after a cursor and a
        // reset, so that a payload as large as the queue can be delivered. Otherwise its client would be cut
        // off for ever.
        let is_half_full = self.bytes > self.limit / 2 + SMALL_BYTES;
        // A client that skips events and reads next to nothing would gather cursors without end.
        let is_flooded = self.bytes > self.limit.saturating_add(OVER_LIMIT_MAX);
        if is_flooded || is_half_full && bytes.is_some_and(|bytes| self.bytes + bytes > self.limit) {
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

    /// Adds a last block, after which the stream ends.
    pub(super) fn finish(&mut self, last: Bytes) -> bool {
        let is_first = !self.is_ending;
        if is_first {
            self.add(ReplaceableBlock { key: None, parts: [Bytes::new(), last], skipped: 0 });
            self.waiting_since.get_or_insert_with(Instant::now);
            self.is_ending = true;
        }
        is_first
    }

    /// Accepts no more blocks.
    pub(super) fn end(&mut self) {
        self.is_ending = true;
    }

    /// Accepts no more blocks and drops those that wait.
    pub(super) fn clear(&mut self) {
        self.is_ending = true;
        self.blocks.clear();
        self.newest.iter_mut().for_each(|newest| newest.clear());
        self.bytes = 0;
    }

    /// Puts the head of the response before all blocks.
    pub(super) fn begin(&mut self, head: Bytes) {
        self.bytes += head.len();
        self.blocks.push_front(head);
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    /// Writes blocks as long as the socket takes them and the turn lasts, in as few calls as possible.
    ///
    /// # Errors
    /// The socket's own: it cannot be used any more.
    pub(super) fn write_to(&mut self, socket: &mut impl Write) -> io::Result<Rest> {
        let mut turn = 0;
        while turn < TURN_BYTES && !self.is_empty() {
            self.take_held();
            match self.write_once(socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.advance(written);
                    turn += written;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.set_kernel_is_full(true);
                    return Ok(Rest::Blocked);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.set_kernel_is_full(false);
        Ok(if self.is_empty() { Rest::Nothing } else { Rest::More })
    }

    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.newest.as_ref().is_none_or(|newest| newest.is_empty())
    }

    fn set_kernel_is_full(&mut self, is_full: bool) {
        if let Some(newest) = &mut self.newest {
            newest.set_kernel_is_full(is_full);
        }
    }

    /// Moves one held block to the blocks to write, once the kernel has taken all blocks before it. Only one:
    /// until the kernel has taken it, newer events can still replace the others.
    fn take_held(&mut self) {
        if self.blocks.is_empty()
            && let Some(held) = self.newest.as_mut().and_then(|newest| newest.next())
        {
            // The line about dropped events was not counted yet, the rest was.
            let [about, own, shared] = held;
            self.bytes -= own.len() + shared.len();
            [about, own, shared].into_iter().for_each(|part| self.push(part));
        }
    }

    fn write_once(&self, socket: &mut impl Write) -> io::Result<usize> {
        if self.blocks.len() == 1
            && let Some(only) = self.blocks.front()
        {
            return socket.write(only);
        }
        let mut slices = [IoSlice::new(&[]); TOGETHER];
        let count = self.blocks.len().min(TOGETHER);
        for (slice, block) in slices.iter_mut().zip(&self.blocks) {
            *slice = IoSlice::new(block);
        }
        socket.write_vectored(&slices[..count])
    }

    /// Drops bytes that the kernel has taken.
    fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.taken_bytes += written as u64;
        let mut left = written;
        while let Some(first) = self.blocks.front_mut() {
            if first.len() > left {
                first.advance(left);
                break;
            }
            left -= first.len();
            self.blocks.pop_front();
        }
        if self.blocks.is_empty() {
            // Most streams are idle most of the time: they keep no room.
            self.blocks = VecDeque::new();
        }
        // The kernel took something, so the remaining bytes have only begun to wait.
        self.waiting_since = (!self.is_empty()).then(Instant::now);
    }

    /// Whether the stream ends here: nothing waits, and nothing more is accepted.
    pub(super) fn has_ended(&self) -> bool {
        self.is_ending && self.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that the kernel has taken in all.
    pub(super) fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// Whether the queue stays at most half full with this many more bytes. More bytes than half of the queue
    /// have room if next to nothing waits.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.has_little() || self.bytes <= (self.limit / 2).saturating_sub(bytes)
    }

    /// Whether next to nothing waits: there is room for any number of bytes.
    pub(super) fn has_little(&self) -> bool {
        self.bytes <= SMALL_BYTES.min(self.limit / 2)
    }

    /// Whether nothing was added for this long, and nothing waits.
    pub(super) fn is_quiet(&self, now: Instant, long: Duration) -> bool {
        self.is_empty() && now.saturating_duration_since(self.last_put) >= long
    }

    /// How long the kernel has taken nothing although a block waits; `None` if none does.
    pub(super) fn stuck(&self, now: Instant) -> Option<Duration> {
        self.waiting_since.map(|since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
#[path = "block_queue_tests.rs"]
mod tests;
