//! Reading and using a page in the browser.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::browser::Browser;
use super::{eventually, items_of, str_of};

/// How WebDriver writes a reference to an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

impl Browser {
    /// The text of the first element that matches, as a reader sees it; `None` without one.
    pub(crate) async fn text(&self, css: &str) -> Option<String> {
        let text = self.runs("return document.querySelector(arguments[0])?.innerText ?? null", &[css]).await;
        text.as_str().map(str::to_owned)
    }

    /// Waits until the text of an element holds a part; returns the text.
    pub(crate) async fn wait_for_text(&self, css: &str, part: &str) -> String {
        eventually(&format!("{css} reads '{part}'"), async || {
            self.text(css).await.filter(|text| text.contains(part))
        })
        .await
    }

    /// Waits for an element and clicks on it as a person does: it must be in sight and not covered.
    pub(crate) async fn click(&self, css: &str) {
        eventually(&format!("{css} can be clicked"), async || {
            let element = self.find(css).await?;
            let clicked = self.asks(&format!("element/{element}/click"), &json!({})).await;
            clicked.ok()
        })
        .await;
    }

    /// Types into an element.
    pub(crate) async fn write(&self, css: &str, text: &str) {
        let element = eventually(&format!("there is {css}"), async || self.find(css).await).await;
        self.must(&format!("element/{element}/value"), &json!({ "text": text })).await;
    }

    /// Replaces the text of a field.
    pub(crate) async fn rewrite(&self, css: &str, text: &str) {
        let element = eventually(&format!("there is {css}"), async || self.find(css).await).await;
        self.must(&format!("element/{element}/clear"), &json!({})).await;
        self.write(css, text).await;
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
        self.must("actions", &actions).await;
    }

    /// Opens another tab at this address, and goes on there. Returns the tab's handle.
    pub(crate) async fn opens_a_tab(&self, url: &str) -> String {
        let made = self.must("window/new", &json!({ "type": "tab" })).await;
        let tab = str_of(&made["handle"]).to_owned();
        self.goes_on_in(&tab).await;
        self.goes_to(url).await;
        tab
    }

    /// Goes on in another tab.
    pub(crate) async fn goes_on_in(&self, tab: &str) {
        self.must("window", &json!({ "handle": tab })).await;
    }

    /// The warnings and errors on the page's console since the last call.
    pub(crate) async fn console_errors(&self) -> Vec<String> {
        let entries = self.must("se/log", &json!({ "type": "browser" })).await;
        let entries = items_of(&entries).iter();
        entries
            .filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING")
            .map(|entry| str_of(&entry["message"]).to_owned())
            .collect()
    }

    /// Runs a command of the Chrome DevTools Protocol, for features that WebDriver lacks.
    pub(crate) async fn command(&self, name: &str, parameters: Value) -> Value {
        self.must("goog/cdp/execute", &json!({ "cmd": name, "params": parameters })).await
    }

    /// Emulates a screen of this size and a preferred color scheme, `light` or `dark`.
    pub(crate) async fn looks_like(&self, width: u32, height: u32, is_phone: bool, scheme: &str) {
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": is_phone });
        self.command("Emulation.setDeviceMetricsOverride", screen).await;
        let preferred = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.command("Emulation.setEmulatedMedia", preferred).await;
    }

    /// Takes a picture of the whole page, including the parts out of sight, as a PNG.
    pub(crate) async fn picture(&self, to: &Path) {
        let taken = self.command("Page.captureScreenshot", json!({ "captureBeyondViewport": true })).await;
        let in_base64 = str_of(&taken["data"]);
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
        let found = self.asks("element", &json!({ "using": "css selector", "value": css })).await.ok()?;
        found[ELEMENT].as_str().map(str::to_owned)
    }

    async fn must(&self, path: &str, body: &Value) -> Value {
        self.asks(path, body).await.unwrap_or_else(|refusal| panic!("{path}: {refusal}"))
    }
}
