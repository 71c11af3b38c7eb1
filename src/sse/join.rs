//! The one joining procedure: for a topic's first client, after Redis was away, for a hole, and for a quiet topic that
//! was found behind.
//!
//! Buffer what is heard; subscribe and wait for the confirmation; read the history after the topic's place; merge by id;
//! check that each event's `prev` fits; let go. A hole that the history cannot fill is a reset. It runs once for a topic,
//! however many clients wait for it.

use std::sync::Arc;
use std::time::Duration;

use super::cursor::Cursor;
use super::frame::{Frame, ResetReason};
use super::hub::{Shared, SharedTopic};
use super::naming::Naming;
use super::topic::Joined;
use crate::event::StreamId;
use crate::redis::history::{Entry, Extent, ReadError};

/// Entries of the first read of a history, which is not known to hold small events.
const FIRST_READ: usize = 4;
/// A further read holds at most about this many bytes, going by the one before.
pub(super) const READ_BYTES: usize = 256 * 1024;
/// Entries of one read: at least the place itself and one more, or there would be no way on.
const READ_ENTRIES: (usize, usize) = (2, 512);
/// Wait after a failed read of the history: from the first, doubling, to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A hole that is still there after this many rounds cannot be filled: the history was read after what lies behind it
/// had been published.
const ROUNDS_FOR_A_HOLE: u32 = 2;

/// Joins a topic: returns when it is live, or when the hub has let go of it.
pub(super) async fn run(shared: Arc<Shared>, topic: Arc<SharedTopic>) {
    shared.metrics.joins.inc();
    let mut wait = RETRY.0;
    let mut holes = 0;
    while !topic.is_gone() {
        topic.state().begin_round();
        if shared.subscriber.subscribe(topic.topic.clone()).await.is_err() {
            // The connection ended; the next request waits for the next connection.
            tokio::time::sleep(RETRY.0).await;
            continue;
        }
        let was_reset = match read(&shared, &topic, holes >= ROUNDS_FOR_A_HOLE).await {
            Ok(was_reset) => was_reset,
            Err(error) => {
                tracing::warn!(topic = %topic.topic, %error, "cannot join yet");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
                continue;
            }
        };
        // A value of its own: the lock must not be held on in the branches.
        let joined = topic.state().finish_join(was_reset);
        match joined {
            Joined::Live => break,
            Joined::Again => {}
            Joined::Hole => holes += 1,
        }
    }
    topic.is_verified();
    topic.settled.notify_waiters();
}

/// Reads what the history holds behind the topic's place, or begins anew where there is no place or no way on from it.
/// True if clients had to be told that events may be missing.
async fn read(shared: &Shared, topic: &SharedTopic, is_unfillable: bool) -> Result<bool, ReadError> {
    // A permit is held for the reads of one topic; the semaphore is never closed.
    let _permit = shared.reads.acquire().await;
    let (place, has_clients) = {
        let state = topic.state();
        (state.place(), state.has_clients())
    };
    let follows = match place {
        // Nobody has been told anything yet. (Clients without a place are those of a history that had lost its entries.)
        None if !has_clients => {
            begin(shared, topic, None).await?;
            return Ok(is_unfillable);
        }
        None => false,
        Some(_) if is_unfillable => false,
        Some(Cursor::After(id)) => follow(shared, topic, Some(id)).await?,
        Some(Cursor::Start { .. }) => follow(shared, topic, None).await?,
    };
    if !follows {
        begin(shared, topic, Some(ResetReason::Gap)).await?;
    }
    Ok(!follows)
}

/// Adds all that follows the place. False if the history cannot prove that it holds all of it.
async fn follow(shared: &Shared, topic: &SharedTopic, place: Option<StreamId>) -> Result<bool, ReadError> {
    let mut after = place;
    let mut count = FIRST_READ;
    loop {
        let page = read_page(shared, topic, after, count).await?;
        let Some(page) = page else { return Ok(false) };
        let (is_last, bytes, last) = (page.len() < count, bytes_of(&page), page.last().map(|e| e.id));
        let held = |entry| shared.held.frame(frame_of(entry, topic.naming));
        topic.state().extend(page.into_iter().map(held));
        if is_last {
            return Ok(true);
        }
        after = last.or(after);
        count = next_count(count, bytes);
    }
}

/// The entries from `after` on, that one included; or from the first. `None` if they cannot be proven to follow it.
pub(super) async fn read_page(
    shared: &Shared,
    topic: &SharedTopic,
    after: Option<StreamId>,
    count: usize,
) -> Result<Option<Vec<Entry>>, ReadError> {
    shared.metrics.history_reads.inc();
    let page = shared.history.from(&topic.topic, after, count).await?;
    let follows = match (after, page.first()) {
        // Nothing there: a Redis that forgot what this server has seen. There is nothing to add.
        (Some(_), None) => true,
        (Some(after), Some(first)) => first.id == after,
        // Looked at after the read: what was whole then was whole before.
        (None, first) => {
            shared.metrics.history_reads.inc();
            match shared.history.extent(&topic.topic).await? {
                Extent::Whole => true,
                Extent::Missing => first.is_none(),
                Extent::Trimmed => false,
            }
        }
    };
    Ok(follows.then_some(page))
}

/// Begins with the newest events of the history.
async fn begin(shared: &Shared, topic: &SharedTopic, reason: Option<ResetReason>) -> Result<(), ReadError> {
    let wanted = shared.settings.recent_events.clamp(1, READ_ENTRIES.1);
    let mut asked = FIRST_READ.min(wanted);
    shared.metrics.history_reads.inc();
    let mut newest = shared.history.newest(&topic.topic, asked).await?;
    if newest.len() == asked && asked < wanted && bytes_of(&newest) < READ_BYTES {
        asked = next_count(asked, bytes_of(&newest)).min(wanted);
        shared.metrics.history_reads.inc();
        newest = shared.history.newest(&topic.topic, asked).await?;
    }
    let reaches_start = newest.len() < asked
        && match shared.history.extent(&topic.topic).await? {
            Extent::Whole => true,
            Extent::Missing => newest.is_empty(),
            Extent::Trimmed => false,
        };
    let base = reaches_start.then(Cursor::start_now);
    let frames = newest.into_iter().map(|entry| shared.held.frame(frame_of(entry, topic.naming)));
    let told = topic.state().begin_with(base, frames, reason);
    if let Some(reason) = reason {
        tracing::warn!(topic = %topic.topic, clients = told, reason = reason.as_str(), "clients are reset");
        shared.metrics.reset(reason, told);
    }
    Ok(())
}

/// How many entries to read next, after `count` of them had so many bytes.
pub(super) fn next_count(count: usize, bytes: usize) -> usize {
    let each = (bytes / count.max(1)).max(1);
    (READ_BYTES / each).clamp(READ_ENTRIES.0, READ_ENTRIES.1)
}

pub(super) fn first_count() -> usize {
    FIRST_READ
}

pub(super) fn bytes_of(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.event.as_ref().map_or(0, |(_, payload)| payload.len())).sum()
}

pub(super) fn frame_of(entry: Entry, naming: Naming) -> Frame {
    match entry.event {
        Some((event_type, payload)) => Frame::of_event(entry.id, &event_type, &payload, naming),
        None => Frame::empty(entry.id),
    }
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
