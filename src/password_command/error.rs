//! Why a program gave no password.

use std::time::Duration;

/// How long the program may take.
pub(super) const RUN_LIMIT: Duration = Duration::from_secs(10);

/// Why a program gave no password. Holds nothing of its output.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PasswordError {
    /// It could not be run.
    #[error("password_command could not be run: {0}")]
    Run(String),
    /// It took too long, and was ended.
    #[error("password_command did not end within {} s", RUN_LIMIT.as_secs())]
    TooSlow,
    /// It failed. Its own words are in the log alone, because they may hold secrets, and errors are shown to
    /// everybody who may ask for the health of a process.
    #[error("password_command failed ({status}): its last words are in the log of this process")]
    Failed {
        /// Its exit status.
        status: String,
    },
    /// Its output cannot be used.
    #[error("the output of password_command {0}")]
    Output(&'static str),
}
