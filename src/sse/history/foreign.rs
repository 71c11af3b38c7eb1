//! Tells messages of other programs from events, in a cluster. There the bare payload of an event can come
//! without its envelope, while the slot of the topic moves. The history tells the two apart, because the
//! relay writes an event to it before it publishes the payload.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::redis::history::Entry;
use crate::sse::shared::Shared;
use crate::sse::topic::shared_topic::SharedTopic;
use crate::sse::wire::cursor::Cursor;

/// Messages that are verified in one go.
const AT_ONCE: usize = 256;
/// Newest entries among which a message is looked for: more than a relay publishes to a topic in the
/// milliseconds before the look.
const ENTRIES: usize = 128;

/// Verifies messages in their order, and gives those of other programs to their topics. A message whose
/// history cannot be read is dropped, like a message that comes while the subscription is interrupted.
pub(crate) async fn verify(shared: &Shared, mut bare: mpsc::Receiver<(Arc<SharedTopic>, String)>) {
    let mut received = Vec::with_capacity(AT_ONCE);
    while bare.recv_many(&mut received, AT_ONCE).await > 0 {
        let mut messages = received.drain(..).peekable();
        while let Some((topic, text)) = messages.next() {
            let mut texts = vec![text];
            while let Some((_, text)) = messages.next_if(|(next, _)| Arc::ptr_eq(next, &topic)) {
                texts.push(text);
            }
            verify_of_topic(shared, &topic, &texts).await;
        }
    }
}

async fn verify_of_topic(shared: &Shared, topic: &Arc<SharedTopic>, texts: &[String]) {
    let entries = match shared.history.newest(&topic.topic, ENTRIES).await {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(topic = %topic.topic, %error, "messages that may be of another program are dropped");
            return;
        }
    };
    let place = topic.state().end_cursor().and_then(Cursor::id);
    for text in texts {
        match entry_of(&entries, text) {
            None => shared.deliver_foreign(topic, text),
            Some(entry) if place.is_none_or(|place| place < entry.id) => shared.join_anew(topic),
            Some(_told) => {}
        }
    }
}

/// The entry with this payload.
fn entry_of<'a>(entries: &'a [Entry], text: &str) -> Option<&'a Entry> {
    entries.iter().rev().find(|entry| entry.event.as_ref().is_some_and(|(_, payload)| payload == text))
}
