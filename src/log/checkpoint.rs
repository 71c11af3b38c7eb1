//! Writes positions: one inserted row for each step. The primary key lets only one relay insert it.
//!
//! A window is written down *before* any of its events is published. If the relay then dies, the next one
//! publishes the same events in the same order under the same numbers, so that Redis can refuse the repeats.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::Error;
use super::lead;
use super::position::{Position, Snapshot, Window, Xid};

/// Returns the newest position of `relay`, or `None` if there is no relay of that name.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn newest(connection: &mut PgConnection, relay: &str) -> Result<Option<Position>, Error> {
    let row = sqlx::query(
        "select n, slot, next_slot, lower::text, lower_horizon::text, high_id, upper::text,
                upper_horizon::text, after_id, epoch, next_seq
         from outbox.checkpoint where relay = $1 order by n desc limit 1",
    )
    .bind(relay)
    .fetch_optional(connection)
    .await?;
    row.map(|row| position_of(&row)).transpose()
}

/// Returns the checkpoints of `relay` in one epoch from row `n` on, oldest first, at most `limit`.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn page(
    connection: &mut PgConnection,
    relay: &str,
    epoch: u64,
    n: i64,
    limit: i64,
) -> Result<Vec<Position>, Error> {
    let rows = sqlx::query(
        "select n, slot, next_slot, lower::text, lower_horizon::text, high_id, upper::text,
                upper_horizon::text, after_id, epoch, next_seq
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

/// Returns the newest position of `relay`. A new name begins before everything in the log.
///
/// # Errors
/// Returns [`Error::WrongDatabase`] if the log was made in another database, [`Error::NoIdentity`] or
/// [`Error::NewerFormat`] if its identity is missing or its format is unknown, and else fails as [`newest`].
pub async fn load_or_begin(connection: &mut PgConnection, relay: &str) -> Result<Position, Error> {
    lead::register(connection, relay).await?;
    if let Some(position) = newest(connection, relay).await? {
        return Ok(position);
    }
    match insert(connection, relay, &Position::before_everything()).await {
        // Another relay of this name began at the same moment, and its row says the same.
        Ok(_) | Err(Error::Fenced { .. }) => {}
        Err(error) => return Err(error),
    }
    newest(connection, relay).await?.ok_or_else(|| Error::Database(sqlx::Error::RowNotFound))
}

/// Opens a window if there is something to deliver, in one statement and one commit. Writes nothing
/// otherwise. `from` must have no open window.
///
/// Opens no window while the relay is paused. The window's snapshot decides: if it shows an event that was
/// committed after the pause, it shows the pause too. So a window never holds an event that was committed
/// after the pause. Opens no window either while an operator's request for parked events is pending, because
/// the relay carries requests out between two windows.
///
/// # Errors
/// Returns [`Error::Fenced`] if another relay inserted the row first, and else fails as [`newest`].
pub async fn open(
    connection: &mut PgConnection,
    relay: &str,
    from: &Position,
) -> Result<Option<Position>, Error> {
    insert_and_open(connection, relay, &from.following(), OnlyIfFound(true)).await
}

/// Writes that the window's events up to `after_id` have been delivered, and leaves the window open. `events`
/// is the number of events since `from`.
///
/// # Errors
/// Returns [`Error::Fenced`] if another relay inserted the row first, [`Error::SchemaMissing`] if the schema
/// is missing or too old, and [`Error::Database`] if Postgres refuses the statement or the connection breaks.
pub async fn advance(
    connection: &mut PgConnection,
    relay: &str,
    from: &Position,
    after_id: i64,
    events: u64,
) -> Result<Position, Error> {
    insert(connection, relay, &from.advanced(after_id, events)).await
}

/// Writes that the whole window has been delivered. `events` is the number of events since `from`, and
/// `last_id` the id of the last one. The same row opens the next window, under the conditions of [`open`].
///
/// # Errors
/// Returns [`Error::Fenced`] if another relay inserted the row first, [`Error::SchemaMissing`] if the schema
/// is missing or too old, and [`Error::Database`] if Postgres refuses the statement or the connection breaks.
pub async fn close_window(
    connection: &mut PgConnection,
    relay: &str,
    from: &Position,
    last_id: i64,
    events: u64,
) -> Result<Position, Error> {
    let to = insert_and_open(connection, relay, &from.closed(last_id, events), OnlyIfFound(false)).await?;
    to.ok_or_else(|| Error::Database(sqlx::Error::RowNotFound))
}

/// Whether a row is inserted only if it opens a window.
struct OnlyIfFound(bool);

/// Inserts the position `to`, which has no window, and opens one in the same row under the conditions of
/// [`open`].
async fn insert_and_open(
    connection: &mut PgConnection,
    relay: &str,
    to: &Position,
    only: OnlyIfFound,
) -> Result<Option<Position>, Error> {
    // The horizon must be assigned after the snapshot. pg_current_snapshot() is the statement's own snapshot,
    // taken before the statement runs. pg_current_xact_id() assigns an xid while it runs, because this
    // transaction has none before. `offset 0` keeps the conditions from being evaluated several times.
    let row = sqlx::query(
        "insert into outbox.checkpoint
           (relay, n, slot, next_slot, slot_since, lower, lower_horizon, high_id, upper, upper_horizon,
            after_id, epoch, next_seq)
         select $1, $2, $3, outbox.slot_after($3, since.at), since.at, $4::text::pg_snapshot, $5::text::xid8,
                $6, case when next.found then pg_current_snapshot() end,
                case when next.found then pg_current_xact_id() end, 0, $7, $8
         from (
           select coalesce(
             (select b.slot_since from outbox.checkpoint b
              where b.relay = $1 and b.n = $2 - 1::bigint and b.slot = $3),
             clock_timestamp()) as at
         ) since
         cross join (
           select not exists (select from outbox.pause where relay = $1)
             and not exists (
               select from outbox.parked where relay = $1 and requested is not null and settled_as is null)
             and outbox.has_more($4::text::pg_snapshot, $5::text::xid8, $6) as found
           offset 0
         ) next
         where next.found or not $9
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
    .bind(only.0)
    .fetch_optional(connection)
    .await
    .map_err(|error| fenced_or(error, relay, to.n - 1))?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Position { next_slot: row.try_get("next_slot")?, window: window_of(&row, 0)?, ..to.clone() }))
}

/// Inserts one row, and returns the position with the slot of the next row.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    relay: &str,
    position: &Position,
) -> Result<Position, Error> {
    let window = position.window.as_ref();
    let next_slot: i16 = sqlx::query_scalar(
        "insert into outbox.checkpoint
           (relay, n, slot, next_slot, slot_since, lower, lower_horizon, high_id, upper, upper_horizon,
            after_id, epoch, next_seq)
         select $1, $2, $3, outbox.slot_after($3, since.at), since.at, $4::text::pg_snapshot, $5::text::xid8,
                $6, $7::text::pg_snapshot, $8::text::xid8, $9, $10, $11
         from (
           select coalesce(
             (select b.slot_since from outbox.checkpoint b
              where b.relay = $1 and b.n = $2 - 1::bigint and b.slot = $3),
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

/// Turns a unique violation into [`Error::Fenced`]: another relay of this name has inserted row `n + 1`.
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
