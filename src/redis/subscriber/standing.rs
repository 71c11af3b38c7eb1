//! The failures to connect for subscriptions, for readiness. Without them, a process whose connection for
//! commands still works would look healthy while it receives no event.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A failure that has lasted for less is a reconnect.
const RECONNECTS_FOR: Duration = Duration::from_secs(3);
/// A failure counts as over if it is not repeated for this long, because then no topic needs that server.
/// Longer than one attempt to connect.
const COUNTS_FOR: Duration = Duration::from_secs(15);

/// The failures of each server. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing(Arc<Mutex<BTreeMap<String, Failure>>>);

#[derive(Debug)]
struct Failure {
    reason: String,
    since: Instant,
    last: Instant,
}

impl Standing {
    /// Notes that no connection to a server can be made, and logs each reason once.
    pub(super) fn failed(&self, server: impl ToString, reason: String) {
        let (server, now) = (server.to_string(), Instant::now());
        let mut failures = self.lock();
        let before = failures.get(&server).filter(|failure| now - failure.last < COUNTS_FOR);
        if before.is_none_or(|before| before.reason != reason) {
            tracing::warn!(%server, %reason, "no connection for subscriptions: its topics get no events");
        }
        let since = before.map_or(now, |before| before.since);
        failures.insert(server, Failure { reason, since, last: now });
    }

    /// Notes that a connection to a server has been made.
    pub(super) fn connected(&self, server: impl ToString) {
        self.lock().remove(&server.to_string());
    }

    /// Why topics get no events, if they get none.
    pub(super) fn problem(&self) -> Option<String> {
        let now = Instant::now();
        let lasts = |failure: &Failure| {
            now - failure.last < COUNTS_FOR && failure.last - failure.since >= RECONNECTS_FOR
        };
        let failures = self.lock();
        let lasting = failures.iter().filter(|(_, failure)| lasts(failure));
        let told: Vec<String> =
            lasting.map(|(server, failure)| format!("{server}: {}", failure.reason)).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_counts_when_it_lasts_until_a_connection_is_made_or_nobody_tries_any_more() {
        let standing = Standing::default();
        let fail = async |seconds| {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            standing.failed("redis", "refused".to_owned());
            standing.problem()
        };
        let problem = Some("redis: refused".to_owned());
        assert_eq!([fail(0).await, fail(2).await, fail(2).await], [None, None, problem.clone()]);
        standing.connected("redis");
        assert_eq!(standing.problem(), None);
        assert_eq!([fail(0).await, fail(4).await], [None, problem]);
        tokio::time::advance(COUNTS_FOR).await;
        assert_eq!(standing.problem(), None);
        assert_eq!(fail(0).await, None, "another outage");
    }
}
