//! A refusal concerns one topic: the others flow on, and the refused one is named.

use std::time::Duration;

use redis::AsyncCommands;
use uuid::Uuid;

use aftercommit::event::Topic;
use aftercommit::log::parked::{self, Action};
use aftercommit::ops;
use aftercommit::ops::parked_topics::ParkedTopic;
use aftercommit::outbox;

use crate::harness::{Client, Line, Process, TestResult, Wiring, eventually, keys, metric_of, new_event};

/// The parked topics of the line's relay.
async fn parked(line: &Line) -> Vec<ParkedTopic> {
    let mut connection = line.system.database.connect().await;
    let relay = line.system.redis.relay_name();
    ops::parked_topics::list(&mut connection, &relay, 100).await.expect("a list")
}

/// Waits until this topic is parked, and returns why.
async fn wait_until_parked(line: &Line, topic: &Topic) -> String {
    eventually(&format!("{topic} is parked"), async || {
        let parked = parked(line).await;
        parked.iter().find(|parked| parked.topic == topic.as_str()).map(|parked| parked.reason.clone())
    })
    .await
}

async fn request(line: &Line, topic: &Topic, action: Action) -> TestResult<u64> {
    let mut connection = line.system.database.connect().await;
    let relay = line.system.redis.relay_name();
    Ok(parked::request(&mut connection, &relay, topic, action, None).await?)
}

async fn append_large(line: &Line, topic: &Topic, bytes: usize) -> TestResult {
    let event = new_event(topic, "T", &"x".repeat(bytes));
    let mut connection = line.system.database.connect().await;
    outbox::append(&mut connection, &event).await?;
    Ok(())
}

#[tokio::test]
async fn an_event_that_breaks_the_connection_is_found_and_parked_and_the_others_arrive() -> TestResult {
    let settings = vec![("client-query-buffer-limit", "1mb".to_owned())];
    let mut line = Line::with(Wiring { redis: settings, ..Wiring::default() }).await;
    let large = line.system.redis.topic("large");
    line.append(3).await;
    append_large(&line, &large, 1024 * 1024 - 2).await?;
    line.append(3).await;
    line.wait_until_arrived().await;
    wait_until_parked(&line, &large).await;
    Ok(())
}

#[tokio::test]
async fn a_history_that_can_take_no_more_ids_parks_its_topic_alone() -> TestResult {
    let mut line = Line::new().await;
    let exhausted = line.system.redis.topic("exhausted");
    let id = "18446744073709551615-18446744073709551615";
    line.words(&["xadd", &keys::history(&exhausted), id, "a", "b"]).await?;
    // As `XADD *` numbers its entries: by the time.
    let foreign = line.system.redis.topic("foreign");
    line.words(&["xadd", &keys::history(&foreign), "*", "a", "b"]).await?;
    line.append_to(&exhausted, 2).await;
    line.append_to(&foreign, 2).await;
    line.append(3).await;
    line.wait_until_arrived().await;
    for topic in [&exhausted, &foreign] {
        let reason = wait_until_parked(&line, topic).await;
        assert!(reason.contains(&keys::history(topic)), "the key is named: {reason}");
    }
    Ok(())
}

#[tokio::test]
async fn a_discard_gives_up_the_events_that_were_parked_then_and_none_that_came_later() -> TestResult {
    let mut line = Line::new().await;
    let topic = line.system.redis.topic("discarded");
    let key = keys::history(&topic);
    line.words(&["set", &key, "of another type"]).await?;
    line.append_to(&topic, 1).await;
    wait_until_parked(&line, &topic).await;
    line.relay.signal("KILL").await;
    assert_eq!(request(&line, &topic, Action::Discard).await?, 1);
    line.words(&["del", &key]).await?;
    let later = line.append_to(&topic, 3).await;
    line.relay = line.system.start("relay").await;
    eventually("the later ones arrive", async || (line.history_of(&topic).await == later).then_some(()))
        .await;
    assert!(parked(&line).await.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_repair_gives_again_what_a_held_topic_had_delivered_before() -> TestResult {
    let mut line = Line::new().await;
    let topic = line.topic.clone();
    line.append(5).await;
    line.wait_until_whole().await;
    let key = keys::history(&topic);
    line.words(&["rename", &key, "aside"]).await?;
    line.words(&["set", &key, "of another type"]).await?;
    let held = line.append_to(&topic, 2).await;
    wait_until_parked(&line, &topic).await;
    line.command("flushall").await?;
    line.wait_until_arrived().await;
    assert_eq!(parked(&line).await[0].events, 2, "only those that were refused");
    line.release(&topic).await;
    line.appended.extend(held);
    line.wait_until_arrived().await;
    Ok(())
}

#[tokio::test]
async fn what_arrived_before_a_refusal_is_no_conflict_when_its_history_was_trimmed_since() -> TestResult {
    let mut line = Line::with(Wiring {
        relay: vec![("AFTERCOMMIT_RELAY_ON_POISON", "halt".to_owned())],
        ..Wiring::default()
    })
    .await;
    let refused = line.system.redis.topic("refused");
    let key = keys::history(&refused);
    line.words(&["set", &key, "of another type"]).await?;
    line.relay.signal("STOP").await;
    line.append(4).await;
    let waiting = line.append_to(&refused, 1).await;
    line.relay.signal("CONT").await;
    // Everything before the refused event has arrived, and its relay stops there, by its setting.
    line.wait_for_failure("refused").await;
    line.wait_until_arrived().await;
    line.words(&["xtrim", &keys::history(&line.topic), "maxlen", "1"]).await?;
    line.words(&["del", &key]).await?;
    eventually("it arrives", async || (line.history_of(&refused).await == waiting).then_some(())).await;
    assert!(parked(&line).await.is_empty());
    Ok(())
}

/// Two topics on one SSE server, of which Redis refuses one.
fn streams(line: &Line, sse: &Process) -> [Client; 2] {
    let refused = line.system.redis.topic("refused");
    let topics = [line.topic.as_str(), refused.as_str()];
    let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &topics);
    topics.map(|topic| Client::begin(sse.url(&format!("/streams/{topic}")), &token, None))
}

/// Waits until a client is told that Redis refuses its topic.
async fn wait_for_refusal(client: &Client) {
    eventually("a refusal is told", async || {
        client
            .so_far()
            .iter()
            .any(|event| event.event == "refused" && event.data.contains("topic_refused"))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_channel_that_the_sse_server_may_not_hear_is_refused_alone() -> TestResult {
    let mut line = Line::new().await;
    let public = line.system.redis.keys().public(&line.topic);
    // The relay is another user of the same Redis; this one is the SSE server's.
    let rule = format!("acl setuser sse on >secret ~* resetchannels &aftercommit:* &{public} +@all");
    line.command(&rule).await?;
    let url = format!("redis://sse:secret@127.0.0.1:{}", line.redis.port());
    let sse = Process::start("sse", &line.system.settings().clone().set("REDIS_URL", &url)).await;
    let [heard, refused] = streams(&line, &sse);
    heard.wait_until_placed().await;
    wait_for_refusal(&refused).await;
    line.append(3).await;
    assert_eq!(heard.wait_for_events(3).await.len(), 3);
    assert_eq!(metric_of(&sse, "aftercommit_sse_interruptions_total").await, 0, "the connection is kept");
    assert_eq!(metric_of(&sse, "aftercommit_sse_topics_refused_total").await, 1);
    // Once it is allowed, the stream goes on after a reset.
    line.command("acl setuser sse allchannels").await?;
    eventually("it is heard", async || {
        refused.so_far().iter().any(|event| event.event == "reset").then_some(())
    })
    .await;
    line.append_to(&line.system.redis.topic("refused"), 1).await;
    eventually("an event", async || refused.so_far().iter().any(|event| event.event == "T").then_some(()))
        .await;
    Ok(())
}

#[tokio::test]
async fn a_history_of_another_type_does_not_end_the_verification_of_others() -> TestResult {
    let mut line = Line::new().await;
    let settings = line.system.settings().clone().set("AFTERCOMMIT_SSE_VERIFY_SECONDS", "1");
    let sse = Process::start("sse", &settings).await;
    let [heard, refused] = streams(&line, &sse);
    heard.wait_until_placed().await;
    refused.wait_until_placed().await;
    line.append(1).await;
    heard.wait_for_events(1).await;
    let mut redis = line.redis().await;
    let key = keys::history(&line.system.redis.topic("refused"));
    let _: () = redis.set(&key, "of another type").await?;
    // The server does not receive this event: only the verification finds it.
    let fields =
        [("event", Uuid::new_v4().to_string()), ("type", "T".to_owned()), ("payload", "1".to_owned())];
    let fields = [&fields[..], &[("prev", "1-1".to_owned())]].concat();
    let _: String = redis.xadd(keys::history(&line.topic), "1-2", &fields).await?;
    assert_eq!(heard.wait_for_events(2).await[1].id.as_deref(), Some("1-2"));
    wait_for_refusal(&refused).await;
    Ok(())
}
