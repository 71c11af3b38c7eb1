//! Who leads: a session advisory lock for each relay name.
//!
//! For economy only: two leaders do no harm, as the checkpoint's primary key lets one of them write each row, and the
//! sink refuses repeats. The lock ends with its session, so a standby takes over as soon as Postgres notices.

use sqlx::PgConnection;

/// Tries to become the leader of `relay` for as long as `connection` lives.
pub(super) async fn try_lead(connection: &mut PgConnection, relay: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended('outbox.relay:' || $1, 0))")
        .bind(relay)
        .fetch_one(connection)
        .await
}
