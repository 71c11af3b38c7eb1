//! What the clients of one topic share: its recent events, its place, and the clients. All of the ordering is here, and
//! no I/O.
//!
//! A topic is *live* when its place is proven to be the end of what was published, so that the next event's `prev` must
//! be that place. Otherwise it is *joining*: what is heard meanwhile waits until the history has been read.

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
        /// What has been read so far may not be all: read again.
        read_again: bool,
    },
    Live,
}

/// What has to be done after something was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Nothing,
    /// A hole: the topic is joining now, and somebody has to read the history.
    Join,
}

/// How a join ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    Live,
    /// Something was missed meanwhile: subscribe and read once more.
    Again,
    /// What was heard does not fit behind what was read.
    Hole,
}

/// One topic of this process.
#[derive(Debug)]
pub(crate) struct TopicState {
    topic: Topic,
    recent_limits: RecentLimits,
    /// What all topics of the process keep while they are joining, in bytes.
    pending_bytes: Arc<AtomicUsize>,
    metrics: Metrics,
    /// `None` until the topic was live for the first time.
    pub(super) recent: Option<Recent>,
    /// When the newest event came, or the topic was begun.
    newest_at: Instant,
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
        let phase =
            Phase::Joining { pending: PendingMessages::new(pending_bytes.clone()), read_again: false };
        Self {
            topic,
            recent_limits,
            pending_bytes,
            metrics,
            recent: None,
            newest_at: Instant::now(),
            phase,
            clients: HashMap::new(),
        }
    }

    /// Makes the topic joining, with what has been heard so far.
    fn join_with(&mut self, messages: impl IntoIterator<Item = TopicMessage>) {
        let mut pending = PendingMessages::new(self.pending_bytes.clone());
        let read_again = !messages.into_iter().all(|message| pending.push(message));
        self.phase = Phase::Joining { pending, read_again };
    }

    /// The end of what this topic's clients have been given.
    pub(crate) fn place(&self) -> Option<Cursor> {
        self.recent.as_ref().and_then(Recent::tip)
    }

    /// Whether somebody counts on what follows the topic's place.
    pub(crate) fn has_clients(&self) -> bool {
        !self.clients.is_empty()
    }

    /// For how long no event has come, as far as is known.
    pub(crate) fn quiet_for(&self) -> Duration {
        self.newest_at.elapsed()
    }

    /// When the newest event came, or the topic was begun, in milliseconds since 1970.
    pub(crate) fn newest_ms(&self) -> u64 {
        let at = chrono::Utc::now() - self.quiet_for();
        u64::try_from(at.timestamp_millis()).unwrap_or(0)
    }

    pub(super) fn topic(&self) -> &Topic {
        &self.topic
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// Takes in what was heard.
    pub(crate) fn receive(&mut self, message: TopicMessage) -> Next {
        match &mut self.phase {
            Phase::Joining { pending, read_again } => {
                *read_again |= !pending.push(message);
                Next::Nothing
            }
            Phase::Live => match self.apply(message) {
                Ok(()) => Next::Nothing,
                Err(ahead) => {
                    self.join_with([ahead]);
                    Next::Join
                }
            },
        }
    }

    /// Gives an event to the clients if it is the next one; gives it back if there is a hole before it.
    fn apply(&mut self, message: TopicMessage) -> Result<(), TopicMessage> {
        match message {
            TopicMessage::Foreign(block) => {
                self.fan_out(&block);
                Ok(())
            }
            TopicMessage::Event { prev, is_restored, frame } => {
                let place = self.place().and_then(Cursor::id);
                let is_behind = place.is_some_and(|place| frame.id <= place);
                // Clients were told these: they are in memory, or Redis has got again what it had forgotten.
                if is_behind
                    && (is_restored || self.recent.as_ref().is_some_and(|recent| recent.holds(frame.id)))
                {
                    return Ok(());
                }
                // An id below the place that nobody was told says that the place is not what it seems: read the history.
                if is_behind || prev != place {
                    return Err(TopicMessage::Event { prev, is_restored, frame });
                }
                self.append(frame);
                Ok(())
            }
        }
    }

    /// Adds the event that follows, and gives it to the clients.
    fn append(&mut self, frame: Frame) {
        if let Some(reset) = frame::rebased(self.place().and_then(Cursor::id), frame.id, &self.topic) {
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
    }

    fn fan_out(&mut self, block: &Block) {
        self.metrics.delivered.inc_by(self.clients.len() as u64);
        self.clients.retain(|_, stream| stream.put(block) == Put::Queued);
    }

    /// Makes the topic joining. True if it was live, so that somebody has to carry the join out.
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

    /// A round of the join begins: from now on, what is missed counts.
    pub(crate) fn begin_round(&mut self) {
        if let Phase::Joining { read_again, .. } = &mut self.phase {
            *read_again = false;
        }
    }

    /// Adds what the history holds behind the topic's place.
    pub(crate) fn extend(&mut self, frames: impl IntoIterator<Item = Frame>) {
        frames.into_iter().for_each(|frame| self.append(frame));
    }

    /// Begins anew with these events, which end the history; `base` is the place before them, if it is known. Clients are
    /// told to fetch their state if there is a `reason` to, and how many that were is returned.
    pub(crate) fn begin_with(
        &mut self,
        base: Option<Cursor>,
        frames: impl IntoIterator<Item = Frame>,
        reason: Option<ResetReason>,
    ) -> usize {
        let frames: Vec<Frame> = frames.into_iter().collect();
        // That there is no history now says nothing of the time before, where clients are reset because events may be
        // missing.
        let is_start = matches!(base, Some(Cursor::Start { .. }));
        let is_since_now = frames.is_empty() && (base.is_none() || is_start && reason.is_some());
        let base = if is_since_now { Some(Cursor::start_now()) } else { base };
        let mut recent = Recent::new(self.recent_limits.clone(), base);
        frames.into_iter().for_each(|frame| recent.push(frame));
        self.recent = Some(recent);
        self.newest_at = Instant::now();
        let Some(reason) = reason else { return 0 };
        let told = self.clients.len();
        let place = self.place().filter(|place| place.id().is_some()).unwrap_or_else(Cursor::start_now);
        let block = frame::reset(reason, &self.topic, place);
        self.fan_out(&block);
        told
    }

    /// Lets go of what was heard since the join began, if it fits behind the history that was read.
    ///
    /// What does not fit may have been published after the history was read: then it is read once more. With
    /// `has_read_since` it has been, and the history has every event before it is told: so no relay published this one, and
    /// it is dropped.
    pub(crate) fn finish_join(&mut self, has_read_since: bool) -> Joined {
        let Phase::Joining { pending, read_again, .. } = &mut self.phase else { return Joined::Live };
        if *read_again {
            return Joined::Again;
        }
        let mut waiting = pending.take().into_iter();
        while let Some(message) = waiting.next() {
            // The place has just been read in the history: what is not behind it was told, or is older than a reset.
            if matches!(&message, TopicMessage::Event { frame, .. } if self.has_passed(frame.id)) {
                continue;
            }
            match self.apply(message) {
                Ok(()) => {}
                Err(TopicMessage::Event { frame, .. }) if has_read_since => {
                    tracing::warn!(topic = %self.topic, id = %frame.id, "an event that is not in the history is dropped");
                    self.metrics.dropped_events.inc();
                }
                Err(ahead) => {
                    self.join_with(std::iter::once(ahead).chain(waiting));
                    return Joined::Hole;
                }
            }
        }
        self.phase = Phase::Live;
        Joined::Live
    }

    fn has_passed(&self, id: StreamId) -> bool {
        self.place().and_then(Cursor::id).is_some_and(|place| id <= place)
    }

    /// Adds a client to those who get the events that follow.
    pub(super) fn add_client(&mut self, stream: &StreamTopic) {
        self.clients.insert(stream.number(), stream.clone());
    }

    /// Tells all clients something that is no event of the topic.
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
