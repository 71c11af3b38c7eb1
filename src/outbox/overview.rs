//! Where each relay stands, in a few index look-ups however large the backlog is.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::Error;
use super::heartbeat::{self, Heard};
use super::pause::{self, Pause};

/// One relay at a moment.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayOverview {
    /// The relay's name.
    pub relay: String,
    /// The session that leads, as `pid` and address, or `None` if no relay of this name runs.
    pub leader: Option<String>,
    /// The last number given out.
    pub last_id: String,
    /// The newest step.
    pub step: i64,
    /// When the position last moved.
    pub moved_at: DateTime<Utc>,
    /// Row numbers taken since the position: the events that wait, and those of transactions that are open or rolled back.
    pub backlog_at_most: i64,
    /// When the transaction of the oldest event that waits began.
    pub oldest_pending_at: Option<DateTime<Utc>>,
    /// How long that event has waited, in seconds.
    pub oldest_pending_seconds: Option<f64>,
    /// How long the newest event that the newest step delivered took, from the beginning of its transaction until that was
    /// written down, in seconds. `None` if that step delivered nothing newer than the one before.
    pub latency_seconds: Option<f64>,
    /// Events set aside.
    pub parked_events: i64,
    /// Topics that wait behind one.
    pub parked_topics: i64,
    /// Why nothing is delivered, if an operator has asked for that.
    pub paused: Option<Pause>,
    /// What the processes of this name have said of themselves lately.
    pub processes: Vec<Heard>,
}

impl RelayOverview {
    /// What the leading process has said of itself last.
    pub fn leading(&self) -> Option<&Heard> {
        self.processes.iter().filter(|heard| heard.heartbeat.role == "leading").max_by_key(|heard| heard.at)
    }
}

/// Looks at every relay that this log knows. Call [`super::read::prepare_session`] on the connection first.
///
/// # Errors
/// [`Error`].
pub async fn relays(connection: &mut PgConnection) -> Result<Vec<RelayOverview>, Error> {
    let rows = sqlx::query(
        "select p.relay, p.epoch, p.next_seq, p.n, p.created_at as moved_at,
                greatest((select case when is_called then last_value else 0 end from outbox.event_id_seq)
                         - greatest(p.high_id, p.after_id), 0) as backlog_at_most,
                oldest.created_at as oldest_pending_at,
                extract(epoch from clock_timestamp() - oldest.created_at)::float8 as oldest_pending_seconds,
                (
                  select extract(epoch from p.created_at - e.created_at)::float8
                  from outbox.checkpoint before
                  join outbox.event e on e.id = greatest(p.high_id, p.after_id)
                  where before.relay = p.relay and before.n = p.n - 1
                    and greatest(before.high_id, before.after_id) < greatest(p.high_id, p.after_id)
                  limit 1
                ) as latency_seconds,
                (select count(*) from outbox.parked k where k.relay = p.relay and k.settled_as is null) as parked_events,
                (select count(distinct k.topic) from outbox.parked k where k.relay = p.relay and k.holds_topic and k.settled_as is null) as parked_topics,
                (
                  select 'pid ' || a.pid || coalesce(' at ' || host(a.client_addr), '')
                  from pg_locks l join pg_stat_activity a on a.pid = l.pid
                  cross join (select hashtextextended('outbox.relay:' || p.relay, 0) as key) k
                  where l.locktype = 'advisory' and l.granted and l.objsubid = 1
                    and l.database = (select oid from pg_database where datname = current_database())
                    and l.classid::bigint = (k.key >> 32) & 4294967295 and l.objid::bigint = k.key & 4294967295
                  limit 1
                ) as leader
         from outbox.position p
         -- What is left of the open window; else what has come since.
         left join lateral (
           select w.created_at, 1 as part
           from outbox.window_rows(p.lower, p.lower_horizon, p.high_id, p.upper, p.after_id, 1) w
           where p.upper is not null
           union all
           select w.created_at, 2
           from outbox.window_rows(
             coalesce(p.upper, p.lower), coalesce(p.upper_horizon, p.lower_horizon), greatest(p.high_id, p.after_id),
             pg_current_snapshot(), 0, 1) w
           order by part limit 1
         ) oldest on true
         order by p.relay",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut relays: Vec<RelayOverview> = rows.iter().map(overview_of).collect::<Result<_, Error>>()?;
    let heard = heartbeat::heard(connection).await?;
    for one in &mut relays {
        one.paused = pause::of(connection, &one.relay).await?;
        one.processes = heard.iter().filter(|heard| heard.relay == one.relay).cloned().collect();
    }
    Ok(relays)
}

fn overview_of(row: &PgRow) -> Result<RelayOverview, Error> {
    let epoch: i64 = row.try_get("epoch")?;
    let next: i64 = row.try_get("next_seq")?;
    Ok(RelayOverview {
        relay: row.try_get("relay")?,
        leader: row.try_get("leader")?,
        last_id: format!("{epoch}-{}", next - 1),
        step: row.try_get("n")?,
        moved_at: row.try_get("moved_at")?,
        backlog_at_most: row.try_get("backlog_at_most")?,
        oldest_pending_at: row.try_get("oldest_pending_at")?,
        oldest_pending_seconds: row.try_get("oldest_pending_seconds")?,
        latency_seconds: row.try_get("latency_seconds")?,
        parked_events: row.try_get("parked_events")?,
        parked_topics: row.try_get("parked_topics")?,
        paused: None,
        processes: Vec::new(),
    })
}
