//! Tests of the send queue, with a socket that takes as much as a test says.

use std::pin::pin;
use std::task::Poll;

use futures_util::poll;

use super::super::ready_list::ReadyList;
use super::*;

fn queue(queued_bytes: usize) -> SendQueue {
    SendQueue::new(1, SendLimits { queued_bytes, expires_at: None }, None, CancellationToken::new())
}

/// Reads everything that waits.
fn read(queue: &SendQueue) -> Vec<u8> {
    let mut read = Vec::new();
    queue.write_to(&mut read);
    read
}

/// An outlet, and its list.
fn outlet() -> (ReadyHandle, Arc<ReadyList>) {
    let list = Arc::new(ReadyList::new(Box::new(|| Ok(()))));
    (ReadyHandle { list: list.clone(), token: 7 }, list)
}

fn tokens(list: &ReadyList) -> Vec<usize> {
    let mut taken = Vec::new();
    list.take(&mut taken);
    taken
}

/// A socket whose kernel has no room.
struct Full;

impl io::Write for Full {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_thread_is_told_once_and_not_while_the_kernel_has_no_room() {
    let (queue, (outlet, list)) = (queue(10_000), outlet());
    queue.put_bytes("a".into());
    queue.attach(outlet, "head".into());
    queue.put_bytes("b".into());
    assert_eq!(tokens(&list), [7]);
    assert_eq!(queue.write_to(&mut Full), Written::Open(Rest::Blocked));
    queue.put_bytes("c".into());
    assert_eq!(tokens(&list), [0; 0], "there is nothing that it could do");
    assert_eq!(read(&queue), b"headabc");
    queue.put_bytes("d".into());
    assert_eq!(tokens(&list), [7]);
    assert_eq!(queue.write_to(&mut Full), Written::Open(Rest::Blocked));
    queue.cut_off();
    assert_eq!(tokens(&list), [7], "also while the kernel has no room");
    assert_eq!(queue.write_to(&mut Vec::new()), Written::Broken);
    queue.detach();
    queue.cut_off();
    assert_eq!(tokens(&list), [0; 0]);
}

#[test]
fn a_finished_stream_has_ended_when_all_of_it_is_written() {
    let (queue, (outlet, list)) = (queue(10_000), outlet());
    queue.attach(outlet, "head".into());
    queue.finish("end".into());
    assert_eq!(queue.write_to(&mut Full), Written::Open(Rest::Blocked));
    let mut written = Vec::new();
    assert_eq!((queue.write_to(&mut written), written.as_slice()), (Written::Ended, &b"headend"[..]));
    assert_eq!(tokens(&list), [7]);
}

#[tokio::test]
async fn a_client_that_leaves_too_much_unread_is_cut_off() {
    let queue = queue(10_000);
    let large = vec![0; 100_000];
    assert_eq!(queue.put_bytes(large.into()), Put::Queued, "any block is accepted by an empty queue");
    assert_eq!(queue.put_bytes("x".into()), Put::CutOff);
    assert!(queue.connection.is_cancelled() && queue.was_slow() && poll!(pin!(queue.closed())).is_ready());
    assert_eq!(queue.put_bytes("x".into()), Put::Gone);
    assert_eq!(read(&queue), b"");
}

#[tokio::test]
async fn the_tasks_that_feed_a_stream_are_told_when_nobody_reads_it_any_more() {
    let queue = queue(10_000);
    let mut closed = pin!(queue.closed());
    assert!(poll!(&mut closed).is_pending());
    queue.close();
    assert!(poll!(&mut closed).is_ready());
}

#[tokio::test]
async fn topics_of_a_stream_use_its_room_one_after_the_other_in_the_order_in_which_they_ask() {
    let queue = queue(20_000);
    let first = queue.room_for(0).await;
    let (mut second, mut third) = (pin!(queue.room_for(0)), pin!(queue.room_for(0)));
    assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
    queue.put_bytes(vec![0; 15_000].into());
    drop(first);
    assert!(poll!(&mut second).is_pending(), "nobody has read anything yet");
    assert_eq!(read(&queue).len(), 15_000);
    let Poll::Ready(used) = poll!(&mut second) else { panic!("there is room now") };
    assert!(poll!(&mut third).is_pending(), "the second topic is about to use it");
    drop(used);
    assert!(poll!(&mut third).is_ready());
}

/// Its half is less than a cursor may take.
#[tokio::test]
async fn room_in_a_small_queue_is_told_as_in_a_large_one() {
    let queue = queue(2000);
    queue.put_bytes(vec![0; 1500].into());
    let mut room = pin!(queue.room_for(0));
    assert!(poll!(&mut room).is_pending());
    read(&queue);
    assert!(poll!(&mut room).is_ready());
}

#[tokio::test]
async fn whoever_waits_for_the_queue_to_fill_is_told_once_more_than_half_of_it_is_taken() {
    let queue = queue(10_000);
    let mut filled = pin!(queue.wait_until_half_full());
    queue.put_bytes(vec![0; 5000].into());
    assert!(poll!(&mut filled).is_pending());
    queue.put_bytes("x".into());
    assert!(poll!(&mut filled).is_ready());
}
