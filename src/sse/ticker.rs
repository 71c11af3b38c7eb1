//! The periodic work for all streams: heartbeats, time-outs, expired tokens, metrics, quiet topics. No stream
//! has a timer of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::queue::send_queue::SendQueue;
use super::shared::Shared;
use super::topic::shared_topic::SharedTopic;
use super::wire::cursor::Cursor;
use super::wire::frame;
use crate::event::Topic;

const TICK: Duration = Duration::from_millis(500);
/// Quiet topics that are compared with their histories in one round trip to Redis.
const VERIFIED_AT_ONCE: usize = 256;
/// Streams are ended in so many portions a second while draining.
const PORTIONS_A_SECOND: u64 = 20;

/// Looks after all streams. Never returns.
pub(super) async fn run(shared: &Arc<Shared>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::now();
        let mut queued = 0;
        for queue in shared.open_streams.queues() {
            look_after(shared, &queue, now);
            queued += queue.load(now).queued_bytes;
        }
        shared.metrics.queued_bytes.set(queued.try_into().unwrap_or(i64::MAX));
        shared.pages.forget();
        shared.event_pages.forget();
        if shared.budget.is_short() {
            shared.cut_off_slowest();
        }
        shared.metrics.held_bytes.set(shared.budget.held().try_into().unwrap_or(i64::MAX));
        shared.release_topics(now);
        match shared.history.loss().await {
            Ok(loss) => shared.note_loss(loss),
            Err(error) => tracing::debug!(%error, "cannot look for events that are missing"),
        }
        verify(shared, now).await;
        shared.ticked.notify_one();
    }
}

fn look_after(shared: &Shared, queue: &SendQueue, now: Instant) {
    if queue.is_stuck(now, shared.settings.write_timeout()) {
        queue.cut_off_as_slow();
    } else if queue.has_expired(now) {
        queue.finish(frame::token_expired());
    } else if queue.is_quiet(now, shared.settings.heartbeat()) {
        // A stream that is gone needs no heartbeat.
        let _put = queue.put_bytes(frame::HEARTBEAT);
    }
}

/// Compares quiet topics with their histories. This finds messages that were lost without a trace.
async fn verify(shared: &Arc<Shared>, now: Instant) {
    let quiet = shared.unverified(now);
    for topics in quiet.chunks(VERIFIED_AT_ONCE) {
        let names: Vec<Topic> = topics.iter().map(|topic| topic.topic.clone()).collect();
        shared.ticked.notify_one();
        match shared.history.tips(&names).await {
            Ok(tips) => {
                for (topic, tip) in topics.iter().zip(tips) {
                    topic.mark_verified();
                    // A topic that is behind has missed a message; a topic that is ahead has a place that
                    // Redis does not know; the join finds out about a topic that is refused.
                    if tip.as_ref().ok().copied() != Some(place_of(topic)) {
                        tracing::info!(topic = %topic.topic, "not at the end of its history; joining anew");
                        shared.join_anew(topic);
                    }
                }
            }
            // The subscription notices on its own that Redis is away.
            Err(error) => return tracing::debug!(%error, "cannot verify quiet topics"),
        }
    }
}

fn place_of(topic: &SharedTopic) -> Option<crate::event::StreamId> {
    topic.state().place().and_then(Cursor::id)
}

/// Ends every stream, spread over the drain time, each with its own time to come back.
pub(super) async fn drain(shared: &Arc<Shared>) {
    shared.draining.store(true, Ordering::Relaxed);
    let queues = shared.open_streams.queues();
    let portions = (shared.settings.drain().as_secs() * PORTIONS_A_SECOND).max(1);
    let portion = queues.len().div_ceil(usize::try_from(portions).unwrap_or(1)).max(1);
    let mut ticks = interval(Duration::from_secs(1) / PORTIONS_A_SECOND as u32);
    for queues in queues.chunks(portion) {
        ticks.tick().await;
        for queue in queues {
            // The queues come in no order, so this is a fair spread.
            queue.finish(frame::retry(shared.retry_after(1)));
        }
    }
    // A client that reads nothing would hold the process up.
    tokio::time::sleep(TICK).await;
    for queue in shared.open_streams.queues() {
        queue.cut_off();
    }
}
