//! Bringing one client from where it was to where its topic is.
//!
//! Most clients continue from the recent events in memory. One that is further back is fed from the history, page by
//! page and only as fast as it takes them, until it has reached the recent events; then it is attached in one go.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cursor::Cursor;
use super::frame::ResetReason;
use super::hub::{Place, Shared};
use super::join::{bytes_of, first_count, frame_of, next_count, read_page};
use super::outlet::Put;
use super::topic::{Attached, From};
use crate::event::StreamId;

/// Wait after a failed read of the history: from the first, doubling, to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What the history gave.
enum Fed {
    /// The client is here now.
    To(StreamId),
    /// Nothing is left in the history.
    Nothing,
    /// It cannot be proven that nothing is missing.
    Unproven,
    /// The client is gone.
    Gone,
}

/// Attaches a client. Returns when it is attached, or gone. `placed` is told as soon as its place is known.
pub(super) async fn run(
    shared: &std::sync::Arc<Shared>,
    place: &Place,
    wanted: From,
    placed: oneshot::Sender<()>,
) {
    let mut placed = Some(placed);
    let mut from = fresh(shared, wanted);
    let mut outcome = "memory";
    let mut count = first_count();
    let mut wait = RETRY.0;
    let mut looked_again = false;
    loop {
        let settled = place.topic.settled.notified();
        tokio::pin!(settled);
        // Registered before the look, so that a join that ends in between is not missed.
        settled.as_mut().enable();
        let attached = place.topic.state().attach(&place.outlet, from);
        match attached {
            Attached::Yes => break,
            Attached::WhenLive => settled.await,
            Attached::Ahead if !looked_again => {
                // Another server may have been quicker: read the history before saying that there is no such id.
                looked_again = true;
                shared.join_anew(&place.topic);
                settled.await;
            }
            Attached::Ahead => from = From::Reset(ResetReason::UnknownId),
            // Feeding waits for the client to read, so the response must be under way before it.
            Attached::Behind if placed.is_some() => tell(&mut placed, place, wanted),
            Attached::Behind => match feed(shared, place, from, &mut count).await {
                Ok(Fed::To(id)) => {
                    outcome = "history";
                    from = From::After(Cursor::After(id));
                }
                Ok(Fed::Nothing) => from = From::Latest,
                Ok(Fed::Unproven) => from = From::Reset(ResetReason::HistoryGone),
                Ok(Fed::Gone) => return,
                Err(error) => {
                    tracing::warn!(topic = %place.topic.topic, %error, "cannot read the history yet");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            },
        }
    }
    tell(&mut placed, place, wanted);
    match (wanted, from) {
        (_, From::Reset(reason)) => {
            shared.metrics.reset(reason, 1);
            shared.metrics.resumed("reset");
        }
        (From::After(_), _) => shared.metrics.resumed(outcome),
        _ => {}
    }
}

/// Says that the client's place is known.
///
/// If the response was begun without waiting for that any longer, the client was told that it is connected before its
/// place was known. What was committed between the two it would miss without knowing, unless it named its place.
fn tell(placed: &mut Option<oneshot::Sender<()>>, place: &Place, wanted: From) {
    let is_late = placed.take().is_some_and(|placed| placed.send(()).is_err());
    if is_late && !matches!(wanted, From::After(_) | From::Reset(_)) {
        place.topic.state().reset(&place.outlet, ResetReason::JoinedLate);
    }
}

/// A start that was seen longer ago than histories are kept proves nothing: events may have come and expired since.
fn fresh(shared: &Shared, from: From) -> From {
    let From::After(Cursor::Start { seen_ms }) = from else { return from };
    let now = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or(0);
    // Servers' clocks differ a little.
    let kept = shared.history_ttl.saturating_sub(Duration::from_secs(60));
    let age = Duration::from_millis(now.saturating_sub(seen_ms));
    if age <= kept { from } else { From::Reset(ResetReason::HistoryGone) }
}

/// Gives a client the next page of the history, as fast as it takes it.
async fn feed(
    shared: &Shared,
    place: &Place,
    from: From,
    count: &mut usize,
) -> Result<Fed, crate::redis::history::ReadError> {
    let after = match from {
        From::After(Cursor::After(id)) => Some(id),
        _ => None,
    };
    let page = {
        let _permit = shared.reads.acquire().await;
        if from == From::Earliest {
            // Wants what there is, and needs no proof of what there was.
            shared.metrics.history_reads.inc();
            Some(shared.history.from(&place.topic.topic, None, *count).await?)
        } else {
            read_page(shared, &place.topic, after, *count).await?
        }
    };
    let Some(page) = page else { return Ok(Fed::Unproven) };
    // The place itself is gone together with all that followed it: nothing proves that nothing followed.
    let Some(last) = page.last().map(|entry| entry.id) else {
        return Ok(if after.is_some() { Fed::Unproven } else { Fed::Nothing });
    };
    *count = next_count(*count, bytes_of(&page));
    for entry in page.into_iter().filter(|entry| Some(entry.id) != after) {
        place.outlet.has_room().await;
        let frame = frame_of(entry, place.topic.naming);
        if !frame.bytes.is_empty() && place.outlet.put(frame.bytes) != Put::Queued {
            return Ok(Fed::Gone);
        }
    }
    // Room for what attaching will add at once.
    place.outlet.has_room().await;
    if after == Some(last) {
        // Nothing behind the place in the history, yet the topic stands elsewhere: look again, but not in a hot loop.
        tokio::time::sleep_until(Instant::now() + RETRY.0).await;
    }
    Ok(Fed::To(last))
}
