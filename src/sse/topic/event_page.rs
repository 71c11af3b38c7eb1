//! A page of a topic for a reader that keeps its own place.

use bytes::Bytes;

use crate::event::{StreamId, Topic};
use crate::redis::history::ReadError;
use crate::sse::wire::cursor::Cursor;

/// Why there is no page.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PageError {
    /// The history does not prove that nothing is missing after the reader's place.
    #[error(
        "the history of this topic does not prove that nothing is missing after this offset: ask for \
         offset=now, read the state again, and continue after the offset that it returned"
    )]
    Gone,
    /// Redis cannot be read.
    #[error("the history cannot be read at the moment: try again after a while")]
    Read(#[from] ReadError),
    /// Too many others read, or too much is held for streams.
    #[error("this process has no room for one more read: try again after a while")]
    NoRoom,
}

/// Events in their order, and the place after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPage {
    /// The payloads, byte for byte as they were appended.
    pub payloads: Vec<Bytes>,
    /// The place after the last event, or the reader's own if there is none.
    pub next: Cursor,
    /// Whether the topic had no event after it.
    pub is_last: bool,
}

impl EventPage {
    /// A page without events, at the topic's end.
    pub fn empty(end: Cursor) -> Self {
        Self { payloads: Vec::new(), next: end, is_last: true }
    }
}

/// Which page readers share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct EventPageKey {
    pub(crate) topic: Topic,
    pub(crate) after: Cursor,
    /// The event whose arrival made the readers read. A page that was read before it may lack it.
    pub(crate) newest: Option<StreamId>,
}
