//! Writing positions down: one inserted row a step, and a primary key that lets only one relay take it.
//!
//! A window is opened by writing it down *before* anything of it is published. A relay that dies then publishes the same
//! events in the same order with the same numbers again, which is what lets Redis refuse repeats.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::Error;
use super::lead;
use super::position::{Position, Snapshot, Window, Xid};

/// The newest position of `relay`, or `None` if there is no relay of that name.
///
/// # Errors
/// [`Error`].
pub async fn newest(connection: &mut PgConnection, relay: &str) -> Result<Option<Position>, Error> {
    let row = sqlx::query(
        "select n, slot, next_slot, lower::text, lower_horizon::text, high_id, upper::text, upper_horizon::text, after_id, epoch, next_seq
         from outbox.checkpoint where relay = $1 order by n desc limit 1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    row.map(|row| position_of(&row)).transpose()
}

/// The checkpoints of `relay` in one epoch from row `n` on, oldest first, `limit` at most.
///
/// # Errors
/// [`Error`].
pub async fn page(
    connection: &mut PgConnection,
    relay: &str,
    epoch: u64,
    n: i64,
    limit: i64,
) -> Result<Vec<Position>, Error> {
    let rows = sqlx::query(
        "select n, slot, next_slot, lower::text, lower_horizon::text, high_id, upper::text, upper_horizon::text, after_id, epoch, next_seq
         from outbox.checkpoint where relay = $1 and epoch = $2 and n >= $3 order by n limit $4",
    )
    .bind(relay)
    .bind(epoch.cast_signed())
    .bind(n)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter().map(position_of).collect()
}

/// The position of `relay`, which begins before everything in the log if the name is new.
///
/// # Errors
/// [`Error::WrongCluster`] if the log was made in another Postgres cluster, or as [`newest`].
pub async fn load_or_begin(connection: &mut PgConnection, relay: &str) -> Result<Position, Error> {
    lead::register(connection, relay).await?;
    if let Some(position) = newest(connection, relay).await? {
        return Ok(position);
    }
    match insert(connection, relay, &Position::before_everything()).await {
        // Another relay of this name began in the same moment: its row is as good.
        Ok(_) | Err(Error::Fenced { .. }) => {}
        Err(error) => return Err(error),
    }
    newest(connection, relay).await?.ok_or_else(|| Error::Database(sqlx::Error::RowNotFound))
}

/// Looks whether there is something to deliver and, only then, opens a window over it: one statement, one commit,
/// and no write at all while idle. The given position must have no open window.
///
/// Opens none while the relay is paused. The window's own snapshot decides: one that shows an event which was committed
/// after the pause shows the pause too, so nothing that an operator's pause came before is ever in a window. Nor does it
/// open one while an operator has requested something for parked events, as that is done between two windows.
///
/// # Errors
/// [`Error::Fenced`] if another relay got there first, or as [`newest`].
pub async fn open(
    connection: &mut PgConnection,
    relay: &str,
    from: &Position,
) -> Result<Option<Position>, Error> {
    let to = from.following();
    // The horizon must be assigned after the snapshot: pg_current_snapshot() is the statement's own snapshot, taken
    // before it runs, and pg_current_xact_id() assigns an xid while it runs, as this transaction had none before.
    let row = sqlx::query(
        "insert into outbox.checkpoint
           (relay, n, slot, next_slot, slot_since, lower, lower_horizon, high_id, upper, upper_horizon, after_id, epoch, next_seq)
         select $1, $2, $3, outbox.slot_after($3, since.at), since.at, $4::text::pg_snapshot, $5::text::xid8, $6,
                pg_current_snapshot(), pg_current_xact_id(), 0, $7, $8
         from (
           select coalesce(
             (select b.slot_since from outbox.checkpoint b where b.relay = $1 and b.n = $2 - 1::bigint and b.slot = $3),
             clock_timestamp()) as at
         ) since
         where not exists (select from outbox.pause where relay = $1)
           and not exists (select from outbox.parked where relay = $1 and requested is not null and settled_as is null)
           and outbox.has_more($4::text::pg_snapshot, $5::text::xid8, $6)
         returning next_slot, upper::text, upper_horizon::text",
    )
    .bind(relay)
    .bind(to.n)
    .bind(to.slot)
    .bind(&to.lower.0)
    .bind(&to.lower_horizon.0)
    .bind(to.high_id)
    .bind(to.epoch.cast_signed())
    .bind(to.next_seq.cast_signed())
    .fetch_optional(connection)
    .await
    .map_err(|error| fenced_or(error, relay, from.n))?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Position { next_slot: row.try_get("next_slot")?, window: window_of(&row, 0)?, ..to }))
}

/// Writes down that the window's events up to `after_id`, `events` of them, have been delivered, and leaves it open.
///
/// # Errors
/// As [`open`].
pub async fn advance(
    connection: &mut PgConnection,
    relay: &str,
    from: &Position,
    after_id: i64,
    events: u64,
) -> Result<Position, Error> {
    insert(connection, relay, &from.advanced(after_id, events)).await
}

/// Writes down that the whole window has been delivered, the last `events` of it ending with `last_id`, and in the same
/// row opens the next window if there is something in it, and nothing keeps it closed (as [`open`] says).
///
/// # Errors
/// As [`open`].
pub async fn close_window(
    connection: &mut PgConnection,
    relay: &str,
    from: &Position,
    last_id: i64,
    events: u64,
) -> Result<Position, Error> {
    let to = from.closed(last_id, events);
    let row = sqlx::query(
        "insert into outbox.checkpoint
           (relay, n, slot, next_slot, slot_since, lower, lower_horizon, high_id, upper, upper_horizon, after_id, epoch, next_seq)
         select $1, $2, $3, outbox.slot_after($3, since.at), since.at, $4::text::pg_snapshot, $5::text::xid8, $6,
                case when next.found then pg_current_snapshot() end,
                case when next.found then pg_current_xact_id() end, 0, $7, $8
         from (
           select coalesce(
             (select b.slot_since from outbox.checkpoint b where b.relay = $1 and b.n = $2 - 1::bigint and b.slot = $3),
             clock_timestamp()) as at
         ) since
         cross join (
           select not exists (select from outbox.pause where relay = $1)
             and not exists (select from outbox.parked where relay = $1 and requested is not null and settled_as is null)
             and outbox.has_more($4::text::pg_snapshot, $5::text::xid8, $6) as found
         ) next
         returning next_slot, upper::text, upper_horizon::text",
    )
    .bind(relay)
    .bind(to.n)
    .bind(to.slot)
    .bind(&to.lower.0)
    .bind(&to.lower_horizon.0)
    .bind(to.high_id)
    .bind(to.epoch.cast_signed())
    .bind(to.next_seq.cast_signed())
    .fetch_one(connection)
    .await
    .map_err(|error| fenced_or(error, relay, from.n))?;
    Ok(Position { next_slot: row.try_get("next_slot")?, window: window_of(&row, 0)?, ..to })
}

/// Writes one row, and returns it with the slot that follows.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    relay: &str,
    position: &Position,
) -> Result<Position, Error> {
    let window = position.window.as_ref();
    let next_slot: i16 = sqlx::query_scalar(
        "insert into outbox.checkpoint
           (relay, n, slot, next_slot, slot_since, lower, lower_horizon, high_id, upper, upper_horizon, after_id, epoch, next_seq)
         select $1, $2, $3, outbox.slot_after($3, since.at), since.at, $4::text::pg_snapshot, $5::text::xid8, $6,
                $7::text::pg_snapshot, $8::text::xid8, $9, $10, $11
         from (
           select coalesce(
             (select b.slot_since from outbox.checkpoint b where b.relay = $1 and b.n = $2 - 1::bigint and b.slot = $3),
             clock_timestamp()) as at
         ) since
         returning next_slot",
    )
    .bind(relay)
    .bind(position.n)
    .bind(position.slot)
    .bind(&position.lower.0)
    .bind(&position.lower_horizon.0)
    .bind(position.high_id)
    .bind(window.map(|w| &w.upper.0))
    .bind(window.map(|w| &w.upper_horizon.0))
    .bind(window.map_or(0, |w| w.after_id))
    .bind(position.epoch.cast_signed())
    .bind(position.next_seq.cast_signed())
    .fetch_one(connection)
    .await
    .map_err(|error| fenced_or(error, relay, position.n - 1))?;
    Ok(Position { next_slot, ..position.clone() })
}

/// The primary key is the fence: a row n that is already there was written by another relay of this name.
fn fenced_or(error: sqlx::Error, relay: &str, n: i64) -> Error {
    if error.as_database_error().is_some_and(|e| e.is_unique_violation()) {
        return Error::Fenced { relay: relay.to_owned(), n };
    }
    error.into()
}

fn window_of(row: &PgRow, after_id: i64) -> Result<Option<Window>, Error> {
    let upper: Option<String> = row.try_get("upper")?;
    let horizon: Option<String> = row.try_get("upper_horizon")?;
    Ok(upper.zip(horizon).map(|(upper, horizon)| Window {
        upper: Snapshot(upper),
        upper_horizon: Xid(horizon),
        after_id,
    }))
}

fn position_of(row: &PgRow) -> Result<Position, Error> {
    Ok(Position {
        n: row.try_get("n")?,
        slot: row.try_get("slot")?,
        next_slot: row.try_get("next_slot")?,
        lower: Snapshot(row.try_get("lower")?),
        lower_horizon: Xid(row.try_get("lower_horizon")?),
        high_id: row.try_get("high_id")?,
        window: window_of(row, row.try_get("after_id")?)?,
        epoch: row.try_get::<i64, _>("epoch")?.cast_unsigned(),
        next_seq: row.try_get::<i64, _>("next_seq")?.cast_unsigned(),
    })
}
