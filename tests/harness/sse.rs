//! An EventSource client after WHATWG HTML 9.2. Its parser shares no code with the server's framing. It
//! reconnects with its last event id.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::LIMIT;
use super::http::http;

/// An event as a page's listener gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// The event's own `id:` field, if its block had one.
    pub(crate) id: Option<String>,
    pub(crate) event: String,
    pub(crate) data: String,
}

/// Splits a stream into events: fields, then a blank line.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    id: Option<String>,
    event: String,
    data: String,
    last_event_id: String,
    retry: Option<u64>,
    comments: usize,
}

impl Parser {
    /// A parser for a connection that was opened with this id.
    pub(crate) fn resuming(last_event_id: String) -> Self {
        Self { last_event_id, ..Self::default() }
    }

    /// The id that a reconnect would send.
    pub(crate) fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    pub(crate) fn feed(&mut self, bytes: &[u8], mut dispatch: impl FnMut(Event)) {
        for &byte in bytes {
            match byte {
                b'\n' if std::mem::take(&mut self.after_cr) => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    let line = String::from_utf8(std::mem::take(&mut self.line)).expect("a stream is UTF-8");
                    if let Some(event) = self.end_line(&line) {
                        dispatch(event);
                    }
                }
                other => {
                    self.after_cr = false;
                    self.line.push(other);
                }
            }
        }
    }

    fn end_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.comments += 1,
            "event" => self.event = value.to_owned(),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" => self.retry = value.parse().ok(),
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        let id = self.id.take();
        if let Some(id) = &id {
            self.last_event_id.clone_from(id);
        }
        let (event, mut data) = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
        if data.is_empty() {
            return None;
        }
        data.pop();
        let event = if event.is_empty() { "message".to_owned() } else { event };
        Some(Event { id, event, data })
    }
}

/// The `refused` event of a response with status 200, if it has one. Returns `None` once the stream has sent
/// its first id.
pub(crate) async fn refusal_of(mut response: reqwest::Response) -> Option<serde_json::Value> {
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut parser, mut refusal) = (Parser::default(), None);
    while refusal.is_none() && parser.last_event_id.is_empty() {
        let chunk = tokio::time::timeout(LIMIT, response.chunk()).await.expect("bytes in time");
        let chunk = chunk.expect("bytes").expect("a place, or a refusal, before the stream ends");
        parser.feed(&chunk, |event| {
            if event.event == "refused" {
                refusal = Some(serde_json::from_str(&event.data).expect("JSON"));
            }
        });
    }
    refusal
}

/// What a client has seen so far.
#[derive(Debug, Default)]
struct Seen {
    events: Vec<Event>,
    last_event_id: String,
    retry: Option<u64>,
    comments: usize,
    connections: usize,
    statuses: Vec<u16>,
    ends: usize,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Notify,
}

/// A client that stays connected, and reconnects, until it is dropped.
#[derive(Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The wait before a reconnect: shorter than a browser's, so that tests are quick.
const RECONNECT: Duration = Duration::from_millis(50);

impl Client {
    /// Connects as a browser with no id would; returns when the stream is open and its place is known.
    pub(crate) async fn open(url: &str, token: &str) -> Self {
        let client = Self::begin(url.to_owned(), token, None);
        client.wait_until_placed().await;
        client
    }

    /// Connects with a `Last-Event-ID`.
    pub(crate) fn resume(url: &str, token: &str, last_event_id: &str) -> Self {
        Self::begin(url.to_owned(), token, Some(last_event_id.to_owned()))
    }

    /// Connects to one URL after the other, as a browser behind a load balancer would.
    pub(crate) fn begin(url: String, token: &str, last_event_id: Option<String>) -> Self {
        Self::through(http(), url, token, last_event_id)
    }

    /// Connects with this HTTP client, which may trust a certificate of the test.
    pub(crate) fn through(
        http: reqwest::Client,
        url: String,
        token: &str,
        last_event_id: Option<String>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        if let Some(id) = last_event_id {
            shared.seen.lock().expect("a lock").last_event_id = id;
        }
        let task = tokio::spawn(stay_connected(http, url, token.to_owned(), shared.clone()));
        Self { shared, task }
    }

    async fn wait_until(&self, what: &str, holds: impl Fn(&Seen) -> bool) {
        let waiting = async {
            loop {
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if holds(&self.shared.seen.lock().expect("a lock")) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(LIMIT, waiting).await.is_err() {
            panic!("not within {} s: {what}; seen: {:#?}", LIMIT.as_secs(), self.shared.seen.lock());
        }
    }

    /// All events so far, once there are `count` of them.
    pub(crate) async fn wait_for_events(&self, count: usize) -> Vec<Event> {
        self.wait_until(&format!("{count} events"), |seen| seen.events.len() >= count).await;
        self.so_far()
    }

    /// All events so far.
    pub(crate) fn so_far(&self) -> Vec<Event> {
        self.shared.seen.lock().expect("a lock").events.clone()
    }

    /// How often it has been connected so far, and how many of its streams have ended.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let seen = self.shared.seen.lock().expect("a lock");
        (seen.connections, seen.ends)
    }

    /// Waits until the stream's place is known.
    pub(crate) async fn wait_until_placed(&self) {
        self.wait_until("the stream's first id", |seen| !seen.last_event_id.is_empty()).await;
    }

    /// The id that a reconnect would send.
    pub(crate) fn last_event_id(&self) -> String {
        self.shared.seen.lock().expect("a lock").last_event_id.clone()
    }

    /// The reconnect time that the server asked for, in milliseconds.
    pub(crate) async fn wait_for_retry(&self) -> u64 {
        self.wait_until("a retry time", |seen| seen.retry.is_some()).await;
        self.shared.seen.lock().expect("a lock").retry.expect("just seen")
    }

    /// Waits for `count` comments. Heartbeats are comments.
    pub(crate) async fn wait_for_comments(&self, count: usize) {
        self.wait_until(&format!("{count} comments"), |seen| seen.comments >= count).await;
    }

    /// Waits until the stream has been opened `count` times.
    pub(crate) async fn wait_for_connections(&self, count: usize) {
        self.wait_until(&format!("{count} connections"), |seen| seen.connections >= count).await;
    }

    /// Waits until `count` streams have ended.
    pub(crate) async fn wait_for_ends(&self, count: usize) {
        self.wait_until(&format!("{count} ended streams"), |seen| seen.ends >= count).await;
    }
}

async fn stay_connected(http: reqwest::Client, url: String, token: String, shared: Arc<Shared>) {
    loop {
        let last_event_id = shared.seen.lock().expect("a lock").last_event_id.clone();
        let mut request = http.get(&url).header("accept", "text/event-stream");
        if !token.is_empty() {
            request = request.bearer_auth(&token);
        }
        if !last_event_id.is_empty() {
            request = request.header("last-event-id", &last_event_id);
        }
        if let Ok(response) = request.send().await {
            let status = response.status().as_u16();
            {
                let mut seen = shared.seen.lock().expect("a lock");
                seen.statuses.push(status);
                seen.connections += usize::from(status == 200);
            }
            shared.changed.notify_waiters();
            if status != 200 {
                return; // As EventSource does: for ever.
            }
            read_stream(response, last_event_id, &shared).await;
            shared.seen.lock().expect("a lock").ends += 1;
            shared.changed.notify_waiters();
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn read_stream(response: reqwest::Response, last_event_id: String, shared: &Shared) {
    let mut parser = Parser::resuming(last_event_id);
    let mut chunks = response.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        let mut seen = shared.seen.lock().expect("a lock");
        parser.feed(&chunk, |event| seen.events.push(event));
        seen.last_event_id.clone_from(&parser.last_event_id);
        seen.retry = parser.retry.or(seen.retry);
        seen.comments += std::mem::take(&mut parser.comments);
        drop(seen);
        shared.changed.notify_waiters();
    }
}
