//! Why a connection to Redis could not be made.

use ::redis::RedisError;

use super::error_text::error_text;
use super::sentinel::SentinelError;
use super::tls::TlsError;
use crate::address::AddressError;
use crate::password_command::PasswordError;

/// Why a connection to Redis could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address was given.
    #[error("no Redis was named: set REDIS_URL, or url in the [redis] section")]
    NoUrl,
    /// The address is malformed.
    #[error("the redis url {0}")]
    Url(AddressError),
    /// The address names a database other than 0.
    #[error(
        "the redis url names database {0}: pub/sub ignores database numbers, so they keep nothing apart. \
         Take the number away, and set [redis] namespace where several logs share one Redis"
    )]
    DatabaseNumber(i64),
    /// The namespace breaks the rules for names.
    #[error("[redis] namespace '{0}' is not a namespace: use at most 60 characters of A-Z a-z 0-9 . _ -")]
    Namespace(String),
    /// The address has a parameter that means nothing.
    #[error(
        "the redis url has a parameter '{0}', which means nothing there: take it away (only unix:// has user \
         and pass as parameters; elsewhere they stand before the host)"
    )]
    Parameter(String),
    /// The address has a fragment, which would switch the check of certificates off.
    #[error(
        "the redis url has a '#', and means nothing by it: certificates are always checked. For a private CA \
         set [redis] tls_ca_file; in a password write # as %23"
    )]
    Fragment,
    /// The password is given twice.
    #[error("the redis url holds a password, and [redis] password_command is set: keep one of them")]
    TwoPasswords,
    /// The program gave no password.
    #[error("[redis] {0}")]
    Password(#[from] PasswordError),
    /// The sentinels name no primary.
    #[error("cannot connect to Redis: {0}")]
    Sentinels(#[from] SentinelError),
    /// The address names several servers, and the server that answers is no node of a cluster.
    #[error(
        "the redis url names several servers, and Redis at {address} is no node of a cluster: name one server, \
         or use redis+sentinel:// for sentinels"
    )]
    NoCluster {
        /// Host and port.
        address: String,
    },
    /// The server does not say whether it is a node of a cluster.
    #[error("Redis does not say whether it is a cluster: {}{}", error_text(.0), info_advice(.0))]
    Undecided(RedisError),
    /// The address is a socket of a node of a cluster, whose other nodes it does not lead to.
    #[error(
        "the redis url leads to a node of a cluster by its socket, and the cluster's other nodes have ports: \
         name hosts and ports in REDIS_URL"
    )]
    ClusterBySocket,
    /// The server is a node of a cluster, and does not say which servers have which slots.
    #[error("no server of the Redis Cluster says which slots it has (check CLUSTER SLOTS at its nodes): {0}")]
    NoSlots(String),
    /// The sentinels name a server that is not a primary, or not yet.
    #[error(
        "Redis at {address} is not the primary that the sentinels take it for: wait until the failover has ended"
    )]
    NotPrimary {
        /// Host and port.
        address: String,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Certificates(#[from] TlsError),
    /// The TLS handshake failed for a reason that does not go away by itself.
    #[error("cannot connect to Redis at {address} by TLS: {problem}")]
    Handshake {
        /// Host and port.
        address: String,
        /// The problem, and the setting that mends it.
        problem: String,
    },
    /// The server refused the connection, or could not be reached.
    #[error("cannot connect to Redis at {address}: {}", refusal(.source, .advice))]
    Refused {
        /// Host and port, without user or password.
        address: String,
        /// What to look at if Redis itself did not answer.
        advice: String,
        /// The cause.
        source: RedisError,
    },
}

/// Advice for a user without the right to ask.
fn info_advice(error: &RedisError) -> &'static str {
    match error.code() {
        Some("NOPERM") => " (give its user +info: `aftercommit grants` prints the rights that it needs)",
        _ => "",
    }
}

/// Returns the error's text. Adds the advice if Redis itself did not answer.
fn refusal(error: &RedisError, advice: &str) -> String {
    let text = error_text(error);
    let is_away = error.is_io_error() || error.is_timeout() || error.is_connection_dropped();
    if is_away { format!("{text} ({advice})") } else { text }
}
