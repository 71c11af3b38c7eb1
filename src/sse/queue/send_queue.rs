//! One connection's queue: bounded in bytes, filled by fan-out, emptied by the connection.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::budget::Held;
use super::flight::Flight;
use crate::sse::wire::frame::Block;
use crate::sse::wire::multi_topic::Lanes;

/// Small blocks that wait together are sent together, up to this many bytes.
const TOGETHER_BYTES: usize = 16 * 1024;

/// What a client's place and a reset may take, with the ids of as many topics as there may be.
const SMALL_BYTES: usize = 4 * 1024;

/// What an outlet may hold, and for how long it may live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Bytes that may wait to be taken.
    pub(crate) queued_bytes: usize,
    /// When the stream ends because its token does.
    pub(crate) expires_at: Option<Instant>,
}

/// The sending side of one stream.
#[derive(Debug)]
pub(crate) struct Outlet {
    number: u64,
    terms: Terms,
    /// Counts what was made for this stream alone.
    held: Held,
    flight: Flight,
    queue: Mutex<Queue>,
    /// Told whenever the queue falls to half of what it may hold.
    room: Notify,
    /// Told whenever something is queued while it holds more than that.
    filling: Notify,
    /// Held by whoever waits for room and then uses it, so that the topics of a stream do not count on the same room.
    turn: tokio::sync::Mutex<()>,
    /// Ends the connection, whatever it is in the middle of.
    connection: CancellationToken,
    /// Cancelled when the stream is over, for whatever reason.
    gone: CancellationToken,
}

#[derive(Debug)]
struct Queue {
    /// Where the stream has several topics.
    lanes: Option<Lanes>,
    blocks: VecDeque<Bytes>,
    bytes: usize,
    /// What the connection has taken in all, in bytes.
    taken_bytes: u64,
    waker: Option<Waker>,
    /// Nothing more is taken in; the stream ends when the queue is empty.
    ending: bool,
    /// It was cut off because the client did not keep up.
    was_slow: bool,
    last_put: Instant,
    /// Since when the connection has taken nothing although something waits.
    waiting_since: Option<Instant>,
}

/// What became of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    Queued,
    /// The stream is over.
    Gone,
    /// There was no room; the connection has been cut off, and comes back for the rest.
    CutOff,
}

/// How one stream fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) queued_bytes: usize,
    pub(crate) taken_bytes: u64,
    /// What has been taken from the queue and has not been sent.
    pub(crate) unsent_bytes: usize,
    /// How long the connection has taken nothing although something waits.
    pub(crate) stuck: Duration,
    /// How long nothing of that has been sent.
    pub(crate) unsent_for: Duration,
}

impl Load {
    /// How much of the server's memory waits for this client, and for how long none of it has moved.
    pub(crate) fn weight(&self) -> (Duration, usize) {
        (self.stuck.max(self.unsent_for), self.queued_bytes + self.unsent_bytes)
    }
}

/// One topic's way into a stream.
#[derive(Debug, Clone)]
pub(crate) struct Lane {
    pub(crate) outlet: Arc<Outlet>,
    /// Which of the stream's topics it is.
    pub(crate) at: usize,
}

impl Lane {
    pub(crate) fn number(&self) -> u64 {
        self.outlet.number()
    }

    /// Queues a block of the topic. Never waits.
    pub(crate) fn put(&self, block: &Block) -> Put {
        self.outlet.put(self.at, block)
    }
}

impl Outlet {
    pub(crate) fn new(
        number: u64,
        terms: Terms,
        lanes: Option<Lanes>,
        connection: CancellationToken,
    ) -> Self {
        let queue = Queue {
            lanes,
            blocks: VecDeque::new(),
            bytes: 0,
            taken_bytes: 0,
            waker: None,
            ending: false,
            was_slow: false,
            last_put: Instant::now(),
            waiting_since: None,
        };
        Self {
            number,
            terms,
            held: Held::default(),
            flight: Flight::default(),
            queue: Mutex::new(queue),
            room: Notify::new(),
            filling: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
            connection,
            gone: CancellationToken::new(),
        }
    }

    /// Counts what is made for this stream alone in the account of all streams.
    #[must_use]
    pub(crate) fn counted_in(self, held: Held) -> Self {
        Self { held, ..self }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a block of the topic in this lane. Never waits.
    fn put(&self, lane: usize, block: &Block) -> Put {
        self.take_in(block.is_event().then(|| block.len()), |queue| match &mut queue.lanes {
            None => queue.push(block.bytes.clone()),
            Some(lanes) => {
                let (own, shared) = lanes.write(lane, block);
                queue.push(self.held.hold(own));
                queue.push(shared);
            }
        })
    }

    /// Queues what belongs to no topic. Never waits.
    pub(crate) fn put_bytes(&self, bytes: Bytes) -> Put {
        self.take_in(Some(bytes.len()), |queue| queue.push(bytes))
    }

    /// Takes in what has so many bytes, or, with `None`, what only tells a place. That finds room always: each topic of a
    /// stream has one to tell at its begin, before the client can have read anything, and behind an event as large as the
    /// queue it would have the client cut off again and again.
    fn take_in(&self, bytes: Option<usize>, push: impl FnOnce(&mut Queue)) -> Put {
        let mut queue = self.queue();
        if queue.ending {
            return Put::Gone;
        }
        // While no more than half of the queue waits any block is taken, also behind a place and a reset, so that a payload
        // as large as the queue can be delivered. Otherwise its client would be cut off for ever.
        let limit = self.terms.queued_bytes;
        if queue.bytes > limit / 2 + SMALL_BYTES && bytes.is_some_and(|bytes| queue.bytes + bytes > limit) {
            drop(queue);
            self.cut_off_as_slow();
            return Put::CutOff;
        }
        let now = Instant::now();
        queue.waiting_since.get_or_insert(now);
        queue.last_put = now;
        push(&mut queue);
        if queue.bytes > limit / 2 {
            self.filling.notify_waiters();
        }
        wake(queue);
        Put::Queued
    }

    /// Ends the stream after what waits and this last block.
    pub(crate) fn finish(&self, last: Bytes) {
        let mut queue = self.queue();
        if !queue.ending {
            queue.push(last);
            queue.waiting_since.get_or_insert_with(Instant::now);
            queue.ending = true;
            wake(queue);
        }
    }

    /// Ends the connection of a client that does not keep up.
    pub(crate) fn cut_off_as_slow(&self) {
        self.queue().was_slow = true;
        self.cut_off();
    }

    /// Whether the client was cut off because it did not keep up.
    pub(crate) fn was_slow(&self) -> bool {
        self.queue().was_slow
    }

    /// Ends the connection at once, also where the client takes nothing.
    pub(crate) fn cut_off(&self) {
        let mut queue = self.queue();
        queue.ending = true;
        queue.blocks.clear();
        queue.bytes = 0;
        drop(queue);
        self.connection.cancel();
        self.gone.cancel();
    }

    /// Marks the stream as over: nobody reads it any more.
    pub(crate) fn leave(&self) {
        self.queue().ending = true;
        self.gone.cancel();
    }

    /// Cancelled when the stream is over.
    pub(crate) fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// The same, if nobody has it.
    pub(crate) fn try_turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.turn.try_lock().ok()
    }

    /// The right to wait for room and to use it.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Whether no more than half of the queue's bytes are taken.
    pub(crate) fn has_room_now(&self) -> bool {
        self.queue().bytes <= self.terms.queued_bytes / 2
    }

    /// How the stream fares.
    pub(crate) fn load(&self, now: Instant) -> Load {
        let (unsent_bytes, unsent_for) = self.flight.load(now);
        let queue = self.queue();
        Load {
            unsent_bytes,
            unsent_for,
            queued_bytes: queue.bytes,
            taken_bytes: queue.taken_bytes,
            stuck: queue.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
        }
    }

    /// Waits until no more than half of the queue's bytes are taken.
    pub(crate) async fn has_room(&self) {
        loop {
            let room = self.room.notified();
            if self.has_room_now() {
                return;
            }
            room.await;
        }
    }

    /// Waits until so much can be queued without taking more than half of the queue; for more than that, until next to
    /// nothing waits.
    pub(crate) async fn has_room_for(&self, bytes: usize) {
        let most = (self.terms.queued_bytes / 2).saturating_sub(bytes).max(SMALL_BYTES);
        loop {
            let room = self.room.notified();
            if self.queue().bytes <= most {
                return;
            }
            room.await;
        }
    }

    /// Waits until more than half of the queue's bytes are taken.
    pub(crate) async fn fills(&self) {
        loop {
            let filling = self.filling.notified();
            if !self.has_room_now() {
                return;
            }
            filling.await;
        }
    }

    /// Whether nothing was queued for so long, and nothing waits.
    pub(crate) fn is_quiet(&self, now: Instant, long: Duration) -> bool {
        let queue = self.queue();
        queue.blocks.is_empty() && now.saturating_duration_since(queue.last_put) >= long
    }

    /// Whether something has waited for so long without the connection taking anything.
    pub(crate) fn is_stuck(&self, now: Instant, long: Duration) -> bool {
        self.queue().waiting_since.is_some_and(|since| now.saturating_duration_since(since) >= long)
    }

    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        self.terms.expires_at.is_some_and(|at| now >= at)
    }

    fn poll_take(&self, context: &Context<'_>) -> Poll<Option<Bytes>> {
        let mut queue = self.queue();
        let Some(first) = queue.blocks.pop_front() else {
            if queue.ending {
                return Poll::Ready(None);
            }
            queue.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        let taken = queue.together_with(first, &self.held);
        queue.bytes -= taken.len();
        queue.taken_bytes += taken.len() as u64;
        // The connection took something: what is left has only begun to wait.
        queue.waiting_since = (!queue.blocks.is_empty()).then(Instant::now);
        if queue.bytes <= self.terms.queued_bytes / 2 {
            self.room.notify_waiters();
        }
        Poll::Ready(Some(self.flight.follow(taken)))
    }
}

impl Queue {
    fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.blocks.push_back(bytes);
        }
    }

    /// The first block, with those behind it as long as they are small.
    fn together_with(&mut self, first: Bytes, held: &Held) -> Bytes {
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
        held.hold(together.freeze())
    }
}

/// Wakes the connection's task after the lock is released, so that it does not wake up to a held lock.
fn wake(mut queue: MutexGuard<'_, Queue>) {
    let waker = queue.waker.take();
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The body of a stream's response. Dropping it gives up the stream's place.
pub(crate) struct StreamBody<P> {
    outlet: Arc<Outlet>,
    /// Held for as long as the stream lives.
    _place: P,
}

impl<P> StreamBody<P> {
    pub(crate) fn new(outlet: Arc<Outlet>, place: P) -> Self {
        Self { outlet, _place: place }
    }
}

impl<P> Drop for StreamBody<P> {
    fn drop(&mut self) {
        // Nobody reads any more: whoever still feeds this stream stops, and lets go of the place.
        self.outlet.leave();
    }
}

impl<P: Unpin> Body for StreamBody<P> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.outlet.poll_take(context).map(|taken| taken.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlet(queued_bytes: usize) -> Outlet {
        Outlet::new(1, Terms { queued_bytes, expires_at: None }, None, CancellationToken::new())
    }

    fn take(outlet: &Outlet) -> Poll<Option<Bytes>> {
        outlet.poll_take(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn blocks_come_out_in_order_and_small_ones_together() {
        let outlet = outlet(1_000_000);
        for block in ["a", "b"] {
            assert_eq!(outlet.put_bytes(block.into()), Put::Queued);
        }
        assert_eq!(outlet.put_bytes(vec![b'c'; TOGETHER_BYTES].into()), Put::Queued);
        assert_eq!(outlet.put_bytes("d".into()), Put::Queued);
        assert_eq!(take(&outlet), Poll::Ready(Some("ab".into())));
        assert_eq!(take(&outlet), Poll::Ready(Some(vec![b'c'; TOGETHER_BYTES].into())));
        assert_eq!(take(&outlet), Poll::Ready(Some("d".into())));
        assert_eq!(take(&outlet), Poll::Pending);
    }

    #[test]
    fn a_client_that_leaves_too_much_unread_is_cut_off() {
        let outlet = outlet(10_000);
        assert_eq!(
            outlet.put_bytes(vec![0; 100_000].into()),
            Put::Queued,
            "any block is taken by an empty queue"
        );
        assert_eq!(outlet.put_bytes("x".into()), Put::CutOff);
        assert!(outlet.connection.is_cancelled() && outlet.gone().is_cancelled());
        assert_eq!(outlet.put_bytes("x".into()), Put::Gone);
        assert_eq!(take(&outlet), Poll::Ready(None));
    }

    #[test]
    fn a_block_as_large_as_the_queue_is_taken_behind_a_few_bytes() {
        let outlet = outlet(10_000);
        outlet.put_bytes(vec![0; 5000].into());
        assert!(outlet.has_room_now());
        outlet.put_bytes(vec![0; SMALL_BYTES].into());
        assert_eq!(outlet.put_bytes(vec![0; 10_000].into()), Put::Queued);
        assert_eq!(outlet.put_bytes("x".into()), Put::CutOff);
    }

    #[test]
    fn a_finished_stream_ends_after_what_waits() {
        let outlet = outlet(100);
        outlet.put_bytes("a".into());
        outlet.finish("z".into());
        assert_eq!(outlet.put_bytes("late".into()), Put::Gone);
        assert_eq!(take(&outlet), Poll::Ready(Some("az".into())));
        assert_eq!(take(&outlet), Poll::Ready(None));
    }

    #[test]
    fn a_client_is_stuck_when_it_takes_nothing_while_something_waits() {
        let outlet = outlet(100_000);
        let long = Duration::from_secs(20);
        let begun = Instant::now();
        assert!(!outlet.is_stuck(begun + long * 2, long), "nothing waits");
        assert!(outlet.is_quiet(begun + long, long), "made before that");
        outlet.put_bytes(vec![b'a'; TOGETHER_BYTES].into());
        outlet.put_bytes("b".into());
        assert!(!outlet.is_quiet(begun + long, long));
        assert!(!outlet.is_quiet(Instant::now() + long, long), "no heartbeat behind what waits");
        assert!(!outlet.is_stuck(begun + long / 2, long));
        assert!(outlet.is_stuck(Instant::now() + long, long));
        let before_the_take = Instant::now();
        assert!(take(&outlet).is_ready());
        assert!(!outlet.is_stuck(before_the_take + long, long), "it took something meanwhile");
        assert!(outlet.is_stuck(Instant::now() + long, long));
        assert!(take(&outlet).is_ready());
        assert!(!outlet.is_stuck(Instant::now() + long, long), "nothing waits");
    }
}
