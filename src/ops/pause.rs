//! Pausing a relay, and letting it deliver again: the row that the relay looks at.

use sqlx::PgConnection;

use super::audit::Operator;
use crate::log::Error;

/// Pauses `relay`, which must have run on this log before. False if it is paused already.
///
/// Write it in the transaction of its audit row, and ring the bell after the commit.
///
/// # Errors
/// [`Error`].
pub async fn pause(connection: &mut PgConnection, relay: &str, operator: &Operator) -> Result<bool, Error> {
    let done = sqlx::query(
        "insert into outbox.pause (relay, who, reason) values ($1, $2, $3) on conflict (relay) do nothing",
    )
    .bind(relay)
    .bind(&operator.who)
    .bind(&operator.reason)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Lets `relay` deliver again. False if it was not paused.
///
/// # Errors
/// [`Error`].
pub async fn resume(connection: &mut PgConnection, relay: &str) -> Result<bool, Error> {
    let done =
        sqlx::query("delete from outbox.pause where relay = $1").bind(relay).execute(connection).await?;
    Ok(done.rows_affected() > 0)
}
