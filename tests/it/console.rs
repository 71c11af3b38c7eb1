//! The operator's page in a real browser: what it shows, and what its buttons do.

use redis::AsyncCommands;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use crate::harness::keys;
use aftercommit::event::Topic;

use crate::commands::{commit, json as told};
use crate::harness::{
    Browser, Process, System, TestResult, empty_database, eventually, items_of, metric_of, str_of,
};

pub(crate) const TOKEN: &str = "the operators' token of the tests";

/// A system with a relay that has an operators' token, and has written its first position.
pub(crate) async fn system() -> (System, Process) {
    let system = System::new().await.set("AFTERCOMMIT_OPERATOR_TOKEN", TOKEN);
    let relay = system.start("relay").await;
    eventually("a position", async || {
        let status = told(&system, &["status"]).await;
        (!items_of(&status["relays"]).is_empty()).then_some(())
    })
    .await;
    (system, relay)
}

/// A browser in which Ana has signed in.
pub(crate) async fn signed_in(relay: &Process) -> Browser {
    let browser = Browser::start().await;
    browser.goes_to(&relay.url("/")).await;
    browser.write("#who", "Ana").await;
    browser.write("#token", TOKEN).await;
    browser.click("button.primary").await;
    browser.wait_for_text("#link", "Live").await;
    // Elements move until the page is complete.
    browser.wait_for_text("#audit", "No operator").await;
    browser
}

/// Confirms the page's question, with a reason.
pub(crate) async fn agrees(browser: &Browser, reason: &str) {
    browser.write("#ask-reason", reason).await;
    browser.click("#ask-yes").await;
    eventually("the question is closed", async || {
        let open = browser.runs("return document.getElementById('ask').open", &[]).await;
        (open == false).then_some(())
    })
    .await;
}

/// Sets a key of the wrong type in place of the topic's history, so that Redis refuses its events.
pub(crate) async fn block(system: &System, topic: &Topic) {
    let _: () = system.redis.connect().await.set(keys::history(topic), "in the way").await.expect("a string");
}

async fn unblock(system: &System, topic: &Topic) -> TestResult {
    let _: () = system.redis.connect().await.del(keys::history(topic)).await?;
    Ok(())
}

/// The audit, newest first, as (action, reason, events); everything in it was done by Ana.
pub(crate) async fn audit(system: &System) -> Vec<(String, String, i64)> {
    let entries = told(system, &["audit"]).await;
    let text = |value: &Value| str_of(value).to_owned();
    let entries = items_of(&entries).iter();
    entries
        .map(|entry| {
            assert!(text(&entry["who"]).starts_with("Ana as "), "{entry}");
            (text(&entry["action"]), text(&entry["reason"]), entry["events"].as_i64().expect("a number"))
        })
        .collect()
}

pub(crate) fn entry(action: &str, reason: &str, events: i64) -> (String, String, i64) {
    (action.to_owned(), reason.to_owned(), events)
}

async fn delivered(system: &System) -> usize {
    told(system, &["events", "list", "--state", "delivered", "--limit", "100000"])
        .await
        .as_array()
        .expect("a list")
        .len()
}

/// The highest point of a chart's line, from 0 (bottom) to 100.
async fn peak(browser: &Browser, chart: &str) -> f64 {
    let script = "
        const drawn = (name) => document.querySelector(`#${arguments[0]} .${name}`).getAttribute('d') ?? '';
        const line = drawn('line') + drawn('dots');
        const heights = [...line.matchAll(/[ML][\\d.]+ ([\\d.]+)/g)].map((point) => 100 - Number(point[1]));
        return Math.max(0, ...heights)";
    browser.runs(script, &[chart]).await.as_f64().expect("a number")
}

#[tokio::test]
async fn the_page_shows_deliveries_as_they_happen_and_logs_no_error() {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    assert_eq!(browser.text("#operator").await.as_deref(), Some("Ana"));
    browser.wait_for_text("#verdict", "is delivering").await;
    browser.wait_for_text("#verdict", "Nothing waits").await;
    browser.wait_for_text("#relays", "1-0").await;
    let redis = browser.wait_for_text("#neighbours", "Redis").await;
    assert!(redis.contains("answers"), "{redis}");

    let topic = system.redis.topic("live");
    eventually("the charts of rate and latency rise", async || {
        commit(&system, &topic, "A", 20).await;
        (peak(&browser, "chart-rate").await > 10.0 && peak(&browser, "chart-latency").await > 2.0)
            .then_some(())
    })
    .await;
    let label = browser.runs("return document.querySelector('#chart-rate svg').ariaLabel", &[]).await;
    assert!(str_of(&label).starts_with("Rate: "), "{label}");

    let committed = told(&system, &["events", "list", "--limit", "100000"]).await;
    let last = format!("1-{}", items_of(&committed).len());
    browser.wait_for_text("#relays", &last).await;
    assert_eq!(browser.console_errors().await, [""; 0]);
}

#[tokio::test]
async fn a_page_opened_just_now_shows_what_was_before() {
    let (system, relay) = system().await;
    eventually("something was delivered in a second that the relay has sampled", async || {
        commit(&system, &system.redis.topic("before"), "A", 20).await;
        (metric_of(&relay, "aftercommit_relay_published_total").await >= 200).then_some(())
    })
    .await;
    let browser = signed_in(&relay).await;
    eventually("the chart shows it", async || (peak(&browser, "chart-rate").await > 10.0).then_some(()))
        .await;
}

#[tokio::test]
async fn a_pause_is_asked_for_with_a_reason_shown_at_once_and_ended_from_the_page() {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    browser.wait_for_text("#verdict-button", "Pause").await;
    browser.click("#verdict-button").await;
    // Without a reason nothing happens.
    browser.click("#ask-yes").await;
    agrees(&browser, "a move").await;
    browser.wait_for_text("#verdict", "is paused").await;
    browser.wait_for_text("#verdict", "Ana paused it: a move").await;
    let mut committed = 0;
    eventually("the chart of the backlog rises", async || {
        committed += commit(&system, &system.redis.topic("paused"), "A", 1).await.len();
        (peak(&browser, "chart-backlog").await > 20.0).then_some(())
    })
    .await;
    browser.wait_for_text("#relays", "the oldest for").await;
    assert!(delivered(&system).await < committed);

    browser.click("#verdict-button").await;
    agrees(&browser, "moved").await;
    browser.wait_for_text("#verdict", "is delivering").await;
    eventually("delivered", async || (delivered(&system).await == committed).then_some(())).await;
    assert_eq!(audit(&system).await, [entry("resume", "moved", 0), entry("pause", "a move", 0)]);
    let shown = browser.wait_for_text("#audit", "a move").await;
    assert!(shown.contains("resume") && shown.contains("Ana"), "{shown}");
    assert_eq!(browser.console_errors().await, [""; 0]);
}

#[tokio::test]
async fn a_parked_topic_is_released_and_another_one_discarded() -> TestResult {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    browser.wait_for_text("#parked", "Nothing is parked").await;
    let [kept, given_up] = ["kept", "given-up"].map(|name| system.redis.topic(name));
    for topic in [&kept, &given_up] {
        block(&system, topic).await;
        commit(&system, topic, "A", 2).await;
    }
    browser.wait_for_text("#verdict", "2 topics are waiting").await;
    browser.wait_for_text("#parked", kept.as_str()).await;
    browser.wait_for_text("#parked", "WRONGTYPE").await;
    for topic in [&kept, &given_up] {
        unblock(&system, topic).await?;
    }

    browser.click(&format!("[data-topic='{kept}'] button:nth-child(1)")).await;
    let asked = browser.wait_for_text("#ask", "Release 2 events of").await;
    assert!(asked.contains(kept.as_str()), "{asked}");
    agrees(&browser, "mended").await;
    browser.wait_for_text("#told", "2 events released").await;
    eventually("released", async || (delivered(&system).await == 2).then_some(())).await;
    browser.click(&format!("[data-topic='{given_up}'] button:nth-child(2)")).await;
    browser.wait_for_text("#ask", "This cannot be undone").await;
    agrees(&browser, "a test left it there").await;
    browser.wait_for_text("#parked", "Nothing is parked").await;
    browser.wait_for_text("#verdict", "is delivering").await;

    let lengths: (u64, u64) = {
        let mut redis = system.redis.connect().await;
        let length = keys::history;
        (redis.xlen(length(&kept)).await?, redis.xlen(length(&given_up)).await?)
    };
    assert_eq!(lengths, (2, 0));
    let expected = [entry("discard", "a test left it there", 2), entry("release", "mended", 2)];
    assert_eq!(audit(&system).await, expected);
    assert_eq!(browser.console_errors().await, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn what_fails_is_said_where_it_was_asked_for() -> TestResult {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    let topic = system.redis.topic("gone");
    block(&system, &topic).await;
    commit(&system, &topic, "A", 1).await;
    browser.click(&format!("[data-topic='{topic}'] button:nth-child(2)")).await;
    // Another operator is faster.
    let mut connection = system.database.connect().await;
    sqlx::query("delete from outbox.parked").execute(&mut connection).await?;
    browser.write("#ask-reason", "a test").await;
    browser.click("#ask-yes").await;
    browser.wait_for_text("#ask-error", "Nothing of topic").await;
    browser.click("#ask-no").await;
    browser.wait_for_text("#parked", "Nothing is parked").await;
    assert_eq!(audit(&system).await, []);
    Ok(())
}

#[tokio::test]
async fn all_who_look_share_one_connection_and_while_nobody_looks_there_is_none() -> TestResult {
    let (system, relay) = system().await;
    let mut connection = system.database.connect().await;
    let mut connections = async || -> Vec<String> {
        sqlx::query_scalar(
            "select application_name from pg_stat_activity
             where datname = current_database() and application_name like 'aftercommit console%'",
        )
        .fetch_all(&mut connection)
        .await
        .expect("sessions")
    };
    assert_eq!(connections().await, [""; 0]);
    let mut pages = Vec::new();
    for _ in 0..3 {
        let request = system.http().get(relay.url("/console/events")).bearer_auth(TOKEN);
        let mut page = request.send().await?;
        let mut seen = String::new();
        while !seen.contains("event: status") {
            seen += &String::from_utf8_lossy(&page.chunk().await?.ok_or("the stream ended")?);
        }
        pages.push(page);
    }
    assert_eq!(connections().await, ["aftercommit console feed"]);
    drop(pages);
    eventually("it is closed", async || connections().await.is_empty().then_some(())).await;
    Ok(())
}

#[tokio::test]
async fn a_log_that_cannot_be_seen_is_the_verdict_until_it_can() -> TestResult {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    browser.wait_for_text("#verdict", "is delivering").await;
    // From another database: a session cannot close its own.
    let elsewhere = empty_database().await;
    let mut server = elsewhere.connect().await;
    let allow = |allowed: bool| {
        let sql = format!("alter database {} allow_connections {allowed}", system.database.name());
        sqlx::raw_sql(AssertSqlSafe(sql))
    };
    allow(false).execute(&mut server).await?;
    sqlx::query(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1
         and application_name like $2",
    )
    .bind(system.database.name())
    .bind("aftercommit console%")
    .execute(&mut server)
    .await?;
    browser.wait_for_text("#verdict", "cannot see the log").await;
    browser.wait_for_text("#relays", "Position").await;
    allow(true).execute(&mut server).await?;
    browser.wait_for_text("#verdict", "is delivering").await;
    Ok(())
}

#[tokio::test]
async fn the_page_is_used_without_a_mouse() {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    browser.wait_for_text("#verdict-button", "Pause").await;
    // From the beginning of the page: the sign-out, then the pause.
    browser.press("Tab").await;
    browser.press("Tab").await;
    let focused = browser.runs("return document.activeElement.ariaLabel", &[]).await;
    assert_eq!(focused, format!("Pause relay {}", system.redis.relay_name()));
    browser.press("Enter").await;
    browser.wait_for_text("#ask-title", "Pause relay").await;
    browser.write("#ask-reason", "by hand").await;
    browser.press("Enter").await;
    browser.wait_for_text("#verdict", "Ana paused it: by hand").await;
    eventually("the focus comes back", async || {
        let focused = browser.runs("return document.activeElement.id", &[]).await;
        (focused == "verdict-button").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replay_is_looked_at_first_then_confirmed_then_followed_to_its_end() -> TestResult {
    let (system, relay) = system().await;
    let topic = system.redis.topic("again");
    commit(&system, &topic, "A", 7).await;
    commit(&system, &topic, "B", 5).await;
    commit(&system, &system.redis.topic("other"), "A", 3).await;
    eventually("delivered", async || (delivered(&system).await == 15).then_some(())).await;
    let browser = signed_in(&relay).await;
    browser.click("#replay-fold summary").await;
    browser.click("#replay-look").await;
    browser.wait_for_text("#replay-found", "Say which events").await;
    browser.write("#replay-topic", topic.as_str()).await;
    browser.write("#replay-type", "A").await;
    browser.click("#replay-look").await;
    let found = browser.wait_for_text("#replay-found", "7 events would be delivered once more").await;
    assert_eq!(found.matches(topic.as_str()).count(), 5, "a sample: {found}");
    assert_eq!((delivered(&system).await, audit(&system).await.len()), (15, 0), "a look changes nothing");

    // Another selection has to be looked at anew.
    browser.write("#replay-type", "B").await;
    let is_off = browser.runs("return document.getElementById('replay-run').disabled", &[]).await;
    assert_eq!(is_off, true);
    browser.runs("document.getElementById('replay-type').value = 'B'", &[]).await;
    browser.click("#replay-look").await;
    browser.wait_for_text("#replay-run", "Replay 5 events").await;
    browser.click("#replay-run").await;
    agrees(&browser, "a client's bug").await;
    browser.wait_for_text("#replays", "done: 5 events").await;
    eventually("replayed", async || (delivered(&system).await == 20).then_some(())).await;
    assert_eq!(audit(&system).await, [entry("replay", "a client's bug", 5)]);
    let length: u64 = system.redis.connect().await.xlen(keys::history(&topic)).await?;
    assert_eq!(length, 17);
    assert_eq!(browser.console_errors().await, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_replay_keeps_to_the_rate_that_the_page_was_given_and_shows_how_far_it_is() -> TestResult {
    let (system, relay) = system().await;
    let topic = system.redis.topic("slowly");
    commit(&system, &topic, "A", 90).await;
    eventually("delivered", async || (delivered(&system).await == 90).then_some(())).await;
    let browser = signed_in(&relay).await;
    browser.click("#replay-fold summary").await;
    browser.write("#replay-topic", topic.as_str()).await;
    browser.rewrite("#replay-rate", "0").await;
    browser.click("#replay-look").await;
    browser.wait_for_text("#replay-found", "1 to 100,000").await;
    browser.rewrite("#replay-rate", "10").await;
    browser.click("#replay-look").await;
    browser.wait_for_text("#replay-run", "Replay 90 events").await;
    browser.click("#replay-run").await;
    browser.wait_for_text("#ask", "At most 10 events a second: 9 s or longer").await;
    agrees(&browser, "gently").await;
    // Both in one look, as it is gone when the replay is done.
    let progress = "const shown = document.querySelector('#replays');
                    return shown.innerText.includes('/s, ') ? shown.querySelector('progress').value : 0";
    eventually("it shows its speed and how far it is", async || {
        let shown = browser.runs(progress, &[]).await.as_f64().expect("a number");
        (1.0..90.0).contains(&shown).then_some(())
    })
    .await;
    browser.wait_for_text("#replays", "done: 90 events").await;
    let bars = browser.runs("return document.querySelectorAll('#replays progress').length", &[]).await;
    assert_eq!(bars, 0, "a finished replay has no bar");
    let took: f64 = sqlx::query_scalar(
        "select extract(epoch from moved_at - started_at)::float8 from outbox.replay where finished",
    )
    .fetch_one(&mut system.database.connect().await)
    .await?;
    assert!(took >= 8.5, "90 events at 10/s took {took} s");
    assert_eq!(browser.console_errors().await, [""; 0]);

    let body = serde_json::json!({
        "relay": system.redis.relay_name(), "selection": { "topic": topic }, "rate": 0, "reason": "x",
    });
    let request = system.http().post(relay.url("/console/replay")).bearer_auth(TOKEN).json(&body);
    let answer = request.send().await?;
    assert_eq!(answer.status(), 400);
    assert!(answer.text().await?.contains("1 to 100000 events a second"));
    Ok(())
}

#[tokio::test]
async fn a_page_that_loses_the_relay_says_so_and_asks_to_sign_in_at_the_next_one() {
    let (mut system, relay) = system().await;
    let browser = signed_in(&relay).await;
    let address = relay.address.clone();
    relay.kill().await;
    browser.wait_for_text("#link", "Connection lost").await;
    browser.wait_for_text("#lost", "this is how it was").await;
    system.set_again("AFTERCOMMIT_RELAY_LISTEN", &address);
    let _relay = system.start("relay").await;
    browser.wait_for_text("h1", "Sign in").await;
}
