//! The boundary between the HTTP server and the streams' own sockets, byte by byte: every shape of a request, and
//! every way in which a client uses its connection besides reading.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{
    Client, Feed, Front, FrontKind, LIMIT, NOTIFICATIONS, Process, TestResult, eventually, metric_of,
    trusting,
};

/// A connection, and what has arrived on it.
struct Raw {
    /// What it is about, where there are several.
    name: &'static str,
    socket: TcpStream,
    received: Vec<u8>,
}

impl Raw {
    async fn open(sse: &Process) -> TestResult<Self> {
        let socket = TcpStream::connect(&sse.address).await?;
        Ok(Self { name: "", socket, received: Vec::new() })
    }

    /// A connection whose kernel keeps little for a client that does not read.
    async fn narrow(sse: &Process) -> TestResult<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        let socket = socket.connect(sse.address.parse()?).await?;
        Ok(Self { name: "", socket, received: Vec::new() })
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) -> TestResult {
        self.socket.write_all(bytes.as_ref()).await?;
        Ok(())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.received).into_owned()
    }

    /// Reads until this has arrived; returns all that has.
    async fn wait_for(&mut self, wanted: &str) -> TestResult<String> {
        let mut searched = 0;
        while !String::from_utf8_lossy(&self.received[searched..]).contains(wanted) {
            searched = self.received.len().saturating_sub(wanted.len());
            if !self.read().await? {
                panic!("{}: the connection ended without {wanted:?}: {:?}", self.name, self.text());
            }
        }
        Ok(self.text())
    }

    /// Reads until this many answers have begun.
    async fn wait_for_answers(&mut self, count: usize) -> TestResult {
        while answers(&self.text()) < count {
            assert!(self.read().await?, "the connection ended: {}", self.text());
        }
        Ok(())
    }

    /// Reads to the end of the connection; returns all that has arrived.
    async fn wait_for_end(&mut self) -> TestResult<String> {
        while self.read().await? {}
        Ok(self.text())
    }

    /// Reads once. Returns false at the end, of which a reset is one.
    async fn read(&mut self) -> TestResult<bool> {
        let read = tokio::time::timeout(LIMIT, self.socket.read_buf(&mut self.received)).await;
        let read =
            read.map_err(|_| format!("{}: nothing more arrives behind {:?}", self.name, self.text()))?;
        Ok(read.is_ok_and(|count| count > 0))
    }
}

/// Status lines among these bytes.
fn answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count()
}

/// The head of a request for the feed's stream, with these lines after the first one.
fn head(feed: &Feed, lines: &str) -> String {
    format!("GET {NOTIFICATIONS} HTTP/1.1\r\nauthorization: Bearer {}\r\n{lines}\r\n", feed.token())
}

async fn wait_for_streams(sse: &Process, count: u64) {
    eventually(&format!("{count} streams"), async || {
        (metric_of(sse, "aftercommit_sse_connections").await == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_body_of_a_stream_ends_with_its_connection_and_its_head_says_so() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        let mut raw = Raw::open(&sse).await?;
        raw.send(head(&feed, "host: x\r\n").replace("HTTP/1.1", version)).await?;
        let text = raw.wait_for("\nid: ").await?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or("no head")?;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("\r\nconnection: close"), "{head}");
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        assert!(head.contains("\r\ndate: ") && body.starts_with("retry: "), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn a_head_may_come_byte_by_byte() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    let mut raw = Raw::open(&sse).await?;
    raw.socket.set_nodelay(true)?;
    for byte in head(&feed, "host: x\r\n").bytes() {
        raw.send([byte]).await?;
        tokio::task::yield_now().await;
    }
    raw.wait_for("\nid: ").await?;
    Ok(())
}

#[tokio::test]
async fn requests_before_a_stream_on_its_connection_are_answered_first_to_the_last_byte() -> TestResult {
    // Their answers are more than the kernel keeps for a client that does not read.
    const BEFORE: usize = 100;
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    let mut raw = Raw::narrow(&sse).await?;
    raw.send("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(BEFORE) + &head(&feed, "host: x\r\n")).await?;
    // It reads no further than the server needs to open the stream. So answers still wait in the server then.
    while metric_of(&sse, "aftercommit_sse_connections").await == 0 {
        let mut piece = [0; 8192];
        let read = tokio::time::timeout(LIMIT, raw.socket.read(&mut piece)).await??;
        assert_ne!(read, 0, "it ended");
        raw.received.extend_from_slice(&piece[..read]);
    }
    let has_begun = |raw: &Raw| {
        let newest = &raw.received[raw.received.len().saturating_sub(4096)..];
        String::from_utf8_lossy(newest).contains("text/event-stream")
    };
    while !has_begun(&raw) {
        assert!(raw.read().await?, "it ended");
    }
    let text = raw.text();
    let mut rest = text.as_str();
    for n in 0..BEFORE {
        let (head, behind) = rest.split_once("\r\n\r\n").ok_or("no head")?;
        let length = head.split_once("content-length: ").ok_or_else(|| format!("answer {n}: {head}"))?.1;
        let length: usize = length.split("\r\n").next().ok_or("no length")?.parse()?;
        rest = behind.get(length..).ok_or("an answer is not whole")?;
    }
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream"), "{rest}");
    Ok(())
}

#[tokio::test]
async fn a_kept_alive_connection_may_ask_for_a_stream_later() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    let mut raw = Raw::open(&sse).await?;
    for (count, path) in (1..).zip(["/healthz", "/nowhere", NOTIFICATIONS]) {
        raw.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await?;
        raw.wait_for_answers(count).await?;
    }
    assert!(raw.text().contains("HTTP/1.1 401 "), "{}", raw.text());
    raw.send(head(&feed, "host: x\r\n")).await?;
    raw.wait_for("\nid: ").await?;
    Ok(())
}

#[tokio::test]
async fn no_shape_of_a_request_is_answered_twice_or_hides_another_one() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    let hidden = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let with = |lines: &str| head(&feed, lines) + hidden;
    let opens = [
        ("another request right behind it", with("host: x\r\n")),
        ("a body", with(&format!("host: x\r\ncontent-length: {}\r\n", hidden.len()))),
        ("a shorter body", with("host: x\r\ncontent-length: 3\r\n")),
        ("a longer body", with("host: x\r\ncontent-length: 1000\r\n")),
        ("a chunked body", with("host: x\r\ntransfer-encoding: chunked\r\n")),
        ("both lengths", with("host: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n")),
        ("both lengths, the other way", with("transfer-encoding: chunked\r\ncontent-length: 4\r\n")),
        ("an expectation", with("host: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n")),
        ("an upgrade", with("host: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n")),
        ("two hosts", with("host: x\r\nhost: y\r\n")),
        ("an absolute form", with("host: x\r\n").replacen("GET /", "GET http://other.example/", 1)),
        ("lines without CR", head(&feed, "host: x\r\n").replace("\r\n", "\n") + hidden),
        ("HTTP/1.0, kept alive", with("connection: keep-alive\r\n").replacen("HTTP/1.1", "HTTP/1.0", 1)),
    ];
    let refused = [
        ("a folded header", with("host: x\r\nx-folded: a\r\n b\r\n")),
        ("a NUL in a header", with("host: x\r\nx-nul: a\0b\r\n")),
        ("a NUL in the path", with("host: x\r\n").replacen("/api", "/\0api", 1)),
        ("a CR alone", with("host: x\r\nx-cr: a\rb\r\n")),
        ("a blank before the colon", with("host : x\r\n")),
        ("two lengths", with("host: x\r\ncontent-length: 4\r\ncontent-length: 5\r\n")),
        ("a length that is none", with("host: x\r\ncontent-length: +4\r\n")),
        ("an unknown coding last", with("host: x\r\ntransfer-encoding: chunked, gzip\r\n")),
        ("another version", with("host: x\r\n").replacen("HTTP/1.1", "HTTP/3.7", 1)),
        ("a line that is no request", "hello\r\n\r\n".to_owned() + hidden),
    ];
    let mut open = Vec::new();
    for (name, request) in opens {
        let mut raw = Raw { name, ..Raw::open(&sse).await? };
        raw.send(&request).await?;
        let text = raw.wait_for("\nid: ").await?;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{name}: {text}");
        open.push(raw);
    }
    for (name, request) in refused {
        let mut raw = Raw { name, ..Raw::open(&sse).await? };
        raw.send(&request).await?;
        let text = raw.wait_for_end().await?;
        assert!(text.starts_with("HTTP/1.1 400 ") && answers(&text) == 1, "{name}: {text}");
    }
    let mut http2 = Raw { name: "HTTP/2 by prior knowledge", ..Raw::open(&sse).await? };
    http2.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned() + hidden).await?;
    assert_eq!(http2.wait_for_end().await?, "", "an answer of HTTP/1.1 would be noise");
    feed.commit([1]).await;
    for mut raw in open {
        let text = raw.wait_for("data: 1\n\n").await?;
        assert_eq!(answers(&text), 1, "{}: {text}", raw.name);
    }
    Ok(())
}

#[tokio::test]
async fn head_and_options_open_no_stream_and_keep_their_connection() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    let mut raw = Raw::open(&sse).await?;
    raw.send(head(&feed, "host: x\r\n").replacen("GET", "HEAD", 1)).await?;
    let text = raw.wait_for("\r\n\r\n").await?;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("text/event-stream"), "{text}");
    assert!(!text.contains("content-length") && !text.contains("connection: close"), "{text}");
    raw.send(head(&feed, "host: x\r\n").replacen("GET", "OPTIONS", 1)).await?;
    raw.wait_for("HTTP/1.1 405 ").await?;
    raw.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    raw.wait_for_answers(3).await?;
    wait_for_streams(&sse, 0).await;
    Ok(())
}

#[tokio::test]
async fn a_client_that_ends_its_side_of_the_connection_is_gone() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    let stays = feed.client(&sse).await;
    let mut raw = Raw::open(&sse).await?;
    raw.send(head(&feed, "host: x\r\n")).await?;
    raw.wait_for("\nid: ").await?;
    wait_for_streams(&sse, 2).await;
    raw.socket.shutdown().await?;
    wait_for_streams(&sse, 1).await;
    raw.wait_for_end().await?;
    assert_eq!(stays.counts(), (1, 0));
    Ok(())
}

#[tokio::test]
async fn what_a_client_sends_on_its_stream_is_dropped_and_too_much_of_it_ends_the_stream() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    let stays = feed.client(&sse).await;
    let mut raw = Raw::open(&sse).await?;
    raw.send(head(&feed, "host: x\r\n")).await?;
    raw.wait_for("\nid: ").await?;
    raw.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100)).await?;
    feed.commit([1]).await;
    assert_eq!(answers(&raw.wait_for("data: 1\n\n").await?), 1);
    wait_for_streams(&sse, 2).await;
    // The server may close before all of it is written. (Not `send`, whose error ends the test at once.)
    drop(raw.socket.write_all(&vec![b'x'; 1024 * 1024]).await);
    wait_for_streams(&sse, 1).await;
    raw.wait_for_end().await?;
    assert_eq!(stays.counts(), (1, 0));
    Ok(())
}

#[tokio::test]
async fn events_that_wait_for_a_client_arrive_whole_however_little_it_reads_at_a_time() -> TestResult {
    const EVENTS: u64 = 200;
    let feed = Feed::new().await;
    let sse = feed.system.start("sse").await;
    let mut raw = Raw::narrow(&sse).await?;
    raw.send(head(&feed, "host: x\r\n")).await?;
    raw.wait_for("\nid: ").await?;
    let reader = feed.client(&sse).await;
    // More than the kernel keeps, so that writing stops and goes on in the middle of events; with it, less than
    // the queue may hold.
    let mut connection = feed.system.database.connect().await;
    let sql = "select outbox.append($1, 'N', json_build_array(n, repeat('x', (n * 37 % 9000)::int))) \
               from generate_series(1, $2) n";
    let topic = feed.topic();
    sqlx::query(sql).bind(topic.as_str()).bind(EVENTS as i64).execute(&mut connection).await?;
    let expected = reader.wait_for_events(EVENTS as usize).await;
    let last = expected.last().ok_or("no event")?;
    let text = raw.wait_for(&format!("{}\n\n", last.data)).await?;
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert!(data.iter().eq(&expected.iter().map(|event| event.data.as_str()).collect::<Vec<_>>()));
    Ok(())
}

async fn a_stream_that_ends_ends_for_its_client(kind: FrontKind) -> TestResult {
    let feed = Feed::new().await;
    let servers = [feed.sse().await, feed.sse().await];
    let front = Front::start(kind, servers.each_ref(), &[]).await;
    let token = feed.system.token_for(feed.user, Duration::from_secs(3));
    let client = Client::through(trusting(), front.url(NOTIFICATIONS), &token, None);
    client.wait_until_placed().await;
    let events = client.wait_for_events(1).await;
    assert_eq!(events[0].event, "token_expired");
    client.wait_for_ends(1).await;
    let text = front.logs();
    assert!(!text.contains("prematurely"), "{text}");
    Ok(())
}

#[tokio::test]
async fn behind_nginx_a_stream_that_ends_ends_for_its_client() -> TestResult {
    a_stream_that_ends_ends_for_its_client(FrontKind::Nginx).await
}

#[tokio::test]
async fn behind_caddy_a_stream_that_ends_ends_for_its_client() -> TestResult {
    a_stream_that_ends_ends_for_its_client(FrontKind::Caddy).await
}
