//! The pause of a relay: a row that outlives every process. A paused relay keeps the lead and delivers
//! nothing.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::{Error, time};

/// An operator's pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// When the pause began.
    pub since: DateTime<Utc>,
    /// The operator.
    pub who: String,
    /// The operator's reason.
    pub reason: String,
}

/// Returns the pause of `relay`, or `None` if it is not paused.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn of(connection: &mut PgConnection, relay: &str) -> Result<Option<Pause>, Error> {
    let row = sqlx::query("select since, who, reason from outbox.pause where relay = $1")
        .bind(relay)
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Pause {
        since: time::shown(&row, "since")?,
        who: row.try_get("who")?,
        reason: row.try_get("reason")?,
    }))
}
