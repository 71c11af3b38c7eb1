//! Why an operator's request was not carried out.

use axum::response::{IntoResponse, Response};

use crate::event::EventError;
use crate::http::Problem;
use crate::log;
use crate::ops::relays::RelayError;
use crate::ops::{self, replay::ReplayError};

/// Why an operator's request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nobody would know later why it was done.
    #[error("say why, in 1 to {0} characters: the audit keeps it")]
    NoReason(usize),
    /// It is not a topic, or not an id.
    #[error(transparent)]
    NotATopic(#[from] EventError),
    /// There is no such relay.
    #[error(transparent)]
    NoRelay(RelayError),
    /// There is nothing to settle.
    #[error("nothing of topic '{0}' is parked any more")]
    NotParked(String),
    /// Other events are parked than those that the operator has seen.
    #[error(transparent)]
    Changed(ops::parked::RequestError),
    /// Nothing was selected, which would mean everything.
    #[error("say which events: by topic, type, event id or time")]
    NoSelection,
    /// Not a number of events a second.
    #[error("a rate is 1 to {0} events a second")]
    NoRate(u32),
    /// The page's time is not one.
    #[error("aftercommit-before is Unix time in milliseconds: until when you wait")]
    NoTime,
    /// The page has given up waiting before the request was read.
    #[error("this was asked for too long ago, and was not carried out: ask again if you still want it")]
    TooOld,
    /// The time was over before the commit.
    #[error("it was not done in time, and nothing has changed: is Postgres well? Ask again after a while")]
    Late,
    /// The commit was not answered.
    #[error("Postgres did not answer the commit: it may have been carried out. Look before you ask again")]
    Unknown,
    /// As many looks and replays as this process may be at are under way.
    #[error("this relay is at two looks or replays already: wait until one is done")]
    Busy,
    /// Replay refuses.
    #[error(transparent)]
    Replay(ReplayError),
    /// The log could not be read or written.
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
