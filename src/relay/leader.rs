//! The lead: a session advisory lock for each relay name, held by a session that sends signs of life.
//!
//! The lead only saves work. Two leaders do no harm, because the checkpoint's primary key lets only one of
//! them write each row (`log::checkpoint`, `Error::Fenced`), and the sink refuses repeats. The lock ends with
//! its session. The server ends the sessions of a killed process at once. A process that is frozen or cut off
//! from the network would keep the lock until the server notices. So the session asks the server to end it
//! after a silence (`idle_session_timeout`, PostgreSQL 14 and later; before that, a relay that stands by ends
//! it). The leader also sends signs of life while it waits for the sink.

use std::pin::pin;
use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::log;
use crate::log::lead;

/// Tries to take the lead of `relay` for as long as `connection` lives. Makes a stranger's lock on the lead
/// void. Where the server ends no idle sessions (before PostgreSQL 14), ends the session of a leader that has
/// been silent for longer than `silence`; a later try then takes the lead.
pub(super) async fn try_lead(
    connection: &mut PgConnection,
    relay: &str,
    silence: Duration,
) -> Result<bool, log::Error> {
    if lead::try_take(connection, relay).await? {
        return Ok(true);
    }
    let Some(stranger) = lead::stranger(connection, relay).await? else {
        if lead::end_silent(connection, relay, silence).await? {
            tracing::warn!("the relay that led was silent: its session has been ended");
        }
        return Ok(false);
    };
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
    // Before PostgreSQL 14 there is no such setting: `lead::end_silent` takes its place.
    sqlx::query(
        "select set_config(s.name, $1, false) from pg_settings s where s.name = 'idle_session_timeout'",
    )
    .bind(&milliseconds)
    .execute(connection)
    .await?;
    Ok(())
}

/// Sends a sign of life if the last one is older than `every`. For a loop whose single operations are too
/// short for [`staying_alive`] to send one.
pub(super) async fn stay_alive(
    session: &mut PgConnection,
    every: Duration,
    last: &mut Instant,
) -> Result<(), sqlx::Error> {
    if last.elapsed() >= every {
        sqlx::query("select 1").execute(session).await?;
        *last = Instant::now();
    }
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
