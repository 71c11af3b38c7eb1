//! The lock that keeps appends and relays from a log while a rebase changes it.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::log::{Error, lead};

/// The number of tries.
const TRIES: u32 = 40;
/// The pause after a try, in which the writers go on that have waited behind it.
const PAUSE: Duration = Duration::from_millis(500);
/// The number of tries for a lead, and the pause after each.
const LEAD_TRIES: u32 = 4;
const LEAD_PAUSE: Duration = Duration::from_millis(50);

/// Locks the log until the end of the transaction: appends and relays wait, readers do not. Returns false if
/// transactions that have appended stay open. Appends that come while a try waits for these wait behind it. So
/// each try is short, and they go on between two tries.
pub(super) async fn take(tx: &mut Transaction<'_, Postgres>) -> Result<bool, Error> {
    for _ in 0..TRIES {
        let mut attempt = tx.begin().await?;
        let locked = sqlx::raw_sql(
            "set local lock_timeout = '300ms';
             lock table outbox.event, outbox.checkpoint, outbox.relay in exclusive mode;
             set local lock_timeout to default",
        )
        .execute(&mut *attempt)
        .await;
        match locked {
            Ok(_) => {
                attempt.commit().await?;
                return Ok(true);
            }
            Err(error) if error.as_database_error().and_then(|e| e.code()).as_deref() == Some("55P03") => {
                attempt.rollback().await?;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Takes the lead of a relay until the end of the transaction. Returns false if a relay holds it. Somebody who
/// looks has the lock for a moment, and so has a rebase that has just ended, because Postgres releases a
/// transaction's locks one by one. So one try does not tell.
pub(super) async fn hold(tx: &mut PgConnection, relay: &str) -> Result<bool, Error> {
    for _ in 0..LEAD_TRIES {
        if lead::try_hold(tx, relay).await? {
            return Ok(true);
        }
        tokio::time::sleep(LEAD_PAUSE).await;
    }
    Ok(false)
}
