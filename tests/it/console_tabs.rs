//! Changes that an operator requests on the page: they work with many tabs open, they happen in time or not
//! at all, and never after the operator has cancelled them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::commands::{commit, json as told};
use crate::console::{TOKEN, agrees, audit, block, entry, signed_in, system};
use crate::harness::{Browser, Process, System, TestResult, eventually};

/// Asks for a pause on the page, and presses the button that does it.
async fn asks_for_a_pause(browser: &Browser, reason: &str) {
    browser.wait_for_text("#verdict-button", "Pause").await;
    browser.click("#verdict-button").await;
    browser.write("#ask-reason", reason).await;
    browser.click("#ask-yes").await;
    eventually("it is under way", async || {
        let busy = browser.runs("return document.getElementById('ask-yes').disabled", &[]).await;
        (busy == true).then_some(())
    })
    .await;
}

/// Thaws the relay and waits until it has worked off the requests of its frozen time: it answers a later one.
async fn thaws(system: &System, relay: &Process, browser: &Browser) -> TestResult {
    relay.signal("CONT").await;
    let body = json!({ "relay": system.redis.relay_name(), "reason": "behind" });
    let behind = system.http().post(relay.url("/console/resume")).bearer_auth(TOKEN).json(&body).send().await;
    assert!(behind?.text().await?.contains("is not paused"));
    browser.wait_for_text("#link", "Live").await;
    Ok(())
}

async fn is_paused(system: &System) -> bool {
    !told(system, &["status"]).await["relays"][0]["paused"].is_null()
}

#[tokio::test]
async fn with_eight_tabs_open_a_pause_works_at_once_and_when_one_is_closed_the_others_go_on() {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    let mut tabs = Vec::new();
    for _ in 0..7 {
        tabs.push(browser.opens_a_tab(&relay.url("/console")).await);
        browser.wait_for_text("#link", "Live").await;
        browser.wait_for_text("#verdict", "is delivering").await;
    }
    let began = std::time::Instant::now();
    browser.click("#verdict-button").await;
    agrees(&browser, "a move").await;
    browser.wait_for_text("#verdict", "Ana paused it: a move").await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    // In another tab it is to be seen as well.
    browser.goes_on_in(&tabs[2]).await;
    browser.wait_for_text("#verdict", "Ana paused it: a move").await;
    // Those that are opened later show what was before; those that had the stream and leave are followed by
    // others.
    for tab in [&tabs[0], &tabs[1], &tabs[6]] {
        browser.goes_on_in(tab).await;
        browser.goes_to("about:blank").await;
    }
    browser.goes_on_in(&tabs[3]).await;
    browser.click("#verdict-button").await;
    agrees(&browser, "moved").await;
    for tab in [&tabs[3], &tabs[4], &tabs[5]] {
        browser.goes_on_in(tab).await;
        browser.wait_for_text("#verdict", "is delivering").await;
        browser.wait_for_text("#link", "Live").await;
    }
    assert_eq!(audit(&system).await, [entry("resume", "moved", 0), entry("pause", "a move", 0)]);
}

#[tokio::test]
async fn a_pause_that_was_called_off_while_the_relay_was_frozen_does_not_happen_later() -> TestResult {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    relay.signal("STOP").await;
    asks_for_a_pause(&browser, "a move").await;
    browser.click("#ask-no").await;
    browser.wait_for_text("#told", "may have been carried out already").await;
    thaws(&system, &relay, &browser).await?;
    assert!(!is_paused(&system).await);
    assert_eq!(audit(&system).await, []);
    Ok(())
}

#[tokio::test]
async fn a_discard_that_nobody_answered_in_time_is_told_as_such_and_does_not_happen_later() -> TestResult {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    let topic = system.redis.topic("dear");
    block(&system, &topic).await;
    commit(&system, &topic, "A", 2).await;
    let discard = format!("[data-topic='{topic}'] button:nth-child(2)");
    browser.wait_for_text("#parked", "1-1 to 1-2").await;
    browser.click(&discard).await;
    browser.write("#ask-reason", "a mistake").await;
    relay.signal("STOP").await;
    browser.click("#ask-yes").await;
    let text = browser.wait_for_text("#ask-error", "did not answer within 10 s").await;
    assert!(text.contains("it may have been carried out"), "{text}");
    browser.click("#ask-no").await;
    thaws(&system, &relay, &browser).await?;
    let parked = told(&system, &["parked", "list"]).await;
    assert_eq!((&parked[0]["events"], &parked[0]["requested"]), (&2.into(), &Value::Null), "{parked}");
    assert_eq!(audit(&system).await, []);
    Ok(())
}

/// Asks for a pause as a script, with more headers; returns the status and what is said.
async fn pause(system: &System, relay: &Process, before: Option<i64>) -> TestResult<(u16, String)> {
    let body = json!({ "relay": system.redis.relay_name(), "reason": "by script" });
    let mut request = system.http().post(relay.url("/console/pause")).bearer_auth(TOKEN).json(&body);
    if let Some(before) = before {
        request = request.header("aftercommit-before", before.to_string());
    }
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

#[tokio::test]
async fn a_change_is_not_carried_out_past_its_time_nor_behind_a_lock() -> TestResult {
    let (system, relay) = system().await;
    let now = chrono::Utc::now().timestamp_millis();
    let (status, says) = pause(&system, &relay, Some(now - 1)).await?;
    assert_eq!(status, 409, "{says}");
    assert!(says.contains("was not carried out"), "{says}");

    let mut connection = system.database.connect().await;
    sqlx::raw_sql("begin; lock table outbox.pause in access exclusive mode").execute(&mut connection).await?;
    let began = std::time::Instant::now();
    let (status, says) = pause(&system, &relay, None).await?;
    assert_eq!(status, 503, "{says}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    sqlx::raw_sql("rollback").execute(&mut connection).await?;
    assert!(!is_paused(&system).await);

    let (status, says) = pause(&system, &relay, Some(chrono::Utc::now().timestamp_millis() + 5000)).await?;
    assert_eq!(status, 200, "{says}");
    assert!(is_paused(&system).await);
    Ok(())
}

/// An operator's decision does not cover events that were parked after it.
#[tokio::test]
async fn a_script_names_what_it_means_by_the_last_id() {
    let (system, relay) = system().await;
    let topic = system.redis.topic("named");
    block(&system, &topic).await;
    commit(&system, &topic, "A", 2).await;
    eventually("parked", async || (told(&system, &["parked", "list"]).await[0]["events"] == 2).then_some(()))
        .await;
    let asked = async |through: &str| {
        let body =
            json!({ "relay": system.redis.relay_name(), "topic": topic, "reason": "x", "through": through });
        let request = system.http().post(relay.url("/console/parked/release")).bearer_auth(TOKEN).json(&body);
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    };
    assert_eq!(asked("last").await.0, 400);
    assert_eq!(asked("1-0").await.0, 404, "nothing is parked up to it");
    let (status, says) = asked("1-2").await;
    assert!(status == 200 && says.contains("2 events refused again: "), "{says}");
}
