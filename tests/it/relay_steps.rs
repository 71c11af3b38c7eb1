//! Two relays that both believe to lead, step by step, and a Redis ahead of or behind the position.

use redis::AsyncCommands;
use sqlx::Connection;

use aftercommit::event::{Event, EventId, StreamId, Topic};
use aftercommit::log::checkpoint;
use aftercommit::log::parked::{self, Action};
use aftercommit::log::read::{self, Row};
use aftercommit::redis::Publisher;
use aftercommit::relay::{
    Batch, Delivery, OnPoison, Outcome, PublishError, PublishMode, Reached, Reconciled, Sink, StepError,
};

use crate::faulty_sink::{Fault, FaultySink};
use crate::harness::{Database, Redis, TestResult, database, redis};
use crate::relay_delivery::{Relay, append, append_in, history, payloads};

/// Commits these events in one transaction: one window, of which a step takes a hundred.
pub(crate) async fn append_together(
    database: &Database,
    topic: &Topic,
    numbers: std::ops::Range<u32>,
) -> TestResult {
    let mut connection = database.connect().await;
    let mut tx = connection.begin().await?;
    for n in numbers {
        append_in(&mut tx, topic, &n.to_string()).await;
    }
    tx.commit().await?;
    Ok(())
}

async fn assert_in_order(redis: &Redis, topic: &Topic, count: u32) {
    let in_order: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    assert_eq!(payloads(&history(redis, topic).await), in_order);
}

/// A relay that has delivered the first hundred of 250 events and is frozen, and another one of its name.
async fn frozen_and_other(database: &Database, redis: &Redis, topic: &Topic) -> TestResult<(Relay, Relay)> {
    append_together(database, topic, 0..250).await?;
    let mut frozen = Relay::new(database, redis, OnPoison::Park).await;
    let first = frozen.step.step(&mut frozen.publisher).await?;
    assert_eq!(first, Outcome::Delivered { published: 100, parked: 0 });
    Ok((frozen, Relay::new(database, redis, OnPoison::Park).await))
}

#[tokio::test]
async fn what_a_relay_had_read_ahead_is_forgotten_when_another_one_has_moved_the_position() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("fenced");
    // It has read the next hundred, when the other one delivers all the rest.
    let (mut frozen, mut other) = frozen_and_other(&database, &redis, &topic).await?;
    assert_eq!(other.drain().await, (150, 0));
    // Its numbers are used up, and nobody has vouched for the events there.
    let refused = frozen.step.step(&mut frozen.publisher).await;
    assert!(matches!(refused, Err(StepError::Publish(PublishError::Forgot { .. }))), "{refused:?}");
    assert_eq!(frozen.step.reconcile(&mut frozen.publisher).await?, Reconciled::InStep);
    append(&database, &topic, "250").await;
    assert_eq!(frozen.drain().await, (1, 0));
    assert_in_order(&redis, &topic, 251).await;
    Ok(())
}

/// A relay that died before it wrote the position leaves the sink beyond it, by events of the open window.
#[tokio::test]
async fn a_redis_beyond_the_position_is_in_step_only_where_it_ends_with_an_event_of_the_open_window()
-> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("beyond");
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(append(&database, &topic, &n.to_string()).await.to_string());
    }
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    let mut connection = database.connect().await;
    let opened = checkpoint::open(&mut connection, &redis.relay_name(), relay.step.position()).await;
    opened?.ok_or("no window")?;
    relay.step.reload().await?;
    let stranger = EventId::new_v4().to_string();
    let cases = [
        ("1-2", ids[1].as_str(), true),
        ("1-3", "-", true),
        ("1-2", ids[0].as_str(), false),
        ("1-2", stranger.as_str(), false),
        ("1-4", "-", false),
        ("2-1", ids[0].as_str(), false),
    ];
    for (id, event, is_in_step) in cases {
        let top = redis.keys().top(&redis.relay_name());
        let _: () = redis.connect().await.hset_multiple(&top, &[("id", id), ("event", event)]).await?;
        let found = relay.step.reconcile(&mut relay.publisher).await;
        match found {
            Ok(found) => assert!(is_in_step && found == Reconciled::InStep, "{id} {event}: {found:?}"),
            Err(StepError::Publish(PublishError::Stop(_))) => assert!(!is_in_step, "{id} {event}"),
            Err(error) => panic!("{id} {event}: {error}"),
        }
    }
    assert_eq!(history(&redis, &topic).await, [], "nothing was published");
    Ok(())
}

#[tokio::test]
async fn what_is_given_again_is_what_the_newest_position_has_delivered() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("again");
    let (mut frozen, mut other) = frozen_and_other(&database, &redis, &topic).await?;
    assert_eq!(other.drain().await, (150, 0));
    let keys =
        [redis.keys().top(&redis.relay_name()), redis.keys().history(&topic), redis.keys().begun(&topic)];
    let _: () = redis.connect().await.del(&keys).await?;
    let found = frozen.step.reconcile(&mut frozen.publisher).await?;
    assert_eq!(found, Reconciled::Restored { events: 250, missing: 0 });
    assert_in_order(&redis, &topic, 250).await;
    Ok(())
}

#[tokio::test]
async fn a_recorded_loss_that_is_damaged_is_told_and_one_without_a_time_counts_as_new() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let (topic, quiet) = (redis.topic("damaged"), redis.topic("quiet"));
    let (mut connection, owner) = (redis.connect().await, redis.keys().log());
    append(&database, &topic, "0").await;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (1, 0));
    let _: () = connection.hset(&owner, "lost", "x").await?;
    append(&database, &quiet, "1").await;
    let refused = relay.step.step(&mut relay.publisher).await;
    let told = refused.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(told.contains("no relay wrote x"), "{told}");
    let _: () = connection.hset(&owner, "lost", "1-1").await?;
    assert_eq!(relay.drain().await, (1, 0));
    let newest = relay.publisher.newest_of(&quiet).await?.map(|newest| newest.id);
    assert_eq!(newest, Some(StreamId::new(1, 2)));
    Ok(())
}

/// Another relay goes on before the second answer of `reached`.
struct Meanwhile<'a> {
    other: Relay,
    more: (&'a Database, &'a Topic),
    asked: u32,
}

impl Fault for Meanwhile<'_> {
    async fn reached(&mut self, publisher: &mut Publisher) -> Result<Vec<Option<Reached>>, PublishError> {
        self.asked += 1;
        if self.asked == 2 {
            self.other.drain().await;
            // In a new window, which the frozen relay does not know.
            append_together(self.more.0, self.more.1, 250..253).await.expect("three more events");
            self.other.drain().await;
        }
        publisher.reached().await
    }
}

#[tokio::test]
async fn another_relay_that_goes_on_during_a_comparison_is_no_sign_that_postgres_went_back() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("meanwhile");
    let (mut frozen, mut other) = frozen_and_other(&database, &redis, &topic).await?;
    other.step.step(&mut other.publisher).await?;
    let Relay { step, publisher } = &mut frozen;
    let fault = Meanwhile { other, more: (&database, &topic), asked: 0 };
    let mut sink = FaultySink { publisher, fault };
    let found = step.reconcile(&mut sink).await?;
    assert_eq!((found, sink.fault.asked), (Reconciled::InStep, 2));
    assert_in_order(&redis, &topic, 253).await;
    Ok(())
}

/// A replica that lagged has a part of the events of one checkpoint.
#[tokio::test]
async fn a_redis_that_went_back_into_the_middle_of_a_batch_is_given_the_rest_of_it() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("middle");
    append_together(&database, &topic, 0..100).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    let mut connection = database.connect().await;
    read::prepare_session(&mut connection).await?;
    let opened = checkpoint::open(&mut connection, &redis.relay_name(), relay.step.position()).await;
    let opened = opened?.ok_or("no window")?;
    let limit = read::Limit { events: 57, bytes: 1_000_000 };
    let chunk = read::batch(&mut connection, &redis.relay_name(), &opened, 0, limit).await?;
    relay.step.reload().await?;
    assert_eq!(relay.drain().await, (100, 0));
    let keys =
        [redis.keys().top(&redis.relay_name()), redis.keys().history(&topic), redis.keys().begun(&topic)];
    let _: () = redis.connect().await.del(&keys).await?;
    let events: Vec<&Event> = chunk
        .rows
        .iter()
        .map(|row| match row {
            Row::Event(event) => event,
            Row::Unreadable(unreadable) => panic!("{unreadable:?}"),
        })
        .collect();
    let deliveries: Vec<Delivery<'_>> =
        (1..).zip(events).map(|(seq, event)| Delivery { id: StreamId::new(1, seq), event }).collect();
    let (first, through) = (StreamId::new(1, 1), Some(StreamId::new(1, 57)));
    let batch = Batch { mode: PublishMode::Normal, deliveries: &deliveries, first, through, lost: None };
    relay.publisher.publish(batch).await?;
    let found = relay.step.reconcile(&mut relay.publisher).await?;
    assert_eq!(found, Reconciled::Restored { events: 43, missing: 0 });
    assert_in_order(&redis, &topic, 100).await;
    Ok(())
}

#[tokio::test]
async fn a_request_through_a_number_is_about_the_events_up_to_it() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("through");
    let key = redis.keys().history(&topic);
    let _: () = redis.connect().await.set(&key, "of another type").await?;
    append_together(&database, &topic, 0..4).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 4));
    let _: () = redis.connect().await.del(&key).await?;
    let mut connection = database.connect().await;
    let through = Some(StreamId::new(1, 2));
    let name = redis.relay_name();
    let requested = parked::request(&mut connection, &name, &topic, Action::Discard, through).await;
    assert_eq!(requested?, 2);
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(payloads(&history(&redis, &topic).await), ["2", "3"], "these only waited");
    Ok(())
}

/// Redis ends with a number without an event, which proves nothing, and holds an event of another Postgres.
#[tokio::test]
async fn another_event_under_a_number_of_the_open_window_stops_everything() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("other");
    append_together(&database, &topic, 0..3).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    let mut connection = database.connect().await;
    let opened = checkpoint::open(&mut connection, &redis.relay_name(), relay.step.position()).await;
    opened?.ok_or("no window")?;
    relay.step.reload().await?;
    let stranger = EventId::new_v4().to_string();
    let (top, history) = (redis.keys().top(&redis.relay_name()), redis.keys().history(&topic));
    let mut connection = redis.connect().await;
    let _: () = connection.hset_multiple(&top, &[("id", "1-3"), ("event", "-")]).await?;
    let _: String = connection.xadd(&history, "1-2", &[("event", stranger.as_str())]).await?;
    assert_eq!(relay.step.reconcile(&mut relay.publisher).await?, Reconciled::InStep);
    let stopped = relay.step.step(&mut relay.publisher).await;
    assert!(matches!(stopped, Err(StepError::Publish(PublishError::Stop(_)))), "{stopped:?}");
    Ok(())
}

/// The relay was stopped when the operator discarded all of them, and then released the first two.
#[tokio::test]
async fn requests_of_both_kinds_for_one_topic_are_each_about_their_own_rows() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("both");
    let key = redis.keys().history(&topic);
    let _: () = redis.connect().await.set(&key, "of another type").await?;
    append_together(&database, &topic, 0..5).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 5));
    let _: () = redis.connect().await.del(&key).await?;
    let (mut connection, name) = (database.connect().await, redis.relay_name());
    parked::request(&mut connection, &name, &topic, Action::Discard, None).await?;
    let through = Some(StreamId::new(1, 2));
    parked::request(&mut connection, &name, &topic, Action::Release, through).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(payloads(&history(&redis, &topic).await), ["0", "1"]);
    let fates: Vec<String> = sqlx::query_scalar("select settled_as from outbox.parked order by seq")
        .fetch_all(&mut connection)
        .await?;
    assert_eq!(fates, ["released", "released", "discarded", "discarded", "discarded"]);
    Ok(())
}

/// Its type has been reserved for events of the server, so no release can publish it.
#[tokio::test]
async fn the_release_of_a_row_that_is_no_event_is_refused_and_holds_nothing_else_up() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let [topic, other] = ["reserved", "healthy"].map(|name| redis.topic(name));
    let mut connection = database.connect().await;
    sqlx::query("insert into outbox.event (topic, type, payload) values ($1, 'reset', '1')")
        .bind(topic.as_str())
        .execute(&mut connection)
        .await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 1));
    let name = redis.relay_name();
    parked::request(&mut connection, &name, &topic, Action::Release, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    let (settled, requested): (Option<String>, Option<String>) =
        sqlx::query_as("select settled_as, requested from outbox.parked").fetch_one(&mut connection).await?;
    assert_eq!((settled, requested), (None, None), "the request is refused, and the row stays");
    append(&database, &other, "1").await;
    assert_eq!(relay.drain().await, (1, 0));
    parked::request(&mut connection, &name, &topic, Action::Discard, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut connection, &name, &topic).await?, 0);
    Ok(())
}

/// The numbers of missing rows are unknown: the whole batch is left out.
#[tokio::test]
async fn batches_of_which_the_log_has_lost_rows_are_not_given_again_under_numbers_of_others() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("rotated");
    append_together(&database, &topic, 0..250).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (250, 0));
    // Of the first and of the last batch.
    sqlx::query("delete from outbox.event where id in (5, 210)")
        .execute(&mut database.connect().await)
        .await?;
    let keys =
        [redis.keys().top(&redis.relay_name()), redis.keys().history(&topic), redis.keys().begun(&topic)];
    let _: () = redis.connect().await.del(&keys).await?;
    let found = relay.step.reconcile(&mut relay.publisher).await?;
    assert_eq!(found, Reconciled::Restored { events: 100, missing: 150 });
    let history = history(&redis, &topic).await;
    let expected = (100..200).map(|n| (format!("1-{}", n + 1), n.to_string()));
    assert!(history.iter().map(|(id, _, payload)| (id.clone(), payload.clone())).eq(expected), "{history:?}");
    Ok(())
}

/// Redis loses a topic and the relay's top after `calls_before` calls.
struct ForgetsBefore<'a> {
    redis: &'a Redis,
    topic: &'a Topic,
    calls_before: u32,
}

impl Fault for ForgetsBefore<'_> {
    async fn publish(&mut self, publisher: &mut Publisher, batch: Batch<'_>) -> Result<(), PublishError> {
        if self.calls_before == 0 {
            let keys = self.redis.keys();
            let keys = [keys.top(&self.redis.relay_name()), keys.history(self.topic), keys.begun(self.topic)];
            let _: () = self.redis.connect().await.del(&keys).await.expect("Redis forgets");
        }
        self.calls_before = self.calls_before.wrapping_sub(1);
        publisher.publish(batch).await
    }
}

/// A batch of which the second event is refused.
async fn partly_refused() -> TestResult<(Database, Redis, Topic, Topic)> {
    let (database, redis) = (database().await, redis().await);
    let (taken, refused) = (redis.topic("taken"), redis.topic("refused"));
    let key = crate::harness::keys::history(&refused);
    let _: () = redis.connect().await.set(&key, "of another type").await?;
    let mut connection = database.connect().await;
    let mut tx = connection.begin().await?;
    append_in(&mut tx, &taken, "0").await;
    append_in(&mut tx, &refused, "1").await;
    tx.commit().await?;
    Ok((database, redis, taken, refused))
}

#[tokio::test]
async fn a_redis_that_forgets_a_batch_while_its_refused_event_is_written_down_is_given_the_rest_again()
-> TestResult {
    let (database, redis, taken, _) = partly_refused().await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    // One call for the batch, one for its rest after the refused event.
    let fault = ForgetsBefore { redis: &redis, topic: &taken, calls_before: 2 };
    let mut sink = FaultySink { publisher: &mut relay.publisher, fault };
    let outcome = relay.step.step(&mut sink).await?;
    assert_eq!(
        (outcome, sink.fault.calls_before),
        (Outcome::Delivered { published: 1, parked: 1 }, u32::MAX)
    );
    assert_in_order(&redis, &taken, 1).await;
    assert_eq!(relay.step.reconcile(&mut relay.publisher).await?, Reconciled::InStep);
    Ok(())
}

#[tokio::test]
async fn a_redis_that_forgets_again_in_the_middle_of_a_repair_is_given_everything_again() -> TestResult {
    let (database, redis, taken, refused) = partly_refused().await?;
    let key = crate::harness::keys::history(&refused);
    let mut connection = redis.connect().await;
    let _: () = connection.del(&key).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (2, 0));
    let keys =
        [redis.keys().top(&redis.relay_name()), redis.keys().history(&taken), redis.keys().begun(&taken)];
    let _: () = connection.del(&keys).await?;
    let _: () = connection.set(&key, "of another type").await?;
    let fault = ForgetsBefore { redis: &redis, topic: &taken, calls_before: 2 };
    let mut sink = FaultySink { publisher: &mut relay.publisher, fault };
    let found = relay.step.reconcile(&mut sink).await?;
    assert!(matches!(found, Reconciled::Restored { .. }) && sink.fault.calls_before > 2, "{found:?}");
    assert_in_order(&redis, &taken, 1).await;
    Ok(())
}

/// Two events of a release are taken, and the third is refused.
struct RefusesThird;

impl Fault for RefusesThird {
    async fn publish(&mut self, publisher: &mut Publisher, batch: Batch<'_>) -> Result<(), PublishError> {
        if batch.mode != PublishMode::Release {
            return publisher.publish(batch).await;
        }
        publisher.publish(Batch { deliveries: &batch.deliveries[..2], through: None, ..batch }).await?;
        Err(PublishError::Poison { at: 2, reason: "refused".to_owned() })
    }
}

#[tokio::test]
async fn what_arrived_of_a_release_that_is_refused_in_its_middle_is_not_parked_again() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("refused");
    let key = crate::harness::keys::history(&topic);
    let mut connection = redis.connect().await;
    let _: () = connection.set(&key, "of another type").await?;
    append_together(&database, &topic, 0..4).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 4));
    let _: () = connection.del(&key).await?;
    let (mut log, name) = (database.connect().await, redis.relay_name());
    parked::request(&mut log, &name, &topic, Action::Release, None).await?;
    let mut sink = FaultySink { publisher: &mut relay.publisher, fault: RefusesThird };
    assert!(relay.step.apply_request(&mut sink).await?);
    assert_eq!(parked::count(&mut log, &name, &topic).await?, 2);
    assert_eq!(payloads(&history(&redis, &topic).await), ["0", "1"]);
    Ok(())
}
