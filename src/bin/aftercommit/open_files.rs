//! The limit of open files: every stream is one.

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Files beside those of streams: Postgres, Redis, health, logs, and clients that are told to come back later.
const BESIDE_STREAMS: u64 = 1_150;

/// What an SSE process needs for all streams that the configuration allows.
pub(crate) fn of_streams(config: &Config) -> u64 {
    config.sse.max_connections as u64 + BESIDE_STREAMS
}

/// What this process may be given; `None` for as many as it wants.
pub(crate) fn allowed() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Raises this process's own limit as far as it needs and may. Shells and systemd start processes with 1,024, and allow more
/// to those that ask.
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
