//! Pausing a relay: a row that says so, which outlives every process. The relay keeps the lead and delivers nothing.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::{Error, time};

/// Why nothing is delivered, in an operator's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pause {
    /// Since when.
    pub since: DateTime<Utc>,
    /// By whom.
    pub who: String,
    /// Why.
    pub reason: String,
}

/// Whether `relay` is paused.
///
/// # Errors
/// [`Error`].
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
