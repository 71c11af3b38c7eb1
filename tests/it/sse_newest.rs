//! Streams that keep the newest events of a client that does not keep up, and streams of text.

use std::time::{Duration, Instant};

use aftercommit::event::Topic;
use aftercommit::outbox;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::harness::{
    Client, Event, Feed, NOTIFICATIONS, Parser, Process, TestResult, http, metric_of, new_event,
};

/// Bytes of an event's text.
const SIZE: usize = 200;
/// Bytes that the slow client reads in a second.
const PACE: usize = 1000;

/// A client with small buffers that reads slowly.
struct Slow {
    socket: TcpStream,
    head: Vec<u8>,
    parser: Parser,
    events: Vec<Event>,
    skipped: u64,
}

impl Slow {
    async fn open(feed: &Feed, sse: &Process) -> TestResult<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(1024)?;
        let mut socket = socket.connect(sse.address.parse()?).await?;
        let request = format!(
            "GET {NOTIFICATIONS}?keep=newest&skipped=event HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
            feed.token()
        );
        socket.write_all(request.as_bytes()).await?;
        let mut slow =
            Self { socket, head: Vec::new(), parser: Parser::default(), events: Vec::new(), skipped: 0 };
        while slow.parser.last_event_id().is_empty() {
            slow.read(64).await?;
        }
        Ok(slow)
    }

    async fn read(&mut self, bytes: usize) -> TestResult {
        let mut buffer = vec![0; bytes];
        let read = self.socket.read(&mut buffer).await?;
        let mut body = &buffer[..read];
        assert!(read > 0, "the stream ended");
        const END: &[u8] = b"\r\n\r\n";
        if !self.head.ends_with(END) {
            let before = self.head.len();
            self.head.extend_from_slice(body);
            match self.head.windows(END.len()).position(|bytes| bytes == END) {
                None => return Ok(()),
                Some(at) => {
                    body = &buffer[at + END.len() - before..read];
                    self.head.truncate(at + END.len());
                }
            }
        }
        let (events, skipped) = (&mut self.events, &mut self.skipped);
        self.parser.feed(body, |event| match event.event.as_str() {
            "skipped" => {
                let data: serde_json::Value = serde_json::from_str(&event.data).expect("JSON");
                assert!(data["topic"].as_str().is_some_and(|topic| topic.starts_with("user-notifications:")));
                *skipped += data["count"].as_u64().expect("a count");
            }
            _ => events.push(event),
        });
        Ok(())
    }

    /// Reads at this pace until an event has this number.
    async fn read_until(&mut self, number: u64) -> TestResult {
        let turn = Duration::from_millis(50);
        while self.events.last().map(number_of) != Some(number) {
            let begun = Instant::now();
            self.read(PACE / 20).await?;
            // The pace of the client is the subject.
            tokio::time::sleep(turn.saturating_sub(begun.elapsed())).await;
        }
        Ok(())
    }
}

fn number_of(event: &Event) -> u64 {
    let data: serde_json::Value = serde_json::from_str(&event.data).expect("JSON");
    data["n"].as_u64().expect("a number")
}

/// Commits a hundred events a second until then. Returns how many.
async fn commit(feed: &Feed, topic: Topic, until: CancellationToken) -> TestResult<u64> {
    let mut connection = feed.system.database.connect().await;
    let mut n = 0;
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    while !until.is_cancelled() {
        let payload = serde_json::json!({ "n": n, "text": "x".repeat(SIZE) });
        outbox::append(&mut connection, &new_event(&topic, "PRICE", &payload)).await?;
        n += 1;
        pace.tick().await;
    }
    Ok(n)
}

async fn play(seconds: u64) -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    let mut slow = Slow::open(&feed, &sse).await?;
    let until = CancellationToken::new();
    let committing = commit(&feed, feed.topic(), until.clone());
    let reading = async {
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut most = 0;
        while Instant::now() < end {
            slow.read(PACE / 20).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            most = most.max(metric_of(&sse, "aftercommit_sse_held_bytes").await);
        }
        until.cancel();
        TestResult::Ok(most)
    };
    let (committed, most) = tokio::join!(committing, reading);
    let (committed, most) = (committed?, most?);
    let read_by_then = slow.events.len();
    slow.read_until(committed - 1).await?;
    let numbers: Vec<u64> = slow.events.iter().map(number_of).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "in order, and none twice: {numbers:?}");
    assert_eq!(numbers.len() as u64 + slow.skipped, committed, "none is lost without being counted");
    assert!(slow.skipped > committed / 2, "it was far behind: {} of {committed}", slow.skipped);
    println!(
        "{seconds} s: {committed} committed, {} read, {} skipped, {} of them behind the last commit, at most \
         {most} bytes held",
        numbers.len(),
        slow.skipped,
        numbers.len() - read_by_then
    );
    // The recent events of the topic are held too, whatever the client does.
    assert!(most < 1024 * 1024, "{most} bytes");
    let behind = numbers.len() - read_by_then;
    assert!(behind <= 12, "what the two kernels hold, some 2 kB, and two events: {behind} were read");
    Ok(())
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_the_newest_events_in_order_and_the_number_of_the_others()
-> TestResult {
    play(8).await
}

/// The same for a minute.
#[tokio::test]
#[ignore = "takes a minute: run it by name"]
async fn a_client_that_reads_slowly_for_a_minute_holds_no_memory() -> TestResult {
    play(60).await
}

#[tokio::test]
async fn a_payload_that_is_a_string_is_sent_as_its_text_where_the_page_asks_for_text() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    let open = |query: &str| Client::begin(sse.url(&format!("{NOTIFICATIONS}{query}")), &feed.token(), None);
    let (text, json) = (open("?data=text"), open(""));
    text.wait_until_placed().await;
    json.wait_until_placed().await;
    let mut connection = feed.system.database.connect().await;
    let html = "<li id=\"a\">one\n  two\r\nthree</li>";
    outbox::append(&mut connection, &new_event(&feed.topic(), "ROW", &html)).await?;
    outbox::append(&mut connection, &new_event(&feed.topic(), "ROW", &serde_json::json!({ "a": "b\nc" })))
        .await?;
    let data = async |client: &Client| {
        let events = client.wait_for_events(2).await;
        events.into_iter().map(|event| event.data).collect::<Vec<_>>()
    };
    let object = "{\"a\":\"b\\nc\"}";
    assert_eq!(data(&text).await, ["<li id=\"a\">one\n  two\nthree</li>", object]);
    assert_eq!(data(&json).await, [serde_json::to_string(html)?.as_str(), object]);
    // From the history as well.
    let again = open("?data=text&from=earliest");
    assert_eq!(data(&again).await, ["<li id=\"a\">one\n  two\nthree</li>", object]);
    for (query, words) in [("?keep=x", "newest"), ("?data=x", "text"), ("?skipped=x", "event")] {
        let refused =
            http().get(sse.url(&format!("{NOTIFICATIONS}{query}"))).bearer_auth(feed.token()).send().await?;
        assert_eq!(refused.status(), 400);
        let problem = refused.text().await?;
        assert!(problem.contains(words), "{problem}");
    }
    Ok(())
}
