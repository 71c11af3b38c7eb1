//! A real browser: headless Chromium, driven by WebDriver.

use std::path::Path;
use std::process::Stdio;

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::leash::{Leash, at_exit};
use super::{LIMIT, eventually};

/// What Chromium needs to run as root in a container, to stay off the network, and to leave nothing behind.
const ARGUMENTS: [&str; 11] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1280,800",
];

/// How WebDriver writes a reference to an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window and a fresh profile. Ends with the test.
#[derive(Debug)]
pub(crate) struct Browser {
    session: String,
    http: reqwest::Client,
    profile: TempDir,
    _driver: Child,
    _leash: Leash,
}

impl Browser {
    /// Starts one. Panics with what to install where there is none.
    pub(crate) async fn start() -> Self {
        let (driver, port) = start_driver().await;
        let profile = tempfile::tempdir().expect("a directory");
        let leash = at_exit(&end_of(&profile));
        let data = format!("--user-data-dir={}", profile.path().display());
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([data.as_str()]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
            "timeouts": { "script": LIMIT.as_millis() as u64, "pageLoad": LIMIT.as_millis() as u64 },
        }}});
        let http = reqwest::Client::new();
        let base = format!("http://127.0.0.1:{port}/session");
        let made = ask(&http, Method::POST, &base, &wanted).await.expect("a session of the browser");
        let session = format!("{base}/{}", made["sessionId"].as_str().expect("a session's id"));
        Self { session, http, profile, _driver: driver, _leash: leash }
    }

    /// Goes to an address, and waits until the page has loaded.
    pub(crate) async fn open(&self, url: &str) {
        self.post("url", json!({ "url": url })).await;
    }

    /// Runs a function's body in the page and returns what it returns, or what the promise does that it returns.
    pub(crate) async fn run(&self, body: &str, arguments: &[&str]) -> Value {
        self.post("execute/sync", json!({ "script": body, "args": arguments })).await
    }

    /// The text of the first element that matches, as a reader sees it; `None` without one.
    pub(crate) async fn text(&self, css: &str) -> Option<String> {
        let text = self.run("return document.querySelector(arguments[0])?.innerText ?? null", &[css]).await;
        text.as_str().map(str::to_owned)
    }

    /// Waits until the text of an element holds a part; returns the text.
    pub(crate) async fn reads(&self, css: &str, part: &str) -> String {
        eventually(&format!("{css} reads '{part}'"), async || {
            self.text(css).await.filter(|text| text.contains(part))
        })
        .await
    }

    /// Waits for an element and clicks on it as a person does: it must be in sight and not covered.
    pub(crate) async fn click(&self, css: &str) {
        eventually(&format!("{css} can be clicked"), async || {
            let element = self.find(css).await?;
            let clicked = self.try_post(&format!("element/{element}/click"), json!({})).await;
            clicked.ok()
        })
        .await;
    }

    /// Types into an element.
    pub(crate) async fn write(&self, css: &str, text: &str) {
        let element = eventually(&format!("there is {css}"), async || self.find(css).await).await;
        self.post(&format!("element/{element}/value"), json!({ "text": text })).await;
    }

    /// Presses a key wherever the focus is: `Tab` or `Enter`.
    pub(crate) async fn press(&self, name: &str) {
        // WebDriver's names of the keys.
        let key = match name {
            "Tab" => "\u{e004}",
            "Enter" => "\u{e007}",
            other => panic!("the key {other}"),
        };
        let strokes = ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key }));
        let actions = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] });
        self.post("actions", actions).await;
    }

    /// Everything that the page has complained about so far on its console, warnings and errors. Each is told once.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let entries = self.post("se/log", json!({ "type": "browser" })).await;
        let entries = entries.as_array().expect("a list").iter();
        entries
            .filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING")
            .map(|entry| entry["message"].as_str().expect("a message").to_owned())
            .collect()
    }

    /// Runs a command of the browser's own protocol, for what WebDriver does not have.
    pub(crate) async fn command(&self, name: &str, parameters: Value) -> Value {
        self.post("goog/cdp/execute", json!({ "cmd": name, "params": parameters })).await
    }

    /// Looks like a screen of this size, for somebody who prefers `scheme`: `light` or `dark`.
    pub(crate) async fn looks_like(&self, width: u32, height: u32, is_phone: bool, scheme: &str) {
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": is_phone });
        self.command("Emulation.setDeviceMetricsOverride", screen).await;
        let preferred = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.command("Emulation.setEmulatedMedia", preferred).await;
    }

    /// Takes a picture of the whole page, also of what is out of sight, as a PNG.
    pub(crate) async fn picture(&self, to: &Path) {
        let taken = self.command("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        let in_base64 = taken["data"].as_str().expect("a picture");
        let mut decoder = Command::new("base64")
            .arg("--decode")
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(to).expect("a file"))
            .spawn()
            .expect("base64");
        decoder.stdin.take().expect("a pipe").write_all(in_base64.as_bytes()).await.expect("a decoder");
        assert!(decoder.wait().await.expect("a status").success());
    }

    async fn find(&self, css: &str) -> Option<String> {
        let found = self.try_post("element", json!({ "using": "css selector", "value": css })).await.ok()?;
        found[ELEMENT].as_str().map(str::to_owned)
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.try_post(path, body).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn try_post(&self, path: &str, body: Value) -> Result<Value, String> {
        ask(&self.http, Method::POST, &format!("{}/{path}", self.session), &body).await
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium outlives a driver that is killed.
        let ended = std::process::Command::new("/bin/sh")
            .args(["-c", &end_of(&self.profile)])
            .stderr(Stdio::null())
            .status();
        drop(ended);
    }
}

/// A command that ends the browser of this profile, whose lock names its process.
fn end_of(profile: &TempDir) -> String {
    let lock = profile.path().join("SingletonLock");
    format!("lock=$(readlink '{}') && kill -KILL \"${{lock##*-}}\"", lock.display())
}

/// Starts the driver on a free port, which it tells.
async fn start_driver() -> (Child, u16) {
    let mut driver = Command::new("chromedriver")
        .args(["--port=0", "--allowed-ips=127.0.0.1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("chromedriver and chromium: run scripts/install-servers");
    let mut lines = BufReader::new(driver.stdout.take().expect("a pipe")).lines();
    let told = async {
        while let Some(line) = lines.next_line().await.expect("a line") {
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                return port.trim_end_matches('.').parse().expect("a port");
            }
        }
        panic!("chromedriver ended before it told its port");
    };
    let port = tokio::time::timeout(LIMIT, told).await.expect("chromedriver starts in time");
    // It must find a reader for whatever else it says.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (driver, port)
}

async fn ask(http: &reqwest::Client, method: Method, url: &str, body: &Value) -> Result<Value, String> {
    let answer = http.request(method, url).json(body).send().await.map_err(|error| error.to_string())?;
    let is_ok = answer.status().is_success();
    let mut answer: Value = answer.json().await.map_err(|error| error.to_string())?;
    if is_ok { Ok(answer["value"].take()) } else { Err(answer["value"]["message"].to_string()) }
}
