//! The live page of `aftercommit dev` in a real browser: what it shows, what its switches break, and whom it
//! lets in.

use std::process::Stdio;

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, Row};
use tempfile::TempDir;
use tokio::process::Command;

use crate::harness::{
    Browser, Process, Settings, TestResult, cli, eventually, free_port, http, origin_with_a_page, str_of,
};

/// A running `aftercommit dev` on private servers and free ports.
pub(crate) struct Dev {
    process: Process,
    variables: String,
    _directory: TempDir,
}

impl Dev {
    pub(crate) async fn start() -> Self {
        let directory = TempDir::with_prefix("aftercommit-live-").expect("a directory");
        let file = directory.path().join("env");
        let path = file.to_str().expect("a path").to_owned();
        // The relay's port must stay free while the relay is killed.
        let settings = Settings::default()
            .set("HOME", std::env::var("HOME").unwrap_or_default())
            .set("AFTERCOMMIT_API_LISTEN", "127.0.0.1:0")
            .set("AFTERCOMMIT_SSE_LISTEN", "127.0.0.1:0")
            .set("AFTERCOMMIT_RELAY_LISTEN", format!("127.0.0.1:{}", free_port()));
        let arguments = ["dev", "--ephemeral", "--env-file", &path, "--live", "127.0.0.1:0"];
        let mut process = Process::start_unheard(&arguments, &settings, String::new(), Stdio::null());
        let variables = eventually("dev is up", async || {
            assert!(!process.has_ended(), "dev has ended");
            std::fs::read_to_string(&file).ok()
        })
        .await;
        Self { process, variables, _directory: directory }
    }

    fn variable(&self, name: &str) -> &str {
        let line = self.variables.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {name}: {}", self.variables)).trim_matches('\'')
    }

    /// The page's origin and its key.
    fn live(&self) -> (&str, &str) {
        self.variable("LIVE_URL").split_once("/#").expect("an address with a key")
    }

    /// A browser that shows the page, after it has run `script` in it.
    async fn browser(&self, script: &str) -> Browser {
        let browser = Browser::start().await;
        browser.looks_like(1280, 900, false, "light").await;
        browser.command("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script })).await;
        browser.goes_to(self.variable("LIVE_URL")).await;
        browser.wait_for_text("#link", "Live").await;
        browser
    }

    /// What runs, as the page's server says.
    async fn state(&self) -> Value {
        let (origin, key) = self.live();
        let asked = http().get(format!("{origin}/live/state")).bearer_auth(key);
        asked.send().await.expect("an answer").json().await.expect("JSON")
    }

    async fn ends(self) -> i32 {
        self.process.terminate().await
    }
}

/// Starts an upload. Takes the number of photos, the number of those that fail, and the milliseconds for each.
async fn upload(browser: &Browser, photos: usize, failures: usize, pace: &str) {
    browser.rewrite("#photos", &photos.to_string()).await;
    browser.rewrite("#failures", &failures.to_string()).await;
    browser.runs("document.getElementById('pace').value = arguments[0]", &[pace]).await;
    browser.click("#start").await;
}

/// The proof's numbers: committed, received, missing, twice.
async fn numbers(browser: &Browser) -> [String; 4] {
    let script = "return ['committed', 'received', 'missing', 'twice']
        .map((name) => document.getElementById(`n-${name}`).textContent)";
    serde_json::from_value(browser.runs(script, &[]).await).expect("four texts")
}

async fn wait_for_verdict(browser: &Browser, part: &str) -> String {
    browser.wait_for_text("#verdict-text", part).await
}

#[tokio::test]
async fn every_client_gets_each_committed_event_once_whatever_its_reader_breaks() -> TestResult {
    let dev = Dev::start().await;
    let browser = dev.browser("").await;
    upload(&browser, 60, 4, "100").await;
    wait_for_verdict(&browser, "of 60 photos").await;

    // A client without an event has no place to continue from.
    browser.wait_for_text("[data-client='2'] .events", "PHOTO_").await;
    browser.click("[data-client='2'] header button").await;
    browser.wait_for_text("[data-client='2'] .link", "Cut off").await;
    browser.click("#switch-relay").await;
    wait_for_verdict(&browser, "The relay is killed").await;
    let relay = dev.variable("RELAY_URL").replace("http://", "");
    assert!(std::net::TcpStream::connect(&relay).is_err(), "the port of a killed relay answers");
    browser.click("#switch-relay").await;
    browser.wait_for_text("#way-relay", "delivers").await;
    wait_for_verdict(&browser, "Client 2 is cut off").await;

    browser.click("#switch-redis").await;
    wait_for_verdict(&browser, "Redis is stopped").await;
    let redis = dev.variable("REDIS_URL").rsplit_once('@').ok_or("an address")?.1.to_owned();
    assert!(std::net::TcpStream::connect(&redis).is_err(), "a stopped Redis answers");
    // Both at once: the relay is killed while it cannot publish, and starts without Redis.
    browser.click("#switch-relay").await;
    browser.wait_for_text("#way-relay", "killed").await;
    browser.click("#switch-relay").await;
    browser.wait_for_text("#way-relay", "waits for Redis").await;
    browser.click("#switch-redis").await;
    browser.wait_for_text("#way-redis", "runs").await;
    browser.click("[data-client='2'] header button").await;

    wait_for_verdict(&browser, "Proven: each of the 61 committed events reached all 5 clients").await;
    assert_eq!(numbers(&browser).await, ["61", "305 of 305", "0", "0"]);
    let failed = "return document.querySelectorAll('[data-client=\"5\"] [data-type=PHOTO_FAILED]').length";
    assert_eq!(browser.runs(failed, &[]).await, 4);
    let seen = browser.text("[data-client='2'] .events").await.ok_or("its events")?;
    assert!(seen.contains("connection lost") && seen.contains("back, continues after 1-"), "{seen}");

    let mut connection = PgConnection::connect(dev.variable("DATABASE_URL")).await?;
    let rows = "select count(*) from outbox.event where topic like 'upload-session:%'";
    let count: i64 = sqlx::query(rows).fetch_one(&mut connection).await?.try_get(0)?;
    assert_eq!(count, 61);
    assert_eq!(dev.ends().await, 0);
    Ok(())
}

/// Makes client 3 lose one event and client 4 receive one twice, between the browser and the page.
const FAULTY: &str = "
    const Real = EventSource;
    window.ports = [];
    window.EventSource = class extends Real {
        constructor(url) {
            super(url);
            const port = new URL(url).port;
            if (!ports.includes(port)) ports.push(port);
            this.client = ports.indexOf(port) + 1;
            this.count = 0;
        }
        addEventListener(name, act) {
            if (name !== 'PHOTO_UPLOADED') return super.addEventListener(name, act);
            super.addEventListener(name, (event) => {
                this.count += 1;
                if (this.client === 3 && this.count === 5) return;
                act(event);
                if (this.client === 4 && this.count === 7) act(event);
            });
        }
    };
    Object.defineProperty(window, 'isFaulty', { value: true });
";

#[tokio::test]
async fn a_client_that_misses_an_event_or_gets_one_twice_is_found() -> TestResult {
    let dev = Dev::start().await;
    let browser = dev.browser(FAULTY).await;
    assert_eq!(browser.runs("return isFaulty", &[]).await, true);
    upload(&browser, 12, 0, "0").await;
    let verdict = wait_for_verdict(&browser, "Client 4").await;
    assert_eq!(verdict, "Client 3 has missed 1 event. Client 4 has received 1 event twice.");
    eventually("the numbers say the same", async || {
        (numbers(&browser).await == ["13", "64 of 65", "1", "1"]).then_some(())
    })
    .await;
    let proof = browser.runs("return document.getElementById('proof').dataset.proof", &[]).await;
    assert_eq!(proof, "wrong");
    let counts = browser.text("[data-client='3'] .counts").await.ok_or("its counts")?;
    assert_eq!(counts, "12 received · 1 missing · 0 twice");
    Ok(())
}

/// Makes client 1 lose the last event of the session, after which no other one tells of the hole.
const WITHOUT_LAST: &str = "
    const Real = EventSource;
    let first = null;
    window.EventSource = class extends Real {
        constructor(url) {
            super(url);
            first ??= this;
        }
        addEventListener(name, act) {
            if (name !== 'SESSION_COMPLETED' || this !== first) super.addEventListener(name, act);
        }
    };
";

#[tokio::test]
async fn a_client_that_misses_the_last_event_is_found_once_nothing_moves_any_more() {
    let dev = Dev::start().await;
    let browser = dev.browser(WITHOUT_LAST).await;
    upload(&browser, 3, 1, "0").await;
    wait_for_verdict(&browser, "1 event on the way").await;
    let verdict = wait_for_verdict(&browser, "missed").await;
    assert_eq!(verdict, "Client 1 has missed 1 event.");
}

/// The page's own comparison, on events that no faulty client makes.
const COMPARED: &str = r#"
    const { compare } = await import("/live/assets/proof.js");
    const rows = ["a", "b", "b", "c"].map((payload) => ({ type: "T", payload }));
    const got = (...events) => {
        const received = events.map(([id, data]) => ({ id, type: "T", data }));
        const { received: n, missing, behind, twice, disordered, unknown } = compare(rows, received);
        return [n, missing, behind, twice, disordered, unknown];
    };
    return [
        got(),
        got(["1", "a"], ["2", "b"], ["3", "b"], ["4", "c"]),
        got(["1", "a"], ["2", "b"]),
        got(["1", "a"], ["2", "b"], ["4", "c"]),
        got(["1", "a"], ["1", "a"]),
        got(["1", "a"], ["5", "a"]),
        got(["4", "c"], ["1", "a"], ["2", "b"], ["3", "b"]),
        got(["1", "a"], ["2", "x"]),
    ]"#;

#[tokio::test]
async fn the_comparison_tells_missing_late_repeated_disordered_and_unknown_events_apart() {
    let dev = Dev::start().await;
    let browser = dev.browser("").await;
    let found = browser.runs(&format!("return (async () => {{ {COMPARED} }})()"), &[]).await;
    let expected = json!([
        // received, missing, behind, twice, disordered, unknown
        [0, 0, 4, 0, 0, 0],
        [4, 0, 0, 0, 0, 0],
        [2, 0, 2, 0, 0, 0],
        [3, 1, 0, 0, 0, 0],
        [1, 0, 3, 1, 0, 0],
        [1, 0, 3, 1, 0, 0],
        [4, 0, 0, 0, 3, 0],
        [1, 0, 3, 0, 0, 1],
    ]);
    assert_eq!(found, expected);
}

/// Runs a command as a shell does; returns what it printed.
async fn shell(command: &str) -> String {
    let run = Command::new("/bin/sh").args(["-c", command]).stdin(Stdio::null()).output();
    let output = run.await.expect("a shell");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test]
async fn the_lines_of_the_second_tab_work_as_they_stand_and_what_they_append_appears() -> TestResult {
    let dev = Dev::start().await;
    let browser = dev.browser("").await;
    browser.click("#tab-own").await;
    browser.wait_for_text("#own-state", "Listening").await;
    let line = async |id: &str| browser.text(id).await.expect("a command");
    let printed = shell(&line("#psql").await).await;
    assert!(printed.contains("(1 row)"), "{printed}");
    let seen = browser.wait_for_text("#own-events", "ORDER_PAID").await;
    assert!(seen.contains("event: ORDER_PAID") && seen.contains(r#"data: {"total":12}"#), "{seen}");
    assert!(seen.contains("id: 1-"), "{seen}");
    let read = shell(&format!("{} --silent --max-time 2", line("#curl").await)).await;
    assert!(read.contains("event: ORDER_PAID"), "{read}");

    // Another topic.
    browser.rewrite("#topic", "customer:7").await;
    browser.wait_for_text("#own-topic", "customer:7").await;
    shell(&line("#psql").await.replace(":12}", ":13}")).await;
    browser.wait_for_text("#own-events", r#"{"total":13}"#).await;
    browser.rewrite("#topic", "no topic").await;
    browser.wait_for_text("#topic-error", "1 to 200 characters").await;
    assert_eq!(browser.console_errors().await, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_request_without_the_key_of_another_host_or_of_another_page_switches_nothing() -> TestResult {
    let dev = Dev::start().await;
    let (origin, key) = dev.live();
    let own = origin.replace("http://", "");
    let http = http();
    let kill = |host: &str, from: Option<&str>, key: Option<&str>| {
        let mut request = http.post(format!("{origin}/live/parts/relay")).json(&json!({ "run": false }));
        request = request.header("host", host);
        if let Some(from) = from {
            request = request.header("origin", from);
        }
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        async { request.send().await.expect("an answer").status().as_u16() }
    };
    assert_eq!(kill(&own, Some(origin), None).await, 401);
    assert_eq!(kill(&own, Some(origin), Some("0123456789abcdef0123456789abcdef")).await, 401);
    assert_eq!(kill(&own, Some("http://evil.example"), Some(key)).await, 403);
    assert_eq!(kill(&own, Some("http://127.0.0.1:1"), Some(key)).await, 403);
    assert_eq!(kill(&own, None, Some(key)).await, 403);
    // A name that another site makes resolve to this machine.
    let rebound = format!("evil.example:{}", own.rsplit_once(':').ok_or("a port")?.1);
    assert_eq!(kill(&rebound, Some(&format!("http://{rebound}")), Some(key)).await, 421);
    assert_eq!(dev.state().await["relay"], true);
    for path in ["/live/page", "/live/state", "/live/committed?topic=a"] {
        let status = http.get(format!("{origin}{path}")).send().await?.status();
        assert_eq!(status, 401, "{path}");
        let rebound = http.get(format!("{origin}{path}")).header("host", &rebound).bearer_auth(key);
        assert_eq!(rebound.send().await?.status(), 421, "{path}");
    }
    // The page itself has no secret, and allows itself its own server and its lines only.
    let answer = http.get(format!("{origin}/")).send().await?;
    let policy = answer.headers()["content-security-policy"].to_str()?.to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"), "{policy}");
    assert!(!policy.contains('*') && !policy.contains("unsafe"), "{policy}");
    assert!(!answer.text().await?.contains(dev.variable("TOKEN")));
    assert_eq!(kill(&own, Some(origin), Some(key)).await, 204);
    assert_eq!(dev.state().await["relay"], false);
    Ok(())
}

#[tokio::test]
async fn a_page_of_another_site_in_the_same_browser_switches_and_reads_nothing() -> TestResult {
    let dev = Dev::start().await;
    let (origin, key) = dev.live();
    let browser = dev.browser("").await;
    browser.goes_to(&origin_with_a_page().await).await;
    let script = "
        const [origin, key] = arguments;
        const headers = { authorization: `Bearer ${key}`, 'content-type': 'application/json' };
        const body = '{\"run\":false}';
        const path = `${origin}/live/parts/relay`;
        window.results = Promise.allSettled([
            fetch(path, { method: 'POST', body, mode: 'no-cors', headers: { 'content-type': 'text/plain' } }),
            fetch(path, { method: 'POST', body, headers }),
            fetch(`${origin}/live/page`, { headers }),
        ]).then((all) => (window.settled = all.map(({ status, value }) => value?.type ?? status)));";
    browser.runs(script, &[origin, key]).await;
    let settled = eventually("all three have ended", async || {
        let settled = browser.runs("return window.settled ?? null", &[]).await;
        settled.is_array().then_some(settled)
    })
    .await;
    // The first one is sent and refused, the others are not even sent.
    assert_eq!(settled, json!(["rejected", "rejected", "rejected"]));
    assert_eq!(dev.state().await["relay"], true);
    Ok(())
}

#[tokio::test]
async fn an_address_without_its_key_or_under_another_name_says_what_to_do() -> TestResult {
    let dev = Dev::start().await;
    let (origin, _) = dev.live();
    let browser = Browser::start().await;
    browser.goes_to(&format!("{origin}/")).await;
    browser.wait_for_text("#lost", "open the one that `aftercommit dev` has printed").await;
    browser.goes_to("about:blank").await;
    browser.goes_to(&format!("{origin}/#wrong")).await;
    browser.wait_for_text("#lost", "open the address that `aftercommit dev` has printed").await;
    browser.goes_to(&dev.variable("LIVE_URL").replace("127.0.0.1", "localhost")).await;
    browser.wait_for_text("#link", "Live").await;
    let address = browser.runs("return location.href", &[]).await;
    assert_eq!(str_of(&address), dev.variable("LIVE_URL"));
    Ok(())
}

#[tokio::test]
async fn the_page_listens_on_this_machine_alone() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80", "8083"] {
        let output = cli(&Settings::default(), &["dev", "--ephemeral", "--live", address]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("an address of this machine alone"), "{said}");
    }
}

/// Every control has a name, and the keyboard reaches it in the order of the page.
#[tokio::test]
async fn keyboards_and_screen_readers_find_every_control() -> TestResult {
    let dev = Dev::start().await;
    let browser = dev.browser("").await;
    let script = "
        const named = (e) => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent.trim();
        return [...document.querySelectorAll('button, input, select, a, [tabindex=\"0\"]')]
            .filter((e) => !named(e)).map((e) => e.outerHTML)";
    assert_eq!(browser.runs(script, &[]).await, json!([]));
    let labels =
        "return [...document.querySelectorAll('.way button, .client button')].map((e) => e.ariaLabel)";
    let labels = browser.runs(labels, &[]).await;
    assert_eq!(labels[0], "Kill the relay");
    assert_eq!(labels[3], "Cut the connection of client 1");
    browser.runs("document.getElementById('tab-upload').focus()", &[]).await;
    let mut reached = Vec::new();
    for _ in 0..4 {
        browser.press("Tab").await;
        reached.push(str_of(&browser.runs("return document.activeElement.id", &[]).await).to_owned());
    }
    assert_eq!(reached, ["photos", "failures", "pace", "start"]);
    browser.press("Enter").await;
    wait_for_verdict(&browser, "of 40 photos").await;
    let focused = browser.runs("return document.activeElement.id", &[]).await;
    assert_eq!(focused, "start");
    assert_eq!(browser.console_errors().await, [""; 0]);
    Ok(())
}

/// Takes pictures of the page as it is now: on a laptop and on a phone, in light and dark.
async fn shoot(browser: &Browser, directory: &std::path::Path, name: &str) {
    for (screen, width, height, is_phone) in [("laptop", 1280, 800, false), ("phone", 390, 844, true)] {
        for scheme in ["light", "dark"] {
            browser.looks_like(width, height, is_phone, scheme).await;
            tokio::time::sleep(std::time::Duration::from_millis(900)).await;
            browser.picture(&directory.join(format!("{name}-{screen}-{scheme}.png"))).await;
        }
    }
}

#[tokio::test]
#[ignore = "takes pictures of the page in its states, for people to look at"]
async fn pictures() -> TestResult {
    let directory = std::env::temp_dir().join("aftercommit-live");
    std::fs::create_dir_all(&directory)?;
    let dev = Dev::start().await;
    let browser = dev.browser("").await;
    shoot(&browser, &directory, "begin").await;
    browser.looks_like(1280, 900, false, "light").await;
    upload(&browser, 60, 4, "250").await;
    wait_for_verdict(&browser, "12 of 60").await;
    browser.click("[data-client='2'] header button").await;
    browser.click("#switch-relay").await;
    wait_for_verdict(&browser, "The relay is killed").await;
    shoot(&browser, &directory, "broken").await;
    browser.looks_like(1280, 900, false, "light").await;
    browser.click("#switch-relay").await;
    browser.click("[data-client='2'] header button").await;
    wait_for_verdict(&browser, "Proven").await;
    browser.runs("document.querySelector('.client details').open = true", &[]).await;
    shoot(&browser, &directory, "proven").await;
    browser.looks_like(1280, 900, false, "light").await;
    browser.click("#tab-own").await;
    browser.wait_for_text("#own-state", "Listening").await;
    let psql = browser.text("#psql").await.ok_or("a command")?;
    for _ in 0..3 {
        shell(&psql).await;
    }
    browser.wait_for_text("#own-events", "ORDER_PAID").await;
    shoot(&browser, &directory, "own").await;
    println!("see {}", directory.display());
    Ok(())
}
