//! A history proves that it is complete: a client gets a reset where events are missing in it, before it, or
//! after the client's position.

use std::time::Duration;

use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use uuid::Uuid;

use aftercommit::event::Topic;

use crate::harness::{
    Client, Event, Line, Process, TestResult, Wiring, eventually, keys, metric_of, new_event, start_redis,
};

/// Id and `prev` of each entry of a topic's history.
async fn links(line: &Line, topic: &Topic) -> Vec<(String, String)> {
    let reply: StreamRangeReply =
        line.redis().await.xrange_all(keys::history(topic)).await.expect("a history");
    reply.ids.iter().map(|entry| (entry.id.clone(), entry.get("prev").expect("a prev"))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(id, prev)| ((*id).to_owned(), (*prev).to_owned())).collect()
}

fn url(line: &Line, sse: &Process) -> String {
    sse.url(&format!("/streams/{}", line.topic))
}

fn token(line: &Line) -> String {
    line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &[line.topic.as_str()])
}

async fn sse(line: &Line) -> Process {
    let settings = line.system.settings().clone().set("AFTERCOMMIT_SSE_REPAIR_WAIT_MS", "100");
    Process::start("sse", &settings).await
}

/// Resumes after an id, and returns the first event.
async fn first_event(line: &Line, sse: &Process, id: &str) -> Event {
    Client::resume(&url(line, sse), &token(line), id).wait_for_events(1).await.remove(0)
}

async fn restart_relay(line: &mut Line) {
    line.relay.signal("KILL").await;
    line.relay = line.system.start("relay").await;
    line.wait_until_leading().await;
}

async fn wait_until_repaired(line: &Line) {
    eventually("a repair", async || {
        (line.metric("aftercommit_relay_repairs_total").await == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_entry_names_the_event_before_it() {
    let mut line = Line::new().await;
    let other = line.system.redis.topic("other");
    line.append(2).await;
    line.append_to(&other, 1).await;
    line.append(1).await;
    line.wait_until_whole().await;
    // Also if a relay publishes it that remembers nothing.
    restart_relay(&mut line).await;
    line.append(1).await;
    line.wait_until_whole().await;
    let expected = [("1-1", ""), ("1-2", "1-1"), ("1-4", "1-2"), ("1-5", "1-4")];
    assert_eq!(links(&line, &line.topic).await, pairs(&expected));
    assert_eq!(links(&line, &other).await, pairs(&[("1-3", "")]));
}

/// A relay that knows the event before a silence says so, also where Redis knows it no longer. So clients that
/// have that event go on without a reset.
#[tokio::test]
async fn an_event_after_a_silence_in_which_the_history_expired_names_the_event_before_it() -> TestResult {
    let relay = vec![("AFTERCOMMIT_REDIS_HISTORY_TTL_SECONDS", "2".to_owned())];
    let mut line = Line::with(Wiring { relay, ..Wiring::default() }).await;
    let other = line.system.redis.topic("other");
    line.append(1).await;
    // So that the event before is not of the number before.
    line.append_to(&other, 1).await;
    line.wait_until_whole().await;
    eventually("the history has expired", async || links(&line, &line.topic).await.is_empty().then_some(()))
        .await;
    line.append(1).await;
    eventually("the second event", async || (links(&line, &line.topic).await.len() == 1).then_some(())).await;
    assert_eq!(links(&line, &line.topic).await, pairs(&[("1-3", "1-1")]));
    let ttl: i64 = line.redis().await.ttl(keys::history(&line.topic)).await?;
    assert!((1..=2).contains(&ttl), "{ttl}");
    Ok(())
}

/// A topic whose history expires after two seconds, and an SSE server that looks after it each second.
async fn short_lived(kept_by_server: &str) -> (Line, Process) {
    let ttl = "AFTERCOMMIT_REDIS_HISTORY_TTL_SECONDS";
    let line = Line::with(Wiring { relay: vec![(ttl, "2".to_owned())], ..Wiring::default() }).await;
    let settings = line.system.settings().clone().set("AFTERCOMMIT_SSE_REPAIR_WAIT_MS", "100");
    let settings = settings.set(ttl, kept_by_server).set("AFTERCOMMIT_SSE_VERIFY_SECONDS", "1");
    let server = Process::start("sse", &settings).await;
    (line, server)
}

/// Waits until the history has expired, and the server has found that.
async fn wait_until_expiry_is_found(line: &Line, server: &Process, joined: u64) {
    eventually("it expires", async || links(line, &line.topic).await.is_empty().then_some(())).await;
    eventually("the server looks", async || {
        (metric_of(server, "aftercommit_sse_joins_total").await > joined).then_some(())
    })
    .await;
    // A new client begins when the look is over.
    Client::open(&url(line, server), &token(line)).await;
}

/// Nothing is missing, whether the relay knows the event before the silence or not.
#[tokio::test]
async fn clients_of_a_quiet_topic_are_not_reset_when_its_history_expires() -> TestResult {
    // The server takes histories to live longer than they do: only Redis shows the expiry.
    let (mut line, server) = short_lived("60").await;
    let other = line.system.redis.topic("other");
    let client = Client::open(&url(&line, &server), &token(&line)).await;
    for round in 1..=2 {
        line.append(1).await;
        client.wait_for_events(round).await;
        line.append_to(&other, 1).await;
        let joined = metric_of(&server, "aftercommit_sse_joins_total").await;
        wait_until_expiry_is_found(&line, &server, joined).await;
        if round == 1 {
            restart_relay(&mut line).await;
        }
    }
    line.append(1).await;
    let events = client.wait_for_events(3).await;
    assert!(events.iter().all(|event| event.event == "T"), "{events:?}");
    Ok(())
}

/// A minute after the expiry, only the time since the topic's newest event tells.
#[tokio::test]
async fn clients_of_a_topic_that_was_quiet_for_longer_are_not_reset_either() -> TestResult {
    let (mut line, server) = short_lived("2").await;
    let client = Client::open(&url(&line, &server), &token(&line)).await;
    line.append(1).await;
    client.wait_for_events(1).await;
    let _: () = line.redis().await.del(keys::begun(&line.topic)).await?;
    let joined = metric_of(&server, "aftercommit_sse_joins_total").await;
    wait_until_expiry_is_found(&line, &server, joined).await;
    line.append(1).await;
    let events = client.wait_for_events(2).await;
    assert!(events.iter().all(|event| event.event == "T"), "{events:?}");
    Ok(())
}

/// After a total loss of Redis, the relay restores only the events whose checkpoints are still in the log.
#[tokio::test]
async fn a_repair_that_has_to_leave_events_out_shows_the_hole_to_each_reader() -> TestResult {
    let mut line = Line::new().await;
    let server = sse(&line).await;
    let quiet = line.system.redis.topic("quiet");
    line.append(5).await;
    line.append_to(&quiet, 1).await;
    line.append(2).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    // As after a rotation: the positions of the first eight numbers are gone.
    let mut database = line.system.database.connect().await;
    sqlx::query("delete from outbox.checkpoint where n < (select max(n) from outbox.checkpoint)")
        .execute(&mut database)
        .await?;
    line.command("flushall").await?;
    line.relay = line.system.start("relay").await;
    wait_until_repaired(&line).await;
    line.append_to(&line.topic, 1).await;
    line.append_to(&quiet, 1).await;
    eventually("both arrive", async || {
        (links(&line, &line.topic).await.len() == 1 && links(&line, &quiet).await.len() == 1).then_some(())
    })
    .await;
    assert_eq!(links(&line, &line.topic).await, pairs(&[("1-9", "1-8")]));
    assert_eq!(links(&line, &quiet).await, pairs(&[("1-10", "1-8")]));
    for id in ["1-5", &format!("0-{}", chrono::Utc::now().timestamp_millis() - 60_000)] {
        let event = first_event(&line, &server, id).await;
        assert_eq!(event.event, "reset", "{id}: {event:?}");
    }
    Ok(())
}

/// The positions of the first two are gone, as after a rotation, and those of the later ones are there.
#[tokio::test]
async fn a_repair_that_begins_in_the_middle_shows_the_hole_before_it() -> TestResult {
    let mut line = Line::new().await;
    for _ in 0..4 {
        line.append(1).await;
        line.wait_until_whole().await;
    }
    line.relay.signal("KILL").await;
    sqlx::query(
        "delete from outbox.checkpoint where n < (select max(n) from outbox.checkpoint where next_seq = 3)",
    )
    .execute(&mut line.system.database.connect().await)
    .await?;
    line.command("flushall").await?;
    line.relay = line.system.start("relay").await;
    wait_until_repaired(&line).await;
    assert_eq!(links(&line, &line.topic).await, pairs(&[("1-3", "1-2"), ("1-4", "1-3")]));
    Ok(())
}

/// The connection stays open and no comparison runs: only the script can detect the loss.
#[tokio::test]
async fn a_redis_that_goes_back_behind_an_open_connection_is_found_out_by_the_next_batch() -> TestResult {
    let settings = vec![("AFTERCOMMIT_RELAY_RECONCILE_INTERVAL_MS", "3600000".to_owned())];
    let mut line = Line::with(crate::harness::Wiring { relay: settings, ..Default::default() }).await;
    line.append(5).await;
    line.wait_until_whole().await;
    line.command("flushall").await?;
    line.append(1).await;
    line.wait_until_arrived().await;
    Ok(())
}

#[tokio::test]
async fn a_history_that_was_deleted_is_no_new_one_also_for_a_relay_that_remembers_nothing() -> TestResult {
    let mut line = Line::new().await;
    let server = sse(&line).await;
    let before_the_first = {
        let client = Client::open(&url(&line, &server), &token(&line)).await;
        client.last_event_id()
    };
    line.append(3).await;
    line.wait_until_whole().await;
    line.words(&["del", &keys::history(&line.topic)]).await?;
    restart_relay(&mut line).await;
    // The history is empty, but a server that has not received the events has no proof of that.
    let fresh = sse(&line).await;
    assert_eq!(first_event(&line, &fresh, &before_the_first).await.event, "reset");
    line.append_to(&line.topic, 1).await;
    eventually("it arrives", async || (links(&line, &line.topic).await.len() == 1).then_some(())).await;
    assert_eq!(links(&line, &line.topic).await, pairs(&[("1-4", "1-3")]));
    for id in [&before_the_first, "1-2"] {
        assert_eq!(first_event(&line, &fresh, id).await.event, "reset", "{id}");
    }
    let ttl: i64 = line.redis().await.ttl(keys::history(&line.topic)).await?;
    assert!(ttl > 0, "it expires as others do");
    Ok(())
}

#[tokio::test]
async fn a_place_that_was_seen_in_the_future_or_too_long_ago_is_a_reset() {
    let line = Line::new().await;
    let server = sse(&line).await;
    let seen = |minutes: i64| format!("0-{}", chrono::Utc::now().timestamp_millis() + minutes * 60_000);
    // Or longer ago than histories are kept, so that events may have come and expired.
    for minutes in [10, -48 * 60] {
        let event = first_event(&line, &server, &seen(minutes)).await;
        assert_eq!(event.event, "reset", "{minutes}: {event:?}");
    }
    // Clocks may differ a little.
    let client = Client::resume(&url(&line, &server), &token(&line), &seen(0));
    client.wait_until_placed().await;
    assert!(client.so_far().is_empty());
}

#[tokio::test]
async fn clients_of_a_topic_whose_history_vanished_while_the_server_was_away_are_reset() -> TestResult {
    let mut line = Line::new().await;
    let url_of_redis = line.proxy.url(line.redis_settings().url.expose());
    let settings = line.system.settings().clone().set("AFTERCOMMIT_SSE_REPAIR_WAIT_MS", "100");
    let server = Process::start("sse", &settings.set("REDIS_URL", &url_of_redis)).await;
    let client = Client::open(&url(&line, &server), &token(&line)).await;
    line.append(3).await;
    client.wait_for_events(3).await;
    line.words(&["del", &keys::history(&line.topic)]).await?;
    line.command("client kill type pubsub").await?;
    let events = client.wait_for_events(4).await;
    assert_eq!(events[3].event, "reset", "{events:?}");
    Ok(())
}

/// The topic had no event when its client came, and its history has begun and vanished since.
#[tokio::test]
async fn clients_from_before_the_first_event_are_reset_when_its_history_vanished_while_the_server_was_away()
-> TestResult {
    let mut line = Line::new().await;
    let server = sse(&line).await;
    let client = Client::open(&url(&line, &server), &token(&line)).await;
    server.signal("STOP").await;
    line.command("client kill type pubsub").await?;
    line.append(3).await;
    line.wait_until_whole().await;
    line.words(&["del", &keys::history(&line.topic)]).await?;
    server.signal("CONT").await;
    assert_eq!(client.wait_for_events(1).await[0].event, "reset");
    Ok(())
}

/// Redis denies that there was a history; this server remembers events of it.
#[tokio::test]
async fn a_place_from_before_a_reset_of_the_topic_is_reset_too() -> TestResult {
    let mut line = Line::new().await;
    let server = sse(&line).await;
    let client = Client::open(&url(&line, &server), &token(&line)).await;
    let before_the_first = client.last_event_id();
    line.append(3).await;
    client.wait_for_events(3).await;
    line.wait_until_whole().await;
    let history = keys::history(&line.topic);
    let begun = history.replace(":history", ":begun");
    line.words(&["del", &history, &begun]).await?;
    line.command("client kill type pubsub").await?;
    assert_eq!(client.wait_for_events(4).await[3].event, "reset");
    assert_eq!(first_event(&line, &server, &before_the_first).await.event, "reset");
    Ok(())
}

#[tokio::test]
async fn a_forged_event_on_a_live_channel_makes_no_later_event_a_repeat() -> TestResult {
    let mut line = Line::new().await;
    let server = sse(&line).await;
    let client = Client::open(&url(&line, &server), &token(&line)).await;
    line.append(2).await;
    client.wait_for_events(2).await;
    let forged = |id: &str, prev: &str| {
        format!(r#"{{"id":"{id}","prev":"{prev}","event":"{}","type":"FORGED","payload":1}}"#, Uuid::new_v4())
    };
    let mut redis = line.redis().await;
    // The first does not fit and is dropped; the second fits.
    for message in [forged("1-8000000", "1-7000000"), forged("1-9000000", "1-2")] {
        let heard: usize = redis.publish(keys::live(&line.topic), message).await?;
        assert_eq!(heard, 1);
    }
    line.append(3).await;
    let ids = |client: &Client| -> Vec<String> {
        client.so_far().into_iter().filter(|event| event.event == "T").filter_map(|event| event.id).collect()
    };
    eventually("the real ones, or a reset that skips them", async || {
        let has_end = client.last_event_id() == "1-5";
        (has_end && client.so_far().iter().any(|event| event.event == "reset")).then_some(())
    })
    .await;
    assert!(ids(&client).len() <= 5, "none twice: {:?}", ids(&client));
    // A new client is not affected either.
    let fresh = Client::open(&url(&line, &server), &token(&line)).await;
    line.append(1).await;
    assert_eq!(fresh.wait_for_events(1).await[0].id.as_deref(), Some("1-6"));
    Ok(())
}

#[tokio::test]
async fn a_foreign_message_after_a_repair_is_told() -> TestResult {
    let mut line = Line::new().await;
    let server = sse(&line).await;
    let client = Client::open(&url(&line, &server), &token(&line)).await;
    line.append(1).await;
    client.wait_for_events(1).await;
    line.command("flushall").await?;
    wait_until_repaired(&line).await;
    // Another sender publishes the same text as the restored payload.
    let channel = keys::public(&line.topic);
    eventually("the foreign message", async || {
        let _heard: usize = line.redis().await.publish(&channel, "0").await.expect("a publish");
        client.so_far().iter().any(|event| event.event == "message" && event.data == "0").then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_history_is_bounded_in_bytes_too() -> TestResult {
    let settings = vec![("AFTERCOMMIT_REDIS_HISTORY_MAX_BYTES", "4000000".to_owned())];
    let line = Line::with(crate::harness::Wiring { relay: settings, ..Default::default() }).await;
    let payload = "x".repeat(1_000_000);
    let mut database = line.system.database.connect().await;
    for _ in 0..12 {
        let event = new_event(&line.topic, "T", &payload);
        aftercommit::outbox::append(&mut database, &event).await?;
    }
    eventually("all are published", async || (line.delivered_in_all().await == 12).then_some(())).await;
    let left: usize = line.redis().await.xlen(keys::history(&line.topic)).await?;
    assert!((1..=5).contains(&left), "{left} entries of a megabyte");
    Ok(())
}

#[tokio::test]
async fn two_logs_on_one_redis_are_told_apart_and_a_namespace_keeps_them_apart() -> TestResult {
    let mut line = Line::new().await;
    line.append(3).await;
    line.wait_until_whole().await;
    // Another service with a database of its own, and the same names in the same Redis.
    let other = crate::harness::database().await;
    let settings = line.system.settings().clone().set("DATABASE_URL", other.url());
    let intruder = Process::start("relay", &settings).await;
    let mut database = other.connect().await;
    let append = "select outbox.append($1, 'T', '0')";
    sqlx::query(append).bind(line.topic.as_str()).execute(&mut database).await?;
    intruder.wait_for_log("belong to another log").await;
    intruder.wait_for_log("[redis] namespace").await;
    line.append(2).await;
    line.wait_until_whole().await;
    intruder.kill().await;
    let apart = Process::start("relay", &settings.set("AFTERCOMMIT_REDIS_NAMESPACE", "apart")).await;
    let history = aftercommit::redis::keys::Keys::new("apart").history(&line.topic);
    eventually("its event arrives in its namespace", async || {
        let length: usize = line.redis().await.xlen(&history).await.expect("a length");
        (length == 1).then_some(())
    })
    .await;
    line.append(1).await;
    line.wait_until_whole().await;
    drop(apart);
    Ok(())
}

/// As in a rolling deploy that renames the relay.
#[tokio::test]
async fn two_relays_of_one_log_do_not_mix_their_numbers_in_one_redis() -> TestResult {
    let mut line = Line::new().await;
    line.append(3).await;
    line.wait_until_whole().await;
    let settings = line.system.settings().clone().set("AFTERCOMMIT_RELAY_NAME", "renamed");
    let renamed = Process::start("relay", &settings).await;
    renamed.wait_for_log("belong to the relay").await;
    line.append(2).await;
    line.wait_until_whole().await;
    let mut database = line.system.database.connect().await;
    let parked: i64 =
        sqlx::query_scalar("select count(*) from outbox.parked").fetch_one(&mut database).await?;
    assert_eq!(parked, 0, "{}", renamed.log());
    Ok(())
}

/// A server that takes histories to live longer than they do would continue a place that proves nothing.
#[tokio::test]
async fn a_server_that_takes_histories_to_live_longer_than_the_relay_keeps_them_says_so() -> TestResult {
    let (mut line, server) = short_lived("86400").await;
    line.append(1).await;
    server.wait_for_log("set redis.history_ttl_seconds to the same value for relay and sse").await;
    Ok(())
}

#[tokio::test]
async fn a_redis_with_keys_of_a_later_format_is_refused_in_words() -> TestResult {
    let redis = start_redis(Vec::new(), None).await;
    let system = crate::harness::System::with_redis(redis.url().expose()).await;
    let mut connection = crate::harness::redis_settings_of(redis.url().expose()).connect().await?;
    let _: () = connection.hset(system.redis.keys().log(), "format", 2).await?;
    let relay = system.start("relay").await;
    relay.wait_for_log("have format 2, and this aftercommit knows format 1: run the version").await;
    Ok(())
}

/// What the tests need of a secret address.
trait Expose {
    fn expose(&self) -> &str;
}

impl Expose for secrecy::SecretString {
    fn expose(&self) -> &str {
        secrecy::ExposeSecret::expose_secret(self)
    }
}
