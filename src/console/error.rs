//! Errors of operators' requests.

use axum::response::{IntoResponse, Response};

use crate::event::EventError;
use crate::http::Problem;
use crate::log;
use crate::ops::relays::RelayError;
use crate::ops::{self, replay::ReplayError};

/// An operator's request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The reason for the audit log is missing or too long.
    #[error("give a reason of 1 to {0} characters: it is kept in the audit log")]
    NoReason(usize),
    /// The topic or the id is not valid.
    #[error(transparent)]
    NotATopic(#[from] EventError),
    /// There is no such relay.
    #[error(transparent)]
    NoRelay(RelayError),
    /// There is nothing to settle.
    #[error("nothing of topic '{0}' is parked any more")]
    NotParked(String),
    /// The parked events are no longer those that the operator has seen.
    #[error(transparent)]
    Changed(ops::parked::RequestError),
    /// The request selects no events. An empty selection would mean all.
    #[error("select events by topic, type, event id or time")]
    NoSelection,
    /// The rate is out of range.
    #[error("the rate must be 1 to {0} events a second")]
    NoRate(u32),
    /// The header `aftercommit-before` is not valid.
    #[error("the header aftercommit-before must be the Unix time in milliseconds until which you wait")]
    NoTime,
    /// The page had given up waiting before the request was read.
    #[error("this request arrived too late and was not carried out: send it again if you still want it")]
    TooOld,
    /// The time limit ended before the commit.
    #[error("the change was not made in time, and nothing has changed: check Postgres and try again")]
    Late,
    /// Postgres did not answer the commit.
    #[error("Postgres did not answer the commit: the change may have been made. Check before you try again")]
    Unknown,
    /// The limit on previews and replays of this process is reached.
    #[error("this relay runs two previews or replays already: wait until one has ended")]
    Busy,
    /// The replay cannot be planned, begun or resumed.
    #[error(transparent)]
    Replay(ReplayError),
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] log::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Log(error.into())
    }
}

impl From<ops::parked::RequestError> for Error {
    fn from(error: ops::parked::RequestError) -> Self {
        match error {
            ops::parked::RequestError::Log(error) => Self::Log(error),
            other => Self::Changed(other),
        }
    }
}

impl From<RelayError> for Error {
    fn from(error: RelayError) -> Self {
        match error {
            RelayError::Log(error) => Self::Log(error),
            unknown @ RelayError::Unknown(_) => Self::NoRelay(unknown),
        }
    }
}

impl From<ReplayError> for Error {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Log(error) => Self::Log(error),
            other => Self::Replay(other),
        }
    }
}

impl From<crate::postgres::ConnectError> for Error {
    fn from(error: crate::postgres::ConnectError) -> Self {
        Self::Log(log::Error::Database(sqlx::Error::Configuration(error.to_string().into())))
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let detail = self.to_string();
        match self {
            Self::NoReason(_) | Self::NotATopic(_) | Self::NoSelection | Self::NoRate(_) | Self::NoTime => {
                Problem::bad_request(detail)
            }
            Self::NoRelay(_) | Self::NotParked(_) => Problem::not_found(detail),
            Self::Busy | Self::Replay(_) | Self::TooOld | Self::Changed(_) => Problem::conflict(detail),
            Self::Late | Self::Unknown => {
                tracing::warn!(error = detail, "a change of the console");
                Problem::unavailable(detail)
            }
            Self::Log(error) => {
                tracing::warn!(%error, "the console could not reach the log");
                Problem::unavailable(detail)
            }
        }
        .into_response()
    }
}
