//! Polls Redis for losses that no message reports: events that a repair had to leave out, and messages that
//! were lost without a trace.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::event::Topic;
use crate::sse::shared::Shared;

/// The time between two looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// Quiet topics that are compared with their histories in one round trip to Redis.
const VERIFIED_AT_ONCE: usize = 256;

/// Looks again and again. Never returns.
pub(crate) async fn run(shared: &Arc<Shared>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match shared.history.loss().await {
            Ok(loss) => shared.note_loss(loss),
            Err(error) => tracing::debug!(%error, "cannot look for events that are missing"),
        }
        verify(shared, Instant::now()).await;
    }
}

/// Compares quiet topics with their histories. This finds messages that were lost without a trace.
async fn verify(shared: &Arc<Shared>, now: Instant) {
    let quiet = shared.unverified(now);
    for topics in quiet.chunks(VERIFIED_AT_ONCE) {
        let names: Vec<Topic> = topics.iter().map(|topic| topic.topic.clone()).collect();
        match shared.history.tips(&names).await {
            Ok(tips) => {
                for (topic, tip) in topics.iter().zip(tips) {
                    topic.mark_verified();
                    // A topic that is behind has missed a message; a topic that is ahead has a place that
                    // Redis does not know; the join finds out about a topic that is refused.
                    if tip.as_ref().ok().copied() == Some(topic.state().tip_of_history()) {
                        topic.state().note_end();
                    } else {
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
