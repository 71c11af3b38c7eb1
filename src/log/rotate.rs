//! Retention by rotation: empties whole slots of the log by TRUNCATE, never by DELETE.
//!
//! A slot is emptied if it is not in use, every relay has delivered all of its rows, and its newest row is
//! older than the retention. Inserts never fail for want of a slot: the slots always exist, and a slot that
//! cannot be emptied keeps its rows and takes new ones. The mapping from time to slot is only a hint.
//! Rotation looks at the rows of a slot, and looks again under the lock, so neither a clock that jumps nor a
//! transaction that began yesterday does harm.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::position::CHECKPOINT_SLOTS;
use super::{Error, delivered_before, parked};

/// The number of slots of the log: the partitions of `outbox.event`.
const EVENT_SLOTS: i16 = 8;
/// How long a TRUNCATE waits for its lock. Readers of the log wait as well meanwhile, so the time is short.
const LOCK_TIMEOUT_MS: u32 = 100;

/// Settings that contradict each other. All numbers are seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Redis keeps events longer than the log does, so a repair could not restore them.
    #[error(
        "outbox.retention_seconds ({retention}) is less than redis.history_ttl_seconds ({history_ttl}): a \
         Redis that loses its histories could not be given back their events; raise the one or lower the \
         other"
    )]
    RetentionBelowHistory {
        /// How long delivered events are kept.
        retention: u64,
        /// How long Redis keeps histories.
        history_ttl: u64,
    },
    /// A slot would take new rows before its old ones may go, and so never be emptied.
    #[error(
        "outbox.retention_seconds ({retention}) has to be less than {limit}, six times \
         outbox.rotation_seconds ({rotation}), as the eight slots of the log come round before that: lower \
         the one, or raise the other and run `aftercommit migrate`"
    )]
    RetentionAboveRotation {
        /// How long delivered events are kept.
        retention: u64,
        /// How long a slot takes rows.
        rotation: u64,
        /// The limit that the retention must stay below.
        limit: u64,
    },
}

/// Checks retention, history and rotation against each other, all in seconds.
///
/// # Errors
/// Returns [`SettingsError`] if the log could not keep its promises with these values.
pub fn check(retention: u64, history_ttl: u64, rotation: u32) -> Result<(), SettingsError> {
    let rotation = u64::from(rotation.max(1));
    // One of the eight slots takes rows, and the next one must be ready for them.
    let limit = rotation.saturating_mul(EVENT_SLOTS.unsigned_abs().into()).saturating_sub(2 * rotation);
    if retention < history_ttl {
        return Err(SettingsError::RetentionBelowHistory { retention, history_ttl });
    }
    if retention >= limit {
        return Err(SettingsError::RetentionAboveRotation { retention, rotation, limit });
    }
    Ok(())
}

/// The result of a rotation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Tables that were emptied.
    pub emptied: Vec<String>,
    /// Old slots that could not be emptied.
    pub blocked: Vec<Blocked>,
}

/// An old slot that could not be emptied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The table.
    pub table: String,
    /// The obstacle: a relay, a session or a prepared transaction, by name.
    pub by: String,
}

/// Whether a slot can be emptied.
#[derive(Debug)]
enum SlotState {
    /// Nothing to do: the slot is empty, in use, or younger than the retention.
    Leave,
    /// The slot is old enough, but something stands in the way.
    Blocked(String),
    Empty,
}

/// Empties every slot of the log that may be emptied, and then the checkpoint slots that no row of the log
/// needs.
///
/// Each slot is a transaction of its own. Slots that cannot be emptied now are named in the result and left
/// for the next rotation.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses a statement or the connection breaks. Slots that were emptied before stay empty.
pub async fn rotate(connection: &mut PgConnection, retention: Duration) -> Result<Rotation, Error> {
    let mut rotation = Rotation::default();
    for slot in 0..EVENT_SLOTS {
        let table = format!("event_{slot}");
        match judge_events(connection, slot, retention).await? {
            SlotState::Leave => {}
            SlotState::Blocked(by) => rotation.blocked.push(Blocked { table, by }),
            SlotState::Empty => empty_events(connection, slot, retention, table, &mut rotation).await?,
        }
    }
    for slot in 0..CHECKPOINT_SLOTS {
        if checkpoints_may_go(connection, slot, retention).await? {
            empty_checkpoints(connection, slot, retention, &mut rotation).await?;
        }
    }
    parked::forget_settled(connection, retention).await?;
    delivered_before::forget(connection).await?;
    Ok(rotation)
}

/// Writes whether a server of the relay's sink lacks events that only the log still has.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn note_lacking_events(
    connection: &mut PgConnection,
    relay: &str,
    lacks: bool,
) -> Result<(), Error> {
    sqlx::query("update outbox.relay set lacks_events = $2 where name = $1 and lacks_events <> $2")
        .bind(relay)
        .bind(lacks)
        .execute(connection)
        .await?;
    Ok(())
}

async fn empty_events(
    connection: &mut PgConnection,
    slot: i16,
    retention: Duration,
    table: String,
    rotation: &mut Rotation,
) -> Result<(), Error> {
    let mut tx = connection.begin().await?;
    if !lock(&mut tx, &table).await? {
        tx.rollback().await?;
        let by = holders_of(connection, &table).await?;
        rotation.blocked.push(Blocked { table, by });
        return Ok(());
    }
    // Under the lock no transaction has uncommitted rows in the slot. This second look sees rows that were
    // committed since the first one, because each statement takes its own snapshot.
    match judge_events(&mut tx, slot, retention).await? {
        SlotState::Empty => {
            truncate(&mut tx, &table).await?;
            tx.commit().await?;
            rotation.emptied.push(table);
        }
        SlotState::Blocked(by) => {
            tx.rollback().await?;
            rotation.blocked.push(Blocked { table, by });
        }
        SlotState::Leave => tx.rollback().await?,
    }
    Ok(())
}

async fn empty_checkpoints(
    connection: &mut PgConnection,
    slot: i16,
    retention: Duration,
    rotation: &mut Rotation,
) -> Result<(), Error> {
    let table = format!("checkpoint_{slot}");
    let mut tx = connection.begin().await?;
    if lock(&mut tx, &table).await? && checkpoints_may_go(&mut tx, slot, retention).await? {
        truncate(&mut tx, &table).await?;
        tx.commit().await?;
        rotation.emptied.push(table);
    } else {
        tx.rollback().await?;
    }
    Ok(())
}

/// Decides whether a slot of the log may be emptied, in a few index look-ups however many rows it holds.
async fn judge_events(
    connection: &mut PgConnection,
    slot: i16,
    retention: Duration,
) -> Result<SlotState, Error> {
    let row = sqlx::query(AssertSqlSafe(facts_of(slot)))
        .bind(slot)
        .bind(retention.as_secs_f64())
        .fetch_one(&mut *connection)
        .await?;
    let is = |name: &str| row.try_get::<bool, _>(name);
    if !is("holds_rows")? || is("in_use")? || !is("is_old")? {
        return Ok(SlotState::Leave);
    }
    if !is("has_relay")? {
        return Ok(SlotState::Blocked("no relay has ever delivered from this log".to_owned()));
    }
    if let Some(relays) = row.try_get::<Option<String>, _>("undelivered_by")? {
        return Ok(SlotState::Blocked(format!("relay {relays} has not delivered all of it")));
    }
    Ok(match contradicted(connection).await? {
        Some(relays) => SlotState::Blocked(format!(
            "rows contradict the position of relay {relays}, which delivers nothing before `aftercommit rebase`"
        )),
        None => SlotState::Empty,
    })
}

/// Names the relays with rows that contradict their position. Such rows are not delivered, although the
/// position has passed their ids. Only a rebase can deliver them, so they must stay in the log.
async fn contradicted(connection: &mut PgConnection) -> Result<Option<String>, Error> {
    let sql = "select string_agg(p.relay, ', ' order by p.relay) from outbox.position p
               where exists (select from outbox.contradictions(p.lower_horizon, p.high_id, 1::bigint))";
    Ok(sqlx::query_scalar(sql).fetch_one(connection).await?)
}

/// The SQL of the facts that decide about a slot of the log.
fn facts_of(slot: i16) -> String {
    format!(
        "with newest as (
           select e.id, e.created_at from outbox.event_{slot} e order by e.id desc limit 1
         )
         select
           exists (select from newest) as holds_rows,
           $1 in (
             outbox.slot_at(now()),
             outbox.slot_at(now() + make_interval(secs => outbox.rotation_seconds()))) as in_use,
           coalesce((select created_at < now() - make_interval(secs => $2) from newest), false) as is_old,
           (select string_agg(p.relay, ', ' order by p.relay)
              from outbox.position p
              where exists (select from outbox.relay r where r.name = p.relay and r.lacks_events)
                 or exists (select from newest where newest.id > p.high_id)
                 or exists (
                   select from (
                     select pg_snapshot_xip(p.lower) as xid
                     union all
                     select n::text::xid8 from generate_series(
                       pg_snapshot_xmax(p.lower)::text::bigint, p.lower_horizon::text::bigint - 1) n
                   ) running
                   join outbox.event_{slot} e on e.xid = running.xid
                 )
           ) as undelivered_by,
           exists (select from outbox.position) as has_relay"
    )
}

/// Whether a checkpoint slot may be emptied: it holds no relay's newest row and will not take the next one,
/// and every row in it is older than the retention and older than every event in the log. An event's row is
/// inserted before the checkpoints that deliver it. So positions live as long as the events that they help to
/// restore.
///
/// This takes a few index look-ups. A relay writes its rows in the order of `n`, so its newest row in a slot
/// has the highest `n`. Ids are given out in the order of the inserts, so every row in a slot of the log was
/// inserted after the transaction of the row with the lowest id began. A checkpoint from before that time
/// delivered none of them.
async fn checkpoints_may_go(
    connection: &mut PgConnection,
    slot: i16,
    retention: Duration,
) -> Result<bool, Error> {
    let oldest_events = (0..EVENT_SLOTS)
        .map(|slot| format!("(select e.created_at from outbox.event_{slot} e order by e.id limit 1)"))
        .collect::<Vec<_>>()
        .join(", ");
    let sql = format!(
        "select coalesce(bool_and(newest.created_at < now() - make_interval(secs => $2)
                                  and newest.created_at < coalesce(oldest.event, 'infinity')), false)
                and not exists (select from outbox.position p where $1 in (p.slot, p.next_slot))
         from outbox.relay r
         cross join lateral (
           select c.created_at from outbox.checkpoint_{slot} c
           where c.relay = r.name order by c.n desc limit 1
         ) newest
         cross join (select least({oldest_events}) as event) oldest"
    );
    let may = sqlx::query_scalar(AssertSqlSafe(sql)).bind(slot).bind(retention.as_secs_f64());
    Ok(may.fetch_one(connection).await?)
}

/// Takes the lock that TRUNCATE needs. Returns false if another session holds the table longer than the
/// time-out.
async fn lock(tx: &mut PgConnection, table: &str) -> Result<bool, Error> {
    let sql = format!(
        "set local lock_timeout = {LOCK_TIMEOUT_MS}; lock table outbox.{table} in access exclusive mode"
    );
    match sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx).await {
        Ok(_) => Ok(true),
        Err(error) if error.as_database_error().and_then(|e| e.code()).as_deref() == Some("55P03") => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

async fn truncate(tx: &mut PgConnection, table: &str) -> Result<(), Error> {
    sqlx::raw_sql(AssertSqlSafe(format!("truncate outbox.{table}"))).execute(tx).await?;
    Ok(())
}

/// Names the holders of locks on the table: sessions by pid, prepared transactions by name.
async fn holders_of(connection: &mut PgConnection, table: &str) -> Result<String, Error> {
    let holders: Option<String> = sqlx::query_scalar(
        "select string_agg(distinct coalesce(
                  'pid ' || a.pid || ' (' || coalesce(nullif(a.application_name, ''), 'unnamed')
                         || ', ' || coalesce(a.state, '?') || ')',
                  'prepared transaction ' || p.gid, 'another session'), ', ')
         from pg_locks l
         left join pg_stat_activity a on a.pid = l.pid
         left join pg_prepared_xacts p on l.virtualtransaction = '-1/' || p.transaction
         where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_backend_pid()
           and l.database = (select oid from pg_database where datname = current_database())
           and l.relation = to_regclass('outbox.' || $1)",
    )
    .bind(table)
    .fetch_one(connection)
    .await?;
    Ok(holders.unwrap_or_else(|| "a lock that has been released since".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_covers_the_histories_and_ends_before_a_slot_is_used_again() {
        assert_eq!(check(259_200, 86_400, 86_400), Ok(()));
        let short = SettingsError::RetentionBelowHistory { retention: 3600, history_ttl: 86_400 };
        assert_eq!(check(3600, 86_400, 86_400), Err(short));
        let long = SettingsError::RetentionAboveRotation { retention: 21_600, rotation: 3600, limit: 21_600 };
        assert_eq!(check(21_600, 3600, 3600), Err(long));
        assert_eq!(check(21_599, 3600, 3600), Ok(()));
        assert!(short.to_string().contains("redis.history_ttl_seconds (86400)"));
    }
}
