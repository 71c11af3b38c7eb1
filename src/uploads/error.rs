//! Why a request of the application fails, and the answer that it gets.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::session::Conflict;
use crate::event::EventError;
use crate::http::Problem;
use crate::outbox::AppendError;
use crate::postgres;

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The client's request is wrong; the answer says how.
    #[error("the request was refused")]
    Refused(Problem),
    /// The photo is in a state that does not allow it.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Postgres.
    #[error("Postgres: {}", postgres::error_text(.0))]
    Database(#[from] sqlx::Error),
    /// The outbox.
    #[error("the outbox: {0}")]
    Append(#[from] AppendError),
    /// A message that cannot be an event: a mistake of this program's.
    #[error("a message of this application is not an event: {0}")]
    Event(#[from] EventError),
    /// A row that this program cannot have written.
    #[error("photo {photo} has the status '{status}', which this version does not know")]
    Status {
        /// The photo.
        photo: uuid::Uuid,
        /// What the row holds.
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
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed; its log says why")
            }
        }
        .into_response()
    }
}

/// What became of the transaction may be unknown (a commit without an answer), so the answer does not say.
fn database_problem(error: &sqlx::Error) -> Problem {
    tracing::error!(error = postgres::error_text(error), "a request failed in Postgres");
    Problem::unavailable(
        "the database cannot be used at the moment; try again (repeating a request does no harm)",
    )
}
