//! Waits of a join and of a client's catch-up: between attempts to read, and for the relay to repair Redis.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// The waits after failed reads of a history.
pub(crate) fn between_reads() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(1))
}

/// The wait for the relay to restore the events that Redis forgot: for a limited time, with ever longer
/// pauses between the looks.
#[derive(Debug)]
pub(crate) struct RepairWait {
    lasts: Duration,
    until: Option<Instant>,
    looks: Backoff,
}

impl RepairWait {
    /// A wait of this length from the first look on.
    pub(crate) fn new(lasts: Duration) -> Self {
        let looks = Backoff::new(Duration::from_millis(25), Duration::from_millis(400));
        Self { lasts, until: None, looks }
    }

    /// Waits until the next look is due. Returns false if the time is up.
    pub(crate) async fn wait(&mut self) -> bool {
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.lasts);
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(self.looks.next_wait()).await;
        true
    }
}
