//! The one joining procedure. It runs for a topic's first client; after the subscription was interrupted
//! (`hub`); for an event whose `prev` does not fit (`topic::state`); for a quiet topic that is not at the end
//! of its history (`verify`); and after a repair that had to leave events out (`shared`).
//!
//! Keep the messages that come; subscribe and wait for the confirmation; read the history after the topic's
//! place; merge by id; check that each event's `prev` fits; give the events to the clients. A hole that the
//! history cannot fill is a reset. It runs once for a topic, however many clients wait for it.

use std::sync::Arc;
use std::time::Duration;

use super::read::{FIRST_READ, bytes_of_frames, next_count, read_after, read_newest};
use super::repair_wait::{RepairWait, between_reads};
use crate::backoff::Backoff;
use crate::redis::history::ReadError;
use crate::redis::subscriber::SubscribeError;
use crate::sse::shared::Shared;
use crate::sse::topic::pages::{Page, PageEnd};
use crate::sse::topic::shared_topic::SharedTopic;
use crate::sse::topic::state::{Joined, Unfit};
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::{self, ResetReason};

/// After this many rounds with events that do not fit, all of them are dropped. Otherwise a program that goes
/// on publishing such events would keep the topic from being live.
const HOLES_MAX: u32 = 8;
/// A topic whose history Redis refuses this often in a row counts as refused.
const REFUSED_READS: u32 = 3;

/// The result of reading the history.
enum Read {
    /// The topic is at its end.
    AtEnd,
    /// The history has neither the topic's place nor a later event: Redis has forgotten it, and may have it
    /// again once the relay has repaired it.
    Forgotten,
}

/// One join.
struct Join {
    shared: Arc<Shared>,
    topic: Arc<SharedTopic>,
    retry: Backoff,
    /// The wait for the relay to repair Redis.
    repair: RepairWait,
    /// Rounds that ended with an event that does not fit.
    holes: u32,
    /// Reads in a row that Redis refused.
    refusals: u32,
}

/// Joins a topic. Returns when it is live, or when the hub has released it.
pub(crate) async fn run(shared: Arc<Shared>, topic: Arc<SharedTopic>) {
    shared.metrics.joins.inc();
    let repair = RepairWait::new(shared.settings.repair_wait());
    let retry = between_reads();
    let mut join = Join { shared, topic: topic.clone(), retry, repair, holes: 0, refusals: 0 };
    while !topic.is_released() && !join.round().await {}
    topic.set_refused(false);
    topic.mark_verified();
    topic.join_ended.notify_waiters();
}

impl Join {
    /// Subscribes to the topic and reads its history. Returns whether the topic is live.
    async fn round(&mut self) -> bool {
        self.topic.state().begin_round();
        if !self.subscribe().await || !self.read().await {
            return false;
        }
        let unfit = match self.holes {
            0 => Unfit::Kept,
            1..HOLES_MAX => Unfit::OlderDropped,
            _ => Unfit::AllDropped,
        };
        let joined = self.topic.state().finish_join(unfit);
        self.holes += u32::from(joined == Joined::Hole);
        joined == Joined::Live
    }

    /// Returns false, after a wait, if there is no subscription yet.
    async fn subscribe(&mut self) -> bool {
        match self.shared.subscriber.subscribe(self.topic.topic.clone()).await {
            Ok(()) => return true,
            // The next subscription waits for the next connection.
            Err(SubscribeError::Lost) => {}
            Err(SubscribeError::Refused(reason)) => refuse(&self.shared, &self.topic, &reason),
        }
        tokio::time::sleep(self.retry.next_wait()).await;
        false
    }

    /// Brings the topic to the end of its history. Returns false, after a wait, if that cannot be read yet.
    async fn read(&mut self) -> bool {
        let read = match read(&self.shared, &self.topic).await {
            Ok(Read::AtEnd) => return true,
            Ok(Read::Forgotten) if self.repair.wait().await => return false,
            Ok(Read::Forgotten) => begin(&self.shared, &self.topic, Some(ResetReason::Gap)).await,
            Err(error) => Err(error),
        };
        let Err(error) = read else { return true };
        self.refusals = if error.is_refusal() { self.refusals + 1 } else { 0 };
        if self.refusals >= REFUSED_READS {
            refuse(&self.shared, &self.topic, &error.to_string());
        } else {
            tracing::warn!(topic = %self.topic.topic, %error, "cannot join yet");
        }
        tokio::time::sleep(self.retry.next_wait()).await;
        false
    }
}

/// Tells the clients of a topic once that Redis does not let this server read it. Their streams stay open,
/// because they may have other topics; the join goes on trying.
fn refuse(shared: &Shared, topic: &SharedTopic, reason: &str) {
    if topic.set_refused(true) {
        return;
    }
    tracing::warn!(topic = %topic.topic, reason, "Redis refuses this topic; it is tried again");
    shared.metrics.topics_refused.inc();
    let refused = frame::topic_refused(&topic.topic);
    topic.state().send_all(&refused);
    // Clients that wait for the topic to be live look whether it is refused.
    topic.join_ended.notify_waiters();
}

/// Reads the events after the topic's place. Begins anew if there is no place, or if the history does not
/// continue from it.
async fn read(shared: &Shared, topic: &SharedTopic) -> Result<Read, ReadError> {
    // A permit is held for the reads of one topic; the semaphore is never closed.
    let _permit = shared.reads.acquire().await;
    let (place, has_clients) = {
        let state = topic.state();
        (state.end_cursor(), state.has_clients())
    };
    let Some(place) = place else {
        // Clients have been given nothing yet.
        begin(shared, topic, has_clients.then_some(ResetReason::Gap)).await?;
        return Ok(Read::AtEnd);
    };
    follow(shared, topic, place).await
}

/// Adds every event after the place; begins anew where the history cannot prove that it holds all of them.
async fn follow(shared: &Shared, topic: &SharedTopic, mut place: Cursor) -> Result<Read, ReadError> {
    let mut count = FIRST_READ;
    // The history holds every event since the last proof, unless that proof is older than histories are kept.
    let unproven_for = topic.state().unproven_for();
    let is_proven = unproven_for < shared.kept_since(ms_ago(unproven_for));
    if !is_proven && matches!(place, Cursor::Start { .. }) {
        begin(shared, topic, Some(ResetReason::Gap)).await?;
        return Ok(Read::AtEnd);
    }
    let mut may_begin_anew = is_proven && topic.state().has_expired();
    loop {
        let (frames, end) = match read_after(shared, topic, place, count).await? {
            Page::Follows { frames, end } => (frames, end),
            // A relay that does not know the topic begins its history anew.
            Page::Hole if may_begin_anew => {
                (may_begin_anew, place) = (false, Cursor::Start { seen_ms: 0 });
                continue;
            }
            Page::Hole => break,
            Page::Nothing if is_proven && has_expired(shared, topic).await? => {
                topic.state().note_expiry(true);
                return Ok(Read::AtEnd);
            }
            Page::Nothing => return Ok(Read::Forgotten),
        };
        topic.state().note_expiry(false);
        topic.state().extend(frames.iter().cloned());
        count = next_count(frames.len(), bytes_of_frames(&frames));
        place = frames.last().map_or(place, |frame| Cursor::After(frame.id));
        match end {
            PageEnd::Last => return Ok(Read::AtEnd),
            PageEnd::More => {}
            PageEnd::Hole => break,
        }
    }
    begin(shared, topic, Some(ResetReason::Gap)).await?;
    Ok(Read::AtEnd)
}

/// Whether the history is missing because the topic has been quiet for as long as histories are kept.
async fn has_expired(shared: &Shared, topic: &SharedTopic) -> Result<bool, ReadError> {
    shared.metrics.history_reads.inc();
    let Some(absence) = shared.history.absence(&topic.topic).await? else { return Ok(false) };
    let kept = shared.kept_since(ms_ago(topic.state().unproven_for()));
    let was_quiet = absence.has_expired || topic.state().quiet_for() >= kept;
    // Clients have been reset for a loss, so an older one does not count.
    Ok(was_quiet && absence.proves_none_since(ms_ago(kept)))
}

fn ms_ago(time: Duration) -> u64 {
    u64::try_from((chrono::Utc::now() - time).timestamp_millis()).unwrap_or(0)
}

/// Begins with the newest events of the history.
async fn begin(shared: &Shared, topic: &SharedTopic, reason: Option<ResetReason>) -> Result<(), ReadError> {
    let (base, frames) = read_newest(shared, topic, shared.settings.recent_events).await?;
    let clients = topic.state().begin_with(base, frames, reason);
    if let Some(reason) = reason {
        tracing::warn!(topic = %topic.topic, clients, reason = reason.as_str(), "clients are reset");
        shared.metrics.reset(reason, clients);
    }
    Ok(())
}
