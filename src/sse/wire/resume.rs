//! A client's resume token, applied to the events of one topic. Decides which of them the client has seen
//! already, and where it begins. Must not read anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::frame::{self, Block, Frame, ResetReason};
use crate::event::{LogId, ResumeToken, Seen, Topic};

/// A resume token for one topic of a stream.
///
/// It is asked about every event that the stream gets, also long after its begin: a relay that lags may
/// publish an event that the client's state has held from the start.
#[derive(Debug)]
pub(crate) struct Resume {
    token: Arc<ResumeToken>,
    /// The epoch of the topic's relay when the token was made.
    epoch: u64,
    topic: Topic,
    /// The client was told to fetch its state anew, because the token could not decide.
    was_reset: AtomicBool,
    /// The epoch of the client's place; 0 before its first event.
    at_epoch: AtomicU64,
}

/// Where a client with a token begins, as far as some events tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found<T> {
    /// Right after this one: the newest that the client has seen.
    Behind(T),
    /// The client has seen none of them.
    Before,
    /// They do not decide it: the client has to be reset.
    Reset(ResetReason),
}

impl Resume {
    pub(crate) fn new(token: Arc<ResumeToken>, epoch: u64, topic: Topic) -> Self {
        Self { token, epoch, topic, was_reset: AtomicBool::new(false), at_epoch: AtomicU64::new(0) }
    }

    /// The log that the client's state was read from.
    pub(crate) fn log(&self) -> LogId {
        self.token.log
    }

    /// A time at or before the read of the client's state, in milliseconds since 1970.
    pub(crate) fn taken_ms(&self) -> u64 {
        self.token.taken_ms
    }

    /// Finds the newest event that the client has seen. The frames are given from the newest on.
    ///
    /// Transactions that write to one topic follow each other, so the events that were seen come before all
    /// others. Where they do not, an event in between would be lost without a trace.
    pub(crate) fn find<'a>(&self, newest_first: impl Iterator<Item = &'a Frame>) -> Found<&'a Frame> {
        let mut found = None;
        for frame in newest_first.filter(|frame| !frame.block.is_empty()) {
            match (self.token.sees(self.epoch, frame.id, frame.block.xid()), found) {
                (Seen::Yes, None) => found = Some(frame),
                (Seen::Yes, Some(_)) | (Seen::No, None) => {}
                (Seen::Rebased, _) => return Found::Reset(ResetReason::Rebased),
                (Seen::Unknown, None) | (Seen::No, Some(_)) => return Found::Reset(ResetReason::HistoryGone),
                // An event older than a seen one: it matters only if it is known to be unseen.
                (Seen::Unknown, Some(_)) => {}
            }
        }
        found.map_or(Found::Before, Found::Behind)
    }

    /// The blocks that the client gets in place of this one.
    pub(crate) fn apply(&self, block: &Block) -> impl Iterator<Item = Block> {
        let (first, second) = self.replace(block);
        std::iter::once(first).chain(second)
    }

    fn replace(&self, block: &Block) -> (Block, Option<Block>) {
        let as_it_is = (block.clone(), None);
        let Some((place, id)) = block.cursor().and_then(|place| Some((place, place.id()?))) else {
            return as_it_is;
        };
        let was_at = self.at_epoch.swap(id.epoch, Ordering::Relaxed);
        if !block.is_event() {
            self.was_reset.fetch_or(block.reset().is_some(), Ordering::Relaxed);
            // The client's state may be of the epoch that follows. The event itself tells.
            let is_early = block.reset() == Some(ResetReason::Rebased) && id.epoch <= self.epoch;
            return if is_early { (frame::cursor(place), None) } else { as_it_is };
        }
        let reset = |reason| (frame::reset(reason, &self.topic, place), Some(block.clone()));
        match self.token.sees(self.epoch, id, block.xid()) {
            // The client's place moves on all the same.
            Seen::Yes => (frame::cursor(place), None),
            Seen::Unknown if !self.was_reset.swap(true, Ordering::Relaxed) => reset(ResetReason::HistoryGone),
            Seen::Rebased if was_at <= self.epoch => reset(ResetReason::Rebased),
            Seen::No | Seen::Unknown | Seen::Rebased => as_it_is,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventType, StreamId};
    use crate::sse::wire::cursor::Cursor;
    use crate::sse::wire::naming::Naming;

    /// Sees the transactions below 100, and of those from 100 to 119 all but 105.
    fn resume(epoch: u64, between: &str) -> Resume {
        let text = format!("1~018f3c1e000070008000000000000001~17~100~20~{between}~~main~{epoch}");
        let token = Arc::new(ResumeToken::parse(&text).expect("a token"));
        Resume::new(token, epoch, Topic::new("t").expect("a topic"))
    }

    fn frame(seq: u64, xid: u64) -> Frame {
        let kind = EventType::new("T").expect("a type");
        Frame::of_event(StreamId::new(1, seq), &kind, "1", Naming::OfType).with_xid(Some(xid))
    }

    fn found(resume: &Resume, frames: &[Frame]) -> Found<u64> {
        match resume.find(frames.iter().rev()) {
            Found::Behind(frame) => Found::Behind(frame.id.seq),
            Found::Before => Found::Before,
            Found::Reset(reason) => Found::Reset(reason),
        }
    }

    fn texts(resume: &Resume, frame: &Frame) -> Vec<String> {
        resume.apply(&frame.block).map(|block| String::from_utf8_lossy(&block.bytes).into_owned()).collect()
    }

    #[test]
    fn a_client_begins_behind_the_newest_event_that_it_has_seen() {
        let resume = resume(1, "r5");
        let mixed = [frame(1, 90), frame(2, 101), frame(3, 105), frame(4, 200)];
        assert_eq!(found(&resume, &mixed), Found::Behind(2));
        assert_eq!(found(&resume, &[frame(3, 105), frame(4, 200)]), Found::Before);
        assert_eq!(found(&resume, &[]), Found::Before);
        let unproven = Found::Reset(ResetReason::HistoryGone);
        let overlap = [frame(1, 90), frame(2, 105), frame(3, 101)];
        assert_eq!(found(&resume, &overlap), unproven, "writers that overlap");
        assert_eq!(found(&resume, &[frame(1, 90), frame(2, 90).with_xid(None)]), unproven);
        assert_eq!(found(&resume, &[frame(1, 90).with_xid(None), frame(2, 90)]), Found::Behind(2));
    }

    #[test]
    fn an_event_of_a_later_epoch_is_a_reset_and_one_of_an_earlier_epoch_was_seen() {
        let later = [frame(1, 500)];
        assert_eq!(found(&resume(2, "r5"), &later), Found::Behind(1));
        let mut rebased = frame(1, 90);
        rebased.id = StreamId::new(2, 1);
        assert_eq!(found(&resume(1, "r5"), &[rebased]), Found::Reset(ResetReason::Rebased));
    }

    #[test]
    fn an_event_that_was_seen_moves_the_clients_place_and_is_not_given() {
        let resume = resume(1, "r5");
        assert_eq!(texts(&resume, &frame(7, 101)), ["id: 1-7\n\n"]);
        assert_eq!(texts(&resume, &frame(8, 105)), ["id: 1-8\nevent: T\ndata: 1\n\n"]);
        let foreign = frame::foreign("hello");
        assert_eq!(resume.apply(&foreign).count(), 1);
    }

    #[test]
    fn a_client_is_reset_once_where_the_token_does_not_decide() {
        let resume = resume(1, "u");
        let first = texts(&resume, &frame(7, 101));
        assert!(first.len() == 2 && first[0].contains("history_gone"), "{first:?}");
        assert!(first[1].contains("event: T"), "{first:?}");
        assert_eq!(texts(&resume, &frame(8, 101)).len(), 1);
    }

    #[test]
    fn a_client_is_reset_at_the_first_event_of_an_epoch_that_its_state_does_not_know() {
        let of_epoch = |epoch, seq| {
            let mut frame = frame(seq, 500);
            frame.block.set_place(Cursor::After(StreamId::new(epoch, seq)));
            frame
        };
        // The server tells each client at the end of an epoch; these two know better.
        let end = StreamId::new(1, 9);
        let topic = Topic::new("t").expect("a topic");
        let told = frame::rebased(Some(end), StreamId::new(2, 1), &topic).expect("another epoch");
        let (knows, knows_not) = (resume(2, "r5"), resume(1, "r5"));
        for resume in [&knows, &knows_not] {
            let blocks: Vec<Block> = resume.apply(&told).collect();
            assert!(blocks.len() == 1 && blocks[0].reset().is_none(), "{blocks:?}");
        }
        assert_eq!(texts(&knows, &of_epoch(2, 1)).len(), 1);
        let first = texts(&knows_not, &of_epoch(2, 1));
        assert!(first.len() == 2 && first[0].contains("rebased"), "{first:?}");
        assert_eq!(texts(&knows_not, &of_epoch(2, 2)).len(), 1, "once");
        // A client that comes back with a place in that epoch has been told.
        let back = resume(1, "r5");
        assert_eq!(back.apply(&frame::cursor(Cursor::After(StreamId::new(2, 2)))).count(), 1);
        assert_eq!(texts(&back, &of_epoch(2, 3)).len(), 1);
    }

    #[test]
    fn a_reset_of_another_cause_counts_too() {
        let resume = resume(1, "u");
        let place = frame(6, 1).block.cursor().expect("a place");
        assert_eq!(resume.apply(&frame::reset(ResetReason::Gap, &resume.topic, place)).count(), 1);
        assert_eq!(texts(&resume, &frame(7, 101)).len(), 1);
    }
}
