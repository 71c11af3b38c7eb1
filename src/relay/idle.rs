//! The waits between two looks for new events without a notification, and what is known of the last look.

use std::time::{Duration, Instant};

use crate::log::position::Snapshot;

/// The shortest wait between two looks.
const SHORTEST: Duration = Duration::from_millis(1);
/// A wait is this part of the time since the last event. So an event waits about a tenth of the time between
/// two events, and a log without events costs ever fewer looks.
const PART: u32 = 8;

/// The waits between looks: short behind an event, and longer with each look that finds nothing.
#[derive(Debug)]
pub(super) struct Pace {
    found: Instant,
    longest: Duration,
}

impl Pace {
    /// Waits of at most `longest`.
    pub(super) fn new(longest: Duration) -> Self {
        Self { found: Instant::now(), longest }
    }

    /// Notes that a look has found something.
    pub(super) fn found(&mut self) {
        self.found = Instant::now();
    }

    /// The wait until the next look.
    pub(super) fn wait(&self) -> Duration {
        wait_after(self.found.elapsed(), self.longest)
    }
}

fn wait_after(silence: Duration, longest: Duration) -> Duration {
    (silence / PART).max(SHORTEST).min(longest)
}

/// The relay's knowledge of the last look.
#[derive(Debug, Default)]
pub(super) enum LastLook {
    /// It found something, or failed. The next look comes without a question.
    #[default]
    Found,
    /// A look is under way that began behind this snapshot.
    Begun(Option<Snapshot>),
    /// It found nothing, and began behind this snapshot, if it is known.
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
}
