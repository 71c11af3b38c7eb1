//! A topic and a server that its readers ask, and the answers.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::harness::{
    Event, Line, Parser, Process, TestResult, Wiring, cli, eventually, http, keys, metric_of, str_of,
};

pub(super) const HISTORY_READS: &str = "aftercommit_sse_history_reads_total";
pub(super) const OPEN_STREAMS: &str = "aftercommit_sse_connections";
/// Much less than a long poll waits.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// A topic, and a server at which a user reads it.
pub(super) struct Door {
    pub(super) line: Line,
    pub(super) sse: Process,
    pub(super) token: String,
}

/// An answer of the server.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Answer {
    pub(super) async fn of(response: Response) -> TestResult<Self> {
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Self { status, headers, body: response.text().await? })
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn next(&self) -> TestResult<String> {
        Ok(self.header("stream-next-offset").ok_or("no offset")?.to_owned())
    }

    pub(super) fn is_up_to_date(&self) -> bool {
        self.header("stream-up-to-date") == Some("true")
    }

    /// The numbers of a page.
    pub(super) fn numbers(&self) -> TestResult<Vec<u64>> {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        Ok(serde_json::from_str(&self.body)?)
    }

    pub(super) fn assert_gone(&self) -> TestResult {
        assert_eq!(self.status, StatusCode::GONE, "{self:?}");
        let problem: Value = serde_json::from_str(&self.body)?;
        assert!(str_of(&problem["detail"]).contains("offset=now"), "it says how to go on: {problem}");
        Ok(())
    }
}

/// The offset after the event of this number.
pub(super) fn behind(seq: u64) -> String {
    format!("{:020}-{seq:020}", 1)
}

impl Door {
    pub(super) async fn new() -> Self {
        Self::with(&[], Vec::new()).await
    }

    pub(super) async fn with(settings: &[(&str, &str)], relay: Vec<(&'static str, String)>) -> Self {
        let line = Line::with(Wiring { relay, ..Wiring::default() }).await;
        let mut own = line.system.settings().clone().set("AFTERCOMMIT_SSE_REPAIR_WAIT_MS", "100");
        for (name, value) in settings {
            own = own.set(name, *value);
        }
        let sse = Process::start("sse", &own).await;
        let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &[line.topic.as_str()]);
        Self { line, sse, token }
    }

    pub(super) fn url(&self, query: &str) -> String {
        self.sse.url(&format!("/ds/{}?{query}", self.line.topic))
    }

    pub(super) async fn send(&self, method: Method, query: &str) -> TestResult<Response> {
        Ok(http().request(method, self.url(query)).bearer_auth(&self.token).send().await?)
    }

    pub(super) async fn get(&self, query: &str) -> TestResult<Answer> {
        Answer::of(self.send(Method::GET, query).await?).await
    }

    /// Reads after an offset.
    pub(super) async fn at(&self, offset: &str) -> TestResult<Answer> {
        self.get(&format!("offset={offset}")).await
    }

    /// Begins a long poll, and returns once the server counts it.
    pub(super) async fn begin_poll(&self, offset: &str) -> JoinHandle<reqwest::Result<Response>> {
        let url = self.url(&format!("offset={offset}&live=long-poll"));
        let poll = tokio::spawn(http().get(url).bearer_auth(&self.token).send());
        eventually("the poll waits", async || (metric_of(&self.sse, OPEN_STREAMS).await == 1).then_some(()))
            .await;
        poll
    }

    pub(super) async fn stream(&self, offset: &str) -> TestResult<EventStream> {
        let response = self.send(Method::GET, &format!("offset={offset}&live=sse")).await?;
        assert_eq!(response.status(), StatusCode::OK);
        Ok(EventStream { response, parser: Parser::default(), events: Vec::new() })
    }

    pub(super) async fn revoke(&self) {
        let arguments = ["revoke", "--reason", "a test", "--topic", self.line.topic.as_str()];
        let output = cli(self.line.system.settings(), &arguments).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }

    pub(super) fn history(&self) -> String {
        keys::history(&self.line.topic)
    }
}

/// A stream of events, and what it has brought.
pub(super) struct EventStream {
    response: Response,
    parser: Parser,
    pub(super) events: Vec<Event>,
}

impl EventStream {
    /// Reads until there are this many events, or the response ends.
    pub(super) async fn wait_for(&mut self, count: usize) -> TestResult {
        while self.events.len() < count
            && let Some(chunk) = tokio::time::timeout(SOON, self.response.chunk()).await??
        {
            self.parser.feed(&chunk, |event| self.events.push(event));
        }
        Ok(())
    }

    /// The numbers so far; each page of them is followed by where to go on.
    pub(super) fn numbers(&self) -> TestResult<Vec<u64>> {
        let mut numbers = Vec::new();
        for pair in self.events.chunk_by(|first, _| first.event == "data") {
            let [data, control] = pair else { continue };
            assert_eq!((data.event.as_str(), control.event.as_str()), ("data", "control"), "{pair:?}");
            numbers.extend(serde_json::from_str::<Vec<u64>>(&data.data)?);
        }
        Ok(numbers)
    }

    pub(super) fn last_control(&self) -> TestResult<Value> {
        let control = self.events.iter().rfind(|event| event.event == "control").ok_or("no control")?;
        Ok(serde_json::from_str(&control.data)?)
    }
}
