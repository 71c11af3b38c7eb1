//! Limits a log line for an incident that may happen ten thousand times a second: one line in ten seconds,
//! with a count.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time between two lines.
const EVERY: Duration = Duration::from_secs(10);

/// Counts the incidents that are not logged.
#[derive(Debug, Default)]
pub(super) struct LogLimiter(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    logged: Option<Instant>,
    since: u64,
}

impl LogLimiter {
    /// Counts one more incident. Returns how many there were since the last line, this one included, if a
    /// line is due.
    pub(super) fn count(&self, now: Instant) -> Option<u64> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.since += 1;
        if counted.logged.is_some_and(|logged| now.saturating_duration_since(logged) < EVERY) {
            return None;
        }
        counted.logged = Some(now);
        Some(std::mem::take(&mut counted.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_is_logged_and_later_ones_are_counted() {
        let (limiter, now) = (LogLimiter::default(), Instant::now());
        assert_eq!(limiter.count(now), Some(1));
        assert_eq!((0..99).filter_map(|_| limiter.count(now)).count(), 0);
        assert_eq!(limiter.count(now + EVERY), Some(100));
    }
}
