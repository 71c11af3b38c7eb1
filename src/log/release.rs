//! Releases: parked events that are published after all.
//!
//! An event keeps the number that it had when it was set aside, and is published under it. The release takes a number of its
//! own, between two windows, so that the sink's number tells whether the sink still has what was released. That number is
//! written down, with the rows that it is for, before any of them is published: whatever happens then, it is known whose it is.

use sqlx::{Connection, PgConnection};

use super::parked::numbered_events;
use super::position::Position;
use super::{Error, checkpoint};
use crate::event::{Event, EventId, StreamId, Topic};

/// Uses up the next number for a topic's parked events up to and including `through`, and returns the position behind it. The
/// given position must have no open window.
///
/// # Errors
/// [`Error::Fenced`] if another relay got there first; [`Error`].
pub async fn begin(
    connection: &mut PgConnection,
    relay: &str,
    from: &Position,
    topic: &Topic,
    through: StreamId,
) -> Result<Position, Error> {
    let mut tx = connection.begin().await?;
    let to = checkpoint::insert(&mut tx, relay, &from.releasing()).await?;
    sqlx::query(
        "update outbox.parked set release_epoch = $5, release_seq = $6
         where relay = $1 and topic = $2 and (epoch, seq) <= ($3, $4) and settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(through.epoch.cast_signed())
    .bind(through.seq.cast_signed())
    .bind(from.epoch.cast_signed())
    .bind(from.next_seq.cast_signed())
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(to)
}

/// Writes down that a topic's parked events up to and including a number have arrived. Their rows stay for
/// the retention, and as long as those in the log: for the history of the event, and for a sink that forgets them.
///
/// # Errors
/// [`Error`].
pub async fn mark_released(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    through: StreamId,
) -> Result<(), Error> {
    sqlx::query(
        "update outbox.parked set settled_as = 'released', settled_at = clock_timestamp(), requested = null
         where relay = $1 and topic = $2 and (epoch, seq) <= ($3, $4) and release_seq is not null and settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(through.epoch.cast_signed())
    .bind(through.seq.cast_signed())
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes down that those of a topic's parked events have arrived which are not after the newest event that the sink holds of
/// the topic, if that is one of them: they arrive in order, and later events of the topic wait. An event without a release
/// arrived in its turn, by a leader that was frozen while another one parked it.
///
/// # Errors
/// [`Error`].
pub async fn mark_held_released(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    (newest, event): (StreamId, EventId),
) -> Result<(), Error> {
    sqlx::query(
        "with held as (
           select from outbox.parked
           where relay = $1 and topic = $2 and (epoch, seq) = ($3, $4) and event_id = $5 and settled_as is null),
         never_parked as (
           delete from outbox.parked
           where relay = $1 and topic = $2 and (epoch, seq) <= ($3, $4) and release_seq is null
             and settled_as is null and exists (select from held))
         update outbox.parked
         set settled_as = 'released', settled_at = clock_timestamp(), requested = null
         where relay = $1 and topic = $2 and (epoch, seq) <= ($3, $4) and release_seq is not null
           and settled_as is null and exists (select from held)",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(newest.epoch.cast_signed())
    .bind(newest.seq.cast_signed())
    .bind(event)
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether the release of some of a topic's parked events has begun and not come to its end: the sink may have taken them.
///
/// # Errors
/// [`Error`].
pub async fn has_begun(connection: &mut PgConnection, relay: &str, topic: &Topic) -> Result<bool, Error> {
    let found = sqlx::query_scalar(
        "select exists (
           select from outbox.parked
           where relay = $1 and topic = $2 and release_seq is not null and settled_as is null)",
    )
    .bind(relay)
    .bind(topic.as_str())
    .fetch_one(connection)
    .await?;
    Ok(found)
}

/// The events that arrived with the release which used up this number, in order. Those of a release that did not come to its
/// end are requested still, and get another number.
///
/// # Errors
/// [`Error`].
pub async fn events(
    connection: &mut PgConnection,
    relay: &str,
    number: StreamId,
) -> Result<Vec<(StreamId, Event)>, Error> {
    let rows = sqlx::query(
        "select epoch, seq, id, event_id, topic, type, payload::text as payload, created_at
         from outbox.parked
         where relay = $1 and release_epoch = $2 and release_seq = $3 and settled_as = 'released'
         order by epoch, seq",
    )
    .bind(relay)
    .bind(number.epoch.cast_signed())
    .bind(number.seq.cast_signed())
    .fetch_all(connection)
    .await?;
    numbered_events(&rows)
}
