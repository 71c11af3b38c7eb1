//! A client is ahead of Redis: the relay restores Redis, and the client goes on.

use std::time::Duration;

use redis::AsyncCommands;
use uuid::Uuid;

use crate::harness::{Client, Event, Line, Process, TestResult, eventually, keys, start_redis};
use crate::relay_repair::{replica_of, tell, wait_until_replica_has};

/// A client with all of twenty events connects to a server that has seen none, while Redis is empty and the
/// relay, which would restore it, is stopped.
struct Stage {
    line: Line,
    _sse: Process,
    client: Client,
}

impl Stage {
    async fn new(repair_wait_ms: &str) -> Self {
        let mut line = Line::new().await;
        line.append(20).await;
        line.wait_until_whole().await;
        line.relay.signal("STOP").await;
        let fresh = start_redis(Vec::new(), None).await;
        line.replace_redis(fresh).await;
        let settings = line.system.settings().clone().set("AFTERCOMMIT_SSE_REPAIR_WAIT_MS", repair_wait_ms);
        let sse = Process::start("sse", &settings).await;
        let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &[line.topic.as_str()]);
        let client = Client::resume(&sse.url(&format!("/streams/{}", line.topic)), &token, "1-20");
        Self { line, _sse: sse, client }
    }
}

fn numbers(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.data.parse().unwrap_or_else(|_| panic!("{event:?}"))).collect()
}

#[tokio::test]
async fn a_client_that_is_ahead_of_a_redis_that_forgot_goes_on_when_the_relay_has_repaired_it() {
    let mut stage = Stage::new("15000").await;
    stage.client.wait_for_connections(1).await;
    stage.line.relay.signal("CONT").await;
    stage.line.append(3).await;
    assert_eq!(numbers(&stage.client.wait_for_events(3).await), [0, 1, 2]);
    stage.client.wait_for_connections(1).await;
    assert_eq!(stage.client.last_event_id(), "1-23");
}

#[tokio::test]
async fn where_the_repair_does_not_come_in_time_the_client_is_reset() {
    let stage = Stage::new("100").await;
    let events = stage.client.wait_for_events(1).await;
    assert_eq!(events[0].event, "reset");
    assert!(events[0].data.contains("unknown_id"), "{events:?}");
}

#[tokio::test]
async fn a_client_from_before_the_first_event_is_not_taken_to_the_end_of_a_redis_that_forgot() {
    let mut line = Line::new().await;
    let settings = line.system.settings().clone();
    let settings =
        settings.set("AFTERCOMMIT_SSE_REPAIR_WAIT_MS", "100").set("AFTERCOMMIT_SSE_RECENT_EVENTS", "4");
    let sse = Process::start("sse", &settings).await;
    let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &[line.topic.as_str()]);
    let url = sse.url(&format!("/streams/{}", line.topic));
    let client = Client::open(&url, &token).await;
    let before_the_first = client.last_event_id();
    assert!(before_the_first.starts_with("0-"), "{before_the_first}");
    line.append(20).await;
    client.wait_for_events(20).await;
    line.relay.signal("STOP").await;
    let fresh = start_redis(Vec::new(), None).await;
    line.replace_redis(fresh).await;
    let events = Client::resume(&url, &token, &before_the_first).wait_for_events(1).await;
    assert_eq!(events[0].event, "reset", "{events:?}");
    assert!(events[0].data.contains("history_gone"), "{events:?}");
}

/// The server knows that there were more events, but has only those in memory.
#[tokio::test]
async fn a_client_further_back_than_memory_is_reset_where_the_history_is_gone() -> TestResult {
    let mut line = Line::new().await;
    let settings = line.system.settings().clone().set("AFTERCOMMIT_SSE_VERIFY_SECONDS", "3600");
    let settings =
        settings.set("AFTERCOMMIT_SSE_REPAIR_WAIT_MS", "100").set("AFTERCOMMIT_SSE_RECENT_EVENTS", "4");
    let sse = Process::start("sse", &settings).await;
    let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &[line.topic.as_str()]);
    let url = sse.url(&format!("/streams/{}", line.topic));
    let client = Client::open(&url, &token).await;
    line.append(20).await;
    client.wait_for_events(20).await;
    line.words(&["del", &keys::history(&line.topic)]).await?;
    let events = Client::resume(&url, &token, "1-5").wait_for_events(1).await;
    assert_eq!(events[0].event, "reset", "{events:?}");
    assert!(events[0].data.contains("history_gone"), "{events:?}");
    let events = Client::resume(&url, &token, "1-17").wait_for_events(3).await;
    assert_eq!(numbers(&events), [17, 18, 19], "what memory has is told");
    Ok(())
}

/// The client's new server has missed a message, and detects that at once.
#[tokio::test]
async fn a_client_that_is_ahead_of_its_server_alone_goes_on() -> TestResult {
    let mut line = Line::new().await;
    let settings = line.system.settings().clone().set("AFTERCOMMIT_SSE_VERIFY_SECONDS", "3600");
    let sse = Process::start("sse", &settings.set("AFTERCOMMIT_SSE_REPAIR_WAIT_MS", "100")).await;
    let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &[line.topic.as_str()]);
    let url = sse.url(&format!("/streams/{}", line.topic));
    let client = Client::open(&url, &token).await;
    line.append(1).await;
    client.wait_for_events(1).await;
    line.wait_until_whole().await;
    line.relay.signal("STOP").await;
    let event = Uuid::new_v4().to_string();
    let fields = [("event", event.as_str()), ("type", "T"), ("payload", "\"missed\""), ("prev", "1-1")];
    let history = keys::history(&line.topic);
    let _: String = line.redis().await.xadd(&history, "1-2", &fields).await?;
    let ahead = Client::resume(&url, &token, "1-2");
    assert_eq!(client.wait_for_events(2).await[1].data, "\"missed\"");
    wait_until_subscribed(&line, "\"later\"").await;
    assert_eq!(ahead.wait_for_events(1).await[0].data, "\"later\"", "it is not reset");
    Ok(())
}

/// The topic is at the end of its history before and after the loss: comparing the two cannot detect it.
#[tokio::test]
async fn a_quiet_topic_is_reset_when_a_repair_had_to_leave_out_what_it_has_not_heard() -> TestResult {
    let mut line = Line::new().await;
    let sse = line.system.start("sse").await;
    let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &[line.topic.as_str()]);
    let client = Client::open(&sse.url(&format!("/streams/{}", line.topic)), &token).await;
    line.append(5).await;
    client.wait_for_events(5).await;
    line.wait_until_whole().await;
    let replica = replica_of(&line).await?;
    wait_until_replica_has(&replica, 5, &line.topic).await;
    tell(&replica, &["replicaof", "no", "one"]).await;
    // The next events reach no server and no replica, and the log loses their checkpoints.
    sse.signal("STOP").await;
    line.command("client kill type pubsub").await?;
    line.append(3).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    sqlx::query("delete from outbox.checkpoint where n < (select max(n) from outbox.checkpoint)")
        .execute(&mut line.system.database.connect().await)
        .await?;
    line.replace_redis(replica).await;
    sse.signal("CONT").await;
    wait_until_subscribed(&line, "\"joined\"").await;
    // The message arrives once the topic is live again. Nobody knows of the gap yet.
    assert_eq!(client.wait_for_events(6).await[5].data, "\"joined\"");
    line.relay = line.system.start("relay").await;
    let event = client.wait_for_events(7).await.remove(6);
    assert_eq!(event.event, "reset", "{event:?}");
    // Its position is the end of the loss: neither a new join nor the next event resets it again.
    line.command("client kill type pubsub").await?;
    wait_until_subscribed(&line, "\"again\"").await;
    assert_eq!(client.wait_for_events(8).await[7].data, "\"again\"");
    line.append(1).await;
    let event = client.wait_for_events(9).await.remove(8);
    assert_eq!((event.event.as_str(), event.id.as_deref()), ("T", Some("1-9")));
    Ok(())
}

/// Waits until the server has subscribed to the line's topic, by a message that is told once the topic is
/// live.
async fn wait_until_subscribed(line: &Line, message: &str) {
    let channel = keys::public(&line.topic);
    eventually("the server hears the topic", async || {
        let told: usize = line.redis().await.publish(&channel, message).await.expect("a publish");
        (told == 1).then_some(())
    })
    .await;
}
