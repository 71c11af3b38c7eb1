//! Errors of the application's requests, and the answers that clients receive.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::session::Conflict;
use crate::event::EventError;
use crate::http::Problem;
use crate::outbox::AppendError;
use crate::postgres;

/// A request fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The client's request is wrong; the answer says how.
    #[error("the request was refused")]
    Refused(Problem),
    /// The photo's state does not allow the command.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Postgres failed.
    #[error("Postgres: {}", postgres::error_text(.0))]
    Database(#[from] sqlx::Error),
    /// Appending to the outbox failed.
    #[error("the outbox: {0}")]
    Append(#[from] AppendError),
    /// A message cannot be an event. This is a defect of this program.
    #[error("a message of this application is not an event: {0}")]
    Event(#[from] EventError),
    /// A row has a status that this version cannot have written.
    #[error("photo {photo} has the status '{status}', which this version does not know")]
    Status {
        /// The photo.
        photo: uuid::Uuid,
        /// The status in the row.
        status: String,
    },
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self {
            Self::Refused(problem) => problem,
            Self::Conflict(conflict) => Problem::conflict(conflict.to_string()),
            Self::Database(error) => database_problem(&error),
            Self::Append(AppendError::Database(error)) => database_problem(&error),
            other => {
                tracing::error!(error = %other, "a request failed");
                Problem::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the server failed; see its log for the reason",
                )
            }
        }
        .into_response()
    }
}

/// The outcome of the transaction may be unknown (a commit without an answer), so the answer does not name
/// one.
fn database_problem(error: &sqlx::Error) -> Problem {
    tracing::error!(error = postgres::error_text(error), "a request failed in Postgres");
    Problem::unavailable(
        "the database is not available at the moment; try again (repeating a request does no harm)",
    )
}
