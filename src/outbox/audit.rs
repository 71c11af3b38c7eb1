//! What operators did, and why: the rows of `outbox.audit`, newest first.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::Error;

/// One thing that an operator did.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Its number.
    pub id: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// Who, and as which user of Postgres.
    pub who: String,
    /// What: `replay`, `release`, `discard`, `pause`, `resume`, `rebase`.
    pub action: String,
    /// Why, in their words.
    pub reason: String,
    /// To what.
    pub selection: serde_json::Value,
    /// How many events that concerned.
    pub events: i64,
}

/// The newest entries since a time, `limit` at most.
///
/// # Errors
/// [`Error`].
pub async fn list(
    connection: &mut PgConnection,
    since: Option<DateTime<Utc>>,
    limit: u32,
) -> Result<Vec<Entry>, Error> {
    let rows = sqlx::query(
        "select * from outbox.audit where $1::timestamptz is null or at >= $1 order by id desc limit $2",
    )
    .bind(since)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Entry {
                id: row.try_get("id")?,
                at: row.try_get("at")?,
                who: row.try_get("who")?,
                action: row.try_get("action")?,
                reason: row.try_get("reason")?,
                selection: row.try_get("selection")?,
                events: row.try_get("events")?,
            })
        })
        .collect()
}
