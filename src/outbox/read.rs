//! Reading a window: the next events of it, in order, bounded in number and bytes.
//!
//! The rule itself, and the trap in it, stand with the SQL function `outbox.window_rows` in the first migration.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::Error;
use super::position::Position;
use crate::event::{Event, EventId, EventType, Topic};

/// How much of a window is read at once.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Events at most.
    pub events: u32,
    /// Bytes of payload at most; one event is always read, however large.
    pub bytes: u64,
}

/// Reads the next events of the position's open window, those with an id above `after_id`, in order of id.
///
/// Empty if the window holds no more, or if none is open. A window gives the same events in the same order however often
/// it is read, until rotation drops them, which it does only with delivered ones.
///
/// # Errors
/// [`Error::NotAnEvent`], [`Error::SchemaMissing`], [`Error::Database`].
pub async fn chunk(
    connection: &mut PgConnection,
    position: &Position,
    after_id: i64,
    limit: Limit,
) -> Result<Vec<Event>, Error> {
    let Some(window) = &position.window else { return Ok(Vec::new()) };
    let rows = sqlx::query(
        "select id, event_id, topic, type, payload, created_at, trace from (
           select id, event_id, topic, type, payload::text as payload, created_at, headers ->> 'traceparent' as trace,
                  sum(octet_length(payload::text)) over (order by id) - octet_length(payload::text) as bytes_before
           from outbox.window_rows($1::text::pg_snapshot, $2::text::xid8, $3, $4::text::pg_snapshot, $5, $6)
         ) bounded
         where bytes_before < $7
         order by id",
    )
    .bind(&position.lower.0)
    .bind(&position.lower_horizon.0)
    .bind(position.high_id)
    .bind(&window.upper.0)
    .bind(after_id)
    .bind(i64::from(limit.events))
    .bind(limit.bytes.cast_signed())
    .fetch_all(connection)
    .await?;
    rows.iter().map(event_of).collect()
}

/// The identity of the `nth` event (from 1) of the open window behind the position, or `None` if it holds fewer.
///
/// # Errors
/// [`Error::SchemaMissing`], [`Error::Database`].
pub async fn identity_of(
    connection: &mut PgConnection,
    position: &Position,
    nth: u64,
) -> Result<Option<EventId>, Error> {
    let Some(window) = &position.window else { return Ok(None) };
    Ok(sqlx::query_scalar(
        "select event_id from outbox.window_rows($1::text::pg_snapshot, $2::text::xid8, $3, $4::text::pg_snapshot, $5, $6)
         order by id offset $6 - 1",
    )
    .bind(&position.lower.0)
    .bind(&position.lower_horizon.0)
    .bind(position.high_id)
    .bind(&window.upper.0)
    .bind(window.after_id)
    .bind(nth.cast_signed())
    .fetch_optional(connection)
    .await?)
}

/// Makes the session choose index scans and keep its plans: right for every query on the log, also on a table that was
/// filled a moment ago and has no statistics. Each statement gets a snapshot of its own, whatever the database's default.
///
/// # Errors
/// [`Error::Database`].
pub async fn prepare_session(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::raw_sql(
        "set enable_seqscan = off; set enable_bitmapscan = off; set jit = off; set plan_cache_mode = force_generic_plan;
         set default_transaction_isolation = 'read committed'",
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn event_of(row: &PgRow) -> Result<Event, Error> {
    let id: i64 = row.try_get("id")?;
    let not_an_event = |source| Error::NotAnEvent { id, source };
    Ok(Event {
        id,
        event_id: row.try_get("event_id")?,
        topic: Topic::new(row.try_get::<String, _>("topic")?).map_err(not_an_event)?,
        event_type: EventType::new(row.try_get::<String, _>("type")?).map_err(not_an_event)?,
        payload: row.try_get("payload")?,
        created_at: row.try_get("created_at")?,
        // One that somebody wrote wrongly is no reason to stop.
        trace: row.try_get::<Option<&str>, _>("trace")?.and_then(|text| text.parse().ok()),
    })
}
