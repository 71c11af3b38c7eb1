//! The relay restores a Redis that lost data from the log, under the same numbers. Parked and discarded
//! events stay hidden.

use aftercommit::event::{StreamId, Topic};
use aftercommit::log::parked::{self, Action};
use aftercommit::redis::continuity::Prev;
use aftercommit::redis::history::History;
use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;

use crate::harness::{Line, Listener, TestResult, Wiring, eventually, start_redis};

#[tokio::test]
async fn a_redis_that_forgot_everything_is_given_everything_again_under_the_same_ids() -> TestResult {
    let mut line = Line::new().await;
    let other = line.system.redis.topic("other");
    let others = line.append_to(&other, 300).await;
    line.append(700).await;
    line.wait_until_whole().await;
    let ids = ids_of(&line).await?;
    line.command("flushall").await?;
    // Nothing new is committed: the relay looks by itself.
    wait_until_repaired(&line).await;
    line.wait_until_whole().await;
    assert_eq!(ids_of(&line).await?, ids);
    assert_eq!(line.history_of(&other).await, others);
    assert_eq!(line.metric("aftercommit_relay_restored_total").await, 1000);
    line.relay.wait_for_log("Redis lacks published events").await;
    line.append(1).await;
    line.wait_until_whole().await;
    Ok(())
}

/// Each of its many ranges is published in no time, so none of them is a reason for a sign of life.
#[tokio::test]
async fn a_repair_that_takes_longer_than_a_takeover_keeps_the_lead() -> TestResult {
    let relay = vec![
        ("AFTERCOMMIT_RELAY_BATCH_SIZE", "1".to_owned()),
        ("AFTERCOMMIT_RELAY_TAKEOVER_SECONDS", "1".to_owned()),
        // A slow machine must not look like a failure of Redis.
        ("AFTERCOMMIT_REDIS_RESPONSE_TIMEOUT_MS", "20000".to_owned()),
    ];
    let mut line = Line::with(Wiring { relay, ..Wiring::default() }).await;
    line.append(600).await;
    line.wait_until_whole().await;
    line.command("flushall").await?;
    wait_until_repaired(&line).await;
    line.wait_until_whole().await;
    let log = line.relay.log();
    assert!(!log.contains("the relay starts over"), "{log}");
    let restoring = log.lines().filter(|line| line.contains("restoring them from the log")).count();
    assert_eq!(restoring, 1, "{log}");
    Ok(())
}

#[tokio::test]
async fn an_empty_redis_in_the_place_of_the_old_one_is_given_everything_again_and_tells_nobody_twice() {
    let mut line = Line::new().await;
    line.append(50).await;
    line.wait_until_whole().await;
    let fresh = start_redis(Vec::new(), None).await;
    let client = aftercommit_client(fresh.url().expose_secret());
    let mut listener = Listener::to(&client, &line.topic).await;
    line.replace_redis(fresh).await;
    wait_until_repaired(&line).await;
    line.append(3).await;
    line.wait_until_whole().await;
    // Plain subscribers received the first fifty from the old Redis; restored events are not published to
    // them again.
    listener.wait_for_exactly(3).await;
}

#[tokio::test]
async fn a_replica_that_lagged_when_it_became_the_primary_is_given_what_it_lacks() -> TestResult {
    let mut line = Line::new().await;
    line.append(40).await;
    line.wait_until_whole().await;
    let replica = replica_of(&line).await?;
    wait_until_replica_has(&replica, 40, &line.topic).await;
    tell(&replica, &["replicaof", "no", "one"]).await;
    // From here on the replica knows nothing of it.
    line.append(25).await;
    line.wait_until_whole().await;
    let ids = ids_of(&line).await?;
    line.replace_redis(replica).await;
    line.append(1).await;
    line.wait_until_whole().await;
    assert_eq!(ids_of(&line).await?[..65], ids[..]);
    assert_eq!(line.metric("aftercommit_relay_restored_total").await, 25);
    Ok(())
}

/// A line with `min_replicas`: an event without a replica does not count as delivered.
async fn line_that_wants_a_replica() -> Line {
    let relay = vec![("AFTERCOMMIT_REDIS_MIN_REPLICAS", "1".to_owned())];
    Line::with(Wiring { relay, ..Wiring::default() }).await
}

#[tokio::test]
async fn with_min_replicas_nothing_counts_as_delivered_that_only_one_server_has() -> TestResult {
    let mut line = line_that_wants_a_replica().await;
    line.append(1).await;
    line.wait_for_failure("noreplicas").await;
    let replica = replica_of(&line).await?;
    line.append(10).await;
    wait_until_replica_has(&replica, 11, &line.topic).await;
    eventually("it is written down", async || {
        (line.metric("aftercommit_relay_published_total").await == 11).then_some(())
    })
    .await;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_history_that_vanishes_between_two_tries_of_a_batch_stops_nothing() -> TestResult {
    let mut line = line_that_wants_a_replica().await;
    line.append(2).await;
    // The event is published repeatedly, because no replica has it.
    line.wait_for_failure("noreplicas").await;
    let key = crate::harness::keys::history(&line.topic);
    line.words(&["del", &key]).await?;
    let replica = replica_of(&line).await?;
    line.append(3).await;
    // The lost history is not begun anew: the next entry names the missing event before it.
    wait_until_replica_has(&replica, 3, &line.topic).await;
    line.appended.drain(..2);
    line.wait_until_whole().await;
    assert_eq!(first_prev(&line).await?, Prev::Event(StreamId::new(1, 2)));
    let ttl = line.words(&["ttl", &key]).await?;
    assert!(matches!(ttl, redis::Value::Int(seconds) if seconds > 0), "it expires as others do: {ttl:?}");
    assert!(!line.relay.log().contains("conflict"), "{}", line.relay.log());
    Ok(())
}

#[tokio::test]
async fn a_history_that_vanished_between_two_tries_of_its_newest_event_does_not_pass_for_a_whole_one()
-> TestResult {
    let mut line = line_that_wants_a_replica().await;
    let key = crate::harness::keys::history(&line.topic);
    let replica = replica_of(&line).await?;
    line.append(3).await;
    wait_until_replica_has(&replica, 3, &line.topic).await;
    eventually("it is written down", async || {
        (line.metric("aftercommit_relay_published_total").await == 3).then_some(())
    })
    .await;
    replica.stop().await?;
    line.append(1).await;
    let has = async |length: i64| {
        eventually("the history has so many", async || {
            let has = line.words(&["xlen", &key]).await.expect("a length");
            (has == redis::Value::Int(length)).then_some(())
        })
        .await;
    };
    // From here on it is published repeatedly, because no replica has it.
    has(4).await;
    line.words(&["del", &key]).await?;
    let replica = replica_of(&line).await?;
    line.append(1).await;
    wait_until_replica_has(&replica, 1, &line.topic).await;
    assert_eq!(first_prev(&line).await?, Prev::Event(StreamId::new(1, 4)), "it names what came before it");
    Ok(())
}

/// The `prev` of the first entry of the line's history.
async fn first_prev(line: &Line) -> TestResult<Prev> {
    let mut settings = line.redis_settings();
    settings.namespace = line.system.redis.relay_name();
    Ok(History::new(settings).from(&line.topic, None, 1).await?[0].prev)
}

#[tokio::test]
async fn parked_and_discarded_events_stay_unseen_when_redis_is_given_the_rest_again() -> TestResult {
    let mut line = Line::new().await;
    let parked = line.system.redis.topic("parked");
    let discarded = line.system.redis.topic("discarded");
    for topic in [&parked, &discarded] {
        let key = crate::harness::keys::history(topic);
        line.words(&["set", &key, "of another type"]).await?;
    }
    let waiting = line.append_to(&parked, 3).await;
    line.append_to(&discarded, 4).await;
    line.append(10).await;
    line.wait_until_whole().await;
    eventually("they are parked", async || {
        (line.metric("aftercommit_relay_parked_total").await == 7).then_some(())
    })
    .await;
    let mut connection = line.system.database.connect().await;
    let relay = line.system.redis.relay_name();
    parked::request(&mut connection, &relay, &discarded, Action::Discard, None).await?;
    eventually("they are discarded", async || {
        let left = parked::count(&mut connection, &relay, &discarded).await.expect("a count");
        (left == 0).then_some(())
    })
    .await;
    line.command("flushall").await?;
    wait_until_repaired(&line).await;
    line.wait_until_whole().await;
    assert_eq!(line.metric("aftercommit_relay_restored_total").await, 10);
    assert!(line.history_of(&discarded).await.is_empty());
    assert!(line.history_of(&parked).await.is_empty());
    line.release(&parked).await;
    eventually("they are released", async || (line.history_of(&parked).await == waiting).then_some(())).await;
    Ok(())
}

#[tokio::test]
async fn released_events_come_again_when_redis_forgot_and_one_that_is_refused_then_is_parked_once_more()
-> TestResult {
    let mut line = Line::new().await;
    let topic = line.system.redis.topic("released");
    let key = crate::harness::keys::history(&topic);
    line.words(&["set", &key, "of another type"]).await?;
    let waiting = line.append_to(&topic, 3).await;
    line.append(5).await;
    line.wait_until_whole().await;
    line.words(&["del", &key]).await?;
    line.release(&topic).await;
    eventually("they are released", async || (line.history_of(&topic).await == waiting).then_some(())).await;

    line.command("flushall").await?;
    wait_for_repairs(&line, 1).await;
    line.wait_until_whole().await;
    assert_eq!(line.history_of(&topic).await, waiting);

    let forget_and_block = "redis.call('flushall') redis.call('set', KEYS[1], 'of another type')";
    line.words(&["eval", forget_and_block, "1", &key]).await?;
    wait_for_repairs(&line, 2).await;
    line.wait_until_whole().await;
    let mut connection = line.system.database.connect().await;
    let relay = line.system.redis.relay_name();
    assert_eq!(parked::count(&mut connection, &relay, &topic).await?, 3);
    line.words(&["del", &key]).await?;
    line.release(&topic).await;
    eventually("they are released", async || (line.history_of(&topic).await == waiting).then_some(())).await;
    Ok(())
}

#[tokio::test]
async fn a_redis_that_goes_back_to_just_before_a_release_is_given_the_released_events_again() -> TestResult {
    let mut line = Line::new().await;
    let topic = line.system.redis.topic("released");
    let key = crate::harness::keys::history(&topic);
    line.words(&["set", &key, "of another type"]).await?;
    let waiting = line.append_to(&topic, 3).await;
    line.append(5).await;
    line.wait_until_whole().await;
    line.words(&["del", &key]).await?;
    let top = line.system.redis.keys().top(&line.system.redis.relay_name());
    let before: Vec<String> =
        redis::AsyncCommands::hmget(&mut line.redis().await, &top, &["id", "event"]).await?;
    line.release(&topic).await;
    let mut connection = line.system.database.connect().await;
    let relay = line.system.redis.relay_name();
    eventually("the release is written down", async || {
        (parked::count(&mut connection, &relay, &topic).await.expect("a count") == 0).then_some(())
    })
    .await;
    assert_eq!(line.history_of(&topic).await, waiting);

    // As a replica that lagged by one call, or a file that lacks its last write.
    let go_back =
        "redis.call('del', KEYS[1], KEYS[2]) redis.call('hset', KEYS[3], 'id', ARGV[1], 'event', ARGV[2])";
    let begun = line.system.redis.keys().begun(&topic);
    line.words(&["eval", go_back, "3", &key, &begun, &top, &before[0], &before[1]]).await?;
    wait_for_repairs(&line, 1).await;
    assert_eq!(line.history_of(&topic).await, waiting);
    // Later events of the topic name the released ones as those before them.
    let later = line.append_to(&topic, 1).await;
    eventually("it arrives", async || {
        (line.history_of(&topic).await == [waiting.clone(), later.clone()].concat()).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn a_release_is_carried_out_between_two_windows_while_more_events_flow_than_the_relay_delivers()
-> TestResult {
    let relay = vec![("AFTERCOMMIT_RELAY_BATCH_SIZE", "1".to_owned())];
    let mut line = Line::with(Wiring { relay, ..Wiring::default() }).await;
    let topic = line.system.redis.topic("released");
    let key = crate::harness::keys::history(&topic);
    line.words(&["set", &key, "of another type"]).await?;
    let waiting = line.append_to(&topic, 3).await;
    line.append(5).await;
    line.wait_until_whole().await;
    line.words(&["del", &key]).await?;
    let stop = CancellationToken::new();
    let writers: Vec<_> = (0..6).map(|_| line.keep_appending(stop.clone())).collect();
    eventually("it is behind", async || {
        let (pending, _) = pending_and_numbers(&line).await;
        (pending > 50).then_some(())
    })
    .await;
    line.release(&topic).await;
    eventually("they are released", async || (line.history_of(&topic).await == waiting).then_some(())).await;
    stop.cancel();
    let mut events = line.appended.len() + waiting.len();
    for writer in writers {
        events += writer.await?.len();
    }
    eventually("all is delivered", async || (pending_and_numbers(&line).await.0 == 0).then_some(())).await;
    // One number more for each call that released an event.
    let (_, numbers) = pending_and_numbers(&line).await;
    assert_eq!(usize::try_from(numbers)?, events + waiting.len());
    Ok(())
}

/// The number of pending events, and the number of used stream numbers.
async fn pending_and_numbers(line: &Line) -> (i64, i64) {
    let sql = "select (select count(*) from outbox.event_status where relay = $1 and state = 'pending'),
                      (select next_seq - 1 from outbox.position where relay = $1)";
    let relay = line.system.redis.relay_name();
    let mut connection = line.system.database.connect().await;
    sqlx::query_as(sql).bind(&relay).fetch_one(&mut connection).await.expect("counts")
}

pub(crate) async fn wait_until_repaired(line: &Line) {
    wait_for_repairs(line, 1).await;
}

async fn wait_for_repairs(line: &Line, repairs: u64) {
    eventually("a repair", async || {
        (line.metric("aftercommit_relay_repairs_total").await == repairs).then_some(())
    })
    .await;
}

async fn ids_of(line: &Line) -> TestResult<Vec<String>> {
    let reply: redis::streams::StreamRangeReply =
        redis::AsyncCommands::xrange_all(&mut line.redis().await, crate::harness::keys::history(&line.topic))
            .await?;
    Ok(reply.ids.into_iter().map(|entry| entry.id).collect())
}

fn aftercommit_client(url: &str) -> redis::Client {
    redis::Client::open(url).expect("a client")
}

pub(crate) async fn tell(server: &aftercommit::local::RedisServer, words: &[&str]) -> redis::Value {
    let client = aftercommit_client(server.url().expose_secret());
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await.expect("a reply")
}

/// A replica of the line's Redis.
pub(crate) async fn replica_of(line: &Line) -> TestResult<aftercommit::local::RedisServer> {
    let replica = start_redis(Vec::new(), None).await;
    let url = line.redis.url().expose_secret().to_owned();
    let password = url.split([':', '@']).nth(2).ok_or("no password")?;
    tell(&replica, &["config", "set", "masterauth", password]).await;
    tell(&replica, &["replicaof", "127.0.0.1", &line.redis.port().to_string()]).await;
    Ok(replica)
}

pub(crate) async fn wait_until_replica_has(
    replica: &aftercommit::local::RedisServer,
    events: i64,
    topic: &Topic,
) {
    let key = crate::harness::keys::history(topic);
    eventually("the replica has them", async || {
        (tell(replica, &["xlen", &key]).await == redis::Value::Int(events)).then_some(())
    })
    .await;
}
