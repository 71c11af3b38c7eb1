//! The send queue of one stream: fan-out fills it without waiting, the connection empties it, and tasks that
//! feed it from the history wait for room. Fan-out into a queue that is too full ends the connection: the
//! client comes back with its last id. Must not know topics' order.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::block_queue::BlockQueue;
pub(crate) use super::block_queue::Put;
use super::byte_budget::ByteBudget;
use super::in_flight::InFlight;
use crate::sse::wire::frame::Block;
use crate::sse::wire::multi_topic::StreamCursors;

/// How many bytes may wait, and how long the stream may live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendLimits {
    /// Bytes that may wait.
    pub(crate) queued_bytes: usize,
    /// When the stream ends because its token expires.
    pub(crate) expires_at: Option<Instant>,
}

/// The sending side of one stream.
#[derive(Debug)]
pub(crate) struct SendQueue {
    number: u64,
    expires_at: Option<Instant>,
    /// Counts the bytes that are made for this stream alone.
    budget: ByteBudget,
    in_flight: InFlight,
    state: Mutex<State>,
    /// Notified when the queue becomes more or less than half full, and when the stream is over.
    changed: Notify,
    /// Held from waiting for room until the room is used, so that two topics of a stream never count on the
    /// same room. Fair: topics get it in the order in which they ask.
    room: tokio::sync::Mutex<()>,
    /// Ends the connection, whatever it is doing.
    connection: CancellationToken,
}

#[derive(Debug)]
struct State {
    queue: BlockQueue,
    /// The connection's task, if it waits for a block.
    waker: Option<Waker>,
    /// Nobody reads the stream any more.
    is_closed: bool,
    /// It was cut off because the client did not keep up.
    was_slow: bool,
}

/// The right to use the queue's room.
pub(crate) type Room<'a> = tokio::sync::MutexGuard<'a, ()>;

/// The load of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) queued_bytes: usize,
    pub(crate) taken_bytes: u64,
    /// Bytes that the connection has taken from the queue and not sent.
    pub(crate) unsent_bytes: usize,
    /// How long the connection has taken nothing although a block waits.
    pub(crate) stuck: Duration,
    /// How long none of the unsent bytes has been sent.
    pub(crate) unsent_for: Duration,
}

impl Load {
    /// For how long no byte has moved, and how many bytes of memory wait for this client.
    pub(crate) fn weight(&self) -> (Duration, usize) {
        (self.stuck.max(self.unsent_for), self.queued_bytes + self.unsent_bytes)
    }
}

/// One topic of a stream.
#[derive(Debug, Clone)]
pub(crate) struct StreamTopic {
    pub(crate) queue: Arc<SendQueue>,
    /// The number of the topic in the stream.
    pub(crate) at: usize,
}

impl StreamTopic {
    pub(crate) fn number(&self) -> u64 {
        self.queue.number()
    }

    /// Queues a block of the topic. Never waits.
    pub(crate) fn put(&self, block: &Block) -> Put {
        self.queue.enqueue(|queue| queue.put(self.at, block, &self.queue.budget))
    }
}

impl SendQueue {
    pub(crate) fn new(
        number: u64,
        limits: SendLimits,
        cursors: Option<StreamCursors>,
        connection: CancellationToken,
    ) -> Self {
        let queue = BlockQueue::new(limits.queued_bytes, cursors);
        Self {
            number,
            expires_at: limits.expires_at,
            budget: ByteBudget::default(),
            in_flight: InFlight::default(),
            state: Mutex::new(State { queue, waker: None, is_closed: false, was_slow: false }),
            changed: Notify::new(),
            room: tokio::sync::Mutex::new(()),
            connection,
        }
    }

    /// Counts the bytes that are made for this stream alone in the budget of all streams.
    #[must_use]
    pub(crate) fn with_budget(self, budget: ByteBudget) -> Self {
        Self { budget, ..self }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues bytes that belong to no topic. Never waits.
    pub(crate) fn put_bytes(&self, bytes: Bytes) -> Put {
        self.enqueue(|queue| queue.put_bytes(bytes))
    }

    fn enqueue(&self, put: impl FnOnce(&mut BlockQueue) -> Put) -> Put {
        let mut state = self.state();
        let put = put(&mut state.queue);
        match put {
            Put::Queued => {
                if !state.queue.has_room_for(0) {
                    self.changed.notify_waiters();
                }
                wake(state);
            }
            Put::CutOff => {
                drop(state);
                self.cut_off_as_slow();
            }
            Put::Gone => {}
        }
        put
    }

    /// Ends the stream behind the blocks that wait and this last one.
    pub(crate) fn finish(&self, last: Bytes) {
        let mut state = self.state();
        state.queue.finish(last);
        wake(state);
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

    /// Ends the connection at once, also where the client reads nothing.
    pub(crate) fn cut_off(&self) {
        self.state().queue.clear();
        self.connection.cancel();
        self.close();
    }

    /// Marks the stream as over: nobody reads it any more.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.queue.end();
        state.is_closed = true;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until the stream is over.
    pub(crate) async fn closed(&self) {
        self.wait_until(|state| state.is_closed).await;
    }

    /// Whether no more than half of the queue is taken.
    pub(crate) fn has_room(&self) -> bool {
        self.state().queue.has_room_for(0)
    }

    /// Waits for the right to use the queue's room, and until this many bytes can be queued with no more than
    /// half of the queue taken; for more than that, until next to nothing waits.
    pub(crate) async fn room_for(&self, bytes: usize) -> Room<'_> {
        let room = self.room.lock().await;
        self.wait_until(|state| state.queue.has_room_for(bytes)).await;
        room
    }

    /// Waits until more than half of the queue is taken.
    pub(crate) async fn wait_until_half_full(&self) {
        self.wait_until(|state| !state.queue.has_room_for(0)).await;
    }

    async fn wait_until(&self, is_met: impl Fn(&State) -> bool) {
        loop {
            // Made before the look, so that a change in between is not missed.
            let changed = self.changed.notified();
            if is_met(&self.state()) {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn load(&self, now: Instant) -> Load {
        let (unsent_bytes, unsent_for) = self.in_flight.load(now);
        let queue = &self.state().queue;
        Load {
            unsent_bytes,
            unsent_for,
            queued_bytes: queue.bytes(),
            taken_bytes: queue.taken_bytes(),
            stuck: queue.stuck(now).unwrap_or_default(),
        }
    }

    /// Whether nothing was queued for this long, and nothing waits.
    pub(crate) fn is_quiet(&self, now: Instant, long: Duration) -> bool {
        self.state().queue.is_quiet(now, long)
    }

    /// Whether a block has waited for this long without the connection taking anything.
    pub(crate) fn is_stuck(&self, now: Instant, long: Duration) -> bool {
        self.state().queue.stuck(now).is_some_and(|stuck| stuck >= long)
    }

    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| now >= at)
    }

    /// The bytes that the connection sends next; `None` at the end of the stream.
    pub(super) fn poll_take(&self, context: &Context<'_>) -> Poll<Option<Bytes>> {
        let mut state = self.state();
        let Some(taken) = state.queue.take(&self.budget) else {
            if state.queue.is_ending() {
                return Poll::Ready(None);
            }
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        if state.queue.has_room_for(0) {
            self.changed.notify_waiters();
        }
        Poll::Ready(Some(self.in_flight.track(taken)))
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

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    fn queue(queued_bytes: usize) -> SendQueue {
        SendQueue::new(1, SendLimits { queued_bytes, expires_at: None }, None, CancellationToken::new())
    }

    fn take(queue: &SendQueue) -> Poll<Option<Bytes>> {
        queue.poll_take(&Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn a_client_that_leaves_too_much_unread_is_cut_off() {
        let queue = queue(10_000);
        let large = vec![0; 100_000];
        assert_eq!(queue.put_bytes(large.into()), Put::Queued, "any block is accepted by an empty queue");
        assert_eq!(queue.put_bytes("x".into()), Put::CutOff);
        assert!(
            queue.connection.is_cancelled() && queue.was_slow() && poll!(pin!(queue.closed())).is_ready()
        );
        assert_eq!(queue.put_bytes("x".into()), Put::Gone);
        assert_eq!(take(&queue), Poll::Ready(None));
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
        assert!(take(&queue).is_ready());
        let Poll::Ready(used) = poll!(&mut second) else { panic!("there is room now") };
        assert!(poll!(&mut third).is_pending(), "the second topic is about to use it");
        drop(used);
        assert!(poll!(&mut third).is_ready());
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
}
