//! Why the relay starts over: the failures of its sessions and steps.

use super::PublishError;
use super::failure::{self, Failure, Remedy};
use super::session::SessionError;
use super::step::StepError;
use crate::log;
use crate::postgres::{self, ConnectError, SchemaError};

/// Why a session ended. The loop makes a new one.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("Postgres: {}", postgres::error_text(.0))]
    Database(#[from] sqlx::Error),
    /// The sink has refused everything for longer than a takeover takes.
    #[error("the lead is given up, because another relay may reach Redis when this one cannot: {0}")]
    StoodDown(PublishError),
}

impl RunError {
    /// Postgres's own error, if there is one.
    pub(super) fn of_postgres(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Session(SessionError::Connect(ConnectError::Refused { source, .. }))
            | Self::Session(SessionError::Outbox(log::Error::Database(source)))
            | Self::Session(SessionError::Schema(SchemaError::Database(source)))
            | Self::Session(SessionError::Database(source))
            | Self::Step(StepError::Outbox(log::Error::Database(source)))
            | Self::Database(source) => Some(source),
            _ => None,
        }
    }

    /// Replaces errors about prepared statements that are unknown or exist already: they show that a pooler
    /// sends one connection's statements to several sessions.
    pub(super) fn explained(self) -> Self {
        let code = self.of_postgres().and_then(|error| error.as_database_error()?.code());
        match code.as_deref() {
            Some("42P05" | "26000") => Self::Session(SessionError::Pooled),
            _ => self,
        }
    }

    /// The class of the failure, and its remedy.
    pub(super) fn failure(&self) -> Failure {
        if let Some(error) = self.of_postgres() {
            return failure::of_postgres(error.as_database_error().and_then(|error| error.code()).as_deref());
        }
        match self {
            Self::Session(SessionError::Connect(ConnectError::Timeout { .. })) => failure::of_postgres(None),
            Self::Step(StepError::Publish(error)) | Self::StoodDown(error) => error.failure(),
            Self::Step(StepError::NoAnswer(_)) => failure::TIMEOUT,
            Self::Step(StepError::Outbox(log::Error::Fenced { .. })) => failure::FENCED,
            Self::Step(StepError::Outbox(log::Error::StaleReader { .. })) => failure::STALE_READER,
            Self::Step(StepError::Outbox(_)) | Self::Session(SessionError::Outbox(_)) => failure::CONFLICT,
            Self::Session(SessionError::ReadOnly | SessionError::ReadsStandby) => failure::READ_ONLY,
            // Addresses, schemas, poolers: a person's set-up.
            _ => Failure { class: "setup", remedy: Remedy::Person },
        }
    }
}
