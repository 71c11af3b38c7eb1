//! The relay with the log and a real Redis: deliveries without faults, and events that Redis refuses.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::AsyncCommands;
use sqlx::Connection;

use aftercommit::event::{Event, EventId, EventType, LogId, NewEvent, StreamId, Topic};
use aftercommit::log::parked::{self, Action};
use aftercommit::log::{read, release};
use aftercommit::ops::audit::Operator;
use aftercommit::ops::{parked_topics, pause};
use aftercommit::outbox;
use aftercommit::redis::Publisher;
use aftercommit::relay::{Batch, Delivery, OnPoison, Outcome, PublishError, PublishMode, Rules, Sink, Step};

use crate::harness::{Database, LIMIT, Line, Redis, TestResult, Wiring, database, new_event, redis};

/// A relay that the test runs step by step.
pub(crate) struct Relay {
    pub(crate) step: Step,
    pub(crate) publisher: Publisher,
}

impl Relay {
    pub(crate) async fn new(database: &Database, redis: &Redis, on_poison: OnPoison) -> Self {
        let mut writer = database.connect().await;
        let mut reader = database.connect().await;
        read::prepare_session(&mut writer).await.expect("a session");
        read::prepare_session(&mut reader).await.expect("a session");
        let rules = Rules {
            relay: redis.relay_name(),
            limit: read::Limit { events: 100, bytes: 1_000_000 },
            on_poison,
            timeout: Duration::from_secs(20),
            keepalive: Duration::from_secs(5),
        };
        let mut publisher = Publisher::new(redis.settings(), &redis.relay_name(), 7);
        let step = Step::begin(rules, writer, reader).await.expect("a position");
        publisher.begin_lead(step.log());
        Self { step, publisher }
    }

    /// Steps until there is nothing left, and returns how many events were published and parked.
    pub(crate) async fn drain(&mut self) -> (usize, usize) {
        let mut sum = (0, 0);
        loop {
            match self.step.step(&mut self.publisher).await.expect("a step") {
                Outcome::Idle => return sum,
                Outcome::Delivered { published, parked } => sum = (sum.0 + published, sum.1 + parked),
            }
        }
    }
}

pub(crate) async fn append(database: &Database, topic: &Topic, payload: &str) -> EventId {
    let mut connection = database.connect().await;
    let id = append_in(&mut connection, topic, payload).await;
    connection.close().await.expect("a goodbye");
    id
}

pub(crate) async fn append_in(connection: &mut sqlx::PgConnection, topic: &Topic, payload: &str) -> EventId {
    let payload = serde_json::value::RawValue::from_string(payload.to_owned()).expect("JSON");
    outbox::append(connection, &new_event(topic, "T", &payload)).await.expect("an append")
}

/// The history of a topic: id, event and payload of each entry.
pub(crate) async fn history(redis: &Redis, topic: &Topic) -> Vec<(String, String, String)> {
    let mut connection = redis.connect().await;
    let reply: redis::streams::StreamRangeReply =
        connection.xrange_all(crate::harness::keys::history(topic)).await.expect("a history");
    reply
        .ids
        .into_iter()
        .map(|entry| {
            let field = |name: &str| entry.get::<String>(name).expect(name);
            assert_eq!(field("type"), "T");
            (entry.id.clone(), field("event"), field("payload"))
        })
        .collect()
}

pub(crate) fn payloads(history: &[(String, String, String)]) -> Vec<&str> {
    history.iter().map(|(_, _, payload)| payload.as_str()).collect()
}

#[tokio::test]
async fn an_event_reaches_history_live_channel_and_public_channel_byte_for_byte() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("bytes");
    let mut subscriber = redis.client().get_async_pubsub().await?;
    subscriber.subscribe(&[crate::harness::keys::live(&topic), crate::harness::keys::public(&topic)]).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;

    let payload = r#"{ "b":1,   "a":1.50, "ü":"\u0000\ud800", "a":2 }"#;
    let event = append(&database, &topic, payload).await;
    assert_eq!(relay.drain().await, (1, 0));

    let mut messages = subscriber.on_message();
    let mut next = async || {
        let message = tokio::time::timeout(LIMIT, messages.next()).await;
        let message = message.expect("in time").expect("a message");
        (message.get_channel_name().to_owned(), message.get_payload::<String>().expect("text"))
    };
    let (at, xid): (i64, i64) = sqlx::query_as(
        "select floor(extract(epoch from created_at) * 1000)::bigint, xid::text::bigint from outbox.event",
    )
    .fetch_one(&mut database.connect().await)
    .await?;
    let facts = format!(r#""type":"T","at":{at},"xid":{xid},"payload":{payload}"#);
    let envelope = format!(r#"{{"id":"1-1","prev":null,"event":"{event}",{facts}}}"#);
    assert_eq!(next().await, (crate::harness::keys::live(&topic), envelope));
    assert_eq!(next().await, (crate::harness::keys::public(&topic), payload.to_owned()));
    assert_eq!(history(&redis, &topic).await, [("1-1".to_owned(), event.to_string(), payload.to_owned())]);
    Ok(())
}

#[tokio::test]
async fn the_history_of_a_topic_expires_after_its_last_event() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("ttl");
    append(&database, &topic, "1").await;
    Relay::new(&database, &redis, OnPoison::Park).await.drain().await;
    let ttl: i64 = redis.connect().await.ttl(crate::harness::keys::history(&topic)).await?;
    assert!((86_300..=86_400).contains(&ttl), "{ttl}");
    Ok(())
}

#[tokio::test]
async fn a_transaction_that_rolled_back_leaves_nothing_and_takes_no_number() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("rollback");
    let mut connection = database.connect().await;
    let mut tx = connection.begin().await?;
    append_in(&mut tx, &topic, "\"never\"").await;
    tx.rollback().await?;
    append(&database, &topic, "\"seen\"").await;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (1, 0));
    let history = history(&redis, &topic).await;
    assert_eq!(payloads(&history), ["\"seen\""]);
    assert_eq!(history[0].0, "1-1");
    Ok(())
}

#[tokio::test]
async fn a_backlog_of_many_chunks_arrives_in_order_with_numbers_without_a_gap() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topics = [redis.topic("a"), redis.topic("b"), redis.topic("c")];
    let mut connection = database.connect().await;
    let events: Vec<NewEvent> = (0..1000).map(|n| new_event(&topics[n % 3], "T", &n)).collect();
    outbox::append_all(&mut connection, &events).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (1000, 0));
    for (t, topic) in topics.iter().enumerate() {
        let expected: Vec<(String, String, String)> = (0..1000)
            .filter(|n| n % 3 == t)
            .map(|n| (format!("1-{}", n + 1), events[n].event_id().to_string(), n.to_string()))
            .collect();
        assert_eq!(history(&redis, topic).await, expected);
    }
    assert_eq!(relay.step.position().next_seq, 1001);
    Ok(())
}

#[tokio::test]
async fn an_idle_relay_writes_nothing() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    append(&database, &redis.topic("one"), "1").await;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    relay.drain().await;
    let mut connection = database.connect().await;
    let rows = "select count(*) from outbox.checkpoint";
    let before: i64 = sqlx::query_scalar(rows).fetch_one(&mut connection).await?;
    for _ in 0..20 {
        assert_eq!(relay.drain().await, (0, 0));
    }
    let after: i64 = sqlx::query_scalar(rows).fetch_one(&mut connection).await?;
    assert_eq!(before, after);
    Ok(())
}

/// Without a notification and with a poll interval of many seconds.
#[tokio::test]
async fn events_that_follow_each_other_are_found_without_a_notification() {
    let relay = ["AFTERCOMMIT_RELAY_POLL_INTERVAL_MS", "AFTERCOMMIT_RELAY_TAKEOVER_SECONDS"];
    let relay = relay.map(|name| (name, "60000".to_owned())).into();
    let mut line = Line::with(Wiring { relay, ..Wiring::default() }).await;
    line.wait_until_leading().await;
    let begun = Instant::now();
    for _ in 0..20 {
        line.append(1).await;
        line.wait_until_arrived().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "a second an event: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_pause_holds_every_event_that_is_committed_after_it_also_behind_an_open_window() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("paused");
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    let mut connection = database.connect().await;
    // More than one step takes, so that the pause finds the window open.
    let mut tx = connection.begin().await?;
    for n in 0..150 {
        append_in(&mut tx, &topic, &n.to_string()).await;
    }
    tx.commit().await?;
    let first = relay.step.step(&mut relay.publisher).await?;
    assert_eq!(first, Outcome::Delivered { published: 100, parked: 0 });

    let operator = Operator { who: "test".to_owned(), reason: "a move".to_owned() };
    assert!(pause::pause(&mut connection, &redis.relay_name(), &operator).await?);
    append(&database, &topic, "150").await;
    // The relay completes the open window and opens no new one.
    assert_eq!(relay.drain().await, (50, 0));
    append(&database, &topic, "151").await;
    assert_eq!(relay.drain().await, (0, 0));

    assert!(pause::resume(&mut connection, &redis.relay_name(), &operator).await?);
    assert_eq!(relay.drain().await, (2, 0));
    assert_eq!(payloads(&history(&redis, &topic).await).last(), Some(&"151"));
    Ok(())
}

#[tokio::test]
async fn a_topic_whose_key_has_the_wrong_type_is_parked_and_all_else_flows() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let (bad, good) = (redis.topic("bad"), redis.topic("good"));
    let key = crate::harness::keys::history(&bad);
    let mut connection = redis.connect().await;
    let _: () = connection.set(&key, "somebody else's").await?;
    for n in 0..3 {
        append(&database, &bad, &format!("\"bad {n}\"")).await;
        append(&database, &good, &format!("\"good {n}\"")).await;
    }
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (3, 3));
    assert_eq!(payloads(&history(&redis, &good).await), ["\"good 0\"", "\"good 1\"", "\"good 2\""]);

    // Later events of the topic are parked too, although Redis would accept them, also by a relay that has
    // just started.
    let _: () = connection.del(&key).await?;
    append(&database, &bad, "\"bad 3\"").await;
    assert_eq!(relay.drain().await, (0, 1));
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    append(&database, &bad, "\"bad 4\"").await;
    assert_eq!(relay.drain().await, (0, 1));

    // Released: everything in its order, then the topic flows again.
    let mut database_connection = database.connect().await;
    let name = redis.relay_name();
    let requested = parked::request(&mut database_connection, &name, &bad, Action::Release, None).await?;
    assert_eq!(requested, 5);
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    append(&database, &bad, "\"bad 5\"").await;
    assert_eq!(relay.drain().await, (1, 0));
    let history = history(&redis, &bad).await;
    let in_order: Vec<String> = (0..6).map(|n| format!("\"bad {n}\"")).collect();
    assert_eq!(payloads(&history), in_order);
    let ids: Vec<StreamId> = history.iter().map(|(id, _, _)| id.parse().expect("an id")).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    assert_eq!(parked::count(&mut database_connection, &name, &bad).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_release_that_redis_refuses_again_stays_parked() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let bad = redis.topic("bad");
    let mut connection = redis.connect().await;
    let _: () = connection.set(crate::harness::keys::history(&bad), "x").await?;
    append(&database, &bad, "1").await;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 1));
    let mut database_connection = database.connect().await;
    let name = redis.relay_name();
    parked::request(&mut database_connection, &name, &bad, Action::Release, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert!(!relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut database_connection, &name, &bad).await?, 1);
    Ok(())
}

#[tokio::test]
async fn discarded_events_are_forgotten_and_the_topic_flows_again() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let bad = redis.topic("bad");
    let key = crate::harness::keys::history(&bad);
    let mut connection = redis.connect().await;
    let _: () = connection.set(&key, "x").await?;
    append(&database, &bad, "1").await;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 1));
    let _: () = connection.del(&key).await?;
    let mut database_connection = database.connect().await;
    parked::request(&mut database_connection, &redis.relay_name(), &bad, Action::Discard, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    append(&database, &bad, "2").await;
    assert_eq!(relay.drain().await, (1, 0));
    assert_eq!(payloads(&history(&redis, &bad).await), ["2"]);
    Ok(())
}

/// A relay died after it had recorded a release. While Redis refuses the key, nobody can tell whether the
/// event arrived.
#[tokio::test]
async fn a_discard_behind_a_release_is_refused_while_redis_does_not_say_what_it_has() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let bad = redis.topic("bad");
    let key = crate::harness::keys::history(&bad);
    let mut connection = redis.connect().await;
    let _: () = connection.set(&key, "x").await?;
    append(&database, &bad, "1").await;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 1));
    let (mut log, name) = (database.connect().await, redis.relay_name());
    let parked = parked::of_topic(&mut log, &name, &bad, 1).await?;
    release::begin(&mut log, &name, relay.step.position(), &bad, parked[0].0).await?;
    relay.step.reload().await?;
    parked::request(&mut log, &name, &bad, Action::DiscardArrived, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut log, &name, &bad).await?, 1);
    let _: () = connection.del(&key).await?;
    parked::request(&mut log, &name, &bad, Action::DiscardArrived, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut log, &name, &bad).await?, 0);
    assert_eq!(history(&redis, &bad).await, []);
    Ok(())
}

#[tokio::test]
async fn another_entry_under_a_number_of_ours_parks_its_topic_and_nothing_is_overwritten() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let (topic, other) = (redis.topic("conflict"), redis.topic("other"));
    let key = crate::harness::keys::history(&topic);
    let mut connection = redis.connect().await;
    let fields = [("event", "somebody-else"), ("type", "T"), ("payload", "0")];
    let _: String = connection.xadd(&key, "1-1", &fields).await?;
    append(&database, &topic, "1").await;
    append(&database, &other, "2").await;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (1, 1));
    assert_eq!(payloads(&history(&redis, &topic).await), ["0"]);
    assert_eq!(payloads(&history(&redis, &other).await), ["2"]);
    let parked = parked_topics::list(&mut database.connect().await, &redis.relay_name(), 10).await;
    let reason = &parked?[0].reason;
    assert!(reason.contains(&key) && reason.contains("delete or rename that key"), "{reason}");
    Ok(())
}

/// A leader was frozen before its release, while another leader went on.
#[tokio::test]
async fn a_release_whose_number_is_used_up_is_refused() -> TestResult {
    let redis = redis().await;
    let mut publisher = Publisher::new(redis.settings(), &redis.relay_name(), 7);
    publisher.begin_lead(LogId::new_v4());
    let batch = |mode, seq| {
        let number = StreamId::new(1, seq);
        Batch { mode, deliveries: &[], first: number, through: Some(number), lost: None }
    };
    publisher.publish(batch(PublishMode::Normal, 1)).await?;
    publisher.publish(batch(PublishMode::Release, 2)).await?;
    for used_up in [1, 2] {
        let refused = publisher.publish(batch(PublishMode::Release, used_up)).await;
        assert!(matches!(refused, Err(PublishError::Forgot { .. })), "{used_up}: {refused:?}");
    }
    publisher.publish(batch(PublishMode::Normal, 2)).await?;
    Ok(())
}

#[tokio::test]
async fn a_release_from_an_earlier_epoch_that_stops_in_its_middle_moves_no_number() -> TestResult {
    let redis = redis().await;
    let topic = redis.topic("released");
    let mut publisher = Publisher::new(redis.settings(), &redis.relay_name(), 7);
    publisher.begin_lead(LogId::new_v4());
    let claim = StreamId::new(2, 0);
    let batch = Batch {
        mode: PublishMode::Restore,
        deliveries: &[],
        first: StreamId::new(2, 1),
        through: None,
        lost: Some(claim),
    };
    publisher.publish(batch).await?;
    let blocked = redis.topic("blocked");
    let events = [event(&topic, 1), event(&blocked, 2)];
    let deliveries: Vec<_> =
        (900..).zip(&events).map(|(seq, event)| Delivery { id: StreamId::new(1, seq), event }).collect();
    // A foreign entry with a higher id: the second event cannot be added before it.
    let key = crate::harness::keys::history(&blocked);
    let fields = [("event", "somebody-else"), ("type", "T"), ("payload", "0")];
    let _: String = redis.connect().await.xadd(&key, "1-902", &fields).await?;
    let number = StreamId::new(2, 1);
    let release = Batch {
        mode: PublishMode::Release,
        deliveries: &deliveries,
        first: number,
        through: Some(number),
        lost: None,
    };
    let refused = publisher.publish(release).await;
    assert!(matches!(refused, Err(PublishError::Poison { at: 1, .. })), "{refused:?}");
    assert_eq!(publisher.reached().await?[0].map(|reached| reached.id), Some(claim));
    Ok(())
}

pub(crate) fn event(topic: &Topic, id: i64) -> Event {
    Event {
        id,
        event_id: EventId::new_v4(),
        topic: topic.clone(),
        event_type: EventType::new("T").expect("a type"),
        payload: "1".to_owned(),
        created_at: chrono::Utc::now(),
        xid: Some(3),
        trace: None,
    }
}

/// Without the comparison at the start: the owner of the keys can change while a connection stays open.
#[tokio::test]
async fn each_batch_is_refused_where_the_keys_belong_to_another_log_or_have_another_format() -> TestResult {
    let redis = redis().await;
    let first = StreamId::new(1, 1);
    let nothing =
        Batch { mode: PublishMode::Normal, deliveries: &[], first, through: Some(first), lost: None };
    let mut owner = Publisher::new(redis.settings(), &redis.relay_name(), 7);
    owner.begin_lead(LogId::new_v4());
    owner.publish(nothing).await?;
    let mut other = Publisher::new(redis.settings(), &redis.relay_name(), 7);
    other.begin_lead(LogId::new_v4());
    let refused = other.publish(nothing).await.expect_err("a refusal").to_string();
    assert!(refused.contains("belong to another log"), "{refused}");
    let _: () = redis.connect().await.hset(redis.keys().log(), "format", 2).await?;
    let refused = owner.publish(nothing).await.expect_err("a refusal").to_string();
    assert!(refused.contains("have format 2"), "{refused}");
    Ok(())
}

/// In a batch of two epochs, numbers of the later epoch that are lower than those of the earlier one would be
/// taken for repeats, and lost.
#[tokio::test]
async fn a_batch_that_mixes_epochs_is_refused_whole() {
    let redis = redis().await;
    let topic = redis.topic("mixed");
    let event = |id: i64| Event {
        id,
        event_id: EventId::new_v4(),
        topic: topic.clone(),
        event_type: EventType::new("T").expect("a type"),
        payload: id.to_string(),
        created_at: chrono::Utc::now(),
        xid: Some(3),
        trace: None,
    };
    let (events, ids) = ([event(1), event(2)], [StreamId::new(1, 1), StreamId::new(2, 1)]);
    let deliveries: Vec<Delivery<'_>> =
        ids.into_iter().zip(&events).map(|(id, event)| Delivery { id, event }).collect();
    let mut publisher = Publisher::new(redis.settings(), &redis.relay_name(), 7);
    publisher.begin_lead(LogId::new_v4());
    let first = ids[0];
    for (mode, through, deliveries) in [
        (PublishMode::Release, None, &deliveries[..]),
        (PublishMode::Normal, Some(first), &deliveries[..]),
        (PublishMode::Normal, Some(ids[1]), &deliveries[..1]),
    ] {
        let refused = publisher.publish(Batch { mode, deliveries, first, through, lost: None }).await;
        let refused = refused.expect_err("a refusal").to_string();
        assert!(refused.contains("mixes epochs"), "{refused}");
    }
    assert_eq!(history(&redis, &topic).await, []);
}
