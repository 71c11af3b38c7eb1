//! The blocks that wait for one connection, how they are written, and when that connection counts as slow. No
//! locks, no waking.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Write};

use bytes::{Buf, Bytes};
use tokio::time::{Duration, Instant};

use crate::sse::queue::byte_budget::ByteBudget;
use crate::sse::wire::frame::Block;
use crate::sse::wire::multi_topic::StreamCursors;

/// Blocks that one call writes together.
const TOGETHER: usize = 64;

/// Bytes that are written before other connections have their turn.
const TURN_BYTES: usize = 256 * 1024;

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

/// What a turn of writing has left.
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
        while turn < TURN_BYTES && !self.blocks.is_empty() {
            match self.write_once(socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.advance(written);
                    turn += written;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Rest::Blocked),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(if self.blocks.is_empty() { Rest::Nothing } else { Rest::More })
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
        // The kernel took something: what is left has only begun to wait.
        self.waiting_since = (!self.blocks.is_empty()).then(Instant::now);
    }

    /// Whether the stream ends here: nothing waits, and nothing more is accepted.
    pub(super) fn has_ended(&self) -> bool {
        self.is_ending && self.blocks.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that the kernel has taken in all.
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

    /// How long the kernel has taken nothing although a block waits; `None` if none does.
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

    /// A socket whose kernel has room for this many bytes.
    #[derive(Default)]
    struct Socket {
        room: usize,
        written: Vec<u8>,
        calls: usize,
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }

        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            let before = self.written.len();
            for slice in slices {
                let taken = slice.len().min(self.room);
                self.written.extend_from_slice(&slice[..taken]);
                self.room -= taken;
            }
            self.calls += 1;
            let written = self.written.len() - before;
            if written == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(written) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Writes with room for this many bytes; returns what was written and what is left.
    fn write(queue: &mut BlockQueue, room: usize) -> (Vec<u8>, Rest) {
        let mut socket = Socket { room, ..Socket::default() };
        let rest = queue.write_to(&mut socket).expect("a socket that works");
        (socket.written, rest)
    }

    #[test]
    fn all_that_waits_is_written_in_order_and_in_one_call() {
        let mut queue = queue(1_000_000);
        for block in ["a", "b", "c"] {
            assert_eq!(queue.put_bytes(block.into()), Put::Queued);
        }
        queue.begin("head".into());
        let mut socket = Socket { room: 100, ..Socket::default() };
        assert_eq!(queue.write_to(&mut socket).expect("a socket that works"), Rest::Nothing);
        assert_eq!((socket.written.as_slice(), socket.calls), (&b"headabc"[..], 1));
        assert_eq!((queue.bytes(), queue.taken_bytes()), (0, 7));
    }

    #[test]
    fn what_the_kernel_does_not_take_stays_to_the_byte() {
        let mut queue = queue(1_000_000);
        let blocks: Vec<String> = (0..200).map(|n| format!("block {n};")).collect();
        for block in &blocks {
            assert_eq!(queue.put_bytes(block.clone().into()), Put::Queued);
        }
        let (all, mut written) = (blocks.concat(), Vec::new());
        for room in (1..).map(|n| n % 97) {
            let (more, rest) = write(&mut queue, room);
            written.extend(more);
            assert_eq!(queue.bytes(), all.len() - written.len());
            if rest == Rest::Nothing {
                break;
            }
            assert_eq!(rest, Rest::Blocked);
        }
        assert_eq!(String::from_utf8(written).expect("a text"), all);
    }

    #[test]
    fn a_client_far_behind_leaves_others_their_turn() {
        // The kernel takes one call's bytes, and the client has read them by the next call.
        const CALLS: usize = 8;
        let mut queue = queue(10 * TURN_BYTES);
        for _ in 0..CALLS * TOGETHER {
            assert_eq!(queue.put_bytes(vec![b'x'; TURN_BYTES / TOGETHER].into()), Put::Queued);
        }
        for turn in 1..=CALLS {
            let (written, rest) = write(&mut queue, usize::MAX);
            assert_eq!(written.len(), TURN_BYTES);
            assert_eq!(rest, if turn < CALLS { Rest::More } else { Rest::Nothing });
        }
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
        assert_eq!(write(&mut queue, 1), (b"a".to_vec(), Rest::Blocked));
        assert!(!queue.has_ended());
        assert_eq!(write(&mut queue, 100), (b"z".to_vec(), Rest::Nothing));
        assert!(queue.has_ended());
    }

    #[test]
    fn a_connection_is_stuck_when_it_takes_nothing_while_a_block_waits() {
        let mut queue = queue(100_000);
        let long = Duration::from_secs(20);
        let begun = Instant::now();
        let is_stuck = |queue: &BlockQueue, at| queue.stuck(at).is_some_and(|stuck| stuck >= long);
        assert!(!is_stuck(&queue, begun + long * 2), "nothing waits");
        assert!(queue.is_quiet(begun + long, long), "made before that");
        queue.put_bytes("ab".into());
        assert!(!queue.is_quiet(begun + long, long));
        assert!(!queue.is_quiet(Instant::now() + long, long), "no heartbeat behind a block that waits");
        assert!(!is_stuck(&queue, begun + long / 2));
        assert!(is_stuck(&queue, Instant::now() + long));
        let before_the_write = Instant::now();
        assert_eq!(write(&mut queue, 1).1, Rest::Blocked);
        assert!(!is_stuck(&queue, before_the_write + long), "it took a byte meanwhile");
        assert!(is_stuck(&queue, Instant::now() + long));
        assert_eq!(write(&mut queue, 0).1, Rest::Blocked);
        assert_eq!(write(&mut queue, 1).1, Rest::Nothing);
        assert!(!is_stuck(&queue, Instant::now() + long), "nothing waits");
    }
}
