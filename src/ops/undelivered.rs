//! The events that wait in a log for a relay that has never run on it, found at a bounded cost.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use crate::log::Error;

/// The most events that are counted. A larger number is shown as this many or more.
const COUNTED: i64 = 10_000;

/// Events that no relay of a name has ever looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Undelivered {
    /// How many events the log holds.
    pub events: u64,
    /// Whether there may be more than were counted.
    pub is_at_least: bool,
    /// When the transaction of the oldest one began.
    pub oldest_at: DateTime<Utc>,
    /// How long ago that is, in seconds.
    pub oldest_seconds: f64,
}

/// All events of the log, for a relay that has no position in it; `None` for an empty log.
///
/// # Errors
/// [`Error`].
pub async fn of_new_relay(connection: &mut PgConnection) -> Result<Option<Undelivered>, Error> {
    let row = sqlx::query(
        "select seen.events, oldest.created_at as oldest_at,
                extract(epoch from clock_timestamp() - oldest.created_at)::float8 as oldest_seconds
         from (select e.created_at from outbox.event e order by e.id limit 1) oldest
         cross join (
           select count(*) as events
             from (select from outbox.event e order by e.id limit $1::bigint + 1) counted
         ) seen",
    )
    .bind(COUNTED)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let events: i64 = row.try_get("events")?;
    Ok(Some(Undelivered {
        events: events.min(COUNTED).cast_unsigned(),
        is_at_least: events > COUNTED,
        oldest_at: row.try_get("oldest_at")?,
        oldest_seconds: row.try_get("oldest_seconds")?,
    }))
}
