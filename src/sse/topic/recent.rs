//! The recent events of a topic, kept in memory without a hole: most clients that come back continue from
//! here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::event::StreamId;
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::Frame;

/// Limits of the recent events: for one topic, and for all topics together.
#[derive(Debug, Clone)]
pub(crate) struct RecentLimits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
    pub(crate) all_bytes: usize,
    pub(crate) all_used: Arc<AtomicUsize>,
}

/// A newest event of up to this many bytes stays in memory whatever other topics take: topics are bounded in
/// number.
const SMALL_BYTES: usize = 1024;

/// A contiguous run of a topic's events that ends with its newest known one.
#[derive(Debug)]
pub(crate) struct Recent {
    recent_limits: RecentLimits,
    /// The place right before the first frame, if it is known. A start holds the time at which the topic had
    /// no event.
    base: Option<Cursor>,
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl Recent {
    /// A run that begins at `base`, or, where that is not known, with its first frame.
    pub(crate) fn new(recent_limits: RecentLimits, base: Option<Cursor>) -> Self {
        Self { recent_limits, base, frames: VecDeque::new(), bytes: 0 }
    }

    /// Adds the event that follows.
    pub(crate) fn push(&mut self, frame: Frame) {
        self.take_bytes(frame.block.len());
        self.frames.push_back(frame);
        while self.is_over_budget() {
            self.pop();
        }
    }

    fn is_over_budget(&self) -> bool {
        let RecentLimits { events, bytes, all_bytes, all_used } = &self.recent_limits;
        let is_too_much = all_used.load(Ordering::Relaxed) > *all_bytes;
        match self.frames.len() {
            0 => false,
            // The newest event stays if it is small, or there is room for it.
            1 => is_too_much && self.bytes > SMALL_BYTES,
            len => is_too_much || len > (*events).max(1) || self.bytes > *bytes,
        }
    }

    fn pop(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.give_bytes(frame.block.len());
            self.base = Some(Cursor::After(frame.id));
        }
    }

    fn take_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.recent_limits.all_used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_bytes(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.recent_limits.all_used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The place at the end, if there is one.
    pub(crate) fn end_cursor(&self) -> Option<Cursor> {
        self.frames.back().map(|frame| Cursor::After(frame.id)).or(self.base)
    }

    /// The place before the newest event, if it is known: a client that wants that event continues from
    /// there.
    pub(crate) fn before_last(&self) -> Option<Cursor> {
        match self.frames.len() {
            0 => self.base,
            1 => self.base,
            n => self.frames.get(n - 2).map(|frame| Cursor::After(frame.id)),
        }
    }

    /// The newest event, if there is one.
    pub(crate) fn last(&self) -> Option<&Frame> {
        self.frames.back()
    }

    /// The place before the topic's first event, if the run begins there.
    pub(crate) fn start(&self) -> Option<Cursor> {
        self.base.filter(|base| matches!(base, Cursor::Start { .. }))
    }

    /// Whether the run holds every event since this time (milliseconds since 1970), when the topic had none.
    pub(crate) fn reaches_start_of(&self, seen_ms: u64) -> bool {
        matches!(self.base, Some(Cursor::Start { seen_ms: since_ms }) if since_ms <= seen_ms)
    }

    /// Whether this event is one of the run.
    pub(crate) fn holds(&self, id: StreamId) -> bool {
        self.frames.binary_search_by_key(&id, |frame| frame.id).is_ok()
    }

    /// The events after `id`, or `None` where this run cannot prove that they are all.
    pub(crate) fn after(&self, id: StreamId) -> Option<impl Iterator<Item = &Frame>> {
        let skipped = match self.frames.binary_search_by_key(&id, |frame| frame.id) {
            Ok(at) => at + 1,
            Err(_) if self.base == Some(Cursor::After(id)) => 0,
            Err(_) => return None,
        };
        Some(self.frames.iter().skip(skipped))
    }

    /// Whether the newest event is not here, although there is one.
    pub(crate) fn lacks_newest(&self) -> bool {
        self.frames.is_empty() && matches!(self.base, Some(Cursor::After(_)))
    }

    /// All events of the run.
    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = &Frame> {
        self.frames.iter()
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        self.recent_limits.all_used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recent_limits(events: usize, bytes: usize, all_bytes: usize) -> RecentLimits {
        RecentLimits { events, bytes, all_bytes, all_used: Arc::default() }
    }

    fn frame(seq: u64, bytes: usize) -> Frame {
        let mut frame = Frame::empty(StreamId::new(1, seq));
        frame.block.bytes = vec![b'x'; bytes].into();
        frame
    }

    fn ids<'a>(frames: impl Iterator<Item = &'a Frame>) -> Vec<u64> {
        frames.map(|frame| frame.id.seq).collect()
    }

    #[test]
    fn what_follows_an_id_is_known_from_the_event_before_the_first_one_on() {
        let mut recent = Recent::new(recent_limits(3, 1000, 1000), Some(Cursor::Start { seen_ms: 1 }));
        for seq in [2, 4, 6, 8] {
            recent.push(frame(seq, 1));
        }
        assert_eq!(ids(recent.all()), [4, 6, 8]);
        let after = |seq| recent.after(StreamId::new(1, seq)).map(ids);
        assert_eq!(after(2), Some(vec![4, 6, 8]));
        assert_eq!(after(6), Some(vec![8]));
        assert_eq!(after(8), Some(vec![]));
        assert_eq!(after(1), None, "older than what is kept");
        assert_eq!(after(5), None, "not an event of this topic");
        assert_eq!(after(9), None, "past the end");
        assert!(recent.start().is_none());
    }

    #[test]
    fn the_newest_event_stays_and_the_budget_of_all_topics_is_shared() {
        let shared = recent_limits(100, 100, 50);
        let mut first = Recent::new(shared.clone(), None);
        first.push(frame(1, 40));
        let mut second = Recent::new(shared.clone(), None);
        second.push(frame(2, 30));
        second.push(frame(3, 30));
        assert_eq!(ids(second.all()), [3]);
        first.push(frame(4, 1));
        assert_eq!(ids(first.all()), [4]);
        drop(first);
        drop(second);
        assert_eq!(shared.all_used.load(Ordering::Relaxed), 0);
    }
}
