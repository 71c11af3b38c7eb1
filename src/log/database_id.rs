//! Which database a log is in.

use std::fmt;

/// A database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseId {
    /// The cluster: `pg_control_system().system_identifier`.
    pub system_identifier: i64,
    /// The database in it: `pg_database.oid`.
    pub database_oid: i64,
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {}, database {}", self.system_identifier, self.database_oid)
    }
}
