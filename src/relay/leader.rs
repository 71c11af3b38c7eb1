//! Who leads: a session advisory lock for each relay name, held by a session that shows signs of life.
//!
//! For economy only: two leaders do no harm, as the checkpoint's primary key lets one of them write each row, and the
//! sink refuses repeats. The lock ends with its session. A process that is killed ends its sessions at once; one that is
//! frozen, or cut off from the network, would keep the lock for as long as the server believes in it. So the session asks
//! the server to end it when nothing has been heard for a while (`idle_session_timeout`, PostgreSQL 14 and later; before
//! that, TCP's keepalive has to find out), and the leader lets it hear something also while it waits for the sink.

use std::pin::pin;
use std::time::Duration;

use sqlx::PgConnection;

use crate::log;
use crate::log::lead;

/// The first version of Postgres that ends silent sessions, as `server_version_num`.
const ENDS_SILENT_SESSIONS: i32 = 140_000;

/// Tries to become the leader of `relay` for as long as `connection` lives. A stranger who holds the lead is shut out.
pub(super) async fn try_lead(connection: &mut PgConnection, relay: &str) -> Result<bool, log::Error> {
    if lead::try_take(connection, relay).await? {
        return Ok(true);
    }
    let Some(stranger) = lead::stranger(connection, relay).await? else { return Ok(false) };
    tracing::warn!(
        role = %stranger.role,
        "a role that may not write positions holds the lead's lock: taking another one. Nothing was delivered meanwhile"
    );
    lead::shut_out(connection, relay, &stranger).await?;
    lead::try_take(connection, relay).await
}

/// Has the server end this session, and with it the lead, when nothing was heard from it for this long.
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
        tracing::warn!(
            version,
            "this Postgres cannot end silent sessions: a relay that is frozen keeps the lead"
        );
        return Ok(());
    }
    sqlx::query("select set_config('idle_session_timeout', $1, false)")
        .bind(&milliseconds)
        .execute(connection)
        .await?;
    Ok(())
}

/// Does something that does not use the leader's session, and lets the server hear of that session meanwhile, `every`
/// so often.
///
/// # Errors
/// The session's, as soon as it fails; the work is then given up, as its outcome could not be written down.
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
            said = &mut sign => { said?; }
            // A query that was begun is finished, so that the session is clean for the next one.
            done = &mut work => {
                sign.await?;
                return Ok(done);
            }
        }
    }
}
