//! Errors of an append, grouped by what the caller should do.

use crate::postgres;

/// Why an event was not appended. The caller's transaction is aborted: roll it back.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The schema `outbox` is missing, or older than this library.
    #[error("the outbox schema is missing or too old in this database: run `aftercommit migrate`")]
    SchemaMissing(#[source] sqlx::Error),
    /// The event breaks a rule of the log. Trying again does not help.
    #[error("{rule}")]
    Refused {
        /// One sentence that names the refused value and the rule, and quotes nothing of the payload.
        rule: String,
        /// The database's error.
        source: sqlx::Error,
    },
    /// Postgres failed, or the connection broke.
    #[error("the event could not be written: {}", postgres::error_text(.0))]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for AppendError {
    fn from(error: sqlx::Error) -> Self {
        if schema_is_missing(&error) {
            return Self::SchemaMissing(error);
        }
        let refused = error.as_database_error().filter(|e| e.is_check_violation());
        match refused.map(|refused| refused.message().to_owned()) {
            Some(rule) => Self::Refused { rule, source: error },
            None => Self::Database(error),
        }
    }
}

/// Whether the error is an undefined table, function, column or schema: the answer of a database without our
/// migrations.
pub(crate) fn schema_is_missing(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    matches!(code.as_deref(), Some("42P01" | "42883" | "42703" | "3F000"))
}
