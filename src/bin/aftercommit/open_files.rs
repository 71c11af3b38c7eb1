//! The limit on open files. Every stream needs one file.

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Files besides streams: Postgres, Redis, health checks, logs, and clients that are told to come back later.
const BESIDE_STREAMS: u64 = 1_150;

/// The number of files that an SSE process needs for all streams that the configuration allows.
pub(crate) fn of_streams(config: &Config) -> u64 {
    config.sse.max_connections as u64 + BESIDE_STREAMS
}

/// The largest limit that this process may set; `None` if it is not limited.
pub(crate) fn allowed() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Raises this process's own limit as far as needed and allowed. Shells and systemd start processes with a
/// limit of 1,024, which a process may raise.
pub(crate) fn raise(needed: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    let given = limit.maximum.map_or(needed, |maximum| needed.min(maximum));
    if given < needed {
        tracing::warn!(
            allowed = given,
            needed,
            "not enough open files for all connections: raise the limit (LimitNOFILE= of systemd, ulimit -Hn)"
        );
    }
    let raised = Rlimit { current: Some(given), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit of open files")
}
