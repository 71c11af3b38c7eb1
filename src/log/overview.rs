//! The state of each relay, in a few index look-ups however large the backlog is.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::Error;
use super::heartbeat::{self, ProcessStatus};
use super::pause::{self, Pause};
use super::{contradiction, contradictions, time, waiting};

/// The state of one relay at a moment.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RelayOverview {
    /// The relay's name.
    pub relay: String,
    /// The leading session, as `pid` and address, or `None` if no relay of this name leads.
    pub leader: Option<String>,
    /// The last number that was used up, as `<epoch>-<seq>`.
    pub last_id: String,
    /// The newest step.
    pub step: i64,
    /// When the position last moved.
    pub moved_at: DateTime<Utc>,
    /// Row numbers taken since the position: the pending events, and the rows of transactions that are open
    /// or rolled back.
    pub backlog_at_most: i64,
    /// When the transaction of the oldest pending event began.
    pub oldest_pending_at: Option<DateTime<Utc>>,
    /// The age of that event, in seconds.
    pub oldest_pending_seconds: Option<f64>,
    /// Seconds from the beginning of a transaction until the delivery of its event was written, for the
    /// newest event of the newest step. `None` if that step delivered nothing newer than the step before.
    pub latency_seconds: Option<f64>,
    /// Whether `oldest_pending_at` comes from samples, because transactions that are open or rolled back have
    /// taken thousands of row numbers after the position. An older event may then be pending.
    pub oldest_is_sampled: bool,
    /// Signs that the log holds rows that contradict the position. Nothing is delivered after such rows.
    pub contradiction: Option<String>,
    /// Events set aside.
    pub parked_events: i64,
    /// Topics with parked events.
    pub parked_topics: i64,
    /// The operator's pause, if there is one.
    pub paused: Option<Pause>,
    /// The recent heartbeats of the processes of this name.
    pub processes: Vec<ProcessStatus>,
}

impl RelayOverview {
    /// Returns the newest heartbeat of a leading process.
    pub fn leading(&self) -> Option<&ProcessStatus> {
        self.processes
            .iter()
            .filter(|process| process.heartbeat.role == "leading")
            .max_by_key(|process| process.at)
    }
}

/// Returns the state of every relay in this log. Call [`super::read::prepare_session`] on the connection
/// first.
///
/// # Errors
/// [`Error`].
pub async fn relays(connection: &mut PgConnection) -> Result<Vec<RelayOverview>, Error> {
    let rows = sqlx::query(AssertSqlSafe(positions())).fetch_all(&mut *connection).await?;
    let mut relays = Vec::new();
    for row in &rows {
        let mut one = overview_of(row)?;
        if one.oldest_pending_at.is_none() && one.backlog_at_most > waiting::LOOKED_AT {
            look_at_samples(connection, &mut one, row.try_get("behind")?, row.try_get("newest")?).await?;
        }
        relays.push(one);
    }
    let processes = heartbeat::processes(connection).await?;
    for one in &mut relays {
        one.paused = pause::of(connection, &one.relay).await?;
        let signs = contradictions::signs(connection, &one.relay).await?;
        one.contradiction = (!signs.is_empty()).then(|| contradiction::named(&signs));
        one.processes = processes.iter().filter(|process| process.relay == one.relay).cloned().collect();
    }
    Ok(relays)
}

/// The SQL of the positions of all relays, with the facts that the log holds about each.
fn positions() -> String {
    let oldest = waiting::oldest();
    format!(
        "select p.relay, p.epoch, p.next_seq, p.n, p.created_at as moved_at, behind.id as behind,
                greatest(newest.id, behind.id) as newest,
                oldest.created_at as oldest_pending_at,
                extract(epoch from clock_timestamp() - oldest.created_at)::float8 as oldest_pending_seconds,
                (
                  select extract(epoch from p.created_at - e.created_at)::float8
                  from outbox.checkpoint before
                  join outbox.event e on e.id = greatest(p.high_id, p.after_id)
                  where before.relay = p.relay and before.n = p.n - 1::bigint and isfinite(e.created_at)
                    and greatest(before.high_id, before.after_id) < greatest(p.high_id, p.after_id)
                  limit 1
                ) as latency_seconds,
                (select count(*) from outbox.parked k
                 where k.relay = p.relay and k.settled_as is null) as parked_events,
                (select count(distinct k.topic) from outbox.parked k
                 where k.relay = p.relay and k.settled_as is null) as parked_topics,
                (
                  select 'pid ' || a.pid || coalesce(' at ' || host(a.client_addr), '')
                  from outbox.relay r
                  join pg_locks l
                    on l.locktype = 'advisory' and l.granted and l.objsubid = 1::smallint
                    and l.database = (select oid from pg_database where datname = current_database())
                    and l.classid::bigint = (r.lead_key >> 32) & 4294967295
                    and l.objid::bigint = r.lead_key & 4294967295
                  join pg_stat_activity a on a.pid = l.pid
                  -- Any role can take an advisory lock; a role that cannot write a position is no relay.
                  where r.name = p.relay and has_table_privilege(a.usename, 'outbox.checkpoint', 'INSERT')
                  limit 1
                ) as leader
         from outbox.position p
         cross join lateral (select greatest(p.high_id, p.after_id) as id) behind
         cross join (
           select case when is_called then last_value else 0 end as id from outbox.event_id_seq) newest
         left join lateral ({oldest}) oldest on true
         order by p.relay"
    )
}

/// The rows right after the position are of transactions that are open or rolled back: samples the later
/// rows.
async fn look_at_samples(
    connection: &mut PgConnection,
    one: &mut RelayOverview,
    behind: i64,
    newest: i64,
) -> Result<(), Error> {
    one.oldest_is_sampled = true;
    if let Some((at, seconds)) = waiting::sampled(connection, behind, newest).await? {
        (one.oldest_pending_at, one.oldest_pending_seconds) = (Some(at), Some(seconds));
    }
    Ok(())
}

fn overview_of(row: &PgRow) -> Result<RelayOverview, Error> {
    let epoch: i64 = row.try_get("epoch")?;
    let next: i64 = row.try_get("next_seq")?;
    Ok(RelayOverview {
        relay: row.try_get("relay")?,
        leader: row.try_get("leader")?,
        last_id: format!("{epoch}-{}", next - 1),
        step: row.try_get("n")?,
        moved_at: time::shown(row, "moved_at")?,
        backlog_at_most: row.try_get::<i64, _>("newest")? - row.try_get::<i64, _>("behind")?,
        oldest_pending_at: time::shown_if_any(row, "oldest_pending_at")?,
        oldest_pending_seconds: row.try_get("oldest_pending_seconds")?,
        latency_seconds: row.try_get("latency_seconds")?,
        oldest_is_sampled: false,
        contradiction: None,
        parked_events: row.try_get("parked_events")?,
        parked_topics: row.try_get("parked_topics")?,
        paused: None,
        processes: Vec::new(),
    })
}
