//! Errors of the log, grouped by what the caller should do.

use super::contradiction::{self, Contradiction};
use super::database_id::DatabaseId;
use crate::outbox::schema_is_missing;
use crate::postgres;

/// Why the log could not be read, or a position not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another relay of this name inserted the row that this one tried to insert. Start over from the newest
    /// row.
    #[error(
        "another relay named '{relay}' has moved the position past step {n}: starting over from the newest \
         one"
    )]
    Fenced {
        /// The relay.
        relay: String,
        /// The step that this relay continued from.
        n: i64,
    },
    /// The schema is missing, or older than this binary.
    #[error("the outbox schema is missing or too old in this database: run `aftercommit migrate`")]
    SchemaMissing(#[source] sqlx::Error),
    /// The log was made in another database. In another cluster its transaction ids mean nothing; in another
    /// database of the same cluster it is a copy.
    #[error(
        "this log was made in another Postgres database ({made_in}; this is {found_in}): it was dumped and \
         restored, replicated, moved or copied. Stop its relays and run `aftercommit rebase`; or \
         `aftercommit rebase --copy`, if the original lives on and this is a copy beside it"
    )]
    WrongDatabase {
        /// The database that assigned the log's transaction ids.
        made_in: DatabaseId,
        /// The database of this connection.
        found_in: DatabaseId,
    },
    /// A rebase for another relay has changed the log.
    #[error(
        "the log was rebased for another relay, and the Redis of relay '{0}' was not looked at: run `aftercommit \
         rebase` for it, with AFTERCOMMIT_RELAY_NAME={0} and its REDIS_URL"
    )]
    RebaseNeeded(String),
    /// A newer program changed the format of rows and positions.
    #[error(
        "the log has format {found} and this binary knows none above {known}: run the aftercommit that \
         migrated it, or a newer one"
    )]
    NewerFormat {
        /// The log's format.
        found: i32,
        /// The newest format that this binary knows.
        known: i32,
    },
    /// The one row of `outbox.log` is gone.
    #[error(
        "outbox.log has no row, so this log has no identity: put it back from a backup; or, if there is \
         none, insert one as migrations/outbox/0001_log.sql does, and expect Redis to take it for another log"
    )]
    NoIdentity,
    /// The reading connection shows another position than the relay has written.
    #[error(
        "the connection that reads the log does not see step {n} of relay '{relay}' as it was written: it \
         leads to a server that lags or to another one (a standby behind a proxy that splits reads, a name \
         with two addresses, a switch-over in between). Nothing was taken for delivered. Point DATABASE_URL \
         at the primary alone"
    )]
    StaleReader {
        /// The relay.
        relay: String,
        /// The step that the relay wrote.
        n: i64,
    },
    /// The log holds rows that contradict the position.
    #[error(
        "the log contradicts the position of relay '{relay}': {}. The sequence was set back (setval, \
         truncate ... restart identity), or rows were written around outbox.append. Nothing was published \
         behind that. Stop the relays of this log and run `aftercommit rebase`: it gives these rows new ids \
         in order, so that they are delivered",
        contradiction::named(.rows)
    )]
    Contradiction {
        /// The relay.
        relay: String,
        /// Some of the rows.
        rows: Vec<Contradiction>,
    },
    /// A parked row, or a pending row that a rebase reads, breaks the rules for topics or types: it was
    /// written without the checks of `outbox.append`.
    #[error("row {id} of outbox.event is not an event: {source}")]
    NotAnEvent {
        /// The row's id.
        id: i64,
        /// The rule that the row breaks.
        source: crate::event::EventError,
    },
    /// Postgres refused a statement, or the connection broke.
    #[error("Postgres: {}", postgres::error_text(.0))]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        if schema_is_missing(&error) { Self::SchemaMissing(error) } else { Self::Database(error) }
    }
}
