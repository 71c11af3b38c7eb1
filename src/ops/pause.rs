//! Pausing a relay, and letting it deliver again.
//!
//! The relay looks at the row of `outbox.pause` in the statements that open a window (`log::checkpoint`), and
//! once a second while one is open (`relay::turns`).

use serde_json::json;
use sqlx::PgConnection;

use super::audit::{self, Operator};
use super::relays::{self, RelayError};

/// Pauses `relay` and writes that into the audit. Returns false, and writes nothing, if it is paused already.
///
/// Call it in a transaction, and [`relays::wake`] after its commit.
///
/// # Errors
/// [`RelayError::Unknown`] if no relay of this name has run; [`RelayError::Log`] if Postgres refuses.
pub async fn pause(tx: &mut PgConnection, relay: &str, operator: &Operator) -> Result<bool, RelayError> {
    relays::must_exist(tx, relay).await?;
    let done = sqlx::query(
        "insert into outbox.pause (relay, who, reason) values ($1, $2, $3) on conflict (relay) do nothing",
    )
    .bind(relay)
    .bind(&operator.who)
    .bind(&operator.reason)
    .execute(&mut *tx)
    .await?;
    record(tx, done.rows_affected(), "pause", relay, operator).await
}

/// Lets `relay` deliver again and writes that into the audit. Returns false, and writes nothing, if it was
/// not paused.
///
/// Call it in a transaction, and [`relays::wake`] after its commit.
///
/// # Errors
/// As [`pause`].
pub async fn resume(tx: &mut PgConnection, relay: &str, operator: &Operator) -> Result<bool, RelayError> {
    relays::must_exist(tx, relay).await?;
    let done = sqlx::query("delete from outbox.pause where relay = $1").bind(relay).execute(&mut *tx).await?;
    record(tx, done.rows_affected(), "resume", relay, operator).await
}

async fn record(
    tx: &mut PgConnection,
    rows: u64,
    action: &str,
    relay: &str,
    operator: &Operator,
) -> Result<bool, RelayError> {
    if rows == 0 {
        return Ok(false);
    }
    audit::write(tx, operator, action, &json!({ "relay": relay }), 0).await?;
    Ok(true)
}
