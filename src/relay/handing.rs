//! Handing a batch to the sink: together, or, where the sink goes on refusing, one event at a time.
//!
//! Which of the events of a batch a server refuses it does not always say: a payload beyond its input buffer breaks the
//! connection, a permission is checked for all keys of a script at once. Then each event is handed over alone. One that is
//! refused while the sink takes everything else is refused for a reason of its own, whatever the error says.

use std::time::Duration;

use super::failure::Remedy;
use super::sink::{Batch, PublishError, Sink};
use crate::event::StreamId;

/// Waits before the further tries of one event: connections break by chance, also several in a row.
const RETRY_WAITS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// How the events of a batch are handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handing {
    Together,
    OneByOne,
}

/// Hands a batch to the sink.
///
/// # Errors
/// As [`Sink::publish`]. One by one, an event that is refused alone is [`PublishError::Poison`].
pub(super) async fn hand_over<S: Sink>(
    sink: &mut S,
    batch: Batch<'_>,
    handing: Handing,
) -> Result<(), PublishError> {
    match handing {
        Handing::Together => sink.publish(batch).await,
        Handing::OneByOne => one_by_one(sink, batch).await,
    }
}

async fn one_by_one<S: Sink>(sink: &mut S, batch: Batch<'_>) -> Result<(), PublishError> {
    let mut first = batch.first;
    for (at, delivery) in batch.deliveries.iter().enumerate() {
        // A release's number is used up behind the last of its events.
        let through = batch.through.filter(|_| !batch.mode.is_release()).map(|_| delivery.id);
        let one = Batch { deliveries: std::slice::from_ref(delivery), first, through, ..batch };
        match alone(sink, one).await {
            Err(PublishError::Poison { reason, .. }) => return Err(PublishError::Poison { at, reason }),
            handed => handed?,
        }
        // Where no numbers are used up, the sink stays where it is.
        first = through.map_or(first, |id| StreamId::new(id.epoch, id.seq + 1));
    }
    // The numbers behind the last event.
    sink.publish(Batch { deliveries: &[], first, ..batch }).await
}

/// Hands over a batch of one event, and finds out whether a refusal is about that event.
///
/// Each try stands between two batches without events, on the same connection where it holds. Only an event that is refused
/// in every try, while the sink takes what is before and behind it, is refused for a reason of its own: a connection that
/// was cut while the relay waited breaks at the batch before.
async fn alone<S: Sink>(sink: &mut S, batch: Batch<'_>) -> Result<(), PublishError> {
    let nothing = Batch { deliveries: &[], through: None, ..batch };
    let mut waits = RETRY_WAITS.into_iter();
    loop {
        sink.publish(nothing).await?;
        let (failure, reason) = match sink.publish(batch).await {
            Err(PublishError::Retry { failure, reason }) => (failure, reason),
            other => return other,
        };
        sink.publish(nothing).await?;
        match waits.next() {
            Some(wait) if failure.remedy != Remedy::SetAside => tokio::time::sleep(wait).await,
            _ => return Err(PublishError::Poison { at: 0, reason }),
        }
    }
}
