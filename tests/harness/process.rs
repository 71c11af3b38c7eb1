//! The real binary as real processes: configured by environment variables only, killed by real signals.

use std::collections::BTreeMap;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::{LIMIT, eventually};

const BINARY: &str = env!("CARGO_BIN_EXE_aftercommit");

/// `TimeoutStopSec` of the systemd units.
const TO_END: Duration = Duration::from_secs(20);

/// Environment variables of a process, and what a shell does before it becomes that process.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    variables: BTreeMap<String, String>,
    before: Option<String>,
}

impl Settings {
    pub(crate) fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// A shell command to run before the process starts, such as a `ulimit`.
    pub(crate) fn before(mut self, script: &str) -> Self {
        self.before = Some(script.to_owned());
        self
    }

    /// A variable that has been set.
    pub(crate) fn get(&self, name: &str) -> String {
        self.variables.get(name).expect("a variable").clone()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.before {
            None => Command::new(BINARY),
            Some(script) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &format!("{script} && exec \"$0\" \"$@\""), BINARY]);
                shell
            }
        };
        command.args(arguments).env_clear().env("USER", "tests").envs(&self.variables).stdin(Stdio::null());
        // For a crash's backtrace, and for coverage tools.
        for kept in ["PATH", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"] {
            if let Ok(value) = std::env::var(kept) {
                command.env(kept, value);
            }
        }
        command
    }
}

/// Runs a command to its end.
pub(crate) async fn cli(settings: &Settings, arguments: &[&str]) -> Output {
    let running = settings.command(arguments).kill_on_drop(true).output();
    tokio::time::timeout(LIMIT, running).await.expect("in time").expect("the binary runs")
}

/// Runs a command on a terminal of its own, on which somebody types this. Its output is the terminal's.
pub(crate) async fn on_terminal(settings: &Settings, arguments: &[&str], typed: &str) -> Output {
    let line = format!("exec '{BINARY}' {}", arguments.join(" "));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env_clear().env("USER", "tests");
    command.envs(&settings.variables).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut running = command.spawn().expect("script, of util-linux");
    let mut keyboard = running.stdin.take().expect("a pipe");
    keyboard.write_all(typed.as_bytes()).await.expect("a terminal");
    // Open until the end: a terminal whose keyboard is gone hangs up.
    let output = tokio::time::timeout(LIMIT, running.wait_with_output()).await;
    drop(keyboard);
    output.expect("in time").expect("an output")
}

/// A running command, killed when dropped. Nobody reads its outputs before its end: they must fit into pipes.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(settings: &Settings, arguments: &[&str]) -> Self {
        let mut command = settings.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Self(command.spawn().expect("the binary starts"))
    }

    /// Starts it with a stdout whose reader is gone.
    pub(crate) fn unheard(settings: &Settings, arguments: &[&str]) -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = settings.command(arguments);
        command.stdout(writer).stderr(Stdio::piped()).kill_on_drop(true);
        Self(command.spawn().expect("the binary starts"))
    }

    /// kill -9, and its end.
    pub(crate) async fn kill(mut self) {
        self.0.kill().await.expect("a kill");
    }

    /// Ctrl-C.
    pub(crate) async fn interrupt(&self) {
        send("INT", self.0.id().expect("it runs")).await;
    }

    pub(crate) async fn end(self) -> Output {
        let ended = tokio::time::timeout(LIMIT, self.0.wait_with_output()).await;
        ended.expect("in time").expect("an end")
    }
}

async fn send(signal: &str, pid: u32) {
    let pid = pid.to_string();
    let sent =
        Command::new("/bin/sh").args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid]).status().await;
    assert!(sent.expect("a shell").success(), "kill -s {signal}");
}

/// A running role.
#[derive(Debug)]
pub(crate) struct Process {
    role: String,
    child: Child,
    log: Arc<Mutex<String>>,
    /// Where it listens.
    pub(crate) address: String,
}

impl Process {
    /// Starts a role and waits until it listens.
    pub(crate) async fn start(role: &str, settings: &Settings) -> Self {
        let settings = settings.clone().set("AFTERCOMMIT_LOG_FORMAT", "json");
        let mut child = settings
            .command(&[role])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (told, address) = oneshot::channel();
        let stderr = child.stderr.take().expect("a pipe");
        tokio::spawn(read_log(stderr, log.clone(), told));
        let address = tokio::time::timeout(LIMIT, address).await.expect("it listens in time");
        let Ok(address) = address else {
            panic!("{role} ended before it listened:\n{}", log.lock().expect("a log"));
        };
        Self { role: role.to_owned(), child, log, address }
    }

    /// Starts a role with this stderr. The test cannot read its log, so `address` must be set by its
    /// settings.
    pub(crate) fn start_unheard(
        arguments: &[&str],
        settings: &Settings,
        address: String,
        stderr: impl Into<Stdio>,
    ) -> Self {
        let mut command = settings.command(arguments);
        let child = command.stdout(Stdio::null()).stderr(stderr).kill_on_drop(true).spawn();
        Self {
            role: arguments.join(" "),
            child: child.expect("the binary starts"),
            log: Arc::default(),
            address,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Waits until the log contains these words. The log is read from a pipe, so a line arrives a moment
    /// later.
    pub(crate) async fn wait_for_log(&self, words: &str) {
        eventually(&format!("the {} says: {words}", self.role), async || {
            self.log().contains(words).then_some(())
        })
        .await;
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("a log").clone()
    }

    /// Which role it plays.
    pub(crate) fn role(&self) -> &str {
        &self.role
    }

    /// Whether it has ended, by itself or by a signal.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.ended().is_some()
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("a status")
    }

    /// kill -9, and its end.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("a kill");
    }

    /// Sends a signal by name.
    pub(crate) async fn signal(&self, name: &str) {
        send(name, self.pid()).await;
    }

    /// Sends a signal, unless it has ended by itself.
    pub(crate) async fn signal_if_it_runs(&mut self, name: &str) {
        if !self.has_ended() {
            self.signal(name).await;
        }
    }

    /// SIGTERM, and the exit code.
    pub(crate) async fn terminate(mut self) -> i32 {
        self.signal("TERM").await;
        self.exit_code().await
    }

    /// Waits for the end, which comes within the time that the systemd units give it.
    pub(crate) async fn exit_code(&mut self) -> i32 {
        let ended = tokio::time::timeout(TO_END, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("{} does not end", self.role)).expect("a status");
        status.code().unwrap_or_else(|| panic!("{} was ended by {status}:\n{}", self.role, self.log()))
    }
}

/// Collects the log, and sends the address that it contains.
async fn read_log(
    stderr: tokio::process::ChildStderr,
    log: Arc<Mutex<String>>,
    told: oneshot::Sender<String>,
) {
    let mut told = Some(told);
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let address = serde_json::from_str::<serde_json::Value>(&line)
            .ok()
            .and_then(|entry| entry.get("address")?.as_str().map(str::to_owned));
        if let (Some(address), Some(told)) = (address, told.take_if(|_| line.contains("address"))) {
            told.send(address).expect("the test waits for it");
        }
        let mut log = log.lock().expect("a log");
        log.push_str(&line);
        log.push('\n');
    }
}
