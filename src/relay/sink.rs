//! What the relay needs of the place it publishes to.

use std::future::Future;
use std::time::Duration;

use super::failure::{self, Failure};
use crate::event::{Event, EventId, LogId, StreamId, Topic};

/// An event and the number under which it is delivered.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The place in the order of delivery; the same at every repeat.
    pub id: StreamId,
    /// The event.
    pub event: &'a Event,
}

/// Why a batch is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishMode {
    /// The position has come to it.
    Normal,
    /// It was set aside and an operator has released it: it keeps its number, and the release uses up a new one.
    Release,
    /// The sink has forgotten it. Plain subscribers have received it already, and do not receive it again.
    Restore,
    /// The sink has forgotten a release.
    RestoreRelease,
}

impl PublishMode {
    /// Whether the events keep earlier numbers than the batch uses up.
    pub fn is_release(self) -> bool {
        matches!(self, Self::Release | Self::RestoreRelease)
    }

    /// Whether the sink has had the events before.
    pub fn is_restore(self) -> bool {
        matches!(self, Self::Restore | Self::RestoreRelease)
    }
}

/// Events to publish, and the numbers that they use up. The numbers are of one epoch, and so are the events' own, which differ
/// from these in a release only: the sink refuses a batch that mixes epochs.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Why.
    pub mode: PublishMode,
    /// The events in order of their numbers. May be empty: the numbers are used up all the same.
    pub deliveries: &'a [Delivery<'a>],
    /// The first number. A sink that lacks numbers before it has forgotten something.
    pub first: StreamId,
    /// The last number, at or above the last delivery's: numbers of events that are set aside are not given to others.
    /// `None` uses up none: it is not yet written down which of them are set aside.
    pub through: Option<StreamId>,
    /// The highest number that the sink has forgotten and that cannot be given again. From then on the sink shows readers
    /// of each topic that an event may be missing before its next one.
    pub lost: Option<StreamId>,
}

impl Batch<'_> {
    /// Whether no epochs are mixed.
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

/// How far a sink has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// The highest number that has been used up.
    pub id: StreamId,
    /// The event that has it; `None` if that was not published, or is not known.
    pub event: Option<EventId>,
}

/// Why a batch was not, or not wholly, published: by what the relay should do.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The sink or the way to it failed, and nothing is wrong with the events: the same batch again, after a wait.
    /// How much of the batch has arrived may be unknown.
    #[error("{reason}")]
    Retry {
        /// Its kind.
        failure: Failure,
        /// In words.
        reason: String,
    },
    /// The event at index `at` of the batch is refused for a reason of its own; all before it have arrived.
    #[error("event {at} of the batch is refused: {reason}")]
    Poison {
        /// Its index in the batch.
        at: usize,
        /// The sink's words.
        reason: String,
    },
    /// The sink lacks numbers before this batch: [`super::Step::reconcile`] first.
    #[error("the sink has reached {reached} only and lacks what was published after it")]
    Forgot {
        /// The highest number that it knows, or "nothing".
        reached: String,
    },
    /// The sink holds something else under these numbers, or more than the log: going on would lose or repeat events, so
    /// a person has to look.
    #[error("{0}")]
    Stop(String),
}

impl PublishError {
    /// A retry after a failure.
    pub fn retry(failure: Failure, reason: impl Into<String>) -> Self {
        Self::Retry { failure, reason: reason.into() }
    }

    /// What kind of failure it is.
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
    /// A lead over this log begins. Another relay may have published since this one did, so what the sink remembers is
    /// dropped; and from here on the sink refuses to publish where another log has published before.
    fn begin_lead(&mut self, log: LogId);

    /// Publishes a batch in its order. A repeat of what has arrived already, under the same number, changes nothing.
    ///
    /// # Errors
    /// [`PublishError`]; the events that have arrived are always a prefix of the batch.
    fn publish(&mut self, batch: Batch<'_>) -> impl Future<Output = Result<(), PublishError>> + Send;

    /// How far the sink has come; `None` if it has never taken anything, or has forgotten all of it.
    ///
    /// # Errors
    /// [`PublishError::Retry`], [`PublishError::Stop`].
    fn reached(&mut self) -> impl Future<Output = Result<Option<Reached>, PublishError>> + Send;

    /// The newest event of a topic that the sink holds; `None` if it holds none.
    ///
    /// # Errors
    /// [`PublishError::Retry`]; [`PublishError::Poison`] if the sink refuses to say, as it would refuse an event.
    fn newest_of(
        &mut self,
        topic: &Topic,
    ) -> impl Future<Output = Result<Option<Reached>, PublishError>> + Send;

    /// How long the sink keeps an event: what is older need not be given again to one that has forgotten it.
    fn keeps(&self) -> Duration;
}
