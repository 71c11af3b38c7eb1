//! The waits between two looks for new events when no notification comes, and the result of the last look.

use std::time::{Duration, Instant};

use crate::log::position::Snapshot;

/// The shortest wait between two looks.
const SHORTEST: Duration = Duration::from_millis(1);
/// The wait until the next look is the time since the last event, divided by this number. So an event waits
/// for about a tenth of the time between two events, and a log without events is looked at ever less often.
const PART: u32 = 8;

/// The longest silence before a sleep, however long the sleep is.
const SILENCE: Duration = Duration::from_mins(1);

/// The waits between looks: short after an event, and longer with each look that finds nothing.
#[derive(Debug)]
pub(super) struct Pace {
    found: Instant,
    /// When a notification came last, or an event.
    heard: Instant,
    longest: Duration,
    sleep: Option<Duration>,
}

impl Pace {
    /// Waits of at most `longest`, and sleeps of `sleep` after a silence.
    pub(super) fn new(longest: Duration, sleep: Option<Duration>) -> Self {
        let now = Instant::now();
        Self { found: now, heard: now, longest, sleep }
    }

    /// Notes that a look has found something.
    pub(super) fn found(&mut self) {
        self.found = Instant::now();
        self.heard();
    }

    /// Notes that a notification has come.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    /// The wait until the next look.
    pub(super) fn wait(&self) -> Duration {
        wait_after(self.found.elapsed(), self.longest)
    }

    /// The length of the sleep that is due. A sleep is due if nothing has come for that long, or for
    /// [`SILENCE`].
    pub(super) fn sleep(&self) -> Option<Duration> {
        sleep_after(self.heard.elapsed(), self.sleep)
    }
}

fn sleep_after(silence: Duration, sleep: Option<Duration>) -> Option<Duration> {
    sleep.filter(|sleep| silence >= SILENCE.min(*sleep))
}

fn wait_after(silence: Duration, longest: Duration) -> Duration {
    (silence / PART).max(SHORTEST).min(longest)
}

/// The relay's knowledge of the last look.
#[derive(Debug, Default)]
pub(super) enum LastLook {
    /// It found something, or failed. The next look comes without asking for a snapshot first.
    #[default]
    Found,
    /// A look is under way that began after this snapshot.
    Begun(Option<Snapshot>),
    /// It found nothing. It began after this snapshot, if it is known.
    Idle(Option<Snapshot>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_grows_with_the_silence_between_its_bounds() {
        let longest = Duration::from_millis(100);
        let wait = |ms| wait_after(Duration::from_millis(ms), longest).as_millis();
        assert_eq!([0, 8, 16, 80, 400, 800, 60_000].map(wait), [1, 1, 2, 10, 50, 100, 100]);
        assert_eq!(wait_after(Duration::ZERO, Duration::from_micros(10)), Duration::from_micros(10));
    }

    #[test]
    fn a_relay_that_may_sleep_does_so_after_a_silence_as_long_as_the_sleep_and_a_minute_at_most() {
        let slept = |silence, sleep| sleep_after(Duration::from_secs(silence), sleep).is_some();
        let [short, long] = [3, 600].map(|seconds| Some(Duration::from_secs(seconds)));
        assert_eq!([2, 3, 4].map(|silence| slept(silence, short)), [false, true, true]);
        assert_eq!([59, 60, 600].map(|silence| slept(silence, long)), [false, true, true]);
        assert!(!slept(6000, None));
    }
}
