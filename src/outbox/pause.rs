//! Pausing a relay: a row that says so, which outlives every process. The relay keeps the lead and delivers nothing.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::audit::Operator;
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

/// Pauses `relay`, which must have run on this log before. False if it is paused already.
///
/// Write it in the transaction of its audit row, and ring the bell after the commit.
///
/// # Errors
/// [`Error`].
pub async fn pause(connection: &mut PgConnection, relay: &str, operator: &Operator) -> Result<bool, Error> {
    let done = sqlx::query(
        "insert into outbox.pause (relay, who, reason) values ($1, $2, $3) on conflict (relay) do nothing",
    )
    .bind(relay)
    .bind(&operator.who)
    .bind(&operator.reason)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Lets `relay` deliver again. False if it was not paused.
///
/// # Errors
/// [`Error`].
pub async fn resume(connection: &mut PgConnection, relay: &str) -> Result<bool, Error> {
    let done =
        sqlx::query("delete from outbox.pause where relay = $1").bind(relay).execute(connection).await?;
    Ok(done.rows_affected() > 0)
}
