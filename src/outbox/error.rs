//! What can go wrong with the log, by what the caller should do about it.

use crate::postgres;

/// Why an event was not appended. The caller's transaction is aborted: roll it back.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The schema `outbox` is not there, or older than this library.
    #[error("the outbox schema is missing or too old in this database: run `aftercommit migrate`")]
    SchemaMissing(#[source] sqlx::Error),
    /// The row broke one of the log's checks: made by another version of the library.
    #[error(
        "the outbox refused the event by its check {constraint}: see the limits of topic, type and payload in the README"
    )]
    Refused {
        /// The check's name, for example `payload_fits`.
        constraint: String,
        /// The database's error.
        source: sqlx::Error,
    },
    /// Postgres failed.
    #[error("the event could not be written: {}", postgres::said(.0))]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for AppendError {
    fn from(error: sqlx::Error) -> Self {
        if schema_is_missing(&error) {
            return Self::SchemaMissing(error);
        }
        let constraint = error
            .as_database_error()
            .filter(|e| e.is_check_violation())
            .and_then(|e| e.constraint())
            .map(str::to_owned);
        match constraint {
            Some(constraint) => Self::Refused { constraint, source: error },
            None => Self::Database(error),
        }
    }
}

/// Why the log could not be read or a position not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another relay of this name wrote the row that this one wanted to write: start over from the newest row.
    #[error(
        "another relay named '{relay}' has moved the position past step {n}: starting over from the newest one"
    )]
    Fenced {
        /// The relay.
        relay: String,
        /// The step that this relay had come from.
        n: i64,
    },
    /// The schema is not there, or older than this binary.
    #[error("the outbox schema is missing or too old in this database: run `aftercommit migrate`")]
    SchemaMissing(#[source] sqlx::Error),
    /// The log was made in another cluster: its transaction numbers mean nothing in this one.
    #[error(
        "the position of relay '{relay}' belongs to another Postgres cluster (system identifier {stored}, this one has {found}): \
         the database was dumped and restored or moved. Run `aftercommit rebase` after reading about it in the README"
    )]
    WrongCluster {
        /// The relay.
        relay: String,
        /// Where its position was made.
        stored: i64,
        /// What this server is.
        found: i64,
    },
    /// A row of the log is not an event: somebody went around the checks.
    #[error("row {id} of outbox.event is not an event: {source}")]
    NotAnEvent {
        /// The row's id.
        id: i64,
        /// What is wrong with it.
        source: crate::event::EventError,
    },
    /// Postgres failed or went away.
    #[error("Postgres: {}", postgres::said(.0))]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        if schema_is_missing(&error) { Self::SchemaMissing(error) } else { Self::Database(error) }
    }
}

/// Undefined table, function, column or schema: what a database without our migrations answers.
fn schema_is_missing(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    matches!(code.as_deref(), Some("42P01" | "42883" | "42703" | "3F000"))
}
