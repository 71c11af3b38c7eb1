//! Waits between attempts: how long in all, and how long each.

use std::time::Duration;

use tokio::time::Instant;

/// Waits after failed reads of a history: the first, doubled up to the second.
pub(crate) const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Waits between looks whether Redis has got back the events that it forgot: the first, doubled up to the
/// second.
pub(crate) const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(400));

/// A wait in steps that grow.
#[derive(Debug)]
pub(crate) struct Backoff {
    lasts: Duration,
    until: Option<Instant>,
    next: Duration,
}

impl Backoff {
    /// A wait of this length from the first look on.
    pub(crate) fn new(lasts: Duration) -> Self {
        Self { lasts, until: None, next: Duration::ZERO }
    }

    /// Waits for the next look. Returns false if the time is up.
    pub(crate) async fn wait(&mut self) -> bool {
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.lasts);
        if Instant::now() >= until {
            return false;
        }
        self.pause(LOOK_AGAIN).await;
        true
    }

    /// Waits a step, whatever the time in all: longer every time.
    pub(crate) async fn pause(&mut self, (first, longest): (Duration, Duration)) {
        let pause = self.next.clamp(first, longest);
        self.next = pause * 2;
        tokio::time::sleep(pause).await;
    }
}
