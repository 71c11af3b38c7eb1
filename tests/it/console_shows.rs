//! How the operator's page shows its contents: what can be told apart, what can be seen, and nothing twice.

use secrecy::ExposeSecret;
use uuid::Uuid;

use aftercommit::event::Topic;

use crate::commands::commit;
use crate::console::{TOKEN, block, signed_in, system};
use crate::harness::{Client, System, TestResult, eventually, items_of, start_redis, str_of};

/// The page asks the SSE server at `sse.listen` for its streams.
#[tokio::test]
async fn the_page_counts_the_streams_of_the_sse_server_and_those_that_it_refused() -> TestResult {
    let mut system = System::new()
        .await
        .set("AFTERCOMMIT_OPERATOR_TOKEN", TOKEN)
        .set("AFTERCOMMIT_SSE_MAX_CONNECTIONS", "1");
    let sse = system.start("sse").await;
    system.set_again("AFTERCOMMIT_SSE_LISTEN", &sse.address);
    let relay = system.start("relay").await;
    let browser = signed_in(&relay).await;
    browser.wait_for_text("#streams-open", "0 of 1 stream, 0 topics").await;
    assert_eq!(browser.text("#streams-refused").await.as_deref(), Some("none"));
    assert_eq!(browser.text("#streams-slow").await.as_deref(), Some("none cut off"));

    let (token, path) = (system.token(Uuid::new_v4()), "/api/upload/sessions/notifications/stream");
    let _first = Client::open(&sse.url(path), &token).await;
    let second = system.http().get(sse.url(path)).bearer_auth(&token).send().await?;
    assert!(second.text().await?.contains("refused"));
    browser.wait_for_text("#streams-open", "1 of 1 stream, 1 topic").await;
    browser.wait_for_text("#streams-refused", "1: 1 for the server was full").await;

    sse.kill().await;
    browser.wait_for_text("#neighbours", "DOWN").await;
    let is_hidden = browser.runs("return document.getElementById('streams').hidden", &[]).await;
    assert_eq!(is_hidden, true);
    assert_eq!(browser.console_errors().await, [""; 0]);
    Ok(())
}

/// While Redis is away, the relay, the probe of Redis and the SSE server all report it.
#[tokio::test]
async fn an_error_that_every_part_reports_stands_on_the_page_once() -> TestResult {
    let redis = start_redis(Vec::new(), None).await;
    let system = System::with_redis(redis.url().expose_secret()).await;
    let mut system = system.set("AFTERCOMMIT_OPERATOR_TOKEN", TOKEN);
    let sse = system.start("sse").await;
    system.set_again("AFTERCOMMIT_SSE_LISTEN", &sse.address);
    let relay = system.start("relay").await;
    let browser = signed_in(&relay).await;
    browser.wait_for_text("#verdict", "is delivering").await;
    redis.stop().await?;
    commit(&system, &Topic::new("order:1")?, "A", 1).await;
    browser.wait_for_text("#neighbours", "DOWN").await;
    eventually("the error stands there once", async || {
        let text = browser.text("#main").await?;
        let refers = text.contains("see above") || text.contains("see Redis");
        (refers && text.matches("cannot connect to Redis").count() == 1).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_discard_looks_unlike_a_release_and_each_sample_can_be_seen() -> TestResult {
    let (system, relay) = system().await;
    let browser = signed_in(&relay).await;
    let topic = system.redis.topic("refused");
    block(&system, &topic).await;
    commit(&system, &topic, "A", 1).await;
    browser.wait_for_text("#parked", "WRONGTYPE").await;
    let styles = "
        const of = (n) => getComputedStyle(document.querySelector(`#parked .buttons button:nth-child(${n})`));
        return [1, 2].map((n) => `${of(n).color} ${of(n).backgroundColor} ${of(n).borderTopColor}`)";
    let styles = browser.runs(styles, &[]).await;
    assert_ne!(styles[0], styles[1], "{styles}");
    // The newest sample of each chart is a dot, wide enough for an eye.
    let widths = "return [...document.querySelectorAll('.chart .dot, .chart .dots')]
                    .map((dot) => parseFloat(getComputedStyle(dot).strokeWidth))";
    let widths = browser.runs(widths, &[]).await;
    assert!(
        items_of(&widths).iter().all(|width| width.as_f64().is_some_and(|width| width >= 4.0)),
        "{widths}"
    );
    let dot = browser.runs("return document.querySelector('#chart-rate .dot').getAttribute('d')", &[]).await;
    assert!(str_of(&dot).starts_with('M'), "{dot}");
    Ok(())
}
