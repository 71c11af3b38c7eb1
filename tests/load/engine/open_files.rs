//! The limit on open files: one connection is one file, on both sides.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Files that a process has open besides its connections.
const OTHERS: u64 = 512;

/// Raises this process's limit, which those that it starts inherit, as far as it may be.
///
/// # Errors
/// What to do, if that is not enough for so many connections.
pub(crate) fn raise_for(connections: usize) -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let needed = connections as u64 + OTHERS;
    match limit.maximum {
        Some(most) if most < needed => Err(io::Error::other(format!(
            "{connections} connections need {needed} open files, and this user may have {most}: \
             raise `ulimit -Hn` as root, or use fewer --connections"
        ))),
        _ => Ok(()),
    }
}
