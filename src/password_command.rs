//! Passwords from a program: `password_command` of the sections `[redis]` and `[database]`.
//!
//! The program's output is the password, or a JSON object with `password` and, where they apply, `user` and
//! an expiry: `expires_at` (RFC 3339, or seconds since 1970) or `expires_in` (seconds). So one mechanism
//! serves tokens of a cloud's IAM, a vault, and files.

use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::printable::printable;

/// How long the program may take.
const RUN_LIMIT: Duration = Duration::from_secs(10);
/// The most bytes of its output. A token of a cloud has a few thousand.
const OUTPUT_BYTES: u64 = 64 * 1024;
/// A password without an expiry serves the connections of this time, so that a hundred connections that are
/// made at once do not start a hundred programs.
const REUSED_FOR: Duration = Duration::from_secs(5);
/// The part of its life after which a password is replaced. The rest is left for a program that fails for a
/// while.
const RENEWED_AFTER: f64 = 0.8;
/// The year 5000, in seconds since 1970: a later time is one in milliseconds.
const SECONDS_MAX: f64 = 95_617_584_000.0;
/// The wait after a program that failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a caller with a password that may still be valid waits for the program.
const PATIENCE: Duration = Duration::from_millis(300);
/// The most bytes of the program's own words that the log repeats.
const WORDS_BYTES: usize = 300;

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

/// A password, as the program gave it.
#[derive(Debug, Clone)]
pub struct Password {
    /// The password.
    pub password: SecretString,
    /// The user that it belongs to, if the program names one.
    pub user: Option<String>,
    /// When to ask for the next one; `None` if this one does not expire.
    pub renew_at: Option<Instant>,
    /// When it must not be used any more.
    expires_at: Option<Instant>,
    asked_at: Instant,
}

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

/// The JSON form of the output.
#[derive(Deserialize)]
struct Printed {
    password: Option<SecretString>,
    user: Option<String>,
    expires_at: Option<Moment>,
    expires_in: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Moment {
    Seconds(f64),
    Text(String),
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

impl Password {
    fn is_fresh(&self, now: Instant) -> bool {
        self.renew_at.unwrap_or(self.asked_at + REUSED_FOR) > now
    }

    /// Whether it has not expired. A password without an expiry is valid until a server refuses it.
    fn is_valid(&self, now: Instant) -> bool {
        self.expires_at.is_none_or(|end| end > now)
    }
}

async fn run(command: &str) -> Result<Vec<u8>, PasswordError> {
    let failed = |error: std::io::Error| PasswordError::Run(error.to_string());
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    // The shell's own children end with it, too.
    let mut group = Group(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = async {
        let (output, words, status) = tokio::join!(read(stdout), read(stderr), child.wait());
        Ok((output?, words?, status?))
    };
    let (output, words, status) =
        timeout(RUN_LIMIT, ended).await.map_err(|_elapsed| PasswordError::TooSlow)?.map_err(failed)?;
    group.0 = None;
    if !status.success() {
        let words = words.trim_ascii();
        let end = String::from_utf8_lossy(&words[words.len().saturating_sub(WORDS_BYTES)..]).into_owned();
        tracing::warn!(%status, words = %printable(&end), "password_command failed");
        return Err(PasswordError::Failed { status: status.to_string() });
    }
    Ok(output)
}

/// The processes of a run, which are killed when this is dropped: a program that hangs leaves nothing behind.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // A group that has ended is as good.
            let _killed = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Reads at most [`OUTPUT_BYTES`]. A program that prints more fails by a broken pipe.
async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(OUTPUT_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn password_in(output: &[u8], now: DateTime<Utc>) -> Result<Password, PasswordError> {
    let text = std::str::from_utf8(output).map_err(|_| PasswordError::Output("is not UTF-8"))?;
    let text = text.trim_start_matches('\u{feff}');
    let asked_at = Instant::now();
    let Some(printed) = printed_in(text)? else {
        let password = text.trim_end_matches(['\r', '\n']);
        if password.trim().is_empty() {
            return Err(PasswordError::Output("is empty"));
        }
        let password = password.to_owned().into();
        return Ok(Password { password, user: None, renew_at: None, expires_at: None, asked_at });
    };
    let password = printed.password.filter(|password| !password.expose_secret().is_empty());
    let password = password.ok_or(PasswordError::Output("is a JSON object without 'password'"))?;
    let lives = match (printed.expires_at, printed.expires_in) {
        (None, None) => None,
        (None, Some(seconds)) => Some(seconds),
        (Some(moment), None) => Some(seconds_until(&moment, now)?),
        (Some(_), Some(_)) => return Err(PasswordError::Output("has both 'expires_at' and 'expires_in'")),
    };
    let lives = lives.map(|seconds| Duration::try_from_secs_f64(seconds).ok().filter(|life| !life.is_zero()));
    let lives = match lives {
        Some(None) => return Err(PasswordError::Output("is a password that has expired")),
        // The clock of tokio ends earlier than the times that a program may name.
        Some(Some(life)) => Some(life.min(Duration::from_secs(365 * 24 * 3600))),
        None => None,
    };
    Ok(Password {
        password,
        user: printed.user,
        renew_at: lives.map(|life| asked_at + life.mul_f64(RENEWED_AFTER)),
        expires_at: lives.map(|life| asked_at + life),
        asked_at,
    })
}

/// Reads the JSON form; `None` if the output is no JSON object. An output that begins like one must be one,
/// because it is no password that a server has.
fn printed_in(text: &str) -> Result<Option<Printed>, PasswordError> {
    let begins_like_json = text.trim_start().strip_prefix('{').is_some_and(|rest| {
        let rest = rest.trim_start();
        rest.starts_with('"') || rest.starts_with('}')
    });
    if !begins_like_json {
        return Ok(None);
    }
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|_| PasswordError::Output("begins like JSON, and is none"))?;
    serde_json::from_value(object.into()).map(Some).map_err(|_| {
        PasswordError::Output(
            "has a value of another type than text for 'password' and 'user', a time for 'expires_at', or a \
             number of seconds for 'expires_in'",
        )
    })
}

fn seconds_until(moment: &Moment, now: DateTime<Utc>) -> Result<f64, PasswordError> {
    match moment {
        Moment::Seconds(at) if *at > SECONDS_MAX => {
            Err(PasswordError::Output("names an 'expires_at' beyond the year 5000: give seconds since 1970"))
        }
        Moment::Seconds(at) => Ok(at - now.timestamp_millis() as f64 / 1000.0),
        Moment::Text(text) => match (DateTime::parse_from_rfc3339(text), text.parse::<f64>()) {
            (Ok(at), _) => Ok((at.with_timezone(&Utc) - now).as_seconds_f64()),
            (Err(_), Ok(at)) => seconds_until(&Moment::Seconds(at), now),
            (Err(_), Err(_)) => Err(PasswordError::Output("names an 'expires_at' that is no time")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(output: &str) -> Result<(String, Option<String>, Option<u64>), String> {
        let now = DateTime::from_timestamp(1000, 0).expect("a time");
        let password = password_in(output.as_bytes(), now).map_err(|error| error.to_string())?;
        let lives = password.expires_at.map(|at| (at - password.asked_at).as_secs());
        Ok((password.password.expose_secret().to_owned(), password.user, lives))
    }

    #[test]
    fn the_output_is_the_password_or_an_object_with_an_expiry() {
        let plain = |text: &str| Ok((text.to_owned(), None, None));
        assert_eq!(of("s3cret\n"), plain("s3cret"));
        assert_eq!(of(" with spaces \r\n"), plain(" with spaces "));
        assert_eq!(of("{not json"), plain("{not json"));
        assert_eq!(of("\u{feff}s3cret"), plain("s3cret"));
        assert_eq!(of("\"quoted\""), plain("\"quoted\""));
        assert_eq!(of(r#"{"password":"p"}"#), plain("p"));
        let ends = |user: Option<&str>, lives| Ok(("p".to_owned(), user.map(str::to_owned), Some(lives)));
        assert_eq!(of(r#"{"password":"p","user":"u","expires_in":60,"more":1}"#), ends(Some("u"), 60));
        assert_eq!(of(r#"{"password":"p","expires_at":1060}"#), ends(None, 60));
        assert_eq!(of(r#"{"password":"p","expires_at":"1060"}"#), ends(None, 60));
        assert_eq!(of(r#"{"password":"p","expires_at":"1970-01-01T01:17:40+01:00"}"#), ends(None, 60));
    }

    #[test]
    fn an_output_that_cannot_be_used_is_told_without_its_content() {
        for (output, words) in [
            ("\n", "is empty"),
            (r#"{"secret":"tell-nobody"}"#, "without 'password'"),
            (r#"{"password":"tell-nobody","expires_at":"soon"}"#, "no time"),
            (r#"{"password":"tell-nobody","expires_at":999}"#, "has expired"),
            (r#"{"password":"tell-nobody","expires_in":0}"#, "has expired"),
            (r#"{"password":"tell-nobody","expires_in":1,"expires_at":2000}"#, "both"),
            (r#"{"password":"tell-nobody","expires_in":"900"}"#, "another type"),
            (r#"{"password":"tell-nobody","expires_in":true}"#, "another type"),
            (r#"{"password":12345}"#, "another type"),
            (r#"{"password":"tell-nobody","user":5}"#, "another type"),
            (r#"{"password":"tell-nobody","#, "begins like JSON"),
            (r#"{"password":""}"#, "without 'password'"),
            (r#"{"password":"tell-nobody","expires_at":1762857000123}"#, "year 5000"),
            ("  \n", "is empty"),
        ] {
            let error = of(output).expect_err(output);
            assert!(error.contains(words) && !error.contains("nobody"), "{error}");
        }
    }

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

    #[tokio::test]
    async fn a_run_that_is_given_up_leaves_no_process_behind() {
        let pids = tempfile::NamedTempFile::new().expect("a file");
        let command = format!("sleep 600 & echo $! >{}; wait", pids.path().display());
        let given_up = timeout(Duration::from_secs(1), run(&command)).await;
        assert!(given_up.is_err(), "it hangs");
        let pid = std::fs::read_to_string(pids.path()).expect("a pid");
        let stat = format!("/proc/{}/stat", pid.trim());
        let is_alive = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        let begun = Instant::now();
        while is_alive() && begun.elapsed() < Duration::from_secs(5) {
            sleep(Duration::from_millis(10)).await;
        }
        assert!(!is_alive(), "the shell's child lives on");
    }
}
