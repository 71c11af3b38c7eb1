//! Waiting for what may still come: how long, and how often to look.

use std::time::Duration;

use tokio::time::Instant;

/// Waits after failed reads of a history: from the first, doubling, to the second.
pub(crate) const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Waits between looks whether Redis has been given back what it forgot: from the first, doubling, to the second.
pub(crate) const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(400));

/// One wait, in steps that grow.
#[derive(Debug)]
pub(crate) struct Backoff {
    lasts: Duration,
    until: Option<Instant>,
    next: Duration,
}

impl Backoff {
    /// It lasts this long from the first look on.
    pub(crate) fn new(lasts: Duration) -> Self {
        Self { lasts, until: None, next: Duration::ZERO }
    }

    /// Waits for the next look. False if it has run out.
    pub(crate) async fn wait(&mut self) -> bool {
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.lasts);
        if Instant::now() >= until {
            return false;
        }
        self.pause(LOOK_AGAIN).await;
        true
    }

    /// Waits: longer every time.
    pub(crate) async fn pause(&mut self, (first, longest): (Duration, Duration)) {
        let pause = self.next.clamp(first, longest);
        self.next = pause * 2;
        tokio::time::sleep(pause).await;
    }
}
