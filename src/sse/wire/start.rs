//! Where in a topic a client asks to begin.

use super::cursor::Cursor;
use super::frame::ResetReason;

/// Where a stream without an id begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the next event.
    Latest,
    /// With the newest event.
    Last,
    /// With the oldest event in the history.
    Earliest,
}

/// Where a client begins in one topic, as its request says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartAt {
    /// With the next event.
    Latest,
    /// With the newest event.
    Last,
    /// With the oldest event that the history holds.
    Earliest,
    /// With the event after this place.
    After(Cursor),
    /// With the first event that the client's resume token did not see.
    Resume,
    /// With a reset.
    Reset(ResetReason),
}
