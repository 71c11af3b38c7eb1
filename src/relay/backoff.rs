//! The wait after the n-th failure in a row. Pure.

use std::time::Duration;

/// A wait with jitter that doubles with each failure up to a limit, and starts over after a success.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits between `min` and `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min: min.max(Duration::from_millis(1)), max: max.max(min), failures: 0 }
    }

    /// Returns the wait after one more failure. `chance`, from 0 to 1, spreads the waits over the upper half,
    /// so that many processes do not all come back at once.
    pub fn next(&mut self, chance: f64) -> Duration {
        let doubled = self.min.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = (self.failures + 1).min(30);
        doubled.min(self.max).mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }

    /// Starts over with the shortest wait.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Duration::from_millis(50), Duration::from_secs(2))
    }

    #[test]
    fn waits_double_up_to_the_limit() {
        let mut backoff = backoff();
        let waits: Vec<u128> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[test]
    fn a_wait_is_never_shorter_than_half() {
        assert_eq!(backoff().next(0.0), Duration::from_millis(25));
    }

    #[test]
    fn a_success_starts_over_and_a_year_of_failures_does_not_overflow() {
        let mut backoff = backoff();
        for _ in 0..1_000_000 {
            assert!(backoff.next(1.0) <= Duration::from_secs(2));
        }
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(50));
    }
}
