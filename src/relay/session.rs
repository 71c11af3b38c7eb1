//! A relay's connections to Postgres: one that leads and writes, one that reads, and neither through a pooler.

use sqlx::PgConnection;

use super::{leader, settings::Settings};
use crate::log::{lead, read};
use crate::outbox::schema;
use crate::postgres::{self, ConnectError, SchemaError, shares_a_session};

/// Why there is no session. The loop tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A schema that is missing, older or newer.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The log.
    #[error(transparent)]
    Outbox(#[from] crate::log::Error),
    /// Something between this process and Postgres hands its statements to changing sessions.
    #[error(
        "Postgres is reached through a pooler that shares sessions (PgBouncer in transaction mode?): a relay needs sessions of \
         its own for its lock and for LISTEN. Point DATABASE_URL of the relay straight at Postgres; applications may keep \
         the pooler"
    )]
    Pooled,
    /// This server takes no writes: a standby, or a primary that was demoted.
    #[error(
        "this Postgres is read-only (a standby, a demoted primary, or default_transaction_read_only is on): the relay connects \
         again until it finds the primary"
    )]
    ReadOnly,
    /// One address leads to the primary and to a standby.
    #[error(
        "of two connections to this Postgres one leads to a standby, which lags: point DATABASE_URL at the primary alone (no \
         proxy that splits reads, no name of several addresses)"
    )]
    ReadsStandby,
    /// Postgres failed.
    #[error("Postgres: {}", postgres::error_text(.0))]
    Database(#[from] sqlx::Error),
}

/// The connection that leads, prepared and checked.
pub(super) async fn writer(
    database: &postgres::Settings,
    settings: &Settings,
) -> Result<PgConnection, SessionError> {
    let mut writer = connect(database, &format!("aftercommit relay {}", settings.name)).await?;
    read::prepare_session(&mut writer).await?;
    // Asked now and not found out at the first write: while nothing is to be delivered, the wrong server would look right.
    let read_only: String = sqlx::query_scalar("show transaction_read_only").fetch_one(&mut writer).await?;
    if read_only == "on" {
        return Err(SessionError::ReadOnly);
    }
    // Durable whatever the server's default is: numbers given to Redis must never be forgotten.
    sqlx::raw_sql("set synchronous_commit = on").execute(&mut writer).await?;
    leader::end_when_silent(&mut writer, settings.takeover()).await?;
    schema::SCHEMA.check(&mut writer).await?;
    lead::register(&mut writer, &settings.name).await?;
    Ok(writer)
}

/// The connection that reads the log, prepared; known not to share its session with the writer's.
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

/// Connects; a refusal of our start-up parameters can only come from a pooler.
async fn connect(database: &postgres::Settings, name: &str) -> Result<PgConnection, SessionError> {
    match database.connect(name).await {
        Err(ConnectError::Refused { source, .. }) if source.to_string().contains("startup parameter") => {
            Err(SessionError::Pooled)
        }
        Err(ConnectError::Pooled { .. }) => Err(SessionError::Pooled),
        other => Ok(other?),
    }
}
