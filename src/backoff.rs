//! Waits that grow with each failure in a row. This part sleeps nowhere: its callers do.

use std::time::Duration;

use uuid::Uuid;

/// A wait that doubles with each failure up to a limit, with jitter, and starts over after a success.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits that begin with `min`, at least a millisecond, and grow up to `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min: min.max(Duration::from_millis(1)), max: max.max(min), failures: 0 }
    }

    /// The wait after one more failure: at least half of the doubled time. The random half spreads the waits
    /// of many processes, so that they do not all come back at once.
    pub fn next_wait(&mut self) -> Duration {
        self.spread(random_fraction())
    }

    fn spread(&mut self, fraction: f64) -> Duration {
        let doubled = self.min.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = (self.failures + 1).min(30);
        doubled.min(self.max).mul_f64(0.5 + fraction / 2.0)
    }

    /// Starts over.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A random number between 0 and 1, good enough to spread waits.
pub fn random_fraction() -> f64 {
    f64::from(Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
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
        let waits: Vec<u128> = (0..8).map(|_| backoff.spread(1.0).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[test]
    fn a_wait_is_never_shorter_than_half() {
        assert_eq!(backoff().spread(0.0), Duration::from_millis(25));
    }

    #[test]
    fn a_success_starts_over_and_a_year_of_failures_does_not_overflow() {
        let mut backoff = backoff();
        for _ in 0..1_000_000 {
            assert!(backoff.spread(1.0) <= Duration::from_secs(2));
        }
        backoff.reset();
        assert_eq!(backoff.spread(1.0), Duration::from_millis(50));
    }
}
