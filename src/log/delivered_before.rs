//! Rows that a sink has had although no position knows it: what a rebase has found there.

use std::collections::HashSet;

use sqlx::PgConnection;

use super::Error;

/// The rows that `relay` need not publish although its position does not know them to be delivered. None but after a
/// rebase, and then as many as had been delivered since the backup.
///
/// # Errors
/// [`Error`].
pub async fn of(connection: &mut PgConnection, relay: &str) -> Result<HashSet<i64>, Error> {
    let ids: Vec<i64> = sqlx::query_scalar("select id from outbox.delivered_before where relay = $1")
        .bind(relay)
        .fetch_all(connection)
        .await?;
    Ok(ids.into_iter().collect())
}

/// Drops what was written down of rows that have left the log.
pub(super) async fn forget(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(
        "delete from outbox.delivered_before where id < coalesce((select min(e.id) from outbox.event e), 0)",
    )
    .execute(connection)
    .await?;
    Ok(())
}
