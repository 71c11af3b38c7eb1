//! The periodic work for all streams: heartbeats, time-outs, expired tokens, metrics. No stream has a timer
//! of its own. It must not wait for Redis, which would hold up all streams.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::queue::send_queue::SendQueue;
use super::shared::Shared;
use super::wire::frame;

const TICK: Duration = Duration::from_millis(500);
/// Portions a second in which streams are ended while draining.
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
