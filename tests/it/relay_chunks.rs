//! The chunks of a batch, of which two are under way at once.

use redis::AsyncCommands;

use aftercommit::event::{Event, EventId, LogId, StreamId};
use aftercommit::redis::Publisher;
use aftercommit::relay::{Batch, Delivery, PublishError, PublishMode, Sink};

use crate::harness::{TestResult, keys, redis};
use crate::relay_delivery::{event, history};

/// The chunk after a refused event has reached Redis too, and must do nothing there.
#[tokio::test]
async fn a_chunk_that_was_sent_behind_a_refused_event_leaves_nothing() -> TestResult {
    let redis = redis().await;
    let (good, bad) = (redis.topic("good"), redis.topic("bad"));
    let mut publisher = Publisher::new(redis.settings(), &redis.relay_name(), 2);
    publisher.begin_lead(LogId::new_v4());
    // The first chunk goes alone, so the second one is refused while the third is under way.
    let topics = [&good, &good, &good, &bad, &good, &good, &good];
    let events: Vec<Event> = (1..).zip(topics).map(|(id, topic)| event(topic, id)).collect();
    let number = |n: u64| StreamId::new(1, n);
    let deliveries: Vec<Delivery<'_>> =
        (1..).zip(&events).map(|(n, event)| Delivery { id: number(n), event }).collect();
    let _: () = redis.connect().await.set(keys::history(&bad), "somebody else's").await?;
    let whole = Batch {
        mode: PublishMode::Normal,
        deliveries: &deliveries,
        first: number(1),
        through: Some(number(7)),
        lost: None,
    };
    let refused = publisher.publish(whole).await;
    assert!(matches!(refused, Err(PublishError::Poison { at: 3, .. })), "{refused:?}");
    assert_eq!(history(&redis, &good).await.len(), 3, "the third chunk has done nothing");
    assert!(publisher.may_have_delivered(number(3)) && !publisher.may_have_delivered(number(4)));

    // Numbers that are not said protect nothing, so the next chunk is not sent before the answer.
    let rest = Batch { deliveries: &deliveries[3..], first: number(4), through: None, ..whole };
    let refused = publisher.publish(rest).await;
    assert!(matches!(refused, Err(PublishError::Poison { at: 0, .. })), "{refused:?}");
    assert_eq!(history(&redis, &good).await.len(), 3);

    let _: () = redis.connect().await.del(keys::history(&bad)).await?;
    publisher.publish(Batch { deliveries: &deliveries[3..], first: number(4), ..whole }).await?;
    let arrived: Vec<EventId> = events.iter().filter(|it| it.topic == good).map(|it| it.event_id).collect();
    let told: Vec<String> = history(&redis, &good).await.into_iter().map(|(_, event, _)| event).collect();
    assert_eq!(told, arrived.iter().map(ToString::to_string).collect::<Vec<_>>());
    Ok(())
}
