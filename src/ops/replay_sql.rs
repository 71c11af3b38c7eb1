//! The statements of a replay: all of them walk the log by row number, in steps of bounded size.

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row};

use super::browse::Selection;
use crate::log::Error;
use crate::log::position::{Position, Snapshot};

/// Rows that one statement looks at, however few of them match.
const EXAMINED: i64 = 20_000;
/// Stored bytes of payload in one batch; one event always fits.
const BATCH_BYTES: i64 = 4 << 20;

/// The key of the advisory lock that the process of a replay holds: an SQL expression of the replay's number,
/// `$1`. It is random, because every role that may connect can take any advisory lock.
pub(super) const LOCK_KEY: &str = "(select r.lock_key from outbox.replay r where r.id = $1)";

/// A place in the log: the rows that were delivered when it was looked at.
#[derive(Debug, Clone)]
pub(super) struct DeliveredSnapshot {
    pub(super) lower: Snapshot,
    pub(super) upper: Option<Snapshot>,
    pub(super) after_id: i64,
    pub(super) from_id: i64,
    pub(super) through_id: i64,
    /// By the clock of Postgres.
    pub(super) seen_at: DateTime<Utc>,
}

/// Replays, with their snapshots as text, and whether a process holds their lock.
pub(super) const REPLAYS: &str = "
  select r.*, r.lower::text as lower_text, r.upper::text as upper_text,
         exists (
           select from pg_locks l
           where l.locktype = 'advisory' and l.granted and l.objsubid = 1
             and l.database = (select oid from pg_database where datname = current_database())
             and l.classid::bigint = (r.lock_key >> 32) & 4294967295
             and l.objid::bigint = r.lock_key & 4294967295
         ) as held
  from outbox.replay r";

/// The next matching rows. Parameters: 1 to 13 those of [`bind`]; 14 the most rows; 15 whether copies count;
/// 16 when the deliveries were looked at.
///
/// An event that was parked at that time is not repeated, even if it has been released since: the replay was
/// confirmed without it. An event that was parked later is repeated, because it had been delivered.
///
/// A row is a copy if its header names a replay, and its id lies between those of the first and the last copy
/// that the replay has written down. The header alone proves nothing, because any writer can set it.
const MATCHING: &str = "
  with examined as (
    select case when count(*) < $13 then $12 else max(next.id) end as last_id
    from (select e.id from outbox.event e where e.id > $11 and e.id <= $12 order by e.id limit $13) next
  ), matching as (
    select e.*
    from outbox.event e
    where e.id > $11 and e.id <= (select last_id from examined)
      and outbox.is_delivered(e.id, e.xid, $12, $8::text::pg_snapshot, $10, $9::text::pg_snapshot)
      and not exists (
        select from outbox.parked k
        where k.relay = $1 and k.id = e.id
          and (k.settled_as = 'discarded'
               or k.parked_at <= $16 and (k.settled_at is null or k.settled_at > $16)))
      and (cardinality($2::uuid[]) = 0 or e.event_id = any ($2))
      and (cardinality($3::bigint[]) = 0 or e.id = any ($3))
      and ($4::text is null or e.topic = $4)
      and ($5::text is null or e.type = $5)
      and ($6::timestamptz is null or e.created_at >= $6)
      and ($7::timestamptz is null or e.created_at < $7)
      and ($15::boolean or cardinality($3::bigint[]) > 0 or not (
        coalesce(e.headers ? 'replay', false) and exists (
          select from outbox.replay r
          where e.id between r.first_copy and r.last_copy
            and e.headers->'replay' @> jsonb_build_object('replay', r.id))))
    order by e.id limit $14
  )";

/// How many match in the next step, and where it ends.
pub(super) fn count() -> String {
    format!("{MATCHING} select count(*) as events, (select last_id from examined) as last_id from matching")
}

/// The matching events of the next step, each with where it ends; one empty row if there are none.
pub(super) fn sample() -> String {
    format!(
        "{MATCHING} select m.id, m.event_id, m.topic, m.type, m.created_at, 'delivered' as state, e.last_id
         from examined e left join matching m on true order by m.id"
    )
}

/// Appends copies of the next matching events in their order, and moves the replay, parameter 17, on. No row,
/// and nothing to be committed, if it no longer stands where this process believes, or a rebase has given it
/// other snapshots. A copy belongs to no request: it leaves the trace of its original behind.
pub(super) fn copy() -> String {
    format!(
        "{MATCHING}, sized as (
           select m.*,
                  sum(pg_column_size(m.payload)) over (order by m.id) - pg_column_size(m.payload)
                    as bytes_before
           from matching m
         ), copied as (
           insert into outbox.event (event_id, topic, type, payload, headers, bytes)
           select s.event_id, s.topic, s.type, s.payload, copy.headers,
                  outbox.bytes_of(s.payload, copy.headers)
           from sized s
           cross join lateral (
             select coalesce(s.headers, '{{}}') - 'traceparent' - 'tracestate'
                    || jsonb_build_object('replay', jsonb_build_object(
                         'row', s.id, 'reason', $18::text, 'replay', $17::bigint)) as headers
           ) copy
           where s.bytes_before < {BATCH_BYTES}
           order by s.id
           returning id
         ), batch as (
           select c.events, c.first_copy, c.last_copy,
                  case when c.events < m.events or c.events = $14 then m.last_id
                       else (select last_id from examined) end as done_id
           from (select count(*) as events, min(id) as first_copy, max(id) as last_copy from copied) c,
                (select count(*) as events, max(id) filter (where bytes_before < {BATCH_BYTES}) as last_id
                 from sized) m
         )
         update outbox.replay r
         set done_id = b.done_id, copied = r.copied + b.events, finished = b.done_id >= r.through_id,
             first_copy = coalesce(r.first_copy, b.first_copy),
             last_copy = coalesce(b.last_copy, r.last_copy),
             moved_at = clock_timestamp()
         from batch b
         where r.id = $17 and r.done_id = $11 and not r.finished and r.lower::text = $8
         returning r.copied, r.done_id, r.finished, r.moved_at"
    )
}

/// Binds parameters 1 to 16 of a statement.
pub(super) fn bind<'q>(
    text: &'q str,
    relay: &'q str,
    selection: &'q Selection,
    delivered: &'q DeliveredSnapshot,
    done_id: i64,
    limit: Option<u32>,
) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(AssertSqlSafe(text))
        .bind(relay)
        .bind(&selection.events)
        .bind(&selection.rows)
        .bind(&selection.topic)
        .bind(&selection.event_type)
        .bind(selection.since)
        .bind(selection.until)
        .bind(&delivered.lower.0)
        .bind(delivered.upper.as_ref().map(|upper| &upper.0))
        .bind(delivered.after_id)
        .bind(done_id)
        .bind(delivered.through_id)
        .bind(EXAMINED)
        .bind(limit.map(i64::from))
        .bind(selection.include_replays)
        .bind(delivered.seen_at)
}

/// The rows that the relay has delivered by now, among those that the selection may reach. No rows if the
/// relay has never run.
pub(super) async fn delivered_now(
    connection: &mut PgConnection,
    relay: &str,
    selection: &Selection,
) -> Result<DeliveredSnapshot, Error> {
    let row = sqlx::query(
        "select lower::text, upper::text, after_id, greatest(high_id, after_id) as through_id,
                clock_timestamp() as seen_at
         from outbox.position where relay = $1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    let mut delivered = match row {
        Some(row) => snapshot_of(&row)?,
        None => DeliveredSnapshot {
            lower: Position::before_everything().lower,
            upper: None,
            after_id: 0,
            from_id: 0,
            through_id: 0,
            seen_at: DateTime::UNIX_EPOCH,
        },
    };
    if let (Some(first), Some(last)) = (selection.rows.iter().min(), selection.rows.iter().max()) {
        delivered.from_id = first.saturating_sub(1).max(0);
        delivered.through_id = delivered.through_id.min(*last);
    }
    Ok(delivered)
}

fn snapshot_of(row: &PgRow) -> Result<DeliveredSnapshot, Error> {
    Ok(DeliveredSnapshot {
        lower: Snapshot(row.try_get("lower")?),
        upper: row.try_get::<Option<String>, _>("upper")?.map(Snapshot),
        after_id: row.try_get("after_id")?,
        from_id: 0,
        through_id: row.try_get("through_id")?,
        seen_at: row.try_get("seen_at")?,
    })
}
