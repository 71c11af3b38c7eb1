//! The last ten minutes of this process's relay, one sample a second, so that a newly opened page shows them
//! at once.
//!
//! Costs almost nothing: it copies the numbers of the relay's monitor.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::relay::BacklogStatus;

const INTERVAL: Duration = Duration::from_secs(1);
/// The number of samples that are kept: ten minutes.
const KEPT: usize = 600;

/// One second: the time (Unix, in milliseconds), the number of pending events, the age of the oldest one
/// (seconds), the rate (events a second), and the latency of the newest delivered event (seconds). `None` for
/// an unknown number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Sample(i64, Option<i64>, Option<f64>, Option<f64>, Option<f64>);

impl Sample {
    /// A sample of the monitor's numbers. Has a latency only if the relay has delivered since the step
    /// `before`.
    fn of(status: Option<&BacklogStatus>, before: Option<i64>) -> Self {
        Self(
            Utc::now().timestamp_millis(),
            status.map(|status| status.backlog_at_most),
            status.map(|status| rounded(status.oldest_pending.unwrap_or_default())),
            status.map(|status| status.rate),
            status
                .filter(|status| before.is_some_and(|step| step != status.step))
                .and_then(|status| status.latency)
                .map(rounded),
        )
    }
}

/// Rounds seconds to milliseconds.
fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// The samples, and a channel for new ones.
#[derive(Debug)]
pub(super) struct Trend {
    samples: Mutex<VecDeque<Sample>>,
    newest: watch::Sender<Option<Sample>>,
}

impl Default for Trend {
    fn default() -> Self {
        Self { samples: Mutex::default(), newest: watch::Sender::new(None) }
    }
}

impl Trend {
    /// All samples so far, and a receiver of the following ones.
    pub(super) fn follow(&self) -> (Vec<Sample>, watch::Receiver<Option<Sample>>) {
        // Both under the lock, so that no sample is lost between them.
        let samples = self.lock();
        (samples.iter().copied().collect(), self.newest.subscribe())
    }

    fn add(&self, sample: Sample) {
        let mut samples = self.lock();
        samples.push_back(sample);
        if samples.len() > KEPT {
            samples.pop_front();
        }
        self.newest.send_replace(Some(sample));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a sample each second until `stop`.
pub(super) async fn sample(shared: &Shared, stop: &CancellationToken) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let status = shared.parts.state.get().backlog;
        shared.trend.add(Sample::of(status.as_ref(), before));
        before = status.map(|status| status.step).or(before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(step: i64, latency: Option<Duration>) -> BacklogStatus {
        BacklogStatus {
            oldest_pending: None,
            backlog_at_most: 3,
            has_leader: true,
            paused: None,
            contradiction: None,
            rate: 5.0,
            step,
            latency,
            parked_events: 0,
            parked_topics: 0,
        }
    }

    #[test]
    fn a_latency_is_shown_once_and_what_is_not_known_is_no_zero() {
        let took = Some(Duration::from_micros(12_345));
        let Sample(_, backlog, oldest, rate, latency) = Sample::of(Some(&status(7, took)), Some(6));
        assert_eq!((backlog, oldest, rate, latency), (Some(3), Some(0.0), Some(5.0), Some(0.012)));
        assert_eq!(Sample::of(Some(&status(7, took)), Some(7)).4, None);
        assert_eq!(Sample::of(Some(&status(7, took)), None).4, None);
        let Sample(_, backlog, oldest, rate, latency) = Sample::of(None, Some(7));
        assert_eq!((backlog, oldest, rate, latency), (None, None, None, None));
    }

    #[test]
    fn ten_minutes_are_kept() {
        let trend = Trend::default();
        for n in 0..KEPT as i64 + 5 {
            trend.add(Sample(n, None, None, None, None));
        }
        let (samples, _) = trend.follow();
        assert_eq!((samples.len(), samples[0].0), (KEPT, 5));
    }
}
