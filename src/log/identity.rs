//! The log's identity: the one row of `outbox.log`.
//!
//! A log keeps its identity when it is moved. Redis carries the identity too, so that two logs on one Redis
//! are told apart. The system identifier names the cluster in which the log's transaction ids have a meaning.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::Error;

/// The newest format of rows and positions that this program reads: `outbox.log.format`.
pub const FORMAT: i32 = 1;

/// A log's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The log's id, which stays when the log is moved.
    pub id: Uuid,
    /// The system identifier of the cluster that assigned the log's transaction ids.
    pub system_identifier: i64,
    /// The system identifier of the cluster that this connection leads to.
    pub found: i64,
    /// The format of its rows and positions.
    pub format: i32,
}

impl Identity {
    /// Whether this cluster assigned the log's transaction ids.
    pub fn is_at_home(&self) -> bool {
        self.system_identifier == self.found
    }
}

/// Reads the log's identity, in whichever cluster the log is.
///
/// # Errors
/// Returns [`Error::NoIdentity`] if `outbox.log` has no row, [`Error::NewerFormat`] if the log's format is
/// above [`FORMAT`], [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if
/// Postgres refuses the statement or the connection breaks.
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

/// Reads the identity of a log that must be in the cluster in which it was made.
///
/// # Errors
/// Returns [`Error::WrongCluster`] if the log was made in another cluster, and else fails as [`of`].
pub async fn at_home(connection: &mut PgConnection) -> Result<Identity, Error> {
    let identity = of(connection).await?;
    if !identity.is_at_home() {
        return Err(Error::WrongCluster { stored: identity.system_identifier, found: identity.found });
    }
    Ok(identity)
}
