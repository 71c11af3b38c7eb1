//! An unmodified browser: Debian's Chromium, headless, driven by WebDriver.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use super::front::program;
use super::http::http;
use super::supervisor::{Supervisor, at_exit};
use super::{LIMIT, eventually, str_of};

/// Options to run as root, without a display, and without calls home.
const ARGUMENTS: [&str; 13] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-first-run",
    "--no-proxy-server",
    "--window-size=1280,800",
];

/// A page with nothing on it.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>A page</title>"#;

/// Opens an unmodified EventSource in a page, and writes down what it gets. `arguments[0]` is its URL.
const LISTEN: &str = r#"
    window.seen = [];
    window.opens = 0;
    window.errors = 0;
    window.source = new EventSource(arguments[0], { withCredentials: true });
    source.onopen = () => opens++;
    source.onerror = () => errors++;
    for (const name of ["notification", "message", "reset", "token_expired"]) {
        source.addEventListener(name, (e) => seen.push({ name, id: e.lastEventId, data: e.data }));
    }
"#;

/// A browser with one page.
#[derive(Debug)]
pub(crate) struct Browser {
    http: reqwest::Client,
    session: String,
    _supervisor: Supervisor,
    _driver: Child,
}

/// What a page has seen so far.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seen {
    pub(crate) events: Vec<SeenEvent>,
    pub(crate) opens: usize,
    pub(crate) errors: usize,
    /// 0 is connecting, 1 open, 2 closed for ever.
    pub(crate) ready_state: u8,
}

/// An event as a page's listener got it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct SeenEvent {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) data: String,
}

impl Browser {
    /// Starts a browser with a profile of its own.
    pub(crate) async fn start() -> Self {
        let home = TempDir::with_prefix("aftercommit-browser-").expect("a directory").keep();
        let (driver, port) = start_driver(&home).await;
        let profile = home.join("profile");
        let in_profile = format!("--user-data-dir={}", profile.display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([in_profile.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let http = http();
        let sessions = format!("http://127.0.0.1:{port}/session");
        let made = post(&http, &sessions, &wanted).await;
        // A browser outlives its driver: kill both by pid, then remove their files.
        let (driver_pid, browser_pid) = (driver.id().expect("it runs"), browser_in(&profile));
        let supervisor =
            at_exit(&format!("kill -KILL {driver_pid} {browser_pid}\nsleep 1\nrm -rf '{}'", home.display()));
        let id = str_of(&made["sessionId"]);
        let session = format!("{sessions}/{id}");
        Self { http, session, _supervisor: supervisor, _driver: driver }
    }

    /// Goes to a page.
    pub(crate) async fn goes_to(&self, url: &str) {
        post(&self.http, &format!("{}/url", self.session), &json!({ "url": url })).await;
    }

    /// Sets a cookie of the page's site that scripts cannot read.
    pub(crate) async fn set_cookie(&self, name: &str, value: &str) {
        let cookie = json!({ "cookie": { "name": name, "value": value, "httpOnly": true, "path": "/" } });
        post(&self.http, &format!("{}/cookie", self.session), &cookie).await;
    }

    /// Runs a script in the page.
    pub(crate) async fn runs(&self, script: &str, arguments: &[&str]) -> Value {
        let body = json!({ "script": script, "args": arguments });
        post(&self.http, &format!("{}/execute/sync", self.session), &body).await
    }

    /// Sends a command for this page to the driver. An error is the driver's message.
    pub(super) async fn asks(&self, path: &str, body: &Value) -> Result<Value, String> {
        try_post(&self.http, &format!("{}/{path}", self.session), body).await
    }

    /// Has the page open an EventSource.
    pub(crate) async fn listens_to(&self, url: &str) {
        self.runs(LISTEN, &[url]).await;
    }

    pub(crate) async fn seen(&self) -> Seen {
        let script = "return { events: seen, opens, errors, readyState: source.readyState }";
        serde_json::from_value(self.runs(script, &[]).await).expect("what the page has seen")
    }

    /// Waits until the page has seen what `wanted` asks for.
    pub(crate) async fn wait_until_seen(&self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        eventually(&format!("the page sees {what}"), async || {
            let seen = self.seen().await;
            wanted(&seen).then_some(seen)
        })
        .await
    }
}

/// The browser's process: its profile's lock is a link to `<host>-<number>`.
fn browser_in(profile: &Path) -> u32 {
    let lock = std::fs::read_link(profile.join("SingletonLock")).expect("the lock of a browser that runs");
    let (_, pid) = lock.to_str().and_then(|lock| lock.rsplit_once('-')).expect("a host and a number");
    pid.parse().expect("a number")
}

/// Starts a chromedriver. It exits at once if the port that it picked for IPv4 is in use for IPv6: retry.
async fn start_driver(home: &Path) -> (Child, u16) {
    for _ in 0..5 {
        let mut driver = Command::new(program("chromedriver"))
            .arg("--port=0")
            .env("HOME", home)
            .env("TMPDIR", home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver");
        let port = tokio::time::timeout(LIMIT, port_of(&mut driver)).await;
        if let Some(port) = port.expect("chromedriver starts in time") {
            return (driver, port);
        }
    }
    panic!("chromedriver ends without a port, five times");
}

/// The port that a chromedriver says it has; `None` if it ended without one.
async fn port_of(driver: &mut Child) -> Option<u16> {
    let mut lines = BufReader::new(driver.stdout.take().expect("a pipe")).lines();
    while let Some(line) = lines.next_line().await.expect("its output") {
        if let Some((_, port)) = line.rsplit_once("started successfully on port ") {
            let port = port.trim_end_matches('.').parse().expect("a port");
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Some(port);
        }
    }
    None
}

async fn post(http: &reqwest::Client, url: &str, body: &Value) -> Value {
    try_post(http, url, body).await.unwrap_or_else(|refusal| panic!("{url}: {refusal}"))
}

async fn try_post(http: &reqwest::Client, url: &str, body: &Value) -> Result<Value, String> {
    let answer = tokio::time::timeout(LIMIT, http.post(url).json(body).send()).await;
    let answer = answer.expect("an answer in time").expect("an answer of the driver");
    let mut answer: Value = answer.json().await.expect("JSON");
    let value = answer["value"].take();
    if value.get("error").is_none() { Ok(value) } else { Err(format!("{value:#}")) }
}

/// Serves an empty page on an origin of its own, `http://localhost:<port>`, until the test ends.
pub(crate) async fn origin_with_a_page() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let router = axum::Router::new().fallback(async || axum::response::Html(PAGE));
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://localhost:{port}")
}
