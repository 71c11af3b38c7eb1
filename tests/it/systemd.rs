//! Messages to systemd over a real notification socket: READY, keepalives from the process's own loop,
//! STOPPING.

use std::collections::HashMap;

use secrecy::ExposeSecret;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

use aftercommit::event::StreamId;
use aftercommit::redis::Publisher;
use aftercommit::relay::{Batch, PublishMode, Sink, StateHandle};

use crate::commands::commit;
use crate::harness::{
    Flow, LIMIT, Process, Proxy, System, TestResult, empty_database, eventually, http_get, redis, shared_url,
    start_redis,
};

/// The watchdog's timeout in microseconds. Keepalives come four times as often.
const WATCHDOG_USEC: &str = "400000";

/// Systemd's end of the socket.
pub(crate) struct Systemd {
    socket: UnixDatagram,
    path: String,
    _dir: Option<tempfile::TempDir>,
}

impl Systemd {
    pub(crate) fn new() -> TestResult<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        Ok(Self { socket, path: path.to_str().ok_or("no path")?.to_owned(), _dir: Some(dir) })
    }

    /// With a socket that is no file, as systemd makes it for containers.
    #[cfg(target_os = "linux")]
    fn without_a_file() -> TestResult<Self> {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("aftercommit-test-{}", uuid::Uuid::new_v4());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
        let socket = std::os::unix::net::UnixDatagram::bind_addr(&address)?;
        socket.set_nonblocking(true)?;
        let socket = UnixDatagram::from_std(socket)?;
        Ok(Self { socket, path: format!("@{name}"), _dir: None })
    }

    pub(crate) fn watches(&self, system: System) -> System {
        system.set("NOTIFY_SOCKET", &self.path).set("WATCHDOG_USEC", WATCHDOG_USEC)
    }

    /// The next message, as its variables.
    async fn next_message(&self) -> HashMap<String, String> {
        let mut buffer = [0; 4096];
        let heard = timeout(LIMIT, self.socket.recv(&mut buffer)).await.expect("a message in time");
        let text = std::str::from_utf8(&buffer[..heard.expect("a message")]).expect("a text");
        let variables = text.lines().map(|line| line.split_once('=').expect("a variable"));
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Waits for a variable that fits.
    async fn wait_for(&self, name: &str, fits: impl Fn(&str) -> bool) {
        while !self.next_message().await.get(name).is_some_and(|value| fits(value)) {}
    }

    pub(crate) async fn wait_for_keepalives(&self, count: usize) {
        for _ in 0..count {
            self.wait_for("WATCHDOG", |value| value == "1").await;
        }
    }

    /// Drops the messages that have arrived so far.
    pub(crate) fn drop_messages(&self) {
        let mut buffer = [0; 4096];
        while self.socket.try_recv(&mut buffer).is_ok() {}
    }

    /// Asserts that no keepalive comes within ten of its intervals, after the one that tells of the time before
    /// the process got stuck. On a busy machine it may pass too easily; it never fails there.
    async fn assert_no_keepalive(&self) {
        let of_before = self.wait_for_keepalives(1);
        drop(timeout(std::time::Duration::from_millis(300), of_before).await);
        let silent = timeout(std::time::Duration::from_secs(1), self.wait_for_keepalives(1)).await;
        assert!(silent.is_err(), "a sign of life of a process that is stuck");
    }
}

async fn assert_answers(process: &Process) -> TestResult {
    let answer = http_get(process.url("/healthz")).await?;
    assert_eq!(answer.status(), 200);
    Ok(())
}

#[tokio::test]
async fn each_process_is_ready_when_it_serves_gives_signs_of_life_while_idle_and_says_when_it_stops()
-> TestResult {
    for (role, status) in [("api", "serving on "), ("sse", "0 streams of 0 topics"), ("relay", "delivering")]
    {
        let systemd = Systemd::new()?;
        let system = systemd.watches(System::new().await);
        let process = system.start(role).await;
        let first = systemd.next_message().await;
        assert_eq!(first.get("READY").map(String::as_str), Some("1"), "{role}: {first:?}");
        assert_answers(&process).await?;
        systemd.wait_for("STATUS", |said| said.starts_with(status)).await;
        systemd.wait_for_keepalives(3).await;

        process.signal("STOP").await;
        eventually("it is stopped", async || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).expect("a process");
            stat.contains(") T ").then_some(())
        })
        .await;
        systemd.drop_messages();
        systemd.assert_no_keepalive().await;
        process.signal("CONT").await;
        systemd.wait_for_keepalives(2).await;

        process.signal("TERM").await;
        systemd.wait_for("STOPPING", |value| value == "1").await;
    }
    Ok(())
}

#[tokio::test]
async fn a_relay_that_cannot_reach_redis_or_postgres_lives_and_says_what_fails() -> TestResult {
    let systemd = Systemd::new()?;
    let redis = start_redis(Vec::new(), None).await;
    let to_redis = Proxy::to(redis.port()).await;
    let system = System::with_redis(&to_redis.url(redis.url().expose_secret())).await;
    let to_postgres = Proxy::to(port_of(system.database.url())?).await;
    let database = to_postgres.url(system.database.url());
    let system = systemd.watches(system.set("DATABASE_URL", &database));
    let _relay = system.start("relay").await;
    systemd.wait_for("STATUS", |said| said == "delivering").await;

    to_redis.flow(Flow::Refuse);
    to_redis.cut();
    systemd.wait_for("STATUS", |said| said.starts_with("delivering; failing: ")).await;
    systemd.wait_for_keepalives(3).await;
    to_redis.flow(Flow::Pass);
    systemd.wait_for("STATUS", |said| said == "delivering").await;

    to_postgres.flow(Flow::Refuse);
    to_postgres.cut();
    systemd.wait_for("STATUS", |said| said.starts_with("no session with Postgres; failing: ")).await;
    systemd.wait_for_keepalives(3).await;
    to_postgres.flow(Flow::Pass);
    systemd.wait_for("STATUS", |said| said == "delivering").await;
    Ok(())
}

#[tokio::test]
async fn a_relay_whose_loop_is_stuck_gives_no_sign_of_life_although_it_still_answers() -> TestResult {
    let systemd = Systemd::new()?;
    let system = systemd.watches(System::new().await).set("FAILPOINT", "batch_published");
    let relay = system.start("relay").await;
    systemd.wait_for_keepalives(2).await;
    commit(&system, &system.redis.topic("stuck"), "A", 1).await;
    relay.wait_for_log("stopped at a failpoint").await;
    systemd.drop_messages();
    systemd.assert_no_keepalive().await;
    assert_answers(&relay).await?;
    Ok(())
}

#[tokio::test]
async fn an_sse_server_lives_while_redis_is_away_and_its_readiness_does_not() -> TestResult {
    let systemd = Systemd::new()?;
    let redis = start_redis(Vec::new(), None).await;
    let to_redis = Proxy::to(redis.port()).await;
    let system = systemd.watches(System::with_redis(&to_redis.url(redis.url().expose_secret())).await);
    let sse = system.start("sse").await;
    systemd.wait_for_keepalives(2).await;
    to_redis.flow(Flow::Refuse);
    to_redis.cut();
    eventually("it is not ready", async || {
        let answer = http_get(sse.url("/readyz")).await.expect("an answer");
        (answer.status() == 503).then_some(())
    })
    .await;
    systemd.drop_messages();
    systemd.wait_for_keepalives(3).await;
    Ok(())
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_socket_without_a_file_is_reached_as_well() -> TestResult {
    let systemd = Systemd::without_a_file()?;
    let system = systemd.watches(System::new().await);
    let _sse = system.start("sse").await;
    systemd.wait_for("READY", |value| value == "1").await;
    Ok(())
}

#[tokio::test]
async fn a_process_that_cannot_serve_never_says_that_it_is_ready() -> TestResult {
    // (Streams of plain topics need no schema.)
    for role in ["api", "relay"] {
        let systemd = Systemd::new()?;
        // Without the schema.
        let system = systemd.watches(System::with(empty_database().await, shared_url()).await);
        let mut process = system.start(role).await;
        assert_eq!(process.exit_code().await, 1);
        assert!(systemd.socket.try_recv(&mut [0; 64]).is_err(), "{role} has said something");
    }
    Ok(())
}

#[tokio::test]
async fn each_answer_of_redis_is_a_sign_that_the_relay_is_not_stuck() -> TestResult {
    let redis = redis().await;
    let state = StateHandle::default();
    let mut publisher = Publisher::new(redis.settings(), &redis.relay_name(), 7).with_state(state.clone());
    let first = StreamId::new(1, 1);
    let batch = Batch { mode: PublishMode::Normal, deliveries: &[], first, through: Some(first), lost: None };
    publisher.publish(batch).await?;
    timeout(LIMIT, state.wait_for_progress()).await?;
    Ok(())
}

/// The port of a server on 127.0.0.1.
pub(crate) fn port_of(url: &str) -> TestResult<u16> {
    let (_, behind) = url.rsplit_once("127.0.0.1:").ok_or("no local url")?;
    Ok(behind.split('/').next().ok_or("no port")?.parse()?)
}
