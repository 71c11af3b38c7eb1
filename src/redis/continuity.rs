//! The conclusions that a reader may draw from the entries of a history: whether an event is missing before
//! or between them. Pure.
//!
//! Each entry names the topic's event before it (`prev`), so a history proves its own completeness. A history
//! that was trimmed, has expired, or was lost or repaired in part cannot pass for a complete one.

use crate::event::StreamId;

/// The topic's event before an entry, as the entry names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prev {
    /// There is none: this entry is the topic's first one.
    First,
    /// This event.
    Event(StreamId),
    /// The entry does not name it, because another program wrote the entry.
    Unknown,
}

impl Prev {
    /// Reads the field `prev` of an entry.
    pub fn parse(field: Option<&str>) -> Self {
        match field {
            None => Self::Unknown,
            Some("") => Self::First,
            Some(id) => id.parse().map_or(Self::Unknown, Self::Event),
        }
    }
}

/// An entry's own id, and the id of the topic's event before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The entry.
    pub id: StreamId,
    /// The event before it.
    pub prev: Prev,
}

/// A reader's place in a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before the topic's first event.
    Start,
    /// Right after this event.
    After(StreamId),
}

/// Entries that follow a place without a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// How many entries to skip: 1 if the first one is the place itself, else 0.
    pub skip: usize,
    /// How many entries after those follow without a hole.
    pub len: usize,
    /// Whether the run ends before the entries do: a hole follows.
    pub is_broken: bool,
}

/// Returns the entries that are proven to follow `place`, or `None` if not even the first one is. `entries`
/// are in the order of their ids, and begin at that place (its own entry included) or at the history's first
/// entry.
///
/// An empty list proves nothing: see [`Absence`] for the conclusions from an absent history.
pub fn follow(place: Place, entries: &[Link]) -> Option<Run> {
    let first = entries.first()?;
    let skip = match place {
        Place::After(id) if first.id == id => 1,
        Place::After(id) if first.prev == Prev::Event(id) => 0,
        Place::Start if first.prev == Prev::First => 0,
        Place::After(_) | Place::Start => return None,
    };
    let len = contiguous(entries);
    Some(Run { skip, len: len - skip, is_broken: len < entries.len() })
}

/// Returns how many entries follow each other without a hole, from the first one on.
pub fn contiguous(entries: &[Link]) -> usize {
    let links = entries.windows(2).take_while(|pair| pair[1].prev == Prev::Event(pair[0].id)).count();
    links + usize::from(!entries.is_empty())
}

/// Returns how many of the last entries follow each other without a hole. A reader without a place begins
/// there.
pub fn contiguous_end(entries: &[Link]) -> usize {
    let links = entries.windows(2).rev().take_while(|pair| pair[1].prev == Prev::Event(pair[0].id)).count();
    links + usize::from(!entries.is_empty())
}

/// A loss: events that a repair had to leave out. Each topic may miss an event up to this number, and its
/// history does not show that before the topic's next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loss {
    /// The highest missing number.
    pub through: StreamId,
    /// When the repair found the loss, in milliseconds since 1970.
    pub at_ms: u64,
}

/// The facts about a topic that has no history in Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Absence {
    /// Whether the topic had a history that was deleted or evicted instead of expiring.
    pub has_vanished: bool,
    /// Whether Redis shows that the history has expired. It shows that for a minute.
    pub has_expired: bool,
    /// When a repair last had to leave out events, in milliseconds since 1970.
    pub lost_ms: Option<u64>,
}

impl Absence {
    /// Whether the topic has had no event since `seen_ms`, when it had no history either (milliseconds since
    /// 1970).
    pub fn proves_none_since(self, seen_ms: u64) -> bool {
        !self.has_vanished && self.lost_ms.is_none_or(|lost_ms| lost_ms < seen_ms)
    }

    /// The time from which on an absent history proves that there was no event; 0 for all times.
    pub fn proves_from(self) -> u64 {
        self.lost_ms.map_or(0, |ms| ms.saturating_add(1))
    }
}

#[cfg(test)]
#[path = "continuity_tests.rs"]
mod tests;
