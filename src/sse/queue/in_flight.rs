//! The bytes that a connection has taken from its queue and not yet given to the kernel.
//!
//! A large block leaves the queue as soon as the connection turns to it, and is held until the client has
//! read enough of it. So a client that does not read looks idle by its queue alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::{Duration, Instant};

/// Blocks up to this many bytes are not tracked: a connection holds few of them at a time.
const SMALL: usize = 16 * 1024;

/// The large blocks of one connection that are in flight.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: usize,
    /// Since when none of them has arrived.
    since: Option<Instant>,
}

impl InFlight {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tracks these bytes until the connection drops them.
    pub(crate) fn track(&self, bytes: Bytes) -> Bytes {
        if bytes.len() <= SMALL {
            return bytes;
        }
        let mut state = self.state();
        state.bytes += bytes.len();
        state.since.get_or_insert_with(Instant::now);
        drop(state);
        Bytes::from_owner(Tracked { bytes, in_flight: self.clone() })
    }

    /// How many bytes are in flight, and for how long none of them has been sent.
    pub(crate) fn load(&self, now: Instant) -> (usize, Duration) {
        let state = self.state();
        let stuck = state.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        (state.bytes, stuck)
    }
}

struct Tracked {
    bytes: Bytes,
    in_flight: InFlight,
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let mut state = self.in_flight.state();
        state.bytes -= self.bytes.len();
        state.since = (state.bytes > 0).then(Instant::now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn large_blocks_are_on_their_way_until_the_last_of_their_bytes_is_let_go_of() {
        let in_flight = InFlight::default();
        let (block, small) =
            (in_flight.track(vec![0; SMALL + 1].into()), in_flight.track(vec![0; SMALL].into()));
        let rest = block.slice(SMALL..);
        drop((block, small));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(in_flight.load(Instant::now()), (SMALL + 1, Duration::from_secs(5)));
        drop(rest);
        assert_eq!(in_flight.load(Instant::now()), (0, Duration::ZERO));
    }
}
