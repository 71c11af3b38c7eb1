//! The log's identity: the one row of `outbox.log`.
//!
//! A log keeps its identity when it is moved. Redis carries the identity too, so that two logs on one Redis
//! are told apart. It also names the database in which it was made: its transaction ids have a meaning in that
//! cluster alone, and in another database of the cluster it is a copy.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::Error;
use super::database_id::DatabaseId;

/// The newest format of rows and positions that this program reads: `outbox.log.format`.
pub const FORMAT: i32 = 1;

/// A log's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The log's id, which stays when the log is moved.
    pub id: Uuid,
    /// The database that assigned the log's transaction ids.
    pub made_in: DatabaseId,
    /// The database of this connection.
    pub found_in: DatabaseId,
    /// The format of its rows and positions.
    pub format: i32,
}

impl Identity {
    /// Whether this database assigned the log's transaction ids.
    pub fn is_at_home(&self) -> bool {
        self.made_in == self.found_in
    }
}

/// Reads the log's identity, in whichever database the log is.
///
/// # Errors
/// Returns [`Error::NoIdentity`] if `outbox.log` has no row, [`Error::NewerFormat`] if the log's format is
/// above [`FORMAT`], [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if
/// Postgres refuses the statement or the connection breaks.
pub async fn of(connection: &mut PgConnection) -> Result<Identity, Error> {
    let row = sqlx::query(
        "select l.id, l.format, l.system_identifier, l.database_oid::bigint,
                c.system_identifier as found_system_identifier, d.oid::bigint as found_database_oid
         from outbox.log l cross join pg_control_system() c
         join pg_database d on d.datname = current_database()",
    )
    .fetch_optional(connection)
    .await?
    .ok_or(Error::NoIdentity)?;
    let identity = Identity {
        id: row.try_get("id")?,
        made_in: DatabaseId {
            system_identifier: row.try_get("system_identifier")?,
            database_oid: row.try_get("database_oid")?,
        },
        found_in: DatabaseId {
            system_identifier: row.try_get("found_system_identifier")?,
            database_oid: row.try_get("found_database_oid")?,
        },
        format: row.try_get("format")?,
    };
    if identity.format > FORMAT {
        return Err(Error::NewerFormat { found: identity.format, known: FORMAT });
    }
    Ok(identity)
}

/// Reads the identity of a log that must be in the database in which it was made.
///
/// # Errors
/// Returns [`Error::WrongDatabase`] if the log was made in another database, and else fails as [`of`].
pub async fn at_home(connection: &mut PgConnection) -> Result<Identity, Error> {
    let identity = of(connection).await?;
    if !identity.is_at_home() {
        return Err(Error::WrongDatabase { made_in: identity.made_in, found_in: identity.found_in });
    }
    Ok(identity)
}
