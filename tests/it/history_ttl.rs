//! The time for which histories are kept, made longer: what was seen before proves less than it seems to.

use std::time::Duration;

use redis::AsyncCommands;
use uuid::Uuid;

use crate::harness::{Client, Line, TestResult, Wiring, eventually, keys};

/// Longer than clocks may differ, so that a place is not too old at once.
const SHORT: Duration = Duration::from_secs(63);
const TTL: &str = "AFTERCOMMIT_REDIS_HISTORY_TTL_SECONDS";

fn seen_ago(ms: i64) -> String {
    format!("0-{}", chrono::Utc::now().timestamp_millis() - ms)
}

/// Lets the topic's history expire as it would by itself: with a minute left for the key beside it.
async fn expire(line: &Line) -> TestResult {
    let (history, begun) = (keys::history(&line.topic), line.system.redis.keys().begun(&line.topic));
    let mut redis = line.redis().await;
    let _: bool = redis.pexpire(&begun, 59_000).await?;
    let _: bool = redis.pexpire(&history, 1).await?;
    eventually("the history has expired", async || {
        let exists: bool = line.redis().await.exists(&history).await.expect("an answer");
        (!exists).then_some(())
    })
    .await;
    Ok(())
}

/// The topic's event has come and expired since the client was there. With the longer time alone, the place
/// would prove that there was none.
#[tokio::test]
async fn a_place_from_before_histories_were_kept_for_longer_is_a_reset() -> TestResult {
    let relay = vec![(TTL, SHORT.as_secs().to_string())];
    let mut line = Line::with(Wiring { relay, ..Wiring::default() }).await;
    let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &[line.topic.as_str()]);
    // A client was there a moment longer ago than histories are kept, and one just now.
    let [before, just_now] = [SHORT.as_millis(), 0].map(|ms| seen_ago(ms.try_into().expect("a minute")));
    line.append(1).await;
    line.wait_until_whole().await;
    expire(&line).await?;
    line.system.set_again(TTL, "86400");
    for relay_knows_too in [false, true] {
        if relay_knows_too {
            line.relay.signal("KILL").await;
            line.relay = line.system.start("relay").await;
            let other = line.system.redis.topic("other");
            line.append_to(&other, 1).await;
            eventually("it arrives", async || (line.history_of(&other).await.len() == 1).then_some(())).await;
        }
        let sse = line.system.start("sse").await;
        let url = sse.url(&format!("/streams/{}", line.topic));
        let events = Client::resume(&url, &token, &before).wait_for_events(1).await;
        assert_eq!(events[0].event, "reset", "the relay knows too: {relay_knows_too}");
        let client = Client::resume(&url, &token, &just_now);
        client.wait_until_placed().await;
        assert!(client.so_far().is_empty(), "{:?}", client.so_far());
    }
    // The history begins anew, and its first event names none before it.
    line.append(1).await;
    let sse = line.system.start("sse").await;
    let url = sse.url(&format!("/streams/{}", line.topic));
    let events = Client::resume(&url, &token, &before).wait_for_events(1).await;
    assert_eq!(events[0].event, "reset");
    Ok(())
}
