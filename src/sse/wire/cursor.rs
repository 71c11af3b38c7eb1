//! A place in a topic: the text of `id:` and of `Last-Event-ID`.

use std::fmt;
use std::time::Duration;

use crate::event::{EventError, StreamId};

/// By how much the clocks of servers may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// A place between two events of a topic.
///
/// Its text is `<epoch>-<seq>`: the id of the event before it. Epochs begin with 1, so `0-<milliseconds>` is
/// free to say that the topic had no event at all at that time (milliseconds since 1970), and `0-0` that
/// nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cursor {
    /// Before the topic's first event, as seen at this time, in milliseconds since 1970.
    Start {
        /// When it was seen.
        seen_ms: u64,
    },
    /// Right after this event.
    After(StreamId),
}

impl Cursor {
    /// The unknown place of a client whose response began before its place was known. A start that was seen
    /// in 1970 is too old to prove anything, also to a server that knows nothing of this constant.
    pub(crate) const UNKNOWN: Self = Self::Start { seen_ms: 0 };

    /// Reads a cursor as [`Cursor`]'s `Display` writes it.
    ///
    /// # Errors
    /// [`EventError::StreamId`].
    pub fn parse(text: &str) -> Result<Self, EventError> {
        let id: StreamId = text.parse()?;
        Ok(if id.epoch == 0 { Self::Start { seen_ms: id.seq } } else { Self::After(id) })
    }

    /// Before the first event of a topic that has none now.
    pub(crate) fn start_now() -> Self {
        Self::Start { seen_ms: now_ms() }
    }

    /// Whether this is a start that was seen longer ago than histories are kept. It proves nothing, as events
    /// may have come and expired since.
    pub(crate) fn is_too_old(self, now_ms: u64, history_ttl: Duration) -> bool {
        let Self::Start { seen_ms } = self else { return false };
        let age = Duration::from_millis(now_ms.saturating_sub(seen_ms));
        let ahead = Duration::from_millis(seen_ms.saturating_sub(now_ms));
        // A clock stood wrong when the place was seen, or does now: how old it is cannot be told.
        age > history_ttl.saturating_sub(CLOCKS_DIFFER) || ahead > CLOCKS_DIFFER
    }

    /// The id, or `None` before the first event.
    pub(crate) fn id(self) -> Option<StreamId> {
        match self {
            Self::Start { .. } => None,
            Self::After(id) => Some(id),
        }
    }
}

/// The time in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or(0)
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { seen_ms } => write!(f, "0-{seen_ms}"),
            Self::After(id) => id.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_as_written() {
        for text in ["1-42", "0-1700000000000", "7-0"] {
            assert_eq!(Cursor::parse(text).expect(text).to_string(), text);
        }
        assert_eq!(Cursor::parse("0-5").expect("a start"), Cursor::Start { seen_ms: 5 });
        for bad in ["", "42", "1-", "x-1", "1-2\n"] {
            assert!(Cursor::parse(bad).is_err(), "{bad:?}");
        }
    }
}
