//! Feeds one client from the history, page by page and only as fast as it reads. Decides nothing about
//! resets: it answers what the history has proven.

use std::sync::Arc;

use crate::event::PAYLOAD_BYTES_MAX;
use crate::redis::continuity::{Absence, Prev};
use crate::redis::history::ReadError;
use crate::sse::history::read::{
    FIRST_READ, READ_BYTES, bytes_of_frames, next_count, read_after, read_before, read_first,
};
use crate::sse::queue::byte_budget::Reservation;
use crate::sse::queue::send_queue::{Put, StreamTopic};
use crate::sse::shared::Shared;
use crate::sse::topic::pages::{FeedError, Key, Page, PageEnd};
use crate::sse::topic::shared_topic::SharedTopic;
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::{self, Frame, ResetReason};
use crate::sse::wire::resume::{Found, Resume};
use crate::sse::wire::start::StartAt;

/// The result of one read of the history.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fed {
    /// The client has been given events up to this cursor.
    To(Cursor),
    /// The client lacks nothing, and continues after this cursor, the topic's own.
    NothingBefore(Cursor),
    /// Nothing yet: read again after a while.
    Again,
    /// The history holds nothing from the client's cursor on: Redis has forgotten it, or it has expired.
    Forgotten,
    /// It cannot be proven that nothing is missing.
    Unproven,
    /// The client is gone.
    Gone,
}

/// The pages of one topic for one client.
pub(crate) struct HistoryFeed {
    shared: Arc<Shared>,
    topic: Arc<SharedTopic>,
    stream: StreamTopic,
    /// Entries of the next page.
    count: usize,
    /// The largest event of the page before; 0 before the first page.
    largest: usize,
}

impl HistoryFeed {
    pub(crate) fn new(shared: Arc<Shared>, topic: Arc<SharedTopic>, stream: StreamTopic) -> Self {
        Self { shared, topic, stream, count: FIRST_READ, largest: 0 }
    }

    /// Gives the client as much of the next page as there is room for: the page after `after`, or the first
    /// page of the history, whatever came before it.
    ///
    /// A stream has one page at a time, also one of several topics, and reads it only when the client has
    /// taken the one before. The rest of a page is dropped and read again: a client that does not read holds
    /// no page.
    pub(crate) async fn feed(&mut self, after: Option<Cursor>) -> Result<Fed, FeedError> {
        let stream = self.stream.clone();
        let _room = stream.queue.room_for(READ_BYTES).await;
        match self.page(after).await? {
            Page::Follows { frames, .. } if !frames.is_empty() => Ok(self.give(after, &frames)),
            Page::Follows { end: PageEnd::Hole, .. } | Page::Hole => Ok(Fed::Unproven),
            Page::Follows { end, .. } => match after {
                Some(Cursor::Start { seen_ms }) if end == PageEnd::Last => {
                    Ok(self.confirm_absence(Some(seen_ms)).await?)
                }
                // The topic has events that came after this page was read: read again.
                _ => Ok(Fed::Again),
            },
            // The cursor's own entry is gone, with every later one. So an event may have followed.
            Page::Nothing if after.is_some() => Ok(Fed::Forgotten),
            Page::Nothing => Ok(self.confirm_absence(None).await?),
        }
    }

    /// Queues frames until the queue is half full, but at least one frame that moves the client's cursor.
    /// Otherwise the client might never get further.
    fn give(&mut self, after: Option<Cursor>, frames: &[Frame]) -> Fed {
        self.largest = largest_of(frames);
        self.count = next_count(frames.len(), bytes_of_frames(frames));
        let begun = after.and_then(Cursor::id);
        let mut here = begun;
        for frame in frames {
            if let Some(here) = here.filter(|here| Some(*here) != begun && !self.stream.queue.has_room()) {
                return Fed::To(Cursor::After(here));
            }
            let reset = frame::rebased(here.replace(frame.id), frame.id, &self.topic.topic);
            self.shared.metrics.reset(ResetReason::Rebased, usize::from(reset.is_some()));
            for block in reset.iter().chain([&frame.block]).filter(|block| !block.is_empty()) {
                if self.stream.put(block) != Put::Queued {
                    return Fed::Gone;
                }
            }
        }
        here.or(begun).map_or(Fed::Again, |here| Fed::To(Cursor::After(here)))
    }

    /// Checks again that there is no history, because a shared page may be some milliseconds old. The topic's
    /// place is read before Redis is asked. So an event that comes after the answer comes after the place.
    async fn confirm_absence(&self, seen_ms: Option<u64>) -> Result<Fed, ReadError> {
        let (place, newest_ms) = {
            let state = self.topic.state();
            (state.end_cursor(), state.newest_ms())
        };
        self.shared.metrics.history_reads.inc();
        let absence = self.shared.history.absence(&self.topic.topic).await?;
        Ok(match (place, absence) {
            (Some(place), Some(absence)) => of_absence(place, newest_ms, absence, seen_ms),
            _ => Fed::Again,
        })
    }

    /// Finds the start of a client that wants the newest event, if that event is too large to be in memory.
    pub(crate) async fn find_last(&self) -> Result<StartAt, FeedError> {
        let _reservation = self.shared.budget.reserve(PAYLOAD_BYTES_MAX).await.ok_or(FeedError::NoRoom)?;
        self.shared.metrics.history_reads.inc();
        let newest = self.shared.history.newest(&self.topic.topic, 1).await?;
        Ok(match newest.first().map(|newest| newest.prev) {
            None => StartAt::Latest,
            Some(Prev::Event(before)) => StartAt::After(Cursor::After(before)),
            Some(Prev::First | Prev::Unknown) => StartAt::Earliest,
        })
    }

    /// Where a client with a resume token begins: after the newest event that the token has seen. Reads the
    /// history from its end, page by page.
    pub(crate) async fn find_seen(&self, resume: &Resume) -> Result<StartAt, FeedError> {
        let (mut before, mut count, mut largest) = (None, FIRST_READ, 0);
        loop {
            let frames = {
                let _reservation = self.reserve(count, largest).await.ok_or(FeedError::NoRoom)?;
                let _permit = self.shared.reads.acquire().await;
                read_before(&self.shared, &self.topic, before, count).await?
            };
            let Some(oldest) = frames.first() else {
                // Every entry is newer than the token. So the client continues like one that has seen the
                // topic without an event, and a missing first event is noticed.
                return Ok(StartAt::After(Cursor::Start { seen_ms: resume.taken_ms() }));
            };
            match resume.find(frames.iter().rev()) {
                Found::Behind(frame) => return Ok(StartAt::After(Cursor::After(frame.id))),
                Found::Reset(reason) => return Ok(StartAt::Reset(reason)),
                Found::Before => before = Some(oldest.id),
            }
            largest = largest_of(&frames);
            count = next_count(frames.len(), bytes_of_frames(&frames));
        }
    }

    /// The page after this cursor, or the first page. Clients that need the same page share it.
    async fn page(&self, after: Option<Cursor>) -> Result<Page, FeedError> {
        let key = Key { topic: self.topic.topic.clone(), after, count: self.count };
        let read = async || {
            // Reserved until the page has been read. From then on the page's own events are counted.
            let reservation = self.reserve(self.count, self.largest).await.ok_or(FeedError::NoRoom)?;
            // The semaphore is never closed.
            let _permit = self.shared.reads.acquire().await;
            let page = match after {
                Some(cursor) => read_after(&self.shared, &self.topic, cursor, self.count).await?,
                None => read_first(&self.shared, &self.topic, self.count).await?,
            };
            drop(reservation);
            Ok::<Page, FeedError>(page)
        };
        self.shared.pages.get(key, read).await
    }

    /// Reserves bytes for a page of `count` entries, going by the largest event of the page before it.
    /// Nothing is known of the first page (0).
    async fn reserve(&self, count: usize, largest: usize) -> Option<Reservation> {
        let largest = if largest == 0 { PAYLOAD_BYTES_MAX } else { largest };
        let bytes = count.saturating_mul(largest).min(READ_BYTES.max(FIRST_READ * largest));
        if !self.shared.budget.has_room(bytes) {
            self.shared.metrics.room_waits.inc();
            self.shared.pages.make_room();
        }
        self.shared.budget.reserve(bytes).await
    }
}

fn largest_of(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| frame.block.len()).max().unwrap_or_default()
}

/// Decides what an absent history means for a client that saw the topic without an event at `seen_ms`, or
/// that wants all events (`None`). `newest_ms` is the time at which this server got the topic's newest event.
fn of_absence(place: Cursor, newest_ms: u64, absence: Absence, seen_ms: Option<u64>) -> Fed {
    let Some(seen_ms) = seen_ms else { return Fed::NothingBefore(place) };
    if !absence.proves_none_since(seen_ms) {
        return Fed::Unproven;
    }
    match place {
        // This server has reset the topic's clients since, because events may be missing.
        Cursor::Start { seen_ms: since_ms } if since_ms > seen_ms => Fed::Unproven,
        // This server has seen an event since: Redis has forgotten it.
        Cursor::After(_) if newest_ms >= seen_ms => Fed::Forgotten,
        Cursor::Start { .. } | Cursor::After(_) => Fed::NothingBefore(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StreamId;

    #[test]
    fn an_absent_history_proves_that_nothing_is_missing_unless_somebody_knows_better() {
        let expired = Absence::default();
        let vanished = Absence { has_vanished: true, ..Absence::default() };
        let (start, event) = (Cursor::Start { seen_ms: 50 }, Cursor::After(StreamId::new(1, 7)));
        assert_eq!(of_absence(start, 0, expired, Some(50)), Fed::NothingBefore(start));
        assert_eq!(of_absence(start, 0, expired, Some(49)), Fed::Unproven, "its clients were reset since");
        assert_eq!(of_absence(start, 0, vanished, Some(50)), Fed::Unproven);
        assert_eq!(of_absence(event, 49, expired, Some(50)), Fed::NothingBefore(event));
        assert_eq!(of_absence(event, 50, expired, Some(50)), Fed::Forgotten, "this server has seen an event");
        assert_eq!(of_absence(event, 50, vanished, None), Fed::NothingBefore(event), "it wants all there is");
    }
}
