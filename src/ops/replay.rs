//! Replay: delivered events once more, as copies that go the normal way.
//!
//! A copy has the same event id and a header `replay` that names the row it repeats, so that a client can
//! tell. It is a new row, and so gets a new number: clients that have seen the original see the copy as well.
//!
//! A replay repeats the events that the relay had delivered when the replay began. So it never repeats its
//! own copies, and it ends however much is appended meanwhile. It runs in batches. Each is one short
//! transaction that appends copies and writes down how far it is. A process that dies at any moment has lost
//! and repeated nothing: [`resume`] goes on. Copies follow each other in the order of their originals, and a
//! topic's live events keep their own order; how the two mix is left open.

use std::num::NonZeroU32;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::audit::{self, Operator};
use super::browse::{EventRow, Selection, row_of};
use super::replay_sql::{self as sql, DeliveredSnapshot, LOCK_KEY, REPLAYS};
use crate::log::Error;
use crate::log::position::Snapshot;

/// Copies in one transaction at most.
const BATCH_EVENTS: u32 = 1000;
/// Batches a second at least, where a rate is set: smooth rather than in bursts.
const BATCHES_A_SECOND: u32 = 4;

/// Why a replay does not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// There is none of this number.
    #[error("there is no replay {0}: `aftercommit replay list` shows which there are")]
    Unknown(i64),
    /// Another process is at it.
    #[error("replay {0} is running already: `aftercommit replay list` shows how far it is")]
    Running(i64),
    /// It is done.
    #[error("replay {0} has finished: begin another one to send its events once more")]
    Finished(i64),
    /// Another process has moved it on, which a session lock should prevent.
    #[error(
        "another process has moved replay {0} on: nothing was sent twice. Is there a pooler in transaction \
         mode between?"
    )]
    Overtaken(i64),
    /// The log could not be read or written.
    #[error(transparent)]
    Log(#[from] Error),
}

impl From<sqlx::Error> for ReplayError {
    fn from(error: sqlx::Error) -> Self {
        Self::Log(error.into())
    }
}

/// The events of a selection that a relay has delivered by now. It does not change afterwards.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The relay.
    pub relay: String,
    /// The selection that the operator gave.
    pub selection: Selection,
    /// The number of selected events.
    pub events: u64,
    pub(super) delivered: DeliveredSnapshot,
}

/// Whether somebody is at a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplayStatus {
    /// A process is at it.
    Running,
    /// Its process has ended before it was done: [`resume`] it.
    Interrupted,
    /// It is done.
    Finished,
}

/// One replay, and how far it is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replay {
    /// Its number.
    pub id: i64,
    /// Whose deliveries it repeats.
    pub relay: String,
    /// Who asked for it, and as which user of Postgres.
    pub who: String,
    /// Why, in their words.
    pub reason: String,
    /// The selection that it repeats.
    pub selection: Selection,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it last moved.
    pub moved_at: DateTime<Utc>,
    /// How many events it found when it began.
    pub selected: u64,
    /// How many copies it has appended.
    pub copied: u64,
    /// How many of the selected events had left the log before it came to them. Known when it has finished.
    pub missing: u64,
    /// Whether somebody is at it.
    pub standing: ReplayStatus,
    #[serde(skip)]
    delivered: DeliveredSnapshot,
    #[serde(skip)]
    done_id: i64,
}

/// Counts the events that a replay of `selection` would repeat, in short steps by row number.
///
/// The time it takes grows with the log. Call [`crate::log::read::prepare_session`] on the connection first.
///
/// # Errors
/// [`ReplayError::Log`].
pub async fn plan(
    connection: &mut PgConnection,
    relay: &str,
    selection: &Selection,
) -> Result<Plan, ReplayError> {
    let delivered = sql::delivered_now(connection, relay, selection).await?;
    let mut plan = Plan { relay: relay.to_owned(), selection: selection.clone(), events: 0, delivered };
    let text = sql::count();
    let mut done_id = plan.delivered.from_id;
    while done_id < plan.delivered.through_id {
        let row = sql::bind(&text, relay, selection, &plan.delivered, done_id, None)
            .fetch_one(&mut *connection)
            .await?;
        plan.events += row.try_get::<i64, _>("events")?.cast_unsigned();
        done_id = row.try_get("last_id")?;
    }
    Ok(plan)
}

/// The first events of a plan, `limit` at most.
///
/// # Errors
/// [`ReplayError::Log`].
pub async fn sample(
    connection: &mut PgConnection,
    plan: &Plan,
    limit: u32,
) -> Result<Vec<EventRow>, ReplayError> {
    let text = sql::sample();
    let mut found = Vec::new();
    let mut done_id = plan.delivered.from_id;
    while done_id < plan.delivered.through_id && found.len() < limit as usize {
        let left = limit - found.len() as u32;
        let rows = sql::bind(&text, &plan.relay, &plan.selection, &plan.delivered, done_id, Some(left))
            .fetch_all(&mut *connection)
            .await?;
        for row in &rows {
            // One row at least, to say how far the look went; its event is empty where nothing matched.
            done_id = row.try_get("last_id")?;
            if row.try_get::<Option<i64>, _>("id")?.is_some() {
                found.push(row_of(row)?);
            }
        }
    }
    Ok(found)
}

/// Writes down that a plan is to be carried out, and the audit row, in one transaction; takes the lock that
/// shows others that it is running. Nothing is repeated yet: [`run`] does that.
///
/// # Errors
/// [`ReplayError::Log`]; nothing has begun then.
pub async fn begin(
    connection: &mut PgConnection,
    plan: &Plan,
    operator: &Operator,
) -> Result<Replay, ReplayError> {
    let mut tx = connection.begin().await?;
    let id: i64 = sqlx::query_scalar(
        "insert into outbox.replay
           (relay, who, reason, selection, lower, upper, after_id, through_id, selected, done_id, seen_at)
         values ($1, $2 || ' as ' || session_user, $3, $4, $5::text::pg_snapshot, $6::text::pg_snapshot,
                 $7, $8, $9, $10, $11)
         returning id",
    )
    .bind(&plan.relay)
    .bind(&operator.who)
    .bind(&operator.reason)
    .bind(sqlx::types::Json(&plan.selection))
    .bind(&plan.delivered.lower.0)
    .bind(plan.delivered.upper.as_ref().map(|upper| &upper.0))
    .bind(plan.delivered.after_id)
    .bind(plan.delivered.through_id)
    .bind(plan.events.cast_signed())
    .bind(plan.delivered.from_id)
    .bind(plan.delivered.seen_at)
    .fetch_one(&mut *tx)
    .await?;
    let what = serde_json::json!({ "relay": plan.relay, "replay": id, "selection": plan.selection });
    audit::write(&mut tx, operator, "replay", &what, plan.events).await?;
    tx.commit().await?;
    take(connection, id).await
}

/// Takes up a replay whose process has ended, and writes that into the audit.
///
/// # Errors
/// [`ReplayError::Unknown`], [`ReplayError::Running`], [`ReplayError::Finished`], [`ReplayError::Log`].
pub async fn resume(
    connection: &mut PgConnection,
    id: i64,
    operator: &Operator,
) -> Result<Replay, ReplayError> {
    let replay = take(connection, id).await?;
    if replay.standing == ReplayStatus::Finished {
        release(connection, id).await?;
        return Err(ReplayError::Finished(id));
    }
    let what = serde_json::json!({ "relay": replay.relay, "replay": id, "selection": replay.selection });
    let left = replay.selected.saturating_sub(replay.copied);
    audit::write(connection, operator, "resume replay", &what, left).await?;
    Ok(replay)
}

/// Carries a replay on until it is done or `stop` is cancelled, at most `rate` events a second; tells
/// `progress` after each batch. Rings the bell for relays. Gives back the lock of [`begin`] or [`resume`], so
/// use their connection, and for nothing else meanwhile.
///
/// Whether it is done is in its [`Replay::standing`].
///
/// # Errors
/// [`ReplayError::Overtaken`], [`ReplayError::Log`]; the copies that are committed by then stay, and
/// [`resume`] goes on after them.
pub async fn run(
    connection: &mut PgConnection,
    replay: &mut Replay,
    rate: Option<NonZeroU32>,
    stop: &CancellationToken,
    mut progress: impl FnMut(&Replay),
) -> Result<(), ReplayError> {
    let (began, before) = (Instant::now(), replay.copied);
    let batch = rate.map_or(BATCH_EVENTS, |rate| (rate.get() / BATCHES_A_SECOND).clamp(1, BATCH_EVENTS));
    while replay.standing == ReplayStatus::Running && !stop.is_cancelled() {
        step(connection, replay, batch).await?;
        progress(replay);
        if let Some(rate) = rate.filter(|_| replay.standing == ReplayStatus::Running) {
            let due = Duration::from_secs_f64((replay.copied - before) as f64 / f64::from(rate.get()));
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep_until(began + due) => {}
            }
        }
    }
    if replay.standing == ReplayStatus::Running {
        replay.standing = ReplayStatus::Interrupted;
    }
    release(connection, replay.id).await
}

/// Appends the next copies and writes down how far that is, in one transaction; then rings the bell.
async fn step(connection: &mut PgConnection, replay: &mut Replay, batch: u32) -> Result<(), ReplayError> {
    let text = sql::copy();
    let mut tx = connection.begin().await?;
    let row =
        sql::bind(&text, &replay.relay, &replay.selection, &replay.delivered, replay.done_id, Some(batch))
            .bind(replay.id)
            .bind(&replay.reason)
            .fetch_optional(&mut *tx)
            .await?;
    let Some(row) = row else {
        tx.rollback().await?;
        return Err(ReplayError::Overtaken(replay.id));
    };
    tx.commit().await?;
    let copied = row.try_get::<i64, _>("copied")?.cast_unsigned();
    let appended = copied > replay.copied;
    (replay.copied, replay.done_id) = (copied, row.try_get("done_id")?);
    replay.moved_at = row.try_get("moved_at")?;
    if row.try_get("finished")? {
        replay.standing = ReplayStatus::Finished;
        replay.missing = replay.selected.saturating_sub(copied);
    }
    if appended {
        sqlx::query("notify outbox").execute(connection).await?;
    }
    Ok(())
}

/// The newest replays first, `limit` at most.
///
/// # Errors
/// [`ReplayError::Log`].
pub async fn list(connection: &mut PgConnection, limit: u32) -> Result<Vec<Replay>, ReplayError> {
    let text = format!("{REPLAYS} order by r.id desc limit $1");
    let rows = sqlx::query(AssertSqlSafe(text)).bind(i64::from(limit)).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(replay_of(row)?)).collect()
}

/// The replay `id`, with the lock that shows that it is running.
async fn take(connection: &mut PgConnection, id: i64) -> Result<Replay, ReplayError> {
    // A replay that does not exist has no key.
    let text = format!("select coalesce(pg_try_advisory_lock({LOCK_KEY}), true)");
    let taken: bool = sqlx::query_scalar(AssertSqlSafe(text)).bind(id).fetch_one(&mut *connection).await?;
    if !taken {
        return Err(ReplayError::Running(id));
    }
    let text = format!("{REPLAYS} where r.id = $1");
    let row = sqlx::query(AssertSqlSafe(text)).bind(id).fetch_optional(&mut *connection).await?;
    match row {
        Some(row) => Ok(replay_of(&row)?),
        None => {
            release(connection, id).await?;
            Err(ReplayError::Unknown(id))
        }
    }
}

async fn release(connection: &mut PgConnection, id: i64) -> Result<(), ReplayError> {
    let text = format!("select pg_advisory_unlock({LOCK_KEY})");
    sqlx::query(AssertSqlSafe(text)).bind(id).execute(connection).await?;
    Ok(())
}

fn replay_of(row: &PgRow) -> Result<Replay, Error> {
    let number = |name: &str| row.try_get::<i64, _>(name).map(i64::cast_unsigned);
    let (selected, copied, done_id) = (number("selected")?, number("copied")?, row.try_get("done_id")?);
    let standing = match (row.try_get("finished")?, row.try_get("held")?) {
        (true, _) => ReplayStatus::Finished,
        (false, true) => ReplayStatus::Running,
        (false, false) => ReplayStatus::Interrupted,
    };
    let missing = if standing == ReplayStatus::Finished { selected.saturating_sub(copied) } else { 0 };
    let selection: sqlx::types::Json<Selection> = row.try_get("selection")?;
    Ok(Replay {
        id: row.try_get("id")?,
        relay: row.try_get("relay")?,
        who: row.try_get("who")?,
        reason: row.try_get("reason")?,
        selection: selection.0,
        started_at: row.try_get("started_at")?,
        moved_at: row.try_get("moved_at")?,
        selected,
        copied,
        missing,
        standing,
        delivered: DeliveredSnapshot {
            lower: Snapshot(row.try_get("lower_text")?),
            upper: row.try_get::<Option<String>, _>("upper_text")?.map(Snapshot),
            after_id: row.try_get("after_id")?,
            from_id: done_id,
            through_id: row.try_get("through_id")?,
            seen_at: row.try_get("seen_at")?,
        },
        done_id,
    })
}
