//! The relays that an operator names.

use sqlx::PgConnection;

use crate::log::{Error, checkpoint};

/// Why nothing is done for a relay.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// No relay of this name has ever run.
    #[error("no relay named '{0}' has run on this log: `aftercommit relay list` shows those that have")]
    Unknown(String),
    /// The log could not be read or written.
    #[error(transparent)]
    Log(#[from] Error),
}

impl From<sqlx::Error> for RelayError {
    fn from(error: sqlx::Error) -> Self {
        Self::Log(error.into())
    }
}

/// Makes sure that a relay of this name has run on the log.
///
/// # Errors
/// [`RelayError::Unknown`] if none has; [`RelayError::Log`] if the log cannot be read.
pub async fn must_exist(connection: &mut PgConnection, relay: &str) -> Result<(), RelayError> {
    match checkpoint::newest(connection, relay).await? {
        Some(_position) => Ok(()),
        None => Err(RelayError::Unknown(relay.to_owned())),
    }
}

/// Wakes the relays after the commit of a change that concerns them. If that fails, they find it by polling.
///
/// It is no part of the change's transaction: a full queue of notifications would make the commit fail.
pub async fn wake(connection: &mut PgConnection) {
    if let Err(error) = sqlx::query("notify outbox").execute(connection).await {
        tracing::debug!(%error, "NOTIFY failed: relays find the change by polling");
    }
}
