//! Processes work and obey signals whatever their stderr is. A panic in any task ends its process, with a log
//! line and an exit code.

use std::fs::File;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;
use uuid::Uuid;

use crate::harness::{
    Process, Running, Settings, System, TestResult, cli, database, eventually, free_port, http_get, str_of,
};
use crate::operators::wait_until_green;
use crate::systemd::port_of;

/// The kinds of stderr that a process may have.
#[derive(Debug, Clone, Copy)]
enum Stderr {
    /// A disk that is full.
    Full,
    /// A pipe whose reader is gone.
    Gone,
    /// A pipe that nobody reads, and that is full before the process starts.
    Unread,
    /// No file at all.
    Closed,
    /// A file that has reached the size that the shell allows (`ulimit -f`).
    Limited,
}

const ALL: [Stderr; 5] = [Stderr::Full, Stderr::Gone, Stderr::Unread, Stderr::Closed, Stderr::Limited];

/// Keeps an unread pipe unread for as long as it lives.
type Held = Option<std::io::PipeReader>;

impl Stderr {
    /// The settings of a process with such a stderr, and the file itself.
    fn open(self, settings: &Settings) -> TestResult<(Settings, Stdio, Held)> {
        let settings = settings.clone();
        match self {
            Self::Full => {
                let full = File::options().write(true).open("/dev/full")?;
                Ok((settings, full.into(), None))
            }
            Self::Gone => {
                let (reader, writer) = std::io::pipe()?;
                drop(reader);
                Ok((settings, writer.into(), None))
            }
            Self::Unread => {
                let (reader, writer) = std::io::pipe()?;
                let mut filler = writer.try_clone()?;
                // Writes until it is full, and then waits until the reader is dropped.
                std::thread::spawn(move || while filler.write_all(&[b'.'; 4096]).is_ok() {});
                Ok((settings, writer.into(), Some(reader)))
            }
            Self::Closed => Ok((settings.before("exec 2>&-"), Stdio::null(), None)),
            Self::Limited => {
                let file = tempfile::tempfile()?;
                Ok((settings.before("ulimit -f 0"), file.into(), None))
            }
        }
    }
}

fn start_with(stderr: Stderr, role: &str, settings: &Settings) -> TestResult<(Process, Held)> {
    let address = format!("127.0.0.1:{}", free_port());
    let listen = format!("AFTERCOMMIT_{}_LISTEN", role.to_uppercase());
    // At this level each request and each event is several lines.
    let settings = settings.clone().set(&listen, address.as_str()).set("AFTERCOMMIT_LOG_LEVEL", "trace");
    let (settings, file, held) = stderr.open(&settings)?;
    Ok((Process::start_unheard(&[role], &settings, address, file), held))
}

/// Waits until a process whose log nobody reads answers.
async fn wait_until_answering(process: &mut Process) {
    let url = process.url("/healthz");
    eventually("it answers", async || {
        assert!(!process.has_ended(), "it ended before it answered at {url}");
        http_get(&url).await.ok()
    })
    .await;
}

async fn dropped_lines(process: &Process) -> TestResult<f64> {
    let text = http_get(process.url("/metrics")).await?.text().await?;
    let number = text.lines().find_map(|line| line.strip_prefix("aftercommit_log_lines_dropped_total "));
    Ok(number.unwrap_or("0").parse()?)
}

#[tokio::test]
async fn no_stderr_keeps_events_from_arriving_nor_a_process_from_ending_in_order() -> TestResult {
    for stderr in ALL {
        let system = System::new().await;
        let (mut relay, _relay_stderr) = start_with(stderr, "relay", system.settings())?;
        let (mut sse, _sse_stderr) = start_with(stderr, "sse", system.settings())?;
        let (mut api, _api_stderr) = start_with(stderr, "api", system.settings())?;
        for process in [&mut relay, &mut sse, &mut api] {
            wait_until_answering(process).await;
            wait_until_green(process).await;
        }
        for photos in [40, 20] {
            let session = system.session(&api, Uuid::new_v4(), photos).await;
            let client = session.listen(&sse).await;
            session.settle_all(None).await;
            assert_eq!(client.wait_for_events(photos + 1).await.len(), photos + 1, "{stderr:?}");
        }
        for (name, mut process) in [("relay", relay), ("sse", sse), ("api", api)] {
            wait_until_green(&process).await;
            if matches!(stderr, Stderr::Full | Stderr::Gone | Stderr::Limited) {
                assert!(dropped_lines(&process).await? > 0.0, "{name}, {stderr:?}");
            }
            process.signal("TERM").await;
            assert_eq!(process.exit_code().await, 0, "{name}, {stderr:?}");
        }
    }
    Ok(())
}

/// `dev` says where it is on stdout too.
#[tokio::test]
async fn a_dev_whom_nobody_hears_serves_and_ends_with_its_servers() -> TestResult {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("env");
    let path = file.to_str().ok_or("no path")?;
    // Closed, full, and both the pipe that nobody reads.
    for script in ["exec >&- 2>&-", "exec >/dev/full 2>/dev/full", "exec >&2"] {
        let settings = Settings::default()
            .set("HOME", std::env::var("HOME").unwrap_or_default())
            .set("AFTERCOMMIT_API_LISTEN", "127.0.0.1:0")
            .set("AFTERCOMMIT_SSE_LISTEN", "127.0.0.1:0")
            .set("AFTERCOMMIT_RELAY_LISTEN", "127.0.0.1:0")
            .before(script);
        let (settings, stderr, _held) = Stderr::Unread.open(&settings)?;
        let arguments = ["dev", "--ephemeral", "--env-file", path];
        let mut dev = Process::start_unheard(&arguments, &settings, String::new(), stderr);
        let variables = eventually("dev is up", async || {
            assert!(!dev.has_ended(), "{script}: dev has ended");
            std::fs::read_to_string(&file).ok()
        })
        .await;
        let variable = |name: &str| {
            let line = variables.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("no {name}: {variables}")).to_owned()
        };
        for name in ["API_URL", "SSE_URL", "RELAY_URL"] {
            dev.address = variable(name).replace("http://", "");
            wait_until_green(&dev).await;
        }
        dev.signal("TERM").await;
        assert_eq!(dev.exit_code().await, 0, "{script}");
        let redis = port_of(&variable("REDIS_URL"))?;
        assert!(std::net::TcpStream::connect(("127.0.0.1", redis)).is_err(), "its Redis still runs");
        std::fs::remove_file(&file)?;
    }
    Ok(())
}

/// Waits for the end of a process that panics, and asserts that its log says so.
async fn assert_ends_by_a_panic(mut process: Process) {
    assert_eq!(process.exit_code().await, 1, "{}", process.log());
    process.wait_for_log("a defect in aftercommit ends this process").await;
    let log = process.log();
    let told = log.lines().filter(|line| line.contains("a defect in aftercommit"));
    let lines: Vec<Value> = told.map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    let message = str_of(&lines[0]["message"]);
    assert!(message.contains("a panic at src/failpoint.rs") && lines[0]["level"] == "ERROR", "{message}");
}

#[tokio::test]
async fn a_panic_in_a_task_that_nobody_waits_for_ends_its_process() {
    let system = System::new().await.set("FAILPOINT", "panic:monitor@3");
    assert_ends_by_a_panic(system.start("relay").await).await;
    let system = System::new()
        .await
        .set("FAILPOINT", "panic:keys_wanted@2")
        .set("AFTERCOMMIT_JWT_ALGORITHM", "ES256")
        .set("AFTERCOMMIT_JWT_JWKS_COOLDOWN_SECONDS", "1")
        .set("AFTERCOMMIT_JWT_JWKS_URL", "http://127.0.0.1:1/keys");
    for role in ["sse", "api"] {
        assert_ends_by_a_panic(system.start(role).await).await;
    }
}

#[tokio::test]
async fn a_panic_ends_a_process_also_while_it_shuts_down_and_where_nobody_reads_what_it_says() -> TestResult {
    let system = System::new().await.set("FAILPOINT", "panic:monitor_ended");
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    relay.signal("TERM").await;
    assert_ends_by_a_panic(relay).await;
    let settings = system.settings().clone().set("FAILPOINT", "panic:monitor@3");
    for stderr in ALL {
        let (mut relay, _held) = start_with(stderr, "relay", &settings)?;
        assert_eq!(relay.exit_code().await, 1, "{stderr:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_command_that_cannot_say_anything_still_ends_with_the_right_code() -> TestResult {
    let database = database().await;
    let here = Settings::default().set("DATABASE_URL", database.url());
    let nowhere = Settings::default().set("DATABASE_URL", "postgres://u:p@127.0.0.1:1/d");
    for stderr in ALL {
        for (settings, arguments, code) in
            [(&nowhere, &["status"][..], 1), (&here, &["audit"], 0), (&here, &["migrate"], 0)]
        {
            let (settings, file, _held) = stderr.open(settings)?;
            let mut command = Process::start_unheard(arguments, &settings, String::new(), file);
            assert_eq!(command.exit_code().await, code, "{arguments:?}, {stderr:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_full_stdout_is_a_failure_a_reader_that_is_gone_is_none_and_neither_is_a_panic() {
    let none = Settings::default();
    for arguments in [&["completions", "bash"][..], &["config", "show"], &["--help"], &["help", "replay"]] {
        let gone = Running::unheard(&none, arguments).end().await;
        let said = String::from_utf8_lossy(&gone.stderr).into_owned();
        assert_eq!((gone.status.code(), said.as_str()), (Some(0), ""), "{arguments:?}");
        let full = cli(&none.clone().before("exec >/dev/full"), arguments).await;
        let said = String::from_utf8_lossy(&full.stderr).into_owned();
        assert_eq!(full.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(!said.contains("panic"), "{arguments:?}: {said}");
    }
}
