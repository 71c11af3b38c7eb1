//! Unmodified clients: the EventSource of a real browser, and a library.

use std::time::{Duration, Instant};

use eventsource_client::{Client as _, ClientBuilder, ReconnectOptions, SSE};
use futures_util::TryStreamExt;
use launchdarkly_sdk_transport::HyperTransport;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{
    Browser, Feed, LIMIT, NOTIFICATIONS, Process, SeenEvent, System, TestResult, eventually,
    origin_with_a_page, str_of,
};

/// The browser reconnects after 200 to 400 ms.
async fn quick() -> System {
    System::new().await.set("AFTERCOMMIT_SSE_RETRY_MS", "200")
}

async fn ticket(feed: &Feed, sse: &Process) -> TestResult<String> {
    let asking = feed.system.http().post(sse.url("/api/stream-tickets")).bearer_auth(feed.token());
    let topic = json!({ "topic": feed.topic().as_str() });
    let answer: Value = asking.json(&topic).send().await?.json().await?;
    Ok(str_of(&answer["ticket"]).to_owned())
}

/// Has a browser come from the server's own origin, with the token in a cookie, and listen.
async fn listens_with_a_cookie(browser: &Browser, sse: &Process, token: &str) {
    browser.goes_to(&sse.url("/api/realtime/info")).await;
    browser.set_cookie("aftercommit_token", token).await;
    assert_eq!(browser.runs("return document.cookie", &[]).await, "", "no script can read it");
    browser.listens_to(NOTIFICATIONS).await;
    browser.wait_until_seen("its stream open", |seen| seen.opens == 1).await;
}

/// The server is killed twice, and another one takes its place, while events go on.
async fn outlives_killed_servers(browser: &Browser, feed: &Feed, mut sse: Process) -> TestResult<Process> {
    let stop = CancellationToken::new();
    let committing = feed.keep_committing(stop.clone());
    for round in 1..=2 {
        let before = browser.seen().await.events.len();
        browser.wait_until_seen("events", |seen| seen.events.len() >= before + 20).await;
        sse = feed.replaced(sse).await;
        browser.wait_until_seen("its stream open again", |seen| seen.opens == round + 1).await;
    }
    let before = browser.seen().await.events.len();
    browser.wait_until_seen("more events", |seen| seen.events.len() >= before + 20).await;
    stop.cancel();
    let count = committing.await?;
    let seen = browser.wait_until_seen("all events", |seen| seen.events.len() as u64 >= count).await;
    assert!(seen.errors >= 2, "it did lose its connection: {}", seen.errors);
    assert_eq!(seen.events, (0..count).map(notification).collect::<Vec<_>>());
    Ok(sse)
}

fn notification(n: u64) -> SeenEvent {
    SeenEvent { name: "notification".to_owned(), id: format!("1-{}", n + 1), data: n.to_string() }
}

#[tokio::test]
async fn a_page_of_another_site_with_a_ticket_gets_every_event_once_across_killed_servers() -> TestResult {
    let origin = origin_with_a_page().await;
    let feed = Feed::with(quick().await.set("AFTERCOMMIT_SSE_CORS_ORIGINS", &origin)).await;
    let sse = feed.sse().await;
    let browser = Browser::start().await;
    browser.goes_to(&origin).await;
    let url = sse.url(&format!("{NOTIFICATIONS}?ticket={}", ticket(&feed, &sse).await?));
    browser.listens_to(&url).await;
    browser.wait_until_seen("its stream open", |seen| seen.opens == 1).await;
    let _sse = outlives_killed_servers(&browser, &feed, sse).await?;

    // A page of a site that is not listed learns nothing: the browser itself refuses.
    browser.goes_to(&origin_with_a_page().await).await;
    browser.listens_to(&url).await;
    let seen = browser.wait_until_seen("a refusal", |seen| seen.ready_state == 2).await;
    assert_eq!((seen.opens, seen.events.len()), (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_page_with_a_cookie_gets_every_event_once_across_killed_servers() -> TestResult {
    let feed = Feed::with(quick().await).await;
    let sse = feed.sse().await;
    let browser = Browser::start().await;
    listens_with_a_cookie(&browser, &sse, &feed.token()).await;
    outlives_killed_servers(&browser, &feed, sse).await?;
    Ok(())
}

#[tokio::test]
async fn a_page_that_is_refused_comes_back_by_itself_and_gets_in() {
    let feed = Feed::with(quick().await.set("AFTERCOMMIT_SSE_MAX_CONNECTIONS", "1")).await;
    let sse = feed.sse().await;
    let first = feed.client(&sse).await;
    let browser = Browser::start().await;
    listens_with_a_cookie(&browser, &sse, &feed.token()).await;
    let seen = browser.wait_until_seen("two refusals", |seen| seen.errors >= 2).await;
    assert_ne!(seen.ready_state, 2, "it has not given up");
    drop(first);
    // An event that comes before the page is in would not be its own.
    eventually("the page has its place", async || {
        let opens = browser.seen().await.opens;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let seen = browser.seen().await;
        (seen.opens == opens && seen.ready_state == 1).then_some(())
    })
    .await;
    feed.commit(0..3).await;
    let seen = browser.wait_until_seen("three events", |seen| seen.events.len() == 3).await;
    assert_eq!(seen.events, (0..3).map(notification).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_page_is_told_of_a_reset_and_of_its_tokens_end() -> TestResult {
    // Shorter than the token lives.
    let feed = Feed::with(quick().await.set("AFTERCOMMIT_SSE_REPAIR_WAIT_MS", "500")).await;
    let sse = feed.sse().await;
    feed.commit(0..2).await;
    let first = feed.client(&sse).await;
    eventually("both events", async || (first.last_event_id() == "1-2").then_some(())).await;
    let browser = Browser::start().await;
    browser.goes_to(&sse.url("/api/realtime/info")).await;
    let token = feed.system.token_for(feed.user, Duration::from_secs(4));
    browser.set_cookie("aftercommit_token", &token).await;
    browser.listens_to(&format!("{NOTIFICATIONS}?lastEventId=9-1")).await;
    let seen = browser.wait_until_seen("a reset", |seen| !seen.events.is_empty()).await;
    assert_eq!((seen.events[0].name.as_str(), seen.events[0].id.as_str()), ("reset", "1-2"));
    let data: Value = serde_json::from_str(&seen.events[0].data)?;
    assert_eq!((data["reason"].as_str(), data["id"].as_str()), (Some("unknown_id"), Some("1-2")));
    // Told before the stream ends, so that the page can renew its token. Without that the browser gets in
    // once more at most, in the token's last second, and then gives up.
    let seen = browser.wait_until_seen("the end of its stream", |seen| seen.ready_state == 2).await;
    let names: Vec<&str> = seen.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names[..2], ["reset", "token_expired"]);
    assert_eq!(seen.events[1].id, "1-2", "where to go on with a new token");
    Ok(())
}

#[tokio::test]
async fn a_client_library_of_somebody_elses_continues_after_the_server_is_killed() -> TestResult {
    let feed = Feed::with(quick().await).await;
    let mut sse = feed.sse().await;
    let again = ReconnectOptions::reconnect(true).retry_initial(true).delay(Duration::from_millis(100));
    let client = ClientBuilder::for_url(&sse.url(NOTIFICATIONS))?
        .header("authorization", &format!("Bearer {}", feed.token()))?
        .reconnect(again.build())
        .build_with_transport(HyperTransport::builder().build_http()?);
    let mut stream = client.stream();
    let mut connections = 0;
    let mut numbers: Vec<u64> = Vec::new();
    let mut kills = [20, 40].into_iter().peekable();
    let stop = CancellationToken::new();
    let mut committing = None;
    let mut count = u64::MAX;
    let deadline = Instant::now() + 2 * LIMIT;
    while (numbers.len() as u64) < count {
        assert!(Instant::now() < deadline, "{} of {count} events: {numbers:?}", numbers.len());
        // An error is the connection's; the library goes on by itself.
        let next = tokio::time::timeout(LIMIT, stream.try_next()).await?;
        match next {
            Ok(Some(SSE::Connected(_))) => connections += 1,
            Ok(Some(SSE::Event(event))) => {
                assert_eq!(event.event_type, "notification");
                numbers.push(event.data.parse()?);
            }
            Ok(Some(SSE::Comment(_)) | None) | Err(_) => {}
        }
        if connections == 1 && committing.is_none() {
            committing = Some(feed.keep_committing(stop.clone()));
        }
        if kills.next_if(|at| numbers.len() >= *at).is_some() {
            sse = feed.replaced(sse).await;
        }
        if numbers.len() == 80 && count == u64::MAX {
            stop.cancel();
            count = committing.take().ok_or("already awaited")?.await?;
            committing = Some(tokio::spawn(async { 0 }));
        }
    }
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    assert_eq!(connections, 3, "one, and one after each kill");
    Ok(())
}
