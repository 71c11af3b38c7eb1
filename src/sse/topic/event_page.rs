//! A page of a topic for a reader that keeps its own place.

use bytes::Bytes;

use crate::event::{StreamId, Topic};
use crate::sse::wire::cursor::Cursor;

/// Events in their order, and the place behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPage {
    /// The payloads, byte for byte as they were appended.
    pub payloads: Vec<Bytes>,
    /// The place behind the last event, or the reader's own if there is none.
    pub next: Cursor,
    /// Whether the topic had no event behind it.
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
