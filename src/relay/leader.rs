//! The lead: a session advisory lock for each relay name, held by a session that sends signs of life.
//!
//! The lead only saves work. Two leaders do no harm, because the checkpoint's primary key lets only one of
//! them write each row, and the sink refuses repeats. The lock ends with its session. The server ends the
//! sessions of a killed process at once. A process that is frozen or cut off from the network would keep the
//! lock until the server notices. So the session asks the server to end it after a silence
//! (`idle_session_timeout`, PostgreSQL 14 and later; before that, only TCP keepalive notices). The leader
//! also sends signs of life while it waits for the sink.

use std::pin::pin;
use std::time::Duration;

use sqlx::PgConnection;

use crate::log;
use crate::log::lead;

/// The first version of Postgres that ends silent sessions, as `server_version_num`.
const ENDS_SILENT_SESSIONS: i32 = 140_000;

/// Tries to take the lead of `relay` for as long as `connection` lives. A stranger's lock on the lead is made
/// void.
pub(super) async fn try_lead(connection: &mut PgConnection, relay: &str) -> Result<bool, log::Error> {
    if lead::try_take(connection, relay).await? {
        return Ok(true);
    }
    let Some(stranger) = lead::stranger(connection, relay).await? else { return Ok(false) };
    tracing::warn!(
        role = %stranger.role,
        "a role that may not write positions holds the lock of the lead, so no relay led: using a new lock"
    );
    lead::shut_out(connection, relay, &stranger).await?;
    lead::try_take(connection, relay).await
}

/// Tells the server to end this session, and with it the lead, after a silence of this length.
pub(super) async fn end_when_silent(
    connection: &mut PgConnection,
    silence: Duration,
) -> Result<(), sqlx::Error> {
    let milliseconds = silence.as_millis().to_string();
    sqlx::query("select set_config('idle_in_transaction_session_timeout', $1, false)")
        .bind(&milliseconds)
        .execute(&mut *connection)
        .await?;
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(&mut *connection)
        .await?;
    if version < ENDS_SILENT_SESSIONS {
        tracing::warn!(version, "this Postgres cannot end silent sessions: a frozen relay keeps the lead");
        return Ok(());
    }
    sqlx::query("select set_config('idle_session_timeout', $1, false)")
        .bind(&milliseconds)
        .execute(connection)
        .await?;
    Ok(())
}

/// Awaits `work`, which must not use the leader's session. Meanwhile sends a query on that session at
/// intervals of `every`.
///
/// # Errors
/// Returns the session's error as soon as it fails. The work is then dropped, because its outcome could not
/// be written down.
pub(super) async fn staying_alive<T>(
    session: &mut PgConnection,
    every: Duration,
    work: impl Future<Output = T>,
) -> Result<T, sqlx::Error> {
    let mut work = pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(every) => {}
        }
        let mut sign = pin!(sqlx::query("select 1").execute(&mut *session));
        tokio::select! {
            biased;
            answer = &mut sign => { answer?; }
            // The running query is finished, so that the session is clean for the next one.
            done = &mut work => {
                sign.await?;
                return Ok(done);
            }
        }
    }
}
