//! A rehearsal of publishing: runs the real script under names of its own, before any event is published.

use chrono::Utc;

use super::keys::Keys;
use super::publisher::Publisher;
use super::settings::Settings;
use crate::event::{Event, EventId, EventType, LogId, StreamId, Topic};
use crate::relay::{Batch, Delivery, PublishError, PublishMode, Sink};

/// The relay, topic and type of a rehearsal.
const NAME: &str = "aftercommit-doctor";

/// Publishes an event of no log twice, and removes its keys from Redis. Nobody subscribes to its channels.
///
/// # Errors
/// Says, in Redis's words, why the event could not be published or its keys not removed.
pub async fn rehearse(settings: &Settings) -> Result<(), String> {
    // No relay's name and no namespace contains a colon, so these names collide with none. A relay that may
    // publish on few public channels may publish on these.
    let keys = match settings.namespace.as_str() {
        "" => Keys::new("aftercommit:doctor"),
        namespace => Keys::new(&format!("{namespace}:{NAME}")),
    };
    let topic = Topic::new(NAME).map_err(|error| error.to_string())?;
    // Replicas have a check of their own. The TTL removes the keys if this process cannot.
    let settings = Settings { min_replicas: 0, history_ttl_seconds: 1, ..settings.clone() };
    let mut sink = Publisher::under(keys, settings, NAME, 1);
    // The keys of an earlier rehearsal would make this one a repeat, which tests nothing.
    remove(&mut sink, &topic).await?;
    let published = publish(&mut sink, &topic).await;
    let removed = remove(&mut sink, &topic).await;
    published.and(removed)
}

async fn publish(sink: &mut Publisher, topic: &Topic) -> Result<(), String> {
    let event = Event {
        id: 1,
        event_id: EventId::nil(),
        topic: topic.clone(),
        event_type: EventType::new(NAME).map_err(|error| error.to_string())?,
        payload: "null".to_owned(),
        created_at: Utc::now(),
        xid: Some(3),
        trace: None,
    };
    let first = StreamId::new(1, 1);
    let deliveries = [Delivery { id: first, event: &event }];
    // Every rehearsal uses the same identities, so that two at once do no harm to each other.
    sink.begin_lead(LogId::nil());
    sink.reached().await.map_err(|error| error.to_string())?;
    // The second call makes the script look up the entry in the history.
    for (mode, through) in [(PublishMode::Normal, Some(first)), (PublishMode::Restore, None)] {
        let batch = Batch { mode, deliveries: &deliveries, first, through, lost: None };
        sink.publish(batch).await.map_err(|error| match error {
            PublishError::Poison { reason, .. } => reason,
            other => other.to_string(),
        })?;
    }
    Ok(())
}

async fn remove(sink: &mut Publisher, topic: &Topic) -> Result<(), String> {
    sink.remove_keys(topic).await.map_err(|error| error.to_string())
}
