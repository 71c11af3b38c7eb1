//! What a history holds behind an id: the identities of its events, for telling what clients have been told already.

use ::redis::aio::MultiplexedConnection;
use ::redis::streams::StreamRangeReply;
use ::redis::{AsyncCommands, RedisError};

use super::keys::Keys;
use crate::event::{EventId, StreamId, Topic};

/// Entries that are read at once.
const PAGE: usize = 1000;

/// The events of a topic's history behind `after`, in order; as many as the history keeps.
///
/// # Errors
/// Redis's.
pub async fn event_ids_after(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    topic: &Topic,
    after: StreamId,
) -> Result<Vec<EventId>, RedisError> {
    let (mut told, mut start) = (Vec::new(), format!("({after}"));
    loop {
        let page: StreamRangeReply = connection.xrange_count(keys.history(topic), &start, "+", PAGE).await?;
        let Some(last) = page.ids.last() else { return Ok(told) };
        start = format!("({}", last.id);
        // An entry without an event's identity was written by somebody else, and tells us nothing.
        let identity =
            |entry: &::redis::streams::StreamId| EventId::parse_str(&entry.get::<String>("event")?).ok();
        told.extend(page.ids.iter().filter_map(identity));
    }
}
