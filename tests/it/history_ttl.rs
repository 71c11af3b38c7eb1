//! The time for which histories are kept, made longer: what was seen before proves less than it seems to.

use std::time::Duration;

use redis::AsyncCommands;
use uuid::Uuid;

use crate::harness::{Client, Line, TestResult, Wiring, eventually, keys};

const TTL: &str = "AFTERCOMMIT_REDIS_HISTORY_TTL_SECONDS";

fn seen_now() -> String {
    format!("0-{}", chrono::Utc::now().timestamp_millis())
}

/// The topic's event has come and expired since the client was there. With the longer time alone, the place would
/// prove that there was none.
#[tokio::test]
async fn a_place_from_before_histories_were_kept_for_longer_is_a_reset() -> TestResult {
    let mut line = Line::with(Wiring { relay: vec![(TTL, "2".to_owned())], ..Wiring::default() }).await;
    let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &[line.topic.as_str()]);
    let before = seen_now();
    line.append(1).await;
    line.wait_until_whole().await;
    let history = keys::history(&line.topic);
    eventually("the history has expired", async || {
        let exists: bool = line.redis().await.exists(&history).await.expect("an answer");
        (!exists).then_some(())
    })
    .await;
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
        if relay_knows_too {
            let client = Client::resume(&url, &token, &seen_now());
            client.wait_until_placed().await;
            assert!(client.so_far().is_empty(), "{:?}", client.so_far());
        }
    }
    Ok(())
}
