//! Errors of the private servers. Each says what to do.

use std::path::PathBuf;

/// A private server did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Another process holds the data directory.
    #[error("another aftercommit dev uses {}: stop it, or name another directory", .0.display())]
    InUse(PathBuf),
    /// A program is not installed.
    #[error("{program} was not found: install it with `{debian}` (Debian, Ubuntu) or `{homebrew}` (macOS)")]
    Missing {
        /// The program.
        program: &'static str,
        /// The command that installs it on Debian and Ubuntu.
        debian: &'static str,
        /// The command that installs it with Homebrew.
        homebrew: &'static str,
    },
    /// The data directory was written by a Postgres version that is not installed.
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
        /// The action that failed.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The program.
        command: String,
        /// The output of the program.
        output: String,
    },
    /// Postgres did not start, or could not make its data directory.
    #[error("Postgres {failed}; its log ends with:\n{log}")]
    Postgres {
        /// The step that failed.
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
        /// The step that failed.
        failed: String,
        /// The last lines of its log.
        log: String,
    },
    /// A server of an earlier process does not end.
    #[error("{server} of an earlier run in {} does not end: stop process {pid} by hand", .dir.display())]
    Leftover {
        /// The name of the server.
        server: &'static str,
        /// The directory of the server.
        dir: PathBuf,
        /// The process id of the server.
        pid: String,
    },
    /// A server did not stop in order.
    #[error("{server} did not stop cleanly: its supervisor ended with {status}")]
    Stop {
        /// The name of the server.
        server: &'static str,
        /// The exit status of its supervisor.
        status: String,
    },
}

impl LocalError {
    /// Adapts file errors for `map_err`.
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
