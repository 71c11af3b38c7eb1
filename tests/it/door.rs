//! Anonymous connections cannot exhaust a process.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{
    Client, LIMIT, NOTIFICATIONS, Process, System, TestResult, eventually, http_builder, metric_of,
};

/// Raises this process's limit of open files, for the sockets that the tests open.
fn raise_open_files() -> TestResult {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised)?;
    Ok(())
}

/// How an anonymous peer holds its connections.
#[derive(Debug, Clone, Copy)]
enum Held {
    /// It never says anything.
    Silent,
    /// It begins a request's head.
    HalfAHead,
    /// It has asked for `/healthz` once, and keeps the connection.
    KeptAlive,
}

/// Opens `count` connections. The process may close some of them.
async fn flood(process: &Process, count: usize, held: Held) -> Vec<TcpStream> {
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        // Retry a connection that found the accept queue full.
        let Ok(mut socket) = TcpStream::connect(&process.address).await else { continue };
        let said: &[u8] = match held {
            Held::Silent => b"",
            Held::HalfAHead => b"GET /healthz HTTP/1.1\r\nx-slow: ",
            Held::KeptAlive => b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        };
        // It may have been ended already.
        drop(socket.write_all(said).await);
        sockets.push(socket);
    }
    sockets
}

/// The status of a request on a new connection; `None` without an answer. Ten seconds, for busy machines.
async fn status_of(process: &Process, path: &str) -> Option<u16> {
    let client = http_builder().timeout(Duration::from_secs(10)).build().expect("a client");
    client.get(process.url(path)).send().await.ok().map(|answer| answer.status().as_u16())
}

async fn assert_well(process: &Process, what: &str) {
    for path in ["/healthz", "/readyz", "/metrics"] {
        let status = status_of(process, path).await;
        assert!(matches!(status, Some(200 | 503)), "{what}: {path} is answered with {status:?}");
    }
}

#[tokio::test]
async fn anonymous_connections_do_not_keep_anybody_from_a_relay() -> TestResult {
    raise_open_files()?;
    let system = System::new().await.set("AFTERCOMMIT_OPERATOR_TOKEN", crate::console::TOKEN);
    let relay = system.start("relay").await;
    for held in [Held::Silent, Held::HalfAHead, Held::KeptAlive] {
        let sockets = flood(&relay, 300, held).await;
        assert_well(&relay, &format!("{held:?}")).await;
        assert_eq!(status_of(&relay, "/console").await, Some(200), "{held:?}: the operator's page");
        drop(sockets);
    }
    relay.wait_for_log("all connections are taken").await;
    let gave_way = metric_of(&relay, "aftercommit_http_closed_total{reason=\"gave_way\"}").await;
    assert!(gave_way > 0, "it is counted");
    assert_eq!(metric_of(&relay, "aftercommit_http_connections_limit").await, 256);
    Ok(())
}

#[tokio::test]
async fn anonymous_connections_do_not_keep_anybody_from_an_sse_server() -> TestResult {
    raise_open_files()?;
    let system = System::new().await.set("AFTERCOMMIT_SSE_MAX_CONNECTIONS", "20");
    let sse = system.start("sse").await;
    let token = system.token(uuid::Uuid::new_v4());
    let first = Client::open(&sse.url(NOTIFICATIONS), &token).await;
    for held in [Held::Silent, Held::KeptAlive] {
        let _sockets = flood(&sse, 1100, held).await;
        assert_well(&sse, &format!("{held:?}")).await;
        // An open stream stays, and a new one is accepted.
        let _second = Client::open(&sse.url(NOTIFICATIONS), &token).await;
    }
    assert_eq!(first.counts(), (1, 0), "one connection, which has never ended");
    Ok(())
}

#[tokio::test]
async fn anonymous_connections_do_not_keep_anybody_from_an_api_nor_its_watchdog_from_giving_signs()
-> TestResult {
    raise_open_files()?;
    let systemd = crate::systemd::Systemd::new()?;
    let system = systemd.watches(System::new().await);
    let api = system.start("api").await;
    let _sockets = flood(&api, 4300, Held::KeptAlive).await;
    assert_well(&api, "4300 connections").await;
    systemd.drop_messages();
    systemd.wait_for_keepalives(3).await;
    Ok(())
}

#[tokio::test]
async fn a_sign_in_whose_form_does_not_come_is_given_up() -> TestResult {
    let system = System::new().await.set("AFTERCOMMIT_OPERATOR_TOKEN", crate::console::TOKEN);
    let relay = system.start("relay").await;
    let mut socket = TcpStream::connect(&relay.address).await?;
    let head = format!(
        "POST /console/sign-in HTTP/1.1\r\nhost: {0}\r\norigin: http://{0}\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: 1000\r\n\r\n",
        relay.address
    );
    socket.write_all(head.as_bytes()).await?;
    let (mut from, mut to) = socket.into_split();
    let dawdling = async {
        while to.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let reading = async {
        let mut answer = Vec::new();
        // A reset is an end too.
        drop(from.read_to_end(&mut answer).await);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let both = async { tokio::join!(reading, dawdling).0 };
    let answer = tokio::time::timeout(LIMIT, both).await?;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("took too long"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn where_all_streams_are_taken_and_all_other_connections_too_health_is_answered() -> TestResult {
    // One connection for everybody is all that remains beside the streams of this relay's page.
    let system = System::new().await.set("AFTERCOMMIT_OPERATOR_TOKEN", crate::console::TOKEN);
    let relay = system.start("relay").await;
    // Forms that dawdle have a request in hand and do not give way at once.
    let mut sockets = Vec::new();
    for _ in 0..256 {
        let mut socket = TcpStream::connect(&relay.address).await?;
        let head = format!(
            "POST /console/sign-in HTTP/1.1\r\nhost: {0}\r\norigin: http://{0}\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: 1000\r\n\r\n",
            relay.address
        );
        socket.write_all(head.as_bytes()).await?;
        sockets.push(socket);
    }
    assert_well(&relay, "256 requests in hand").await;
    eventually("the page again, as those that have asked for longest give way", async || {
        (status_of(&relay, "/console").await == Some(200)).then_some(())
    })
    .await;
    Ok(())
}
