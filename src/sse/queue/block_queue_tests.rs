//! The blocks of one connection: order, limits, turns, and the newest events of a client that is behind.

use super::*;
use crate::event::{EventType, StreamId};
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::{self, Frame};
use crate::sse::wire::naming::Naming;

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

fn event(seq: u64, kind: &str) -> Block {
    let (id, kind) = (StreamId::new(1, seq), EventType::new(kind).expect("a type"));
    Frame::of_event(id, &kind, &seq.to_string(), Naming::OfType).block
}

fn newest(tells: bool) -> BlockQueue {
    let mut queue = queue(10_000);
    queue.keep_newest(Arc::from([Topic::new("t").expect("a topic")]), tells);
    queue
}

/// What a client reads that has room for a few bytes at a time.
fn read_slowly(queue: &mut BlockQueue) -> String {
    let mut read = Vec::new();
    loop {
        let (more, rest) = write(queue, 7);
        read.extend(more);
        if rest == Rest::Nothing {
            return String::from_utf8(read).expect("a text");
        }
    }
}

#[test]
fn a_client_that_keeps_up_gets_every_event_also_if_it_wants_the_newest_only() {
    let mut queue = newest(false);
    for seq in 1..=3 {
        assert_eq!(queue.put(0, &event(seq, "T"), &ByteBudget::default()), Put::Queued);
    }
    let read = read_slowly(&mut queue);
    assert_eq!(read.matches("event: T").count(), 3, "{read}");
    assert!(!read.contains("skipped"));
}

#[test]
fn a_client_that_is_behind_gets_the_newest_event_of_each_type_in_order_and_the_number_of_the_others() {
    for tells in [false, true] {
        let mut queue = newest(tells);
        let budget = ByteBudget::default();
        queue.put(0, &event(1, "A"), &budget);
        assert_eq!(write(&mut queue, 3).1, Rest::Blocked, "in the middle of the first event");
        for (seq, kind) in [(2, "A"), (3, "B"), (4, "A"), (5, "A"), (6, "B"), (7, "C")] {
            assert_eq!(queue.put(0, &event(seq, kind), &budget), Put::Queued);
        }
        let one = event(1, "A").len();
        assert_eq!(queue.bytes(), 4 * one - 3, "one event of each type, and the one that is under way");
        queue.put_bytes(":\n\n".into());
        queue.finish("end".into());
        let about = |count| match tells {
            true => format!("event: skipped\ndata: {{\"count\":{count},\"topic\":\"t\"}}\n\n"),
            false => format!(": skipped {count}\n"),
        };
        let text = |seq, kind| String::from_utf8_lossy(&event(seq, kind).bytes).into_owned();
        let expected = [
            text(1, "A")[3..].to_owned(),
            ":\n\n".to_owned(),
            about(2),
            text(5, "A"),
            about(1),
            text(6, "B"),
            text(7, "C"),
            "end".to_owned(),
        ];
        assert_eq!(read_slowly(&mut queue), expected.concat());
        assert_eq!((queue.bytes(), queue.has_ended()), (0, true));
    }
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
fn cursors_of_a_client_that_does_not_read_have_an_end() {
    let mut queue = queue(10_000);
    let cursor = frame::cursor(Cursor::After(StreamId::new(1, 1)));
    let budget = ByteBudget::new(usize::MAX);
    let put = (0..OVER_LIMIT_MAX).find(|_| queue.put(0, &cursor, &budget) == Put::CutOff);
    let waiting = put.expect("an end") * cursor.len();
    assert!(waiting <= 10_000 + OVER_LIMIT_MAX + cursor.len(), "{waiting}");
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
