//! The interface of the place that a relay publishes to.

use std::future::Future;
use std::time::Duration;

use super::failure::{self, Failure};
use crate::event::{Event, EventId, LogId, StreamId, Topic};

/// An event and the number under which it is delivered.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The event's place in the order of delivery, the same at every repeat.
    pub id: StreamId,
    /// The event.
    pub event: &'a Event,
}

/// Why a batch is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishMode {
    /// The events are delivered in the order of the log, for the first time or after a failed try.
    Normal,
    /// An operator has released parked events. They keep their numbers, and the release uses up a new one.
    Release,
    /// The sink has forgotten the events. Plain subscribers have received them, and do not receive them
    /// again.
    Restore,
    /// The sink has forgotten a release.
    RestoreRelease,
}

impl PublishMode {
    /// Whether the events keep numbers of their own, below those that the batch uses up.
    pub fn is_release(self) -> bool {
        matches!(self, Self::Release | Self::RestoreRelease)
    }

    /// Whether the sink has had the events before.
    pub fn is_restore(self) -> bool {
        matches!(self, Self::Restore | Self::RestoreRelease)
    }
}

/// Events to publish, and the numbers that they use up. These numbers are of one epoch. The events' own
/// numbers are of the same epoch, except in a release: there the events keep their earlier numbers, which are
/// of one epoch as well. The sink refuses a batch that mixes epochs.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The reason to publish.
    pub mode: PublishMode,
    /// The events in order of their numbers. May be empty: the numbers are used up all the same.
    pub deliveries: &'a [Delivery<'a>],
    /// The first number. A sink that lacks numbers before it has forgotten something.
    pub first: StreamId,
    /// The last number that is used up, at or above the last delivery's. The number of an event that is set
    /// aside is not given to another event. With `None`, no number is used up: the relay has not yet written
    /// down which of the events are set aside.
    pub through: Option<StreamId>,
    /// The highest number that the sink has forgotten and that cannot be restored. The sink then shows the
    /// readers of each topic that an event may be missing before its next one.
    pub lost: Option<StreamId>,
}

impl Batch<'_> {
    /// Whether the batch holds to these rules on epochs.
    pub fn has_one_epoch(&self) -> bool {
        let epoch = self.first.epoch;
        let own = if self.mode.is_release() { self.epoch_of_events() } else { epoch };
        self.through.is_none_or(|through| through.epoch == epoch)
            && self.deliveries.iter().all(|delivery| delivery.id.epoch == own)
    }

    /// The epoch of the events' own numbers.
    fn epoch_of_events(&self) -> u64 {
        self.deliveries.first().map_or(self.first.epoch, |delivery| delivery.id.epoch)
    }
}

/// The place that a sink has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The highest number that has been used up.
    pub id: StreamId,
    /// The event with that number. `None` if the number was used up without an event, or if that is not
    /// known.
    pub event: Option<EventId>,
    /// The highest number that a release or a restore has used up: the log had recorded it by then. `None` if
    /// there is none, or if that is not known.
    pub recorded: Option<StreamId>,
}

/// Why a batch was not published, or only in part. There is one variant for each remedy.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The sink or the connection failed, and the events are not at fault. Publish the same batch again after
    /// a wait. It may be unknown how much of the batch has arrived.
    #[error("{reason}")]
    Retry {
        /// The class and remedy.
        failure: Failure,
        /// The reason, in words.
        reason: String,
    },
    /// The sink refuses the event at index `at` of the batch for a reason of its own. All events before it
    /// have arrived, and so may have later ones of other topics.
    #[error("event {at} of the batch is refused: {reason}")]
    Poison {
        /// The event's index in the batch.
        at: usize,
        /// The sink's words.
        reason: String,
    },
    /// The sink lacks numbers before this batch, or has used up some of its numbers. Call
    /// [`super::Step::reconcile`] first.
    #[error("the sink has reached {reached}, which is not the number before the batch")]
    Forgot {
        /// The highest number that it knows, or "nothing".
        reached: String,
    },
    /// The sink holds another event under these numbers, or more than the log. Going on would lose or repeat
    /// events, so a person has to decide.
    #[error("{0}")]
    Stop(String),
}

impl PublishError {
    /// Makes a [`PublishError::Retry`].
    pub fn retry(failure: Failure, reason: impl Into<String>) -> Self {
        Self::Retry { failure, reason: reason.into() }
    }

    /// The class and remedy of the error.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Retry { failure, .. } => *failure,
            Self::Poison { .. } => failure::REFUSED,
            Self::Forgot { .. } => failure::FORGOT,
            Self::Stop(_) => failure::CONFLICT,
        }
    }
}

/// A place that takes events in order.
pub trait Sink: Send {
    /// Begins a lead over this log. The sink drops its cached state, because another relay may have published
    /// since. From then on it refuses to publish where another log has published before.
    fn begin_lead(&mut self, log: LogId);

    /// Publishes a batch in its order. Events that have arrived already under the same numbers change
    /// nothing.
    ///
    /// # Errors
    /// Returns a [`PublishError`]. The events that have arrived are always a prefix of those of each topic.
    fn publish(&mut self, batch: Batch<'_>) -> impl Future<Output = Result<(), PublishError>> + Send;

    /// Vouches for the events up to this number: the log holds the same ones. A batch in
    /// [`PublishMode::Normal`] that finds one of its numbers used up, and nobody vouches for it, is refused as
    /// [`PublishError::Forgot`]: a relay of the same log in another Postgres may have used the numbers, after a
    /// promotion of a standby, or from a clone.
    fn vouch(&mut self, through: StreamId);

    /// Asks the servers of the sink that can be asked, and returns the place that each of them has reached;
    /// `None` for a server that has never taken anything, or has forgotten everything.
    ///
    /// # Errors
    /// Returns [`PublishError::Retry`] if the sink cannot be asked, and [`PublishError::Stop`] if its state
    /// is not of this log or cannot be read.
    fn reached(&mut self) -> impl Future<Output = Result<Vec<Option<Reached>>, PublishError>> + Send;

    /// Returns the newest event of a topic that the sink holds; `None` if it holds none.
    ///
    /// # Errors
    /// Returns [`PublishError::Retry`] if the sink cannot be asked, or if it refuses to read this topic (then
    /// with [`Remedy::SetAside`](failure::Remedy::SetAside)), and [`PublishError::Poison`] if the topic's
    /// history is not a history but other data.
    fn newest_of(
        &mut self,
        topic: &Topic,
    ) -> impl Future<Output = Result<Option<Reached>, PublishError>> + Send;

    /// Whether a call in [`PublishMode::Normal`] since the lead began may have delivered the event of this
    /// number, or a later one. A call that broke off without an answer may have delivered all of its events.
    fn may_have_delivered(&self, id: StreamId) -> bool;

    /// How long the sink keeps a topic's history after its last event: older events need not be restored.
    fn keeps(&self) -> Duration;

    /// Whether a server of the sink has been left behind, and lacks events that only the log still has.
    fn lacks_events(&self) -> bool;

    /// Events above this number have not been given to every server of the sink. They have to be restored,
    /// however old they are. `None` if there are no such events.
    fn unpublished_above(&self) -> Option<StreamId>;
}
