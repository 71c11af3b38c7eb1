//! Which log this is: the one row of `outbox.log`.
//!
//! A log keeps its identity wherever it is moved, and Redis carries it, so that two logs on one Redis are told apart. The
//! system identifier beside it names the cluster in which the log's transaction numbers mean something.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::Error;

/// The newest format of rows and positions that this program reads: `outbox.log.format`.
pub const FORMAT: i32 = 1;

/// A log's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The log, wherever it is.
    pub id: Uuid,
    /// The cluster in which its transaction numbers were given out.
    pub system_identifier: i64,
    /// The cluster that this connection leads to.
    pub found: i64,
    /// The format of its rows and positions.
    pub format: i32,
}

impl Identity {
    /// Whether the log is in the cluster whose transaction numbers it uses.
    pub fn is_at_home(&self) -> bool {
        self.system_identifier == self.found
    }
}

/// Looks up the log's identity, wherever the log is.
///
/// # Errors
/// [`Error::NoIdentity`], [`Error::NewerFormat`], [`Error::SchemaMissing`], [`Error::Database`].
pub async fn of(connection: &mut PgConnection) -> Result<Identity, Error> {
    let row = sqlx::query(
        "select l.id, l.system_identifier, l.format, c.system_identifier as found
         from outbox.log l cross join pg_control_system() c",
    )
    .fetch_optional(connection)
    .await?
    .ok_or(Error::NoIdentity)?;
    let identity = Identity {
        id: row.try_get("id")?,
        system_identifier: row.try_get("system_identifier")?,
        found: row.try_get("found")?,
        format: row.try_get("format")?,
    };
    if identity.format > FORMAT {
        return Err(Error::NewerFormat { found: identity.format, known: FORMAT });
    }
    Ok(identity)
}

/// The identity of a log that is in the cluster in which it was made.
///
/// # Errors
/// [`Error::WrongCluster`], or as [`of`].
pub async fn at_home(connection: &mut PgConnection) -> Result<Identity, Error> {
    let identity = of(connection).await?;
    if !identity.is_at_home() {
        return Err(Error::WrongCluster { stored: identity.system_identifier, found: identity.found });
    }
    Ok(identity)
}
