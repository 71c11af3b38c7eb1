//! The send queue of one stream: fan-out fills it without waiting, the thread that has its socket empties it,
//! and tasks that feed it from the history wait for room. Fan-out into a queue that is too full ends the
//! connection: the client comes back with its last id. Must not know the order of a topic's events.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::block_queue::BlockQueue;
pub(crate) use super::block_queue::{Put, Rest};
use super::byte_budget::ByteBudget;
use super::ready_list::ReadyHandle;
use crate::event::Topic;
use crate::sse::wire::frame::Block;
use crate::sse::wire::multi_topic::StreamCursors;
use crate::sse::wire::resume::Resume;

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
    state: Mutex<State>,
    /// Notified when the queue becomes more or less than half full, and when the stream is over.
    changed: Notify,
    /// Held from waiting for room until the room is used, so that two topics of a stream never count on the
    /// same room. Fair: topics get it in the order in which they ask.
    room: tokio::sync::Mutex<()>,
    /// Ends the connection before its socket has been taken over, whatever it is doing.
    connection: CancellationToken,
    /// No socket is ever written from it: it takes no blocks.
    is_unwritten: bool,
}

#[derive(Debug)]
struct State {
    queue: BlockQueue,
    /// The thread that has the socket, once it has.
    outlet: Option<ReadyHandle>,
    /// That thread is about to look at the stream.
    is_scheduled: bool,
    /// The kernel has no room for this client. The thread is told when it has.
    is_blocked: bool,
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
    /// How long the kernel has taken nothing although a block waits.
    pub(crate) stuck: Duration,
}

impl Load {
    /// For how long no byte has moved, and how many bytes of memory wait for this client.
    pub(crate) fn weight(&self) -> (Duration, usize) {
        (self.stuck, self.queued_bytes)
    }
}

/// One topic of a stream.
#[derive(Debug, Clone)]
pub(crate) struct StreamTopic {
    pub(crate) queue: Arc<SendQueue>,
    /// The number of the topic in the stream.
    pub(crate) at: usize,
    /// The client's resume token, if it came with one.
    pub(crate) resume: Option<Arc<Resume>>,
    /// Payloads that are JSON strings are sent as their text.
    pub(crate) is_text: bool,
}

impl StreamTopic {
    pub(crate) fn number(&self) -> u64 {
        self.queue.number()
    }

    /// Queues a block of the topic, unless the client's resume token has seen it. Never waits.
    pub(crate) fn put(&self, block: &Block) -> Put {
        match &self.resume {
            None => self.enqueue(block),
            Some(resume) => {
                let puts = resume.apply(block).map(|block| self.enqueue(&block));
                puts.reduce(|first, next| if first == Put::Queued { next } else { first })
                    .unwrap_or(Put::Gone)
            }
        }
    }

    fn enqueue(&self, block: &Block) -> Put {
        let queue = &self.queue;
        match self.is_text {
            false => queue.enqueue(|blocks| blocks.put(self.at, block, &queue.budget)),
            true => {
                let text = block.as_text(|bytes| queue.budget.hold(bytes));
                queue.enqueue(|blocks| blocks.put(self.at, &text, &queue.budget))
            }
        }
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
            state: Mutex::new(State {
                queue,
                outlet: None,
                is_scheduled: false,
                is_blocked: false,
                is_closed: false,
                was_slow: false,
            }),
            changed: Notify::new(),
            room: tokio::sync::Mutex::new(()),
            connection,
            is_unwritten: false,
        }
    }

    /// Makes a queue that takes no blocks, because other code writes the answer to its client. Whatever ends
    /// the stream ends it at once.
    #[must_use]
    pub(crate) fn unwritten(self) -> Self {
        Self { is_unwritten: true, ..self }
    }

    /// Counts the bytes that are made for this stream alone in the budget of all streams.
    #[must_use]
    pub(crate) fn with_budget(self, budget: ByteBudget) -> Self {
        Self { budget, ..self }
    }

    /// Keeps only the newest event of each topic and type while the client is behind.
    #[must_use]
    pub(crate) fn with_newest(self, topics: Arc<[Topic]>, tells: bool) -> Self {
        self.state().queue.keep_newest(topics, tells);
        self
    }

    pub(crate) fn keeps_newest(&self) -> bool {
        self.state().queue.keeps_newest()
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
        if self.is_unwritten {
            return Put::Gone;
        }
        let mut state = self.state();
        let put = put(&mut state.queue);
        match put {
            Put::Queued => {
                if !state.queue.has_room_for(0) {
                    self.changed.notify_waiters();
                }
                state.schedule();
            }
            Put::CutOff => {
                drop(state);
                self.cut_off_as_slow();
            }
            Put::Gone => {}
        }
        put
    }

    /// Ends the stream after the blocks that wait and this last one. Returns false if it is ending already.
    pub(crate) fn finish(&self, last: Bytes) -> bool {
        if self.is_unwritten {
            let is_first = !self.state().is_closed;
            self.cut_off();
            return is_first;
        }
        let mut state = self.state();
        let is_first = state.queue.finish(last);
        state.schedule();
        is_first
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
        state.is_blocked = false;
        state.schedule();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Gives the stream's socket to a thread: from here on it is told of all that is to be done. `head` is
    /// written before everything that waits.
    pub(crate) fn attach(&self, outlet: ReadyHandle, head: Bytes) {
        let mut state = self.state();
        state.queue.begin(head);
        state.outlet = Some(outlet);
        state.schedule();
    }

    /// Marks the stream as over, without scheduling the thread that had its socket.
    pub(crate) fn detach(&self) {
        self.state().outlet = None;
        self.close();
    }

    /// Writes to the socket all that waits, as far as the kernel and the other streams let it. Returns
    /// whether the stream goes on, and if not, whether it has ended in order.
    pub(crate) fn write_to(&self, socket: &mut impl io::Write) -> Written {
        let mut state = self.state();
        (state.is_scheduled, state.is_blocked) = (false, false);
        if state.is_closed {
            return Written::Broken;
        }
        let had_little = state.queue.has_little();
        let rest = match state.queue.write_to(socket) {
            Ok(rest) => rest,
            Err(error) => {
                tracing::trace!(%error, "a stream's connection is gone");
                return Written::Broken;
            }
        };
        state.is_blocked = rest == Rest::Blocked;
        // With little in the queue, nobody waits for room.
        if !had_little && state.queue.has_room_for(0) {
            self.changed.notify_waiters();
        }
        match rest {
            Rest::Nothing if state.queue.has_ended() => Written::Ended,
            rest => Written::Open(rest),
        }
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
        let queue = &self.state().queue;
        Load {
            queued_bytes: queue.bytes(),
            taken_bytes: queue.taken_bytes(),
            stuck: queue.stuck(now).unwrap_or_default(),
        }
    }

    /// Whether nothing was queued for this long, and nothing waits.
    pub(crate) fn is_quiet(&self, now: Instant, long: Duration) -> bool {
        self.state().queue.is_quiet(now, long)
    }

    /// Whether a block has waited for this long without the kernel taking anything.
    pub(crate) fn is_stuck(&self, now: Instant, long: Duration) -> bool {
        self.state().queue.stuck(now).is_some_and(|stuck| stuck >= long)
    }

    pub(crate) fn has_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| now >= at)
    }
}

/// The state of a stream after it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It goes on.
    Open(Rest),
    /// All of it has been written, and nothing more comes.
    Ended,
    /// It was cut off, or its socket cannot be used any more.
    Broken,
}

impl State {
    /// Has the thread look at the stream, unless it will anyway.
    fn schedule(&mut self) {
        if let Some(outlet) = self.outlet.as_ref().filter(|_| !self.is_scheduled && !self.is_blocked) {
            outlet.schedule();
            self.is_scheduled = true;
        }
    }
}

#[cfg(test)]
#[path = "send_queue_tests.rs"]
mod tests;
