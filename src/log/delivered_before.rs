//! Rows that the sink already has although no position records their delivery, and rows that it may have had.
//! A rebase finds and records them.

use std::collections::HashSet;

use sqlx::PgConnection;

use super::Error;
use crate::event::EventId;

/// Returns the rows that `relay` skips although its position does not record their delivery, by id and event
/// id: a later rebase may give a row's id to another event. They exist only after a rebase: one for each event
/// delivered since the backup was taken.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn of(connection: &mut PgConnection, relay: &str) -> Result<HashSet<(i64, EventId)>, Error> {
    let sql = "select id, event_id from outbox.delivered_before where relay = $1";
    let rows: Vec<(i64, EventId)> = sqlx::query_as(sql).bind(relay).fetch_all(connection).await?;
    Ok(rows.into_iter().collect())
}

/// Returns the highest id that the log had at the relay's last rebase; 0 if there was none. Clients may have
/// received the rows up to it in an earlier epoch: a Postgres that went back does not know of their delivery,
/// and a Redis that has lost them does not show it.
///
/// # Errors
/// Fails as [`of`].
pub async fn rebased_id(connection: &mut PgConnection, relay: &str) -> Result<i64, Error> {
    let sql = "select rebased_id from outbox.relay where name = $1";
    Ok(sqlx::query_scalar(sql).bind(relay).fetch_optional(connection).await?.unwrap_or(0))
}

/// Deletes the records of rows that have left the log.
pub(super) async fn forget(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(
        "delete from outbox.delivered_before where id < coalesce((select min(e.id) from outbox.event e), 0)",
    )
    .execute(connection)
    .await?;
    Ok(())
}
