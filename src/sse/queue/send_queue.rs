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

use super::byte_budget::ByteBudget;
use super::in_flight::InFlight;
use crate::sse::wire::frame::Block;
use crate::sse::wire::multi_topic::StreamCursors;

/// Small blocks that wait together are sent together, up to this many bytes.
const TOGETHER_BYTES: usize = 16 * 1024;

/// What a client's place and a reset may take, with the ids of as many topics as there may be.
const SMALL_BYTES: usize = 4 * 1024;

/// What a queue may hold, and for how long it may live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendLimits {
    /// Bytes that may wait to be taken.
    pub(crate) queued_bytes: usize,
    /// When the stream ends because its token does.
    pub(crate) expires_at: Option<Instant>,
}

/// The sending side of one stream.
#[derive(Debug)]
pub(crate) struct SendQueue {
    number: u64,
    limits: SendLimits,
    /// Counts what was made for this stream alone.
    held: ByteBudget,
    in_flight: InFlight,
    state: Mutex<State>,
    /// Told whenever the queue falls to half of what it may hold.
    room: Notify,
    /// Told whenever something is queued while it holds more than that.
    filling: Notify,
    /// Held by whoever waits for room and then uses it, so that the topics of a stream do not count on the same room.
    room_lock: tokio::sync::Mutex<()>,
    /// Ends the connection, whatever it is in the middle of.
    connection: CancellationToken,
    /// Cancelled when the stream is over, for whatever reason.
    gone: CancellationToken,
}

#[derive(Debug)]
struct State {
    /// Where the stream has several topics.
    cursors: Option<StreamCursors>,
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
pub(crate) struct StreamTopic {
    pub(crate) queue: Arc<SendQueue>,
    /// Which of the stream's topics it is.
    pub(crate) at: usize,
}

impl StreamTopic {
    pub(crate) fn number(&self) -> u64 {
        self.queue.number()
    }

    /// Queues a block of the topic. Never waits.
    pub(crate) fn put(&self, block: &Block) -> Put {
        self.queue.put(self.at, block)
    }
}

impl SendQueue {
    pub(crate) fn new(
        number: u64,
        limits: SendLimits,
        cursors: Option<StreamCursors>,
        connection: CancellationToken,
    ) -> Self {
        let state = State {
            cursors,
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
            limits,
            held: ByteBudget::default(),
            in_flight: InFlight::default(),
            state: Mutex::new(state),
            room: Notify::new(),
            filling: Notify::new(),
            room_lock: tokio::sync::Mutex::new(()),
            connection,
            gone: CancellationToken::new(),
        }
    }

    /// Counts what is made for this stream alone in the account of all streams.
    #[must_use]
    pub(crate) fn with_budget(self, held: ByteBudget) -> Self {
        Self { held, ..self }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a block of the stream's topic of this number. Never waits.
    fn put(&self, topic: usize, block: &Block) -> Put {
        self.enqueue(block.is_event().then(|| block.len()), |state| match &mut state.cursors {
            None => state.push(block.bytes.clone()),
            Some(cursors) => {
                let (own, shared) = cursors.write(topic, block);
                state.push(self.held.hold(own));
                state.push(shared);
            }
        })
    }

    /// Queues what belongs to no topic. Never waits.
    pub(crate) fn put_bytes(&self, bytes: Bytes) -> Put {
        self.enqueue(Some(bytes.len()), |state| state.push(bytes))
    }

    /// Takes in what has so many bytes, or, with `None`, what only tells a place. That finds room always: each topic of a
    /// stream has one to tell at its begin, before the client can have read anything, and behind an event as large as the
    /// queue it would have the client cut off again and again.
    fn enqueue(&self, bytes: Option<usize>, push: impl FnOnce(&mut State)) -> Put {
        let mut state = self.state();
        if state.ending {
            return Put::Gone;
        }
        // While no more than half of the queue waits any block is taken, also behind a place and a reset, so that a payload
        // as large as the queue can be delivered. Otherwise its client would be cut off for ever.
        let limit = self.limits.queued_bytes;
        if state.bytes > limit / 2 + SMALL_BYTES && bytes.is_some_and(|bytes| state.bytes + bytes > limit) {
            drop(state);
            self.cut_off_as_slow();
            return Put::CutOff;
        }
        let now = Instant::now();
        state.waiting_since.get_or_insert(now);
        state.last_put = now;
        push(&mut state);
        if state.bytes > limit / 2 {
            self.filling.notify_waiters();
        }
        wake(state);
        Put::Queued
    }

    /// Ends the stream after what waits and this last block.
    pub(crate) fn finish(&self, last: Bytes) {
        let mut state = self.state();
        if !state.ending {
            state.push(last);
            state.waiting_since.get_or_insert_with(Instant::now);
            state.ending = true;
            wake(state);
        }
    }

    /// Ends the connection of a client that does not keep up.
    pub(crate) fn cut_off_as_slow(&self) {
        self.state().was_slow = true;
        self.cut_off();
    }

    /// Whether the client was cut off because it did not keep up.
    pub(crate) fn was_slow(&self) -> bool {
        self.state().was_slow
    }

    /// Ends the connection at once, also where the client takes nothing.
    pub(crate) fn cut_off(&self) {
        let mut state = self.state();
        state.ending = true;
        state.blocks.clear();
        state.bytes = 0;
        drop(state);
        self.connection.cancel();
        self.gone.cancel();
    }

    /// Marks the stream as over: nobody reads it any more.
    pub(crate) fn close(&self) {
        self.state().ending = true;
        self.gone.cancel();
    }

    /// Cancelled when the stream is over.
    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.gone
    }

    /// The same, if nobody has it.
    pub(crate) fn try_room_lock(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.room_lock.try_lock().ok()
    }

    /// The right to wait for room and to use it.
    pub(crate) async fn room_lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.room_lock.lock().await
    }

    /// Whether no more than half of the queue's bytes are taken.
    pub(crate) fn has_room(&self) -> bool {
        self.state().bytes <= self.limits.queued_bytes / 2
    }

    /// How the stream fares.
    pub(crate) fn load(&self, now: Instant) -> Load {
        let (unsent_bytes, unsent_for) = self.in_flight.load(now);
        let state = self.state();
        Load {
            unsent_bytes,
            unsent_for,
            queued_bytes: state.bytes,
            taken_bytes: state.taken_bytes,
            stuck: state.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
        }
    }

    /// Waits until no more than half of the queue's bytes are taken.
    pub(crate) async fn wait_for_room(&self) {
        loop {
            let room = self.room.notified();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }

    /// Waits until so much can be queued without taking more than half of the queue; for more than that, until next to
    /// nothing waits.
    pub(crate) async fn wait_for_room_for(&self, bytes: usize) {
        let most = (self.limits.queued_bytes / 2).saturating_sub(bytes).max(SMALL_BYTES);
        loop {
            let room = self.room.notified();
            if self.state().bytes <= most {
                return;
            }
            room.await;
        }
    }

    /// Waits until more than half of the queue's bytes are taken.
    pub(crate) async fn wait_until_half_full(&self) {
        loop {
            let filling = self.filling.notified();
            if !self.has_room() {
                return;
            }
            filling.await;
        }
    }

    /// Whether nothing was queued for so long, and nothing waits.
    pub(crate) fn is_quiet(&self, now: Instant, long: Duration) -> bool {
        let state = self.state();
        state.blocks.is_empty() && now.saturating_duration_since(state.last_put) >= long
    }

    /// Whether something has waited for so long without the connection taking anything.
    pub(crate) fn is_stuck(&self, now: Instant, long: Duration) -> bool {
        self.state().waiting_since.is_some_and(|since| now.saturating_duration_since(since) >= long)
    }

    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        self.limits.expires_at.is_some_and(|at| now >= at)
    }

    fn poll_take(&self, context: &Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.state();
        let Some(first) = state.blocks.pop_front() else {
            if state.ending {
                return Poll::Ready(None);
            }
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        let taken = state.together_with(first, &self.held);
        state.bytes -= taken.len();
        state.taken_bytes += taken.len() as u64;
        // The connection took something: what is left has only begun to wait.
        state.waiting_since = (!state.blocks.is_empty()).then(Instant::now);
        if state.bytes <= self.limits.queued_bytes / 2 {
            self.room.notify_waiters();
        }
        Poll::Ready(Some(self.in_flight.track(taken)))
    }
}

impl State {
    fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.blocks.push_back(bytes);
        }
    }

    /// The first block, with those behind it as long as they are small.
    fn together_with(&mut self, first: Bytes, held: &ByteBudget) -> Bytes {
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
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The body of a stream's response. Dropping it gives up the stream's place.
pub(crate) struct StreamBody<P> {
    queue: Arc<SendQueue>,
    /// Held for as long as the stream lives.
    _place: P,
}

impl<P> StreamBody<P> {
    pub(crate) fn new(queue: Arc<SendQueue>, place: P) -> Self {
        Self { queue, _place: place }
    }
}

impl<P> Drop for StreamBody<P> {
    fn drop(&mut self) {
        // Nobody reads any more: whoever still feeds this stream stops, and lets go of the place.
        self.queue.close();
    }
}

impl<P: Unpin> Body for StreamBody<P> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.queue.poll_take(context).map(|taken| taken.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(queued_bytes: usize) -> SendQueue {
        SendQueue::new(1, SendLimits { queued_bytes, expires_at: None }, None, CancellationToken::new())
    }

    fn take(queue: &SendQueue) -> Poll<Option<Bytes>> {
        queue.poll_take(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn blocks_come_out_in_order_and_small_ones_together() {
        let queue = queue(1_000_000);
        for block in ["a", "b"] {
            assert_eq!(queue.put_bytes(block.into()), Put::Queued);
        }
        assert_eq!(queue.put_bytes(vec![b'c'; TOGETHER_BYTES].into()), Put::Queued);
        assert_eq!(queue.put_bytes("d".into()), Put::Queued);
        assert_eq!(take(&queue), Poll::Ready(Some("ab".into())));
        assert_eq!(take(&queue), Poll::Ready(Some(vec![b'c'; TOGETHER_BYTES].into())));
        assert_eq!(take(&queue), Poll::Ready(Some("d".into())));
        assert_eq!(take(&queue), Poll::Pending);
    }

    #[test]
    fn a_client_that_leaves_too_much_unread_is_cut_off() {
        let queue = queue(10_000);
        assert_eq!(
            queue.put_bytes(vec![0; 100_000].into()),
            Put::Queued,
            "any block is taken by an empty queue"
        );
        assert_eq!(queue.put_bytes("x".into()), Put::CutOff);
        assert!(queue.connection.is_cancelled() && queue.closed().is_cancelled());
        assert_eq!(queue.put_bytes("x".into()), Put::Gone);
        assert_eq!(take(&queue), Poll::Ready(None));
    }

    #[test]
    fn a_block_as_large_as_the_queue_is_taken_behind_a_few_bytes() {
        let queue = queue(10_000);
        queue.put_bytes(vec![0; 5000].into());
        assert!(queue.has_room());
        queue.put_bytes(vec![0; SMALL_BYTES].into());
        assert_eq!(queue.put_bytes(vec![0; 10_000].into()), Put::Queued);
        assert_eq!(queue.put_bytes("x".into()), Put::CutOff);
    }

    #[test]
    fn a_finished_stream_ends_after_what_waits() {
        let queue = queue(100);
        queue.put_bytes("a".into());
        queue.finish("z".into());
        assert_eq!(queue.put_bytes("late".into()), Put::Gone);
        assert_eq!(take(&queue), Poll::Ready(Some("az".into())));
        assert_eq!(take(&queue), Poll::Ready(None));
    }

    #[test]
    fn a_client_is_stuck_when_it_takes_nothing_while_something_waits() {
        let queue = queue(100_000);
        let long = Duration::from_secs(20);
        let begun = Instant::now();
        assert!(!queue.is_stuck(begun + long * 2, long), "nothing waits");
        assert!(queue.is_quiet(begun + long, long), "made before that");
        queue.put_bytes(vec![b'a'; TOGETHER_BYTES].into());
        queue.put_bytes("b".into());
        assert!(!queue.is_quiet(begun + long, long));
        assert!(!queue.is_quiet(Instant::now() + long, long), "no heartbeat behind what waits");
        assert!(!queue.is_stuck(begun + long / 2, long));
        assert!(queue.is_stuck(Instant::now() + long, long));
        let before_the_take = Instant::now();
        assert!(take(&queue).is_ready());
        assert!(!queue.is_stuck(before_the_take + long, long), "it took something meanwhile");
        assert!(queue.is_stuck(Instant::now() + long, long));
        assert!(take(&queue).is_ready());
        assert!(!queue.is_stuck(Instant::now() + long, long), "nothing waits");
    }
}
