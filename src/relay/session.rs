//! A relay's connections to Postgres: one leads and writes, one reads. Neither may go through a pooler.

use sqlx::PgConnection;

use super::{leader, settings::Settings};
use crate::log::{lead, read};
use crate::outbox::schema;
use crate::postgres::{self, ConnectError, SchemaError, shares_a_session};

/// Why a session could not be made. The loop tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// A connection could not be made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The schema is missing, older or newer.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The log could not be read or written.
    #[error(transparent)]
    Outbox(#[from] crate::log::Error),
    /// A pooler hands this process's statements to changing sessions.
    #[error(
        "Postgres is reached through a pooler that shares sessions (PgBouncer in transaction mode?), and a relay \
         needs sessions of its own for its lock and for LISTEN: set [database] direct_url to the address of \
         Postgres itself (applications may keep the pooler)"
    )]
    Pooled,
    /// The server takes no writes: it is a standby, or a primary that was demoted.
    #[error(
        "this Postgres is read-only (a standby, a demoted primary, or default_transaction_read_only is on): \
         the relay connects again until it finds the primary"
    )]
    ReadOnly,
    /// The address leads to the primary and to a standby.
    #[error(
        "of two connections to this Postgres one leads to a standby, which lags: point DATABASE_URL at the \
         primary alone (no proxy that splits reads, no name of several addresses)"
    )]
    ReadsStandby,
    /// Postgres failed, or the connection broke.
    #[error("Postgres: {}", postgres::error_text(.0))]
    Database(#[from] sqlx::Error),
}

/// Makes, prepares and checks the connection that leads and writes.
pub(super) async fn writer(
    database: &postgres::Settings,
    settings: &Settings,
) -> Result<PgConnection, SessionError> {
    let mut writer = connect(database, &format!("aftercommit relay {}", settings.name)).await?;
    read::prepare_session(&mut writer).await?;
    // Checked now and not at the first write: while nothing is to be delivered, a wrong server would look
    // right.
    let read_only: String = sqlx::query_scalar("show transaction_read_only").fetch_one(&mut writer).await?;
    if read_only == "on" {
        return Err(SessionError::ReadOnly);
    }
    // Commits are durable whatever the server's default is: a number given to Redis must never be forgotten.
    sqlx::raw_sql("set synchronous_commit = on").execute(&mut writer).await?;
    leader::end_when_silent(&mut writer, settings.takeover()).await?;
    schema::SCHEMA.check(&mut writer).await?;
    lead::register(&mut writer, &settings.name).await?;
    Ok(writer)
}

/// Makes and prepares the connection that reads the log, and checks that it does not share its session with
/// the writer's.
pub(super) async fn reader(
    database: &postgres::Settings,
    settings: &Settings,
    writer: &mut PgConnection,
) -> Result<PgConnection, SessionError> {
    let mut reader = connect(database, &format!("aftercommit relay {} reader", settings.name)).await?;
    if shares_a_session(writer, &mut reader).await? {
        return Err(SessionError::Pooled);
    }
    if sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut reader).await? {
        return Err(SessionError::ReadsStandby);
    }
    read::prepare_session(&mut reader).await?;
    Ok(reader)
}

/// Connects.
async fn connect(database: &postgres::Settings, name: &str) -> Result<PgConnection, SessionError> {
    match database.connect(name).await {
        Err(ConnectError::Pooled { .. }) => Err(SessionError::Pooled),
        other => Ok(other?),
    }
}
