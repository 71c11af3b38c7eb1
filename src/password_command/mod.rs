//! Passwords from a program: `password_command` of the sections `[redis]` and `[database]`.
//!
//! The program's output is the password, or a JSON object with `password` and, where they apply, `user` and
//! an expiry: `expires_at` (RFC 3339, or seconds since 1970) or `expires_in` (seconds). So one mechanism
//! serves tokens of a cloud's IAM, a vault, and files.

mod error;
mod output;
mod run;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use error::PasswordError;
pub use output::Password;
use output::password_in;
use run::run;

/// The wait after a program that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a caller with a password that may still be valid waits for the program.
const PATIENCE: Duration = Duration::from_millis(300);

/// A program that prints a password. Clones share its newest one.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "String")]
pub struct PasswordCommand {
    /// For `/bin/sh -c`; empty if there is none. It may hold secrets itself.
    command: SecretString,
    known: Arc<Mutex<Known>>,
    /// Held while the program runs, so that callers at the same time share one run.
    running: Arc<tokio::sync::Mutex<()>>,
}

/// The results of the program's last runs.
#[derive(Debug, Default)]
struct Known {
    newest: Option<Password>,
    failed: Option<(Instant, PasswordError)>,
}

impl Known {
    /// The last run's error, if it has just failed.
    fn failed_just_now(&self) -> Option<&PasswordError> {
        self.failed.as_ref().filter(|(at, _)| at.elapsed() < RETRY_AFTER).map(|(_, error)| error)
    }
}

impl From<String> for PasswordCommand {
    fn from(command: String) -> Self {
        Self { command: command.into(), known: Arc::default(), running: Arc::default() }
    }
}

impl PasswordCommand {
    /// Whether a program is set.
    pub fn is_set(&self) -> bool {
        !self.command.expose_secret().trim().is_empty()
    }

    /// Returns the newest password, and runs the program first if that one is old. Callers at the same time
    /// share one run. A program that fails or takes long does not hold up callers as long as there is a
    /// password that may still be valid: they get that one.
    ///
    /// # Errors
    /// Returns a [`PasswordError`] if the program fails and there is no password that may still be valid.
    pub async fn password(&self) -> Result<Password, PasswordError> {
        let now = Instant::now();
        let newest = self.known().newest.clone().filter(|password| password.is_valid(now));
        let Some(valid) = newest else { return self.renewed().await };
        // A program that has just failed is not run again for each caller.
        if valid.is_fresh(now) || self.known().failed_just_now().is_some() {
            return Ok(valid);
        }
        let Ok(running) = self.running.clone().try_lock_owned() else { return Ok(valid) };
        let this = self.clone();
        // The run goes on when the caller does not wait for it any longer.
        let renewing = tokio::spawn(async move { this.ask(&running).await });
        match timeout(PATIENCE, renewing).await {
            Ok(Ok(Ok(password))) => Ok(password),
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "the last password is used, as long as it is valid");
                Ok(valid)
            }
            Ok(Err(_)) | Err(_) => Ok(valid),
        }
    }

    /// Runs the program, unless another caller just did.
    async fn renewed(&self) -> Result<Password, PasswordError> {
        let running = self.running.lock().await;
        let now = Instant::now();
        {
            let known = self.known();
            if let Some(password) = known.newest.as_ref().filter(|password| password.is_fresh(now)) {
                return Ok(password.clone());
            }
            if let Some(error) = known.failed_just_now() {
                return Err(error.clone());
            }
        }
        self.ask(&running).await
    }

    /// Runs the program. `_running` is the lock that says so.
    async fn ask<T>(&self, _running: &T) -> Result<Password, PasswordError> {
        let asked =
            run(self.command.expose_secret()).await.and_then(|output| password_in(&output, Utc::now()));
        let mut known = self.known();
        match &asked {
            Ok(password) => (known.newest, known.failed) = (Some(password.clone()), None),
            Err(error) => known.failed = Some((Instant::now(), error.clone())),
        }
        drop(known);
        asked
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the password that replaces the one which has to be renewed at this time, when there is one.
    /// While the program fails there is none, and connections keep the old one.
    pub async fn replacement(&self, renew_at: Instant) -> Password {
        sleep_until(renew_at).await;
        loop {
            match self.password().await {
                Ok(password) if password.renew_at != Some(renew_at) => return password,
                Ok(_old) => {}
                Err(error) => tracing::warn!(%error, "there is no new password"),
            }
            sleep(RETRY_AFTER).await;
        }
    }

    /// Forgets the newest password, because a server has refused it.
    pub fn forget(&self) {
        self.known().newest = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_runs_once_for_many_connections_and_again_before_its_password_expires() {
        let runs = tempfile::NamedTempFile::new().expect("a file");
        let file = runs.path().display();
        // It lives for two seconds.
        let command = format!(
            "echo run >>{file}; [ $(wc -l <{file}) -lt 3 ] || exit 7
             echo '{{\"password\":\"'$(wc -l <{file})'\",\"expires_in\":2}}'"
        );
        let command = PasswordCommand::from(command);
        let ask = async || command.password().await.map(|it| it.password.expose_secret().trim().to_owned());
        let (one, other) = tokio::join!(ask(), ask());
        assert_eq!((one.expect("a password"), other.expect("a password")), ("1".into(), "1".into()));
        let renew_at = command.password().await.expect("a password").renew_at.expect("an expiry");
        tokio::time::sleep_until(renew_at).await;
        assert_eq!(ask().await.expect("a password"), "2");
        let second = command.password().await.expect("a password");
        let renew_at = second.renew_at.expect("an expiry");
        tokio::time::sleep_until(renew_at).await;
        assert_eq!(ask().await.expect("it still holds"), "2", "the program fails, and the password holds");
        tokio::time::sleep_until(second.expires_at.expect("an expiry")).await;
        assert!(matches!(ask().await, Err(PasswordError::Failed { .. })));
        let replaced = tokio::time::timeout(Duration::from_secs(2), command.replacement(renew_at)).await;
        assert!(replaced.is_err(), "nothing replaces it while the program fails");
    }

    #[tokio::test]
    async fn the_words_of_a_program_that_fails_are_for_the_log_alone() {
        let command = PasswordCommand::from("echo secret; echo no vault >&2; exit 3".to_owned());
        let error = command.password().await.expect_err("it fails").to_string();
        let expected =
            "password_command failed (exit status: 3): its last words are in the log of this process";
        assert_eq!(error, expected);
    }

    #[tokio::test]
    async fn callers_do_not_wait_for_a_program_while_a_password_may_still_be_valid() {
        let runs = tempfile::NamedTempFile::new().expect("a file");
        let file = runs.path().display();
        // The first run answers at once, and each later one hangs.
        let command = PasswordCommand::from(format!(
            "echo run >>{file}; [ $(wc -l <{file}) = 1 ] || sleep 600; echo '{{\"password\":\"p\",\"expires_in\":2}}'"
        ));
        let renew_at = command.password().await.expect("a password").renew_at.expect("an expiry");
        sleep_until(renew_at).await;
        for _ in 0..3 {
            let begun = Instant::now();
            let password = command.password().await.expect("the last password");
            assert_eq!(password.password.expose_secret(), "p");
            assert!(begun.elapsed() < 2 * PATIENCE, "{:?}", begun.elapsed());
        }
        let runs = std::fs::read_to_string(runs.path()).expect("the runs");
        assert_eq!(runs.lines().count(), 2, "one run is under way, and no other begins");
    }

    #[tokio::test]
    async fn a_program_that_fails_is_not_run_for_each_caller() {
        let runs = tempfile::NamedTempFile::new().expect("a file");
        let file = runs.path().display();
        // The first run answers, and each later one fails at once.
        let command = PasswordCommand::from(format!(
            "echo run >>{file}; [ $(wc -l <{file}) = 1 ] || exit 7; echo '{{\"password\":\"p\",\"expires_in\":5}}'"
        ));
        let renew_at = command.password().await.expect("a password").renew_at.expect("an expiry");
        sleep_until(renew_at).await;
        for _ in 0..20 {
            command.password().await.expect("the last password");
        }
        let runs = std::fs::read_to_string(runs.path()).expect("the runs");
        assert_eq!(runs.lines().count(), 2, "one more run for twenty callers");
    }
}
