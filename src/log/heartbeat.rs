//! The status that each relay process writes about once a second: facts that the log does not hold.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::{Error, time};

/// A process whose newest heartbeat is older is no longer shown.
const SHOWN_FOR: Duration = Duration::from_secs(60);

/// A process whose newest heartbeat is older may have ended. Heartbeats come once a second.
pub(super) const FRESH_FOR: Duration = Duration::from_secs(5);

/// The state of one process at a moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Host, pid, and a part that is unique to this start of the process.
    pub process: String,
    /// `leading`, `standby` or `disconnected`.
    pub role: String,
    /// Events published since the process started.
    pub published: i64,
    /// Events a second since the previous heartbeat.
    pub rate: f64,
    /// The newest failure, until something succeeds.
    pub error: Option<String>,
    /// Why old slots of the log cannot be emptied.
    pub rotation_blocked: Option<String>,
    /// The address that serves its health and metrics.
    pub listen: String,
    /// Seconds until its next heartbeat, if it sleeps.
    pub asleep_seconds: Option<f64>,
}

/// A heartbeat and its time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessStatus {
    /// The relay's name.
    #[serde(skip)]
    pub relay: String,
    /// The heartbeat.
    #[serde(flatten)]
    pub heartbeat: Heartbeat,
    /// When it was written.
    pub at: DateTime<Utc>,
    /// Its age when it was read, in seconds. A sleep that it has announced does not count.
    #[serde(skip)]
    pub age_seconds: f64,
    /// When something failed last, also if something has succeeded since.
    pub error_at: Option<DateTime<Utc>>,
}

impl ProcessStatus {
    /// Whether the heartbeat is at most 5 seconds old, by the clock of Postgres.
    pub fn is_fresh(&self) -> bool {
        self.age_seconds <= FRESH_FOR.as_secs_f64()
    }
}

/// Writes the heartbeat of a process of `relay`. Deletes heartbeats older than a day, and those of leaders
/// that this leader has replaced.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn beat(connection: &mut PgConnection, relay: &str, heartbeat: &Heartbeat) -> Result<(), Error> {
    sqlx::query(
        "insert into outbox.heartbeat as h
           (relay, process, role, published, rate, error, error_at, rotation_blocked, listen,
            asleep_seconds)
         values ($1, $2, $3, $4, $5, $6, case when $6::text is not null then clock_timestamp() end, $7, $8, $9)
         on conflict (relay, process) do update
           set role = excluded.role, at = excluded.at, published = excluded.published, rate = excluded.rate,
               error = excluded.error, error_at = coalesce(excluded.error_at, h.error_at),
               rotation_blocked = excluded.rotation_blocked, listen = excluded.listen,
               asleep_seconds = excluded.asleep_seconds",
    )
    .bind(relay)
    .bind(&heartbeat.process)
    .bind(&heartbeat.role)
    .bind(heartbeat.published)
    .bind(heartbeat.rate)
    .bind(&heartbeat.error)
    .bind(&heartbeat.rotation_blocked)
    .bind(&heartbeat.listen)
    .bind(heartbeat.asleep_seconds)
    .execute(&mut *connection)
    .await?;
    // Only one process leads, so the last heartbeat of a former leader is obsolete.
    sqlx::query(
        "delete from outbox.heartbeat
         where relay = $1 and (at < now() - interval '1 day'
           or ($2 and role = 'leading' and process <> $3
               and at < clock_timestamp() - make_interval(secs => $4)))",
    )
    .bind(relay)
    .bind(heartbeat.role == "leading")
    .bind(&heartbeat.process)
    .bind(FRESH_FOR.as_secs_f64())
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes the heartbeat of a process that ends.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn end(connection: &mut PgConnection, relay: &str, process: &str) -> Result<(), Error> {
    sqlx::query("delete from outbox.heartbeat where relay = $1 and process = $2")
        .bind(relay)
        .bind(process)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns the recent heartbeats of all relays.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn processes(connection: &mut PgConnection) -> Result<Vec<ProcessStatus>, Error> {
    let rows = sqlx::query(
        "select *, extract(epoch from clock_timestamp() - at)::float8 - coalesce(asleep_seconds, 0)
                     as age_seconds
         from outbox.heartbeat
         where isfinite(at) and at > now() - make_interval(secs => $1 + coalesce(asleep_seconds, 0))
         order by relay, role, process",
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
                    asleep_seconds: row.try_get("asleep_seconds")?,
                },
                at: time::shown(row, "at")?,
                age_seconds: row.try_get("age_seconds")?,
                error_at: time::shown_if_any(row, "error_at")?,
            })
        })
        .collect()
}
