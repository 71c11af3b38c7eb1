//! What the relay needs of the place it publishes to.

use std::future::Future;

use crate::event::{Event, StreamId};

/// An event and the number under which it is delivered.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The place in the order of delivery; the same at every repeat.
    pub id: StreamId,
    /// The event.
    pub event: &'a Event,
}

/// Why a batch was not, or not wholly, published: by what the relay should do.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The sink or the way to it failed, and nothing is wrong with the events: the same batch again, after a wait.
    /// How much of the batch has arrived may be unknown.
    #[error("{0}")]
    Retry(String),
    /// The event at index `at` of the batch is refused for a reason of its own; all before it have arrived.
    #[error("event {at} of the batch is refused: {reason}")]
    Poison {
        /// Its index in the batch.
        at: usize,
        /// The sink's words.
        reason: String,
    },
    /// The sink holds something else under these numbers, or lacks what this relay published: going on would lose or
    /// repeat events, so a person has to look.
    #[error("{0}")]
    Stop(String),
}

/// A place that takes events in order.
pub trait Sink: Send {
    /// Publishes a batch in its order. A repeat of what has arrived already, under the same number, changes nothing.
    ///
    /// `through` is the last number that the batch uses up: at or above the last delivery's, as numbers of events that
    /// are not published are not given to others.
    ///
    /// # Errors
    /// [`PublishError`]; what has arrived is always a prefix of the batch.
    fn publish(
        &mut self,
        batch: &[Delivery<'_>],
        through: StreamId,
    ) -> impl Future<Output = Result<(), PublishError>> + Send;
}
