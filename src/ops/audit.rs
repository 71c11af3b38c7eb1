//! What operators did, and why: the rows of `outbox.audit`.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use crate::log::{Error, time};

/// Who does something by hand, and why.
#[derive(Debug, Clone)]
pub struct Operator {
    /// A person or program.
    pub who: String,
    /// In their words.
    pub reason: String,
}

/// One thing that an operator did.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Its number.
    pub id: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// Who, and as which user of Postgres.
    pub who: String,
    /// The action: `replay`, `resume replay`, `release`, `discard`, `discard_arrived`, `pause`, `resume`,
    /// `rebase`, `revoke`.
    pub action: String,
    /// Why, in their words.
    pub reason: String,
    /// The relay, topics or events that the action was about.
    pub selection: serde_json::Value,
    /// The number of events that the action concerned.
    pub events: i64,
}

/// Writes down what an operator did, in the transaction that does it.
///
/// # Errors
/// [`Error`].
pub async fn write(
    connection: &mut PgConnection,
    operator: &Operator,
    action: &str,
    selection: &serde_json::Value,
    events: u64,
) -> Result<(), Error> {
    sqlx::query(
        "insert into outbox.audit (who, action, reason, selection, events)
         values ($1 || ' as ' || session_user, $2, $3, $4, $5)",
    )
    .bind(&operator.who)
    .bind(action)
    .bind(&operator.reason)
    .bind(selection)
    .bind(events.cast_signed())
    .execute(connection)
    .await?;
    Ok(())
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
                at: time::shown(row, "at")?,
                who: row.try_get("who")?,
                action: row.try_get("action")?,
                reason: row.try_get("reason")?,
                selection: row.try_get("selection")?,
                events: row.try_get("events")?,
            })
        })
        .collect()
}
