//! Tells messages of other programs from events, in a cluster. There the bare payload of an event can come
//! without its envelope, while the slot of the topic moves. The history tells the two apart, because the
//! relay writes an event to it before it publishes the payload.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::read::{FIRST_READ, bytes_of, next_count};
use crate::event::{StreamId, Topic};
use crate::redis::history::{Entry, ReadError};
use crate::sse::shared::Shared;
use crate::sse::topic::shared_topic::SharedTopic;
use crate::sse::wire::cursor::Cursor;

/// Messages that are verified in one go.
const AT_ONCE: usize = 256;
/// The newest entries among which a message is looked for. A process or a server that was frozen for seconds gives
/// its messages that late.
const ENTRIES: usize = 4096;

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
    let found = match ids_of(shared, &topic.topic, texts).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(topic = %topic.topic, %error, "messages that may be of another program are dropped");
            return;
        }
    };
    let place = topic.state().end_cursor().and_then(Cursor::id);
    for (text, id) in texts.iter().zip(found) {
        match id {
            None => shared.deliver_foreign(topic, text),
            Some(id) if place.is_none_or(|place| place < id) => shared.join_anew(topic),
            Some(_told) => {}
        }
    }
}

/// The newest event with each of these payloads, if there is one. Reads the history from its end, page by page,
/// until all are found.
async fn ids_of(
    shared: &Shared,
    topic: &Topic,
    texts: &[String],
) -> Result<Vec<Option<StreamId>>, ReadError> {
    let mut found = vec![None; texts.len()];
    let (mut before, mut count, mut looked_at) = (None, FIRST_READ, 0);
    while looked_at < ENTRIES && found.contains(&None) {
        let entries = shared.history.newest_before(topic, before, count).await?;
        for (text, id) in texts.iter().zip(&mut found).filter(|(_, id)| id.is_none()) {
            *id = entry_of(&entries, text).map(|entry| entry.id);
        }
        let Some(oldest) = entries.first().filter(|_| entries.len() == count) else { break };
        before = Some(oldest.id);
        looked_at += entries.len();
        count = next_count(entries.len(), bytes_of(&entries));
    }
    Ok(found)
}

/// The newest entry with this payload.
fn entry_of<'a>(entries: &'a [Entry], text: &str) -> Option<&'a Entry> {
    entries.iter().rev().find(|entry| entry.event.as_ref().is_some_and(|(_, payload)| payload == text))
}
