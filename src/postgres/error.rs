//! Why a connection to Postgres could not be made, in words that say what to do.

use super::tls::{self, TlsError};
use crate::address::AddressError;
use crate::password_command::PasswordError;

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address was given.
    #[error("no Postgres was named: set DATABASE_URL, or url in the [database] section")]
    NoUrl,
    /// The address is malformed.
    #[error("the database url {0}")]
    Url(AddressError),
    /// The several hosts of the address cannot be told apart.
    #[error(
        "the database url names several hosts by parameters: write them as postgres://user@a:5432,b:5432/database"
    )]
    Hosts,
    /// The address asks for a standby.
    #[error(
        "the database url asks for a standby by target_session_attrs: only the primary will do here \
         (target_session_attrs=read-write)"
    )]
    WantsAStandby,
    /// None of the hosts is a primary.
    #[error("cannot connect to Postgres: none of the hosts is a primary ({answers})")]
    NoPrimary {
        /// The answer of each host, without user or password.
        answers: String,
        /// Whether one of them refuses the login.
        refuses_login: bool,
    },
    /// The password is given twice.
    #[error("the database url holds a password, and [database] password_command is set: keep one of them")]
    TwoPasswords,
    /// The program gave no password.
    #[error("[database] {0}")]
    Password(#[from] PasswordError),
    /// A parameter of the address has a value that means nothing.
    #[error("{parameter} of the database url is not {expected}")]
    Parameter {
        /// The parameter.
        parameter: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// TLS is asked for in a way that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server did not answer in time.
    #[error(
        "Postgres at {address} did not answer within {waited_ms} ms: is it running, and is the address right?"
    )]
    Timeout {
        /// Host, port and database, without user or password.
        address: String,
        /// How long the process waited, in milliseconds.
        waited_ms: u64,
    },
    /// A pooler drops the session's start-up options, or shares sessions.
    #[error(
        "Postgres at {address} is reached through a pooler that shares sessions (PgBouncer in transaction mode?), \
         and every process of aftercommit needs sessions of its own: set [database] direct_url to the address of \
         Postgres itself (applications may keep the pooler)"
    )]
    Pooled {
        /// Host, port and database, without user or password.
        address: String,
    },
    /// The server refused the connection, or could not be reached.
    #[error("cannot connect to Postgres at {address}: {problem}")]
    Refused {
        /// Host, port and database, without user or password.
        address: String,
        /// The cause in words, with advice.
        problem: String,
        /// The cause.
        source: sqlx::Error,
    },
}

impl ConnectError {
    /// The error for a server that refuses, or cannot be reached.
    pub(super) fn refused(address: String, source: sqlx::Error) -> Self {
        Self::Refused { address, problem: error_text(&source), source }
    }

    /// Whether a server has refused user or password, so that the next try needs the newest password.
    pub(super) fn refuses_login(&self) -> bool {
        match self {
            Self::NoPrimary { refuses_login, .. } => *refuses_login,
            Self::Refused { source, .. } => super::is_refused_login(source),
            _ => false,
        }
    }
}

/// Turns a failure of Postgres or of the connection into words for a person. Adds advice for the common
/// causes, and removes the place in the driver's source that the driver appends.
pub fn error_text(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => match error.code().as_deref() {
            Some("28P01") => format!(
                "{} (check user and password in DATABASE_URL, or the output of [database] password_command)",
                error.message()
            ),
            Some("28000") => format!("{} ({})", error.message(), login_advice(error.message())),
            Some("3D000") => format!("{} (create it, or name another one in DATABASE_URL)", error.message()),
            Some("53300") => {
                format!(
                    "{} (raise max_connections there, or lower [database] max_connections here)",
                    error.message()
                )
            }
            _ => error.message().to_owned(),
        },
        sqlx::Error::Io(error) => match tls::problem_of_a_handshake(error) {
            Some(problem) => problem,
            None => format!("{error} (is it running, and is the address right?)"),
        },
        sqlx::Error::Tls(error) => {
            format!("{error} (check sslmode, sslrootcert, sslcert and sslkey in DATABASE_URL)")
        }
        // One cause is a proxy with nothing behind it, which ends the connection.
        sqlx::Error::Protocol(text) => {
            let text = text.split(" (sqlx_postgres::").next().unwrap_or(text);
            format!("{text} (is the address right, and is Postgres running behind it?)")
        }
        sqlx::Error::PoolTimedOut => "no connection came free, or could be made, in time".to_owned(),
        other => other.to_string(),
    }
}

/// Whether the two sides do not agree on TLS, which does not mend itself.
pub fn is_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => true,
        sqlx::Error::Io(error) => tls::problem_of_a_handshake(error).is_some(),
        _ => false,
    }
}

/// Advice for a login that the server's pg_hba.conf does not allow. The server says there whether the
/// connection was encrypted; before version 13 in other words.
fn login_advice(message: &str) -> &'static str {
    if message.contains("no encryption") || message.contains("SSL off") {
        "set sslmode=require in DATABASE_URL, or allow this user without TLS in the server's pg_hba.conf"
    } else {
        "check user, password and sslcert in DATABASE_URL, and the output of [database] password_command"
    }
}

#[cfg(test)]
mod tests {
    use super::error_text;

    #[test]
    fn what_is_no_postgres_is_told_without_the_place_in_the_library() {
        let error =
            sqlx::Error::Protocol("unexpected response: 0x00 (sqlx_postgres::connection::tls:95)".to_owned());
        assert_eq!(
            error_text(&error),
            "unexpected response: 0x00 (is the address right, and is Postgres running behind it?)"
        );
    }
}
