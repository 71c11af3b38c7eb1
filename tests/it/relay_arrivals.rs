//! Events that arrived in a try that broke off: they are neither parked nor discarded, whatever their entries
//! are now. What Redis has forgotten since is discarded only if the operator says so.

use redis::AsyncCommands;
use sqlx::Connection;

use aftercommit::event::Topic;
use aftercommit::log::checkpoint;
use aftercommit::log::parked::{self, Action};
use aftercommit::ops::audit::Operator;
use aftercommit::ops::parked::{self as requests, RequestError};
use aftercommit::ops::rebase::{Lineage, Rebase};
use aftercommit::redis::Publisher;
use aftercommit::relay::{Batch, OnPoison, PublishError, Reached, Reconciled, Sink, StepError, failure};

use crate::faulty_sink::{Fault, FaultySink};
use crate::harness::{Database, Redis, TestResult, database, redis};
use crate::relay_delivery::{Relay, append_in, history, payloads};
use crate::relay_steps::append_together;

/// The connection breaks after a call, and Redis then loses all of a topic but its newest entry.
struct KeepsTheNewestEntry<'a> {
    redis: &'a Redis,
    topic: &'a Topic,
    calls_before: u32,
}

impl Fault for KeepsTheNewestEntry<'_> {
    async fn publish(&mut self, publisher: &mut Publisher, batch: Batch<'_>) -> Result<(), PublishError> {
        let published = publisher.publish(batch).await;
        self.calls_before = self.calls_before.wrapping_sub(1);
        if self.calls_before != 0 {
            return published;
        }
        let key = self.redis.keys().history(self.topic);
        let mut connection = self.redis.connect().await;
        let trimmed: u64 = redis::cmd("XTRIM")
            .arg(key)
            .arg(&["MAXLEN", "1"])
            .query_async(&mut connection)
            .await
            .expect("entries go");
        assert!(trimmed > 0);
        Err(PublishError::retry(failure::CONNECTION, "cut"))
    }
}

/// Publishes a refused event and two that are taken, in a try that breaks off and whose Redis loses the first
/// of these. The sink's number stays before the refused event, and does not tell that the others arrived.
async fn arrived_behind_a_refused_event() -> TestResult<(Redis, Relay, [Topic; 2])> {
    let (database, redis) = (database().await, redis().await);
    let (refused, taken) = (redis.topic("refused"), redis.topic("taken"));
    let _: () = redis.connect().await.set(redis.keys().history(&refused), "of another type").await?;
    let mut connection = database.connect().await;
    let mut tx = connection.begin().await?;
    append_in(&mut tx, &refused, "0").await;
    append_in(&mut tx, &taken, "1").await;
    append_in(&mut tx, &taken, "2").await;
    tx.commit().await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    let fault = KeepsTheNewestEntry { redis: &redis, topic: &taken, calls_before: 2 };
    let mut sink = FaultySink { publisher: &mut relay.publisher, fault };
    let broken = relay.step.step(&mut sink).await;
    assert!(matches!(broken, Err(StepError::Publish(PublishError::Retry { .. }))), "{broken:?}");
    Ok((redis, relay, [refused, taken]))
}

#[tokio::test]
async fn an_event_that_arrived_in_a_try_that_broke_off_is_not_parked_when_its_entry_is_gone() -> TestResult {
    let (redis, mut relay, [_, taken]) = arrived_behind_a_refused_event().await?;
    assert_eq!(relay.drain().await, (2, 1));
    assert_eq!(payloads(&history(&redis, &taken).await), ["2"]);
    assert_eq!(relay.step.reconcile(&mut relay.publisher).await?, Reconciled::InStep);
    Ok(())
}

#[tokio::test]
async fn the_numbers_of_events_that_arrived_in_a_try_that_broke_off_are_used_up() -> TestResult {
    let (redis, mut relay, [refused, taken]) = arrived_behind_a_refused_event().await?;
    let _: () = redis.connect().await.del(redis.keys().history(&refused)).await?;
    assert_eq!(relay.drain().await, (3, 0));
    assert_eq!(payloads(&history(&redis, &taken).await), ["2"]);
    assert_eq!(relay.step.reconcile(&mut relay.publisher).await?, Reconciled::InStep);
    Ok(())
}

#[tokio::test]
async fn an_event_that_arrived_in_a_release_that_broke_off_is_released_when_its_entry_is_gone() -> TestResult
{
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("refused");
    let key = redis.keys().history(&topic);
    let mut connection = redis.connect().await;
    let _: () = connection.set(&key, "of another type").await?;
    append_together(&database, &topic, 0..3).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 3));
    let _: () = connection.del(&key).await?;
    let (mut log, name) = (database.connect().await, redis.relay_name());
    parked::request(&mut log, &name, &topic, Action::Release, None).await?;
    let fault = KeepsTheNewestEntry { redis: &redis, topic: &topic, calls_before: 1 };
    let mut sink = FaultySink { publisher: &mut relay.publisher, fault };
    let broken = relay.step.apply_request(&mut sink).await;
    assert!(matches!(broken, Err(StepError::Publish(PublishError::Retry { .. }))), "{broken:?}");
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut log, &name, &topic).await?, 0);
    assert_eq!(payloads(&history(&redis, &topic).await), ["2"]);
    Ok(())
}

/// Redis refuses to say what it holds of a topic.
struct RefusesToSay;

impl Fault for RefusesToSay {
    async fn newest_of(
        &mut self,
        _publisher: &mut Publisher,
        _topic: &Topic,
    ) -> Result<Option<Reached>, PublishError> {
        Err(PublishError::retry(failure::REFUSED, "NOPERM"))
    }
}

/// The events may have arrived in a try that broke off.
#[tokio::test]
async fn nothing_is_discarded_while_redis_refuses_to_say_what_it_has() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("refused");
    let key = redis.keys().history(&topic);
    let mut connection = redis.connect().await;
    let _: () = connection.set(&key, "of another type").await?;
    append_together(&database, &topic, 0..2).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 2));
    let _: () = connection.del(&key).await?;
    let (mut log, name) = (database.connect().await, redis.relay_name());
    parked::request(&mut log, &name, &topic, Action::Discard, None).await?;
    let mut sink = FaultySink { publisher: &mut relay.publisher, fault: RefusesToSay };
    assert!(relay.step.apply_request(&mut sink).await?);
    assert_eq!(parked::count(&mut log, &name, &topic).await?, 2);
    parked::request(&mut log, &name, &topic, Action::Discard, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut log, &name, &topic).await?, 0);
    Ok(())
}

/// The connection breaks after the first call, and Redis then loses what that call brought.
struct ForgetsItsFirstCall<'a> {
    redis: &'a Redis,
    topic: &'a Topic,
}

impl Fault for ForgetsItsFirstCall<'_> {
    async fn publish(&mut self, publisher: &mut Publisher, batch: Batch<'_>) -> Result<(), PublishError> {
        publisher.publish(batch).await?;
        forget_and_refuse(self.redis, self.topic).await.expect("Redis forgets");
        Err(PublishError::retry(failure::CONNECTION, "cut"))
    }
}

/// Redis loses everything of a topic and the relay's top, and then refuses the topic.
async fn forget_and_refuse(redis: &Redis, topic: &Topic) -> TestResult {
    let keys = redis.keys();
    let lost = [keys.top(&redis.relay_name()), keys.history(topic), keys.begun(topic)];
    let mut connection = redis.connect().await;
    let _: () = connection.del(&lost).await?;
    let _: () = connection.set(keys.history(topic), "of another type").await?;
    Ok(())
}

/// A discard gives up the topic's parked events only if it says that clients may have them.
async fn assert_discarded_only_knowingly(
    database: &Database,
    redis: &Redis,
    relay: &mut Relay,
    topic: &Topic,
    events: u64,
) -> TestResult {
    let (mut log, name) = (database.connect().await, redis.relay_name());
    let named = requests::name(&mut log, &name, topic, None).await?.expect("they are parked");
    assert_eq!(named.events, events);
    let operator = Operator { who: "test".to_owned(), reason: "a test".to_owned() };
    let mut tx = log.begin().await?;
    let asked = requests::request(&mut tx, &name, vec![named.clone()], Action::Discard, &operator).await;
    assert!(
        matches!(&asked, Err(RequestError::MayHaveArrived { events: n, .. }) if *n == events),
        "{asked:?}"
    );
    tx.rollback().await?;
    // Asked for all the same, as before a release that began meanwhile.
    let _: () = redis.connect().await.del(redis.keys().history(topic)).await?;
    parked::request(&mut log, &name, topic, Action::Discard, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut log, &name, topic).await?, events);
    let mut tx = log.begin().await?;
    requests::request(&mut tx, &name, vec![named], Action::DiscardArrived, &operator).await?;
    tx.commit().await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut log, &name, topic).await?, 0);
    assert_eq!(history(redis, topic).await, []);
    Ok(())
}

#[tokio::test]
async fn an_event_that_redis_forgot_before_the_position_knew_of_it_is_discarded_only_knowingly() -> TestResult
{
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("forgotten");
    append_together(&database, &topic, 0..2).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    let fault = ForgetsItsFirstCall { redis: &redis, topic: &topic };
    let mut sink = FaultySink { publisher: &mut relay.publisher, fault };
    let broken = relay.step.step(&mut sink).await;
    assert!(matches!(broken, Err(StepError::Publish(PublishError::Retry { .. }))), "{broken:?}");
    assert_eq!(relay.drain().await, (0, 2));
    assert_discarded_only_knowingly(&database, &redis, &mut relay, &topic, 2).await
}

#[tokio::test]
async fn an_event_that_another_relay_may_have_published_is_discarded_only_knowingly() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("forgotten");
    append_together(&database, &topic, 0..2).await?;
    let mut died = Relay::new(&database, &redis, OnPoison::Park).await;
    let fault = ForgetsItsFirstCall { redis: &redis, topic: &topic };
    let mut sink = FaultySink { publisher: &mut died.publisher, fault };
    died.step.step(&mut sink).await.expect_err("it dies");
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 2));
    assert_discarded_only_knowingly(&database, &redis, &mut relay, &topic, 2).await
}

#[tokio::test]
async fn an_event_that_a_repair_could_not_give_back_is_discarded_only_knowingly() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("forgotten");
    append_together(&database, &topic, 0..2).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (2, 0));
    forget_and_refuse(&redis, &topic).await?;
    relay.step.reconcile(&mut relay.publisher).await?;
    assert_discarded_only_knowingly(&database, &redis, &mut relay, &topic, 2).await
}

/// Gives the log the next epoch, as `aftercommit rebase` does.
async fn rebase(database: &Database, relay: &str) -> TestResult {
    let mut log = database.connect().await;
    let operator = Operator { who: "test".to_owned(), reason: "a test".to_owned() };
    let rebase = Rebase::begin(&mut log, relay).await?;
    let lineage = Lineage { epoch: rebase.position().epoch + 1, is_copy: false };
    rebase.finish(lineage, &operator, &serde_json::json!({})).await?;
    Ok(())
}

/// Neither the position, which went back, nor Redis, which has lost it, shows the delivery.
#[tokio::test]
async fn an_event_that_may_have_been_delivered_before_a_rebase_is_discarded_only_knowingly() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("forgotten");
    append_together(&database, &topic, 0..2).await?;
    let mut before = Relay::new(&database, &redis, OnPoison::Park).await;
    let backup = before.step.position().n;
    assert_eq!(before.drain().await, (2, 0));
    drop(before);
    sqlx::query("delete from outbox.checkpoint where n > $1")
        .bind(backup)
        .execute(&mut database.connect().await)
        .await?;
    forget_and_refuse(&redis, &topic).await?;
    rebase(&database, &redis.relay_name()).await?;
    let later = redis.topic("later");
    let _: () = redis.connect().await.set(redis.keys().history(&later), "of another type").await?;
    append_together(&database, &later, 0..1).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    relay.step.reconcile(&mut relay.publisher).await?;
    assert_eq!(relay.drain().await, (0, 3));
    assert_discarded_only_knowingly(&database, &redis, &mut relay, &topic, 2).await?;
    // It was appended after the rebase, so no earlier epoch has it.
    let (mut log, name) = (database.connect().await, redis.relay_name());
    let _: () = redis.connect().await.del(redis.keys().history(&later)).await?;
    parked::request(&mut log, &name, &later, Action::Discard, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut log, &name, &later).await?, 0);
    Ok(())
}

/// Another relay's rebase gives the rows new ids: of a sequence that was set back, they lie below the position.
#[tokio::test]
async fn an_event_keeps_that_it_may_have_been_delivered_where_a_later_rebase_renumbers_it() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("forgotten");
    append_together(&database, &topic, 0..2).await?;
    let mut log = database.connect().await;
    for relay in [redis.relay_name().as_str(), "other"] {
        checkpoint::load_or_begin(&mut log, relay).await?;
    }
    rebase(&database, &redis.relay_name()).await?;
    let beyond = "update outbox.checkpoint set high_id = 1000 where relay = 'other'";
    sqlx::query(beyond).execute(&mut log).await?;
    rebase(&database, "other").await?;
    rebase(&database, &redis.relay_name()).await?;
    let least: i64 = sqlx::query_scalar("select min(id) from outbox.event").fetch_one(&mut log).await?;
    assert!(least > 1000, "{least}");
    forget_and_refuse(&redis, &topic).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    relay.step.reconcile(&mut relay.publisher).await?;
    assert_eq!(relay.drain().await, (0, 2));
    assert_discarded_only_knowingly(&database, &redis, &mut relay, &topic, 2).await
}

/// It may have been released in the time that this Postgres has lost.
#[tokio::test]
async fn an_event_that_was_parked_before_a_rebase_is_discarded_only_knowingly() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("refused");
    let _: () = redis.connect().await.set(redis.keys().history(&topic), "of another type").await?;
    append_together(&database, &topic, 0..2).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 2));
    drop(relay);
    rebase(&database, &redis.relay_name()).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_discarded_only_knowingly(&database, &redis, &mut relay, &topic, 2).await
}

#[tokio::test]
async fn an_event_whose_release_redis_forgot_is_discarded_only_knowingly() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("forgotten");
    let key = redis.keys().history(&topic);
    let _: () = redis.connect().await.set(&key, "of another type").await?;
    append_together(&database, &topic, 0..2).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 2));
    let _: () = redis.connect().await.del(&key).await?;
    let (mut log, name) = (database.connect().await, redis.relay_name());
    parked::request(&mut log, &name, &topic, Action::Release, None).await?;
    let fault = ForgetsItsFirstCall { redis: &redis, topic: &topic };
    let mut sink = FaultySink { publisher: &mut relay.publisher, fault };
    let broken = relay.step.apply_request(&mut sink).await;
    assert!(matches!(broken, Err(StepError::Publish(PublishError::Retry { .. }))), "{broken:?}");
    assert_discarded_only_knowingly(&database, &redis, &mut relay, &topic, 2).await
}

/// The script says itself that it has not taken them.
#[tokio::test]
async fn events_whose_release_is_refused_can_be_discarded_as_before() -> TestResult {
    let (database, redis) = (database().await, redis().await);
    let topic = redis.topic("refused");
    let key = redis.keys().history(&topic);
    let _: () = redis.connect().await.set(&key, "of another type").await?;
    append_together(&database, &topic, 0..2).await?;
    let mut relay = Relay::new(&database, &redis, OnPoison::Park).await;
    assert_eq!(relay.drain().await, (0, 2));
    let (mut log, name) = (database.connect().await, redis.relay_name());
    parked::request(&mut log, &name, &topic, Action::Release, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut log, &name, &topic).await?, 2);
    let _: () = redis.connect().await.del(&key).await?;
    parked::request(&mut log, &name, &topic, Action::Discard, None).await?;
    assert!(relay.step.apply_request(&mut relay.publisher).await?);
    assert_eq!(parked::count(&mut log, &name, &topic).await?, 0);
    Ok(())
}
