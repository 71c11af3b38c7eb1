//! What a reader may conclude from the entries of a history: whether something is missing before or between them. Pure.
//!
//! Each entry names the topic's event before it (`prev`), so a history proves itself: trimmed, expired, lost in part or
//! repaired in part, it cannot be taken for whole.

use crate::event::StreamId;

/// The topic's event before an entry, as the entry names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prev {
    /// There is none: the entry is the topic's first one.
    First,
    /// This one.
    Event(StreamId),
    /// The entry does not say: no relay wrote it.
    Unknown,
}

impl Prev {
    /// Reads the field of an entry.
    pub fn parse(field: Option<&str>) -> Self {
        match field {
            None => Self::Unknown,
            Some("") => Self::First,
            Some(id) => id.parse().map_or(Self::Unknown, Self::Event),
        }
    }
}

/// An entry's own id, and the id before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The entry.
    pub id: StreamId,
    /// The event before it.
    pub prev: Prev,
}

/// A place in a topic, as far as continuity is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before the topic's first event.
    Start,
    /// Right behind this event.
    After(StreamId),
}

/// Entries that follow a place without a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// How many entries to skip: 1 where the first one is the place itself.
    pub skip: usize,
    /// How many entries follow these without a hole.
    pub len: usize,
    /// Whether the run ends before the entries do: a hole follows.
    pub is_broken: bool,
}

/// The entries that are proven to follow `place`, given those from that place on (its own entry included) in the order of
/// their ids; or from the history's first one on. `None` if not even the first entry is proven to follow.
///
/// No entries prove nothing: see `Absence` for what may be concluded then.
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

/// How many entries follow each other without a hole, from the first one on.
pub fn contiguous(entries: &[Link]) -> usize {
    let links = entries.windows(2).take_while(|pair| pair[1].prev == Prev::Event(pair[0].id)).count();
    links + usize::from(!entries.is_empty())
}

/// The last entries that follow each other without a hole: where a reader without a place begins.
pub fn contiguous_end(entries: &[Link]) -> usize {
    let links = entries.windows(2).rev().take_while(|pair| pair[1].prev == Prev::Event(pair[0].id)).count();
    links + usize::from(!entries.is_empty())
}

/// Events that a repair had to leave out: each topic may have had one up to this number, and its history does not say so
/// before the topic's next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// The highest number that is missing.
    pub through: StreamId,
    /// When that was found, in milliseconds since 1970.
    pub at_ms: u64,
}

/// What Redis says of a topic whose history it does not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Absence {
    /// The topic had a history, and that has not expired: it was deleted or evicted.
    pub has_vanished: bool,
    /// When events were found to be missing that could not be given again, in milliseconds since 1970.
    pub lost_ms: Option<u64>,
}

impl Absence {
    /// Whether a topic without a history has had no event since `seen_ms`, when it had none (milliseconds since 1970).
    pub fn proves_none_since(self, seen_ms: u64) -> bool {
        !self.has_vanished && self.lost_ms.is_none_or(|lost_ms| lost_ms < seen_ms)
    }
}

#[cfg(test)]
#[path = "continuity_tests.rs"]
mod tests;
