//! Why there is no private server, in words that say what to do.

use std::path::PathBuf;

/// Why a private server did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Another process holds the data directory.
    #[error("another aftercommit dev uses {}: stop it, or name another directory", .0.display())]
    InUse(PathBuf),
    /// A program is not installed.
    #[error("{program} was not found: install it with `{debian}` (Debian, Ubuntu) or `{homebrew}` (macOS)")]
    Missing {
        /// What was looked for.
        program: &'static str,
        /// The line that installs it on Debian and Ubuntu.
        debian: &'static str,
        /// The line that installs it with Homebrew.
        homebrew: &'static str,
    },
    /// No installed Postgres can read the data that an earlier one wrote.
    #[error(
        "the data in {} is of Postgres {major}, which is not installed: install it, or delete that directory",
        .dir.display()
    )]
    OtherVersion {
        /// The data directory.
        dir: PathBuf,
        /// The major version that wrote it.
        major: String,
    },
    /// A file or directory cannot be used.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A program did not do what it was asked for.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The program.
        command: String,
        /// What it said.
        output: String,
    },
    /// Postgres is not installed and could not be downloaded, or did not start.
    #[error("Postgres {failed}; its log ends with:\n{log}")]
    Postgres {
        /// What failed.
        failed: &'static str,
        /// The last lines of its log.
        log: String,
        /// The cause.
        source: Box<postgresql_embedded::Error>,
    },
    /// Postgres is not installed and could not be downloaded.
    #[error(
        "Postgres is not installed and could not be downloaded: install it with \
         `apt-get install postgresql` (Debian, Ubuntu) or `brew install postgresql@17` (macOS)"
    )]
    Download(#[source] Box<postgresql_embedded::Error>),
    /// Redis did not start.
    #[error("Redis {failed}; its log ends with:\n{log}")]
    Redis {
        /// What failed.
        failed: String,
        /// The last lines of its log.
        log: String,
    },
    /// A server of an earlier process does not end.
    #[error("{server} of an earlier run in {} does not end: stop process {pid} by hand", .dir.display())]
    Leftover {
        /// Which server.
        server: &'static str,
        /// Its directory.
        dir: PathBuf,
        /// Its process.
        pid: String,
    },
    /// A server did not end in an orderly way.
    #[error("{server} did not stop in an orderly way: its supervisor ended with {status}")]
    Stop {
        /// Which server.
        server: &'static str,
        /// How its supervisor ended.
        status: String,
    },
}

impl LocalError {
    /// For `map_err` on file operations.
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
