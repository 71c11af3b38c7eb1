//! Reads a topic's history page by page, and decides what each page proves.

use std::sync::Arc;

use crate::event::{StreamId, Topic};
use crate::redis::continuity::{self, Link, Place, Prev, Run};
use crate::redis::history::{Entry, ReadError};
use crate::sse::shared::Shared;
use crate::sse::topic::pages::{Page, PageEnd};
use crate::sse::topic::shared_topic::SharedTopic;
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::Frame;

/// Entries of the first read of a history, when the size of its events is not known.
pub(crate) const FIRST_READ: usize = 4;
/// About the most bytes of each further read, estimated by the size of the read before it.
pub(crate) const READ_BYTES: usize = 256 * 1024;
/// The least and the most entries of one read. The least are the entry of the place itself and the next one.
pub(crate) const READ_ENTRIES: (usize, usize) = (2, 512);

/// Entries that were read, and what they prove.
pub(crate) enum Entries {
    /// These follow the place without a hole.
    Follow { entries: Vec<Entry>, end: PageEnd },
    /// Redis has later events, and one before them is missing.
    Hole,
    /// Redis has nothing from the place on.
    Nothing,
}

/// Reads the entries after a place, `count` at most, the entry of the place itself included.
pub(crate) async fn entries_after(
    shared: &Shared,
    topic: &Topic,
    place: Cursor,
    count: usize,
) -> Result<Entries, ReadError> {
    let mut entries = read(shared, topic, place, count).await?;
    let links: Vec<Link> = entries.iter().map(Entry::link).collect();
    let Some(last) = links.last() else { return Ok(Entries::Nothing) };
    let place = place.id().map_or(Place::Start, Place::After);
    let Some(run) = continuity::follow(place, &links) else { return Ok(Entries::Hole) };
    let end = match end_of(run, links.len(), count) {
        // The history ends here, and events after its end are lost.
        PageEnd::Last if shared.lost().is_some_and(|lost| last.id < lost) => PageEnd::Hole,
        end => end,
    };
    entries.truncate(run.skip + run.len);
    entries.drain(..run.skip);
    Ok(Entries::Follow { entries, end })
}

/// Reads the events after a place, `count` entries at most.
pub(crate) async fn read_after(
    shared: &Shared,
    topic: &SharedTopic,
    place: Cursor,
    count: usize,
) -> Result<Page, ReadError> {
    match entries_after(shared, &topic.topic, place, count).await? {
        Entries::Follow { entries, end } => Ok(page(shared, topic, entries, end)),
        Entries::Hole => Ok(Page::Hole),
        Entries::Nothing => nothing(shared, topic, place).await,
    }
}

/// Reads the first events of the history, whatever came before them; `count` entries at most.
pub(crate) async fn read_first(
    shared: &Shared,
    topic: &SharedTopic,
    count: usize,
) -> Result<Page, ReadError> {
    let mut entries = read(shared, &topic.topic, Cursor::UNKNOWN, count).await?;
    if entries.is_empty() {
        return Ok(Page::Nothing);
    }
    let links: Vec<Link> = entries.iter().map(Entry::link).collect();
    let len = continuity::contiguous(&links);
    let end = end_of(Run { skip: 0, len, is_broken: len < links.len() }, links.len(), count);
    entries.truncate(len);
    Ok(page(shared, topic, entries, end))
}

async fn read(shared: &Shared, topic: &Topic, place: Cursor, count: usize) -> Result<Vec<Entry>, ReadError> {
    shared.metrics.history_reads.inc();
    shared.history.from(topic, place.id(), count).await
}

/// Returns how a page ends: after the run of a read that asked for `count` entries and got `read`.
fn end_of(run: Run, read: usize, count: usize) -> PageEnd {
    match (run.is_broken, read < count) {
        (true, _) => PageEnd::Hole,
        (false, true) => PageEnd::Last,
        (false, false) => PageEnd::More,
    }
}

fn page(shared: &Shared, topic: &SharedTopic, entries: Vec<Entry>, end: PageEnd) -> Page {
    Page::Follows { frames: entries.into_iter().map(|entry| frame_of(shared, topic, entry)).collect(), end }
}

/// The conclusion from a history without entries.
async fn nothing(shared: &Shared, topic: &SharedTopic, place: Cursor) -> Result<Page, ReadError> {
    let seen_ms = match place {
        Cursor::Start { seen_ms } => seen_ms,
        // The reset for a loss has led the reader here: no event has come since.
        Cursor::After(id) if shared.lost() == Some(id) => {
            return Ok(Page::Follows { frames: Arc::from([]), end: PageEnd::Last });
        }
        Cursor::After(_) => return Ok(Page::Nothing),
    };
    shared.metrics.history_reads.inc();
    // `None`: a history has begun since the read, so read again.
    let absence = shared.history.absence(&topic.topic).await?;
    let more = |end| Page::Follows { frames: Arc::from([]), end };
    Ok(match absence {
        None => more(PageEnd::More),
        Some(absence) if absence.proves_none_since(seen_ms) => more(PageEnd::Last),
        Some(_) => Page::Hole,
    })
}

/// The newest events of the history that follow each other without a hole, `wanted` at most, and the place
/// before them.
pub(crate) async fn read_newest(
    shared: &Shared,
    topic: &SharedTopic,
    wanted: usize,
) -> Result<(Option<Cursor>, Vec<Frame>), ReadError> {
    let wanted = wanted.clamp(1, READ_ENTRIES.1);
    let mut asked = FIRST_READ.min(wanted);
    shared.metrics.history_reads.inc();
    let mut newest = shared.history.newest(&topic.topic, asked).await?;
    if newest.len() == asked && asked < wanted && bytes_of(&newest) < READ_BYTES {
        asked = next_count(asked, bytes_of(&newest)).min(wanted);
        shared.metrics.history_reads.inc();
        newest = shared.history.newest(&topic.topic, asked).await?;
    }
    let links: Vec<Link> = newest.iter().map(Entry::link).collect();
    if let (Some(last), Some(lost)) = (links.last(), shared.lost())
        && last.id < lost
    {
        // The topic's next event names this one as the event before it.
        return Ok((Some(Cursor::After(lost)), Vec::new()));
    }
    let skip = links.len() - continuity::contiguous_end(&links);
    let base = match links.get(skip).map(|first| first.prev) {
        Some(Prev::First) => Some(Cursor::Start { seen_ms: 0 }),
        Some(Prev::Event(id)) => Some(Cursor::After(id)),
        Some(Prev::Unknown) => None,
        None => Some(start_of_nothing(shared, topic).await?),
    };
    Ok((base, newest.into_iter().skip(skip).map(|entry| frame_of(shared, topic, entry)).collect()))
}

/// The newest events of the history before this id, or the newest of all, oldest of them first.
pub(crate) async fn read_before(
    shared: &Shared,
    topic: &SharedTopic,
    id: Option<StreamId>,
    count: usize,
) -> Result<Vec<Frame>, ReadError> {
    shared.metrics.history_reads.inc();
    let entries = shared.history.newest_before(&topic.topic, id, count).await?;
    Ok(entries.into_iter().map(|entry| frame_of(shared, topic, entry)).collect())
}

/// The start of a topic without a history, with the time since when nothing is missing.
async fn start_of_nothing(shared: &Shared, topic: &SharedTopic) -> Result<Cursor, ReadError> {
    shared.metrics.history_reads.inc();
    let absence = shared.history.absence(&topic.topic).await?.unwrap_or_default();
    Ok(match absence.has_vanished {
        true => Cursor::start_now(),
        false => Cursor::Start { seen_ms: absence.proves_from() },
    })
}

/// How many entries to read next, after `count` entries had this many bytes.
pub(crate) fn next_count(count: usize, bytes: usize) -> usize {
    let each = (bytes / count.max(1)).max(1);
    (READ_BYTES / each).clamp(READ_ENTRIES.0, READ_ENTRIES.1)
}

/// Bytes of these frames.
pub(crate) fn bytes_of_frames(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| frame.block.len()).sum()
}

/// Bytes of the payloads of these entries.
pub(crate) fn bytes_of(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.event.as_ref().map_or(0, |(_, payload)| payload.len())).sum()
}

/// Frames an entry, and counts its bytes in the budget of all streams.
fn frame_of(shared: &Shared, topic: &SharedTopic, entry: Entry) -> Frame {
    shared.budget.frame(match entry.event {
        Some((event_type, payload)) => {
            Frame::of_event(entry.id, &event_type, &payload, topic.naming).with_xid(entry.xid)
        }
        None => Frame::empty(entry.id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_large_events_is_small_and_never_only_the_place_itself() {
        assert_eq!(next_count(4, 4 * 1024 * 1024), 2, "events as large as they may be");
        assert_eq!(next_count(4, 4 * 64 * 1024), 4);
        assert_eq!(next_count(4, 400), 512);
        assert_eq!(next_count(0, 0), 512);
    }
}
