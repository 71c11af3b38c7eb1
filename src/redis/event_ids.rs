//! Reads the UUIDs of the events in a history behind an id. Clients may have received these events.

use ::redis::aio::MultiplexedConnection;
use ::redis::streams::StreamRangeReply;
use ::redis::{AsyncCommands, RedisError};

use super::keys::Keys;
use crate::event::{EventId, StreamId, Topic};

/// The most entries of one read.
const PAGE: usize = 1000;

/// Returns the UUIDs of the events in a topic's history behind `after`, in order, as far as the history keeps
/// them.
///
/// # Errors
/// The client's error if Redis refuses a read or does not answer in time.
pub async fn event_ids_after(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    topic: &Topic,
    after: StreamId,
) -> Result<Vec<EventId>, RedisError> {
    let (mut event_ids, mut start) = (Vec::new(), format!("({after}"));
    loop {
        let page: StreamRangeReply = connection.xrange_count(keys.history(topic), &start, "+", PAGE).await?;
        let Some(last) = page.ids.last() else { return Ok(event_ids) };
        start = format!("({}", last.id);
        // An entry without an event's UUID was written by another program.
        let identity =
            |entry: &::redis::streams::StreamId| EventId::parse_str(&entry.get::<String>("event")?).ok();
        event_ids.extend(page.ids.iter().filter_map(identity));
    }
}
