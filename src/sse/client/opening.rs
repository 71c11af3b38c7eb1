//! A stream's response waits until the client's place in a topic is known, but not for long.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// How long the response waits. With Redis at hand a place takes a millisecond. Without Redis the stream is
/// opened all the same, so that the browser is connected, and the client is told later that it may have
/// missed events.
const WAIT_FOR_PLACE: Duration = Duration::from_secs(2);

/// The wait of one response for one topic.
pub(crate) struct Opening {
    /// Signalled when the place is known or the wait is over; `None` from then on.
    placed: Option<oneshot::Sender<()>>,
    /// Until when the response waits.
    until: Instant,
    /// Cancelled when the response begins without waiting any longer.
    opened: CancellationToken,
}

impl Opening {
    pub(crate) fn new(placed: oneshot::Sender<()>, opened: CancellationToken) -> Self {
        Self { placed: Some(placed), until: Instant::now() + WAIT_FOR_PLACE, opened }
    }

    /// Whether the place has not been reported yet.
    pub(crate) fn is_awaited(&self) -> bool {
        self.placed.is_some()
    }

    /// Whether the response has begun before the place was reported.
    pub(crate) fn has_begun(&self) -> bool {
        self.is_awaited() && self.opened.is_cancelled()
    }

    /// Whether the response has begun before the place was reported, or has to begin now.
    pub(crate) fn is_over(&self) -> bool {
        self.has_begun() || self.is_awaited() && Instant::now() >= self.until
    }

    /// Waits until [`Self::is_over`]; for ever if the place has been reported.
    pub(crate) async fn ends(&self) {
        if !self.is_awaited() {
            return std::future::pending().await;
        }
        tokio::select! {
            () = self.opened.cancelled() => {}
            () = sleep_until(self.until) => {}
        }
    }

    /// Reports that the response may begin.
    pub(crate) fn report(&mut self) {
        if let Some(placed) = self.placed.take() {
            // Nobody receives it when the client is gone, or the response has begun.
            let _sent = placed.send(());
        }
    }
}
