//! The state that the clients of one topic share: its recent events, its place, and the clients. Owns the
//! order of events; must not do I/O.
//!
//! A topic is *live* when its place is proven to be the end of what was published, so that the next event's
//! `prev` must be that place. Otherwise it is *joining*: messages wait until the history has been read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use tokio::time::{Duration, Instant};

use super::pending::{PendingMessages, TopicMessage};
use super::recent::{Recent, RecentLimits};
use crate::event::{StreamId, Topic};
use crate::sse::metrics::Metrics;
use crate::sse::queue::send_queue::{Put, StreamTopic};
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::{self, Block, Frame, ResetReason};

#[derive(Debug)]
enum Phase {
    Joining {
        pending: PendingMessages,
        /// The history that was read may not hold every event: read it again.
        read_again: bool,
        /// How many messages waited when this round of the join began.
        before_round: usize,
    },
    Live,
}

/// The action that the caller has to take after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Nothing,
    /// There is a hole before the event. The topic is joining now: read the history.
    Join,
}

/// The treatment of events that do not follow the history that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// They wait for the next read.
    Kept,
    /// Those that came before this round are dropped: the history has been read since.
    OlderDropped,
    /// All are dropped.
    AllDropped,
}

/// How a round of a join ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    Live,
    /// A message was missed meanwhile: subscribe and read once more.
    Again,
    /// A message does not follow the history that was read.
    Hole,
}

/// One topic of this process.
#[derive(Debug)]
pub(crate) struct TopicState {
    pub(super) topic: Topic,
    recent_limits: RecentLimits,
    /// Bytes of the messages that wait, of all topics of the process that are joining.
    pending_bytes: Arc<AtomicUsize>,
    pub(super) metrics: Metrics,
    /// `None` until the topic was live for the first time.
    pub(super) recent: Option<Recent>,
    /// When the newest event came, or the topic was begun.
    newest_at: Instant,
    /// Whether the history has expired since the newest event.
    has_expired: bool,
    /// When the topic was last proven to be at its end.
    at_end: Instant,
    phase: Phase,
    clients: HashMap<u64, StreamTopic>,
}

impl TopicState {
    /// A topic that is joining.
    pub(crate) fn new(
        topic: Topic,
        recent_limits: RecentLimits,
        pending_bytes: Arc<AtomicUsize>,
        metrics: Metrics,
    ) -> Self {
        let pending = PendingMessages::new(pending_bytes.clone());
        let phase = Phase::Joining { pending, read_again: false, before_round: 0 };
        Self {
            topic,
            recent_limits,
            pending_bytes,
            metrics,
            recent: None,
            newest_at: Instant::now(),
            has_expired: false,
            at_end: Instant::now(),
            phase,
            clients: HashMap::new(),
        }
    }

    /// Makes the topic joining, with these messages waiting.
    fn join_with(&mut self, messages: impl IntoIterator<Item = TopicMessage>) {
        let mut pending = PendingMessages::new(self.pending_bytes.clone());
        let read_again = !messages.into_iter().all(|message| pending.push(message));
        self.phase = Phase::Joining { pending, read_again, before_round: 0 };
    }

    /// The end of the events that this topic's clients have been given.
    pub(crate) fn end_cursor(&self) -> Option<Cursor> {
        self.recent.as_ref().and_then(Recent::end_cursor)
    }

    /// The newest entry that the history must hold; `None` if it must hold none.
    pub(crate) fn tip_of_history(&self) -> Option<StreamId> {
        self.end_cursor().and_then(Cursor::id).filter(|_| !self.has_expired)
    }

    /// Notes whether the history is missing because it has expired, and was whole until then.
    pub(crate) fn note_expiry(&mut self, has_expired: bool) {
        self.has_expired = has_expired;
    }

    /// Notes that the topic has been found at its end.
    pub(crate) fn note_end(&mut self) {
        self.at_end = Instant::now();
    }

    /// How long ago the topic was last proven to be at its end.
    pub(crate) fn unproven_for(&self) -> Duration {
        self.at_end.elapsed()
    }

    /// Whether the history has expired since the newest event.
    pub(crate) fn has_expired(&self) -> bool {
        self.has_expired
    }

    /// Whether any client is attached.
    pub(crate) fn has_clients(&self) -> bool {
        !self.clients.is_empty()
    }

    /// How long ago the newest event came, or the topic was begun.
    pub(crate) fn quiet_for(&self) -> Duration {
        self.newest_at.elapsed()
    }

    /// When the newest event came, or the topic was begun, in milliseconds since 1970.
    pub(crate) fn newest_ms(&self) -> u64 {
        let at = chrono::Utc::now() - self.quiet_for();
        u64::try_from(at.timestamp_millis()).unwrap_or(0)
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// Applies a message, or keeps it while the topic is joining.
    pub(crate) fn receive(&mut self, message: TopicMessage) -> Next {
        match &mut self.phase {
            Phase::Joining { pending, read_again, .. } => {
                *read_again |= !pending.push(message);
                Next::Nothing
            }
            Phase::Live => match self.apply(message) {
                Ok(()) => Next::Nothing,
                Err(ahead) => {
                    self.join_with([*ahead]);
                    Next::Join
                }
            },
        }
    }

    /// Gives a message to the clients. Returns an event that has a hole before it.
    fn apply(&mut self, message: TopicMessage) -> Result<(), Box<TopicMessage>> {
        match message {
            TopicMessage::Foreign(block) => {
                self.fan_out(&block);
                Ok(())
            }
            TopicMessage::Event { prev, is_restored, frame } => {
                let place = self.end_cursor().and_then(Cursor::id);
                let is_behind = place.is_some_and(|place| frame.id <= place);
                // Clients have this event: it is in memory, or it is one that Redis had forgotten and got
                // again.
                if is_behind
                    && (is_restored || self.recent.as_ref().is_some_and(|recent| recent.holds(frame.id)))
                {
                    // A history that had expired is there again.
                    self.has_expired &= Some(frame.id) != place;
                    return Ok(());
                }
                // The event is below the place, but no client was given it. So the place is wrong: read the
                // history.
                if is_behind || prev != place {
                    return Err(Box::new(TopicMessage::Event { prev, is_restored, frame }));
                }
                self.append(frame);
                Ok(())
            }
        }
    }

    /// Adds the next event and gives it to the clients.
    fn append(&mut self, frame: Frame) {
        if let Some(reset) = frame::rebased(self.end_cursor().and_then(Cursor::id), frame.id, &self.topic) {
            self.metrics.reset(ResetReason::Rebased, self.clients.len());
            self.fan_out(&reset);
        }
        if !frame.block.is_empty() {
            self.fan_out(&frame.block);
        }
        if let Some(recent) = &mut self.recent {
            recent.push(frame);
        }
        self.newest_at = Instant::now();
        self.at_end = self.newest_at;
        self.has_expired = false;
    }

    fn fan_out(&mut self, block: &Block) {
        self.metrics.delivered.inc_by(self.clients.len() as u64);
        self.clients.retain(|_, stream| stream.put(block) == Put::Queued);
    }

    /// Makes the topic joining. Returns whether it was live: then the caller has to start the join.
    pub(crate) fn begin_join(&mut self) -> bool {
        match &mut self.phase {
            Phase::Joining { read_again, .. } => {
                *read_again = true;
                false
            }
            Phase::Live => {
                self.join_with([]);
                true
            }
        }
    }

    /// Begins a round of the join: from now on, a missed message asks for another round.
    pub(crate) fn begin_round(&mut self) {
        if let Phase::Joining { pending, read_again, before_round } = &mut self.phase {
            (*read_again, *before_round) = (false, pending.len());
        }
    }

    /// Adds events of the history, which follow the topic's place.
    pub(crate) fn extend(&mut self, frames: impl IntoIterator<Item = Frame>) {
        frames.into_iter().for_each(|frame| self.append(frame));
    }

    /// Begins anew with these events, the newest of the history; `base` is the place before them, if it is
    /// known. Resets the clients if there is a `reason`, and returns how many.
    pub(crate) fn begin_with(
        &mut self,
        base: Option<Cursor>,
        frames: impl IntoIterator<Item = Frame>,
        reason: Option<ResetReason>,
    ) -> usize {
        let frames: Vec<Frame> = frames.into_iter().collect();
        // The absence of a history proves nothing about earlier times if the base is not known, or if clients
        // are reset because events may be missing. Then the topic begins now.
        let is_start = matches!(base, Some(Cursor::Start { .. }));
        let is_since_now = frames.is_empty() && (base.is_none() || is_start && reason.is_some());
        let base = if is_since_now { Some(Cursor::start_now()) } else { base };
        let mut recent = Recent::new(self.recent_limits.clone(), base);
        frames.into_iter().for_each(|frame| recent.push(frame));
        self.recent = Some(recent);
        self.newest_at = Instant::now();
        self.has_expired = false;
        let Some(reason) = reason else { return 0 };
        let clients = self.clients.len();
        let place = self.end_cursor().filter(|place| place.id().is_some()).unwrap_or_else(Cursor::start_now);
        let block = frame::reset(reason, &self.topic, place);
        self.fan_out(&block);
        clients
    }

    /// Applies the messages that waited, if they follow the history that was read.
    ///
    /// An event that does not follow may have been published after the history was read. Then the caller
    /// reads the history once more. The relay writes an event to the history before it publishes the message.
    /// So if a message came before a read and does not follow that read, no relay published it.
    pub(crate) fn finish_join(&mut self, unfit: Unfit) -> Joined {
        let Phase::Joining { pending, read_again, before_round } = &mut self.phase else {
            return Joined::Live;
        };
        if *read_again {
            return Joined::Again;
        }
        let droppable = match unfit {
            Unfit::Kept => 0,
            Unfit::OlderDropped => *before_round,
            Unfit::AllDropped => usize::MAX,
        };
        let mut waiting = pending.take().into_iter().enumerate();
        while let Some((at, message)) = waiting.next() {
            // The place is that of the history: an event up to it was given to the clients, or is older than
            // a reset.
            if matches!(&message, TopicMessage::Event { frame, .. } if self.has_passed(frame.id)) {
                continue;
            }
            match self.apply(message) {
                Ok(()) => {}
                Err(ahead) if at < droppable => {
                    tracing::warn!(
                        topic = %self.topic,
                        id = ahead.id().map(tracing::field::display),
                        "an event that is not in the history is dropped"
                    );
                    self.metrics.dropped_events.inc();
                }
                Err(ahead) => {
                    self.join_with(std::iter::once(*ahead).chain(waiting.map(|(_, message)| message)));
                    return Joined::Hole;
                }
            }
        }
        self.phase = Phase::Live;
        self.note_end();
        Joined::Live
    }

    fn has_passed(&self, id: StreamId) -> bool {
        self.end_cursor().and_then(Cursor::id).is_some_and(|place| id <= place)
    }

    /// Adds a client to those who get the events that follow.
    pub(super) fn add_client(&mut self, stream: &StreamTopic) {
        self.clients.insert(stream.number(), stream.clone());
    }

    /// Gives all clients bytes that are no event of the topic.
    pub(crate) fn send_all(&mut self, bytes: &Bytes) {
        self.clients.retain(|_, stream| stream.queue.put_bytes(bytes.clone()) == Put::Queued);
    }

    /// Forgets a client.
    pub(crate) fn detach(&mut self, number: u64) {
        self.clients.remove(&number);
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
