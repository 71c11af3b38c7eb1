//! Releases: publishing parked events after all.
//!
//! An event keeps the number that it had when it was parked, and is published under it. The release uses up a
//! number of its own, between two windows. So the sink's highest number tells whether the sink still has the
//! released events. The number is written with its rows before any of them is published, so that every crash
//! leaves a record of the events that belong to it.

use sqlx::{Connection, PgConnection};

use super::parked::numbered_events;
use super::position::Position;
use super::{Error, checkpoint};
use crate::event::{Event, EventId, StreamId, Topic};

/// Uses up the next number for a topic's parked events up to and including `through`, and returns the
/// position after it. `from` must have no open window.
///
/// # Errors
/// Returns [`Error::Fenced`] if another relay inserted the row first, [`Error::SchemaMissing`] if the schema
/// is missing or too old, and [`Error::Database`] if Postgres refuses a statement or the connection breaks.
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
        "update outbox.parked set release_epoch = $5, release_seq = $6, may_have_arrived = true
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

/// Returns those of a topic's parked events, up to and including `through`, that clients cannot have received
/// so far.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn not_arrived(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    through: StreamId,
) -> Result<Vec<StreamId>, Error> {
    let numbers: Vec<(i64, i64)> = sqlx::query_as(
        "select epoch, seq from outbox.parked
         where relay = $1 and topic = $2 and (epoch, seq) <= ($3, $4) and not may_have_arrived
           and settled_as is null
         order by epoch, seq",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(through.epoch.cast_signed())
    .bind(through.seq.cast_signed())
    .fetch_all(connection)
    .await?;
    Ok(numbers.iter().map(|(e, s)| StreamId::new(e.cast_unsigned(), s.cast_unsigned())).collect())
}

/// Records that these parked events have not arrived: they had not before, and the sink has refused their
/// release.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn have_not_arrived(
    connection: &mut PgConnection,
    relay: &str,
    refused: &[StreamId],
) -> Result<(), Error> {
    let (epochs, seqs): (Vec<i64>, Vec<i64>) =
        refused.iter().map(|id| (id.epoch.cast_signed(), id.seq.cast_signed())).unzip();
    sqlx::query(
        "update outbox.parked set may_have_arrived = false
         where relay = $1 and settled_as is null
           and (epoch, seq) in (select * from unnest($2::bigint[], $3::bigint[]))",
    )
    .bind(relay)
    .bind(epochs)
    .bind(seqs)
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks a topic's parked events up to and including `through` as released, if their release has begun. Their
/// rows in `outbox.parked` stay for the retention, and at least as long as their rows in the log: for the
/// event's history, and for a sink that forgets the events.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn mark_released(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    through: StreamId,
) -> Result<(), Error> {
    sqlx::query(
        "update outbox.parked set settled_as = 'released', settled_at = clock_timestamp(), requested = null
         where relay = $1 and topic = $2 and (epoch, seq) <= ($3, $4)
           and release_seq is not null and settled_as is null",
    )
    .bind(relay)
    .bind(topic.as_str())
    .bind(through.epoch.cast_signed())
    .bind(through.seq.cast_signed())
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks as released the parked events that the sink holds already. If the newest event that the sink holds
/// of the topic is a parked one, then it and the parked events before it have arrived, because events arrive
/// in order and later events of the topic wait. An event without a release was delivered in its turn, by a
/// leader that was frozen while another one parked it: its row is deleted.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn mark_arrived_released(
    connection: &mut PgConnection,
    relay: &str,
    topic: &Topic,
    (newest, event): (StreamId, EventId),
) -> Result<(), Error> {
    sqlx::query(
        "with held as (
           select from outbox.parked
           where relay = $1 and topic = $2 and (epoch, seq) = ($3, $4)
             and event_id = $5 and settled_as is null),
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

/// Returns whether a release of some of a topic's parked events has begun and not ended. The sink may have
/// taken those events.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
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

/// Returns the events of the release that used up this number, in order. Events whose release did not end are
/// still requested, and get another number.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, [`Error::NotAnEvent`] if a row that
/// it returns breaks the rules for topics or types, and [`Error::Database`] if Postgres refuses the statement
/// or the connection breaks.
pub async fn events(
    connection: &mut PgConnection,
    relay: &str,
    number: StreamId,
) -> Result<Vec<(StreamId, Event)>, Error> {
    let rows = sqlx::query(
        "select epoch, seq, id, event_id, topic, type, payload::text as payload, created_at, xid::text
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
