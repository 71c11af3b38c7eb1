//! Peers that vanish, dawdle, send too much, or never read: each is disconnected, and the others are not
//! affected.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{
    Client, Feed, LIMIT, NOTIFICATIONS, Process, System, TestResult, eventually, metric_of,
};

async fn streams(sse: &Process) -> u64 {
    metric_of(sse, "aftercommit_sse_connections").await
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_peer_that_vanished_without_a_word_is_gone_within_a_minute() -> TestResult {
    let Some(host) = crate::harness::Host::new().await else { return Ok(()) };
    let mut feed = Feed::new().await;
    feed.system.set_again("AFTERCOMMIT_SSE_LISTEN", &format!("{}:0", host.ours));
    // The server notices the loss only when it sends.
    feed.system.set_again("AFTERCOMMIT_SSE_HEARTBEAT_SECONDS", "5");
    let sse = feed.system.start("sse").await;
    let stays = feed.client(&sse).await;
    let token = format!("authorization: Bearer {}", feed.token());
    let mut peer =
        host.run(&["curl", "--silent", "--no-buffer", "--header", &token, &sse.url(NOTIFICATIONS)]);
    let mut output = peer.stdout.take().ok_or("no pipe")?;
    let mut received = String::new();
    while !received.contains("id: ") {
        let mut bytes = [0; 1024];
        let read = tokio::time::timeout(LIMIT, output.read(&mut bytes)).await?;
        let read = read?;
        assert_ne!(read, 0, "the stream ended: {received}");
        received.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    assert_eq!(streams(&sse).await, 2);
    host.pull_the_cable().await;
    let pulled = Instant::now();
    while streams(&sse).await == 2 {
        assert!(pulled.elapsed() < Duration::from_secs(60), "it is still there after a minute");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    println!("gone {:.1?} after its cable was pulled", pulled.elapsed());
    assert_eq!((streams(&sse).await, stays.counts()), (1, (1, 0)), "the other one is still there");
    assert!(peer.try_wait()?.is_none(), "it did not leave by itself");
    Ok(())
}

/// Reads to the end of a connection.
async fn to_the_end(connection: &mut TcpStream) -> TestResult<String> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(LIMIT, connection.read_to_end(&mut bytes)).await?;
    // A reset is an end too.
    drop(read);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn a_request_whose_head_never_ends_is_cut_off() -> TestResult {
    let system = System::new().await;
    let sse = system.start("sse").await;
    // A client that sends nothing.
    let mut silent = TcpStream::connect(&sse.address).await?;
    let connection = TcpStream::connect(&sse.address).await?;
    let (mut from, mut to) = connection.into_split();
    // An endless trickle of bytes: the connection is never idle.
    let dawdling = tokio::spawn(async move {
        to.write_all(b"GET /healthz HTTP/1.1\r\nx-slow: ").await?;
        loop {
            to.write_all(b"x").await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        #[expect(unreachable_code, reason = "says which error ends the loop")]
        Ok::<(), std::io::Error>(())
    });
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(LIMIT, from.read_to_end(&mut bytes)).await;
    assert!(ended.is_ok(), "the server ends it");
    assert!(!String::from_utf8_lossy(&bytes).contains("200"));
    dawdling.abort();
    assert!(!to_the_end(&mut silent).await?.contains("200"));
    Ok(())
}

#[tokio::test]
async fn heads_and_bodies_that_are_too_large_are_refused() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    let url = sse.url("/api/stream-tickets");
    let http = feed.system.http();
    let long = http.get(sse.url("/healthz")).header("x-long", "x".repeat(100_000)).send().await;
    assert_eq!(long?.status(), 431);
    let many =
        (0..200).fold(http.get(sse.url("/healthz")), |request, n| request.header(format!("x-{n}"), "x"));
    assert_eq!(many.send().await?.status(), 431);
    let asking = http.post(&url).bearer_auth(feed.token()).json(&json!({ "topic": "t".repeat(20_000) }));
    let answer = asking.send().await?;
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    Ok(())
}

/// A client that reads the head of its stream and nothing more.
async fn stuck(sse: &Process, token: &str) -> TestResult<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stuck = socket.connect(sse.address.parse()?).await?;
    let request = format!("GET {NOTIFICATIONS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n");
    stuck.write_all(request.as_bytes()).await?;
    let mut head = [0; 12];
    stuck.read_exact(&mut head).await?;
    assert_eq!(&head, b"HTTP/1.1 200");
    Ok(stuck)
}

#[tokio::test]
async fn one_in_a_hundred_that_never_reads_costs_the_others_nothing() -> TestResult {
    const EVENTS: u64 = 120;
    let system = System::new().await.set("AFTERCOMMIT_SSE_MAX_QUEUED_BYTES", "262144");
    let feed = Feed::with(system).await;
    let sse = feed.system.start("sse").await;
    let mut clients = Vec::new();
    for _ in 0..198 {
        clients.push(Client::begin(sse.url(NOTIFICATIONS), &feed.token(), None));
    }
    for client in &clients {
        client.wait_until_placed().await;
    }
    let _stuck = [stuck(&sse, &feed.token()).await?, stuck(&sse, &feed.token()).await?];
    eventually("200 streams", async || (streams(&sse).await == 200).then_some(())).await;
    // All together it is more than the server and the kernel keep for a client that does not
    // read, and less than the kernel would keep if it were left alone.
    let filler = "x".repeat(16 * 1024);
    let mut connection = feed.system.database.connect().await;
    for n in 0..EVENTS {
        let sql = "select outbox.append($1, 'N', $2::json)";
        let topic = feed.topic();
        let append = sqlx::query(sql).bind(topic.as_str()).bind(json!([n, filler]).to_string());
        append.execute(&mut connection).await?;
        // At the pace of a client that reads.
        clients[0].wait_for_events(usize::try_from(n + 1)?).await;
    }
    for client in &clients {
        let events = client.wait_for_events(EVENTS as usize).await;
        let number = |data: &str| serde_json::from_str::<(u64, String)>(data).expect("JSON").0;
        let seen: Vec<u64> = events.iter().map(|event| number(&event.data)).collect();
        assert_eq!(seen, (0..EVENTS).collect::<Vec<_>>());
    }
    eventually("both are cut off", async || {
        (metric_of(&sse, "aftercommit_sse_slow_closes_total").await >= 2).then_some(())
    })
    .await;
    eventually("the others are there", async || (streams(&sse).await == 198).then_some(())).await;
    Ok(())
}
