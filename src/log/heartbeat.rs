//! What each relay process says of itself, about once a second: what the log cannot tell.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::{Error, time};

/// A process that has said nothing for this long is no longer shown.
const SHOWN_FOR: Duration = Duration::from_secs(60);

/// A process that has said nothing for this long may have ended: heartbeats come once a second.
pub(super) const FRESH_FOR: Duration = Duration::from_secs(5);

/// One process at a moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Host, pid, and a part that no other start has.
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
pub struct ProcessStatus {
    /// The relay.
    #[serde(skip)]
    pub relay: String,
    /// What it said.
    #[serde(flatten)]
    pub heartbeat: Heartbeat,
    /// When it said so.
    pub at: DateTime<Utc>,
    /// How long ago that was when it was looked up, in seconds.
    #[serde(skip)]
    pub age_seconds: f64,
    /// When something failed last, also if it has succeeded since.
    pub error_at: Option<DateTime<Utc>>,
}

impl ProcessStatus {
    /// Whether that was a moment ago, by the clock of Postgres.
    pub fn is_fresh(&self) -> bool {
        self.age_seconds <= FRESH_FOR.as_secs_f64()
    }
}

/// Writes down what a process of `relay` says, and forgets processes that have said nothing for a day, and leaders that another one has replaced.
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
    // One leads: what a leader of before said last is nobody's state any more.
    sqlx::query(
        "delete from outbox.heartbeat
         where relay = $1 and (at < now() - interval '1 day'
           or ($2 and role = 'leading' and process <> $3 and at < clock_timestamp() - make_interval(secs => $4)))",
    )
    .bind(relay)
    .bind(said.role == "leading")
    .bind(&said.process)
    .bind(FRESH_FOR.as_secs_f64())
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
pub async fn processes(connection: &mut PgConnection) -> Result<Vec<ProcessStatus>, Error> {
    let rows = sqlx::query(
        "select *, extract(epoch from clock_timestamp() - at)::float8 as age_seconds
         from outbox.heartbeat where isfinite(at) and at > now() - make_interval(secs => $1) order by relay, role, process",
    )
    .bind(SHOWN_FOR.as_secs_f64())
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(ProcessStatus {
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
                at: time::shown(row, "at")?,
                age_seconds: row.try_get("age_seconds")?,
                error_at: time::shown_if_any(row, "error_at")?,
            })
        })
        .collect()
}
