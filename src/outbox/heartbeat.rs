//! What each relay process says of itself, about once a second: what the log cannot tell.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::Error;

/// A process that has said nothing for this long is no longer shown.
const SHOWN_FOR: Duration = Duration::from_secs(60);

/// One process at a moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Host and pid.
    pub process: String,
    /// `leading`, `standby` or `disconnected`.
    pub role: String,
    /// Events published since the process started.
    pub published: i64,
    /// Events a second, since the last heartbeat.
    pub rate: f64,
    /// What failed last, until something succeeds.
    pub error: Option<String>,
    /// What keeps old slots of the log from being emptied.
    pub rotation_blocked: Option<String>,
    /// Where its health is served.
    pub listen: String,
}

/// A heartbeat and when it was heard.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heard {
    /// The relay.
    #[serde(skip)]
    pub relay: String,
    /// What it said.
    #[serde(flatten)]
    pub heartbeat: Heartbeat,
    /// When it said so.
    pub at: DateTime<Utc>,
    /// When something failed last, also if it has succeeded since.
    pub error_at: Option<DateTime<Utc>>,
}

/// Writes down what a process of `relay` says, and forgets processes that have said nothing for a day.
///
/// # Errors
/// [`Error`].
pub async fn beat(connection: &mut PgConnection, relay: &str, said: &Heartbeat) -> Result<(), Error> {
    sqlx::query(
        "insert into outbox.heartbeat as h
           (relay, process, role, published, rate, error, error_at, rotation_blocked, listen)
         values ($1, $2, $3, $4, $5, $6, case when $6::text is not null then clock_timestamp() end, $7, $8)
         on conflict (relay, process) do update
           set role = excluded.role, at = excluded.at, published = excluded.published, rate = excluded.rate,
               error = excluded.error, error_at = coalesce(excluded.error_at, h.error_at),
               rotation_blocked = excluded.rotation_blocked, listen = excluded.listen",
    )
    .bind(relay)
    .bind(&said.process)
    .bind(&said.role)
    .bind(said.published)
    .bind(said.rate)
    .bind(&said.error)
    .bind(&said.rotation_blocked)
    .bind(&said.listen)
    .execute(&mut *connection)
    .await?;
    sqlx::query("delete from outbox.heartbeat where relay = $1 and at < now() - interval '1 day'")
        .bind(relay)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes what a process has said: it ends.
///
/// # Errors
/// [`Error`].
pub async fn end(connection: &mut PgConnection, relay: &str, process: &str) -> Result<(), Error> {
    sqlx::query("delete from outbox.heartbeat where relay = $1 and process = $2")
        .bind(relay)
        .bind(process)
        .execute(connection)
        .await?;
    Ok(())
}

/// What the processes of all relays have said lately.
///
/// # Errors
/// [`Error`].
pub async fn heard(connection: &mut PgConnection) -> Result<Vec<Heard>, Error> {
    let rows = sqlx::query(
        "select * from outbox.heartbeat where at > now() - make_interval(secs => $1) order by relay, role, process",
    )
    .bind(SHOWN_FOR.as_secs_f64())
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Heard {
                relay: row.try_get("relay")?,
                heartbeat: Heartbeat {
                    process: row.try_get("process")?,
                    role: row.try_get("role")?,
                    published: row.try_get("published")?,
                    rate: row.try_get("rate")?,
                    error: row.try_get("error")?,
                    rotation_blocked: row.try_get("rotation_blocked")?,
                    listen: row.try_get("listen")?,
                },
                at: row.try_get("at")?,
                error_at: row.try_get("error_at")?,
            })
        })
        .collect()
}
