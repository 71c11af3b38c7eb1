//! The listener: wakes the loop at each notification. A notification is only a hint, because the loop also
//! looks at every poll interval.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Metrics;
use super::state::StateHandle;
use crate::backoff::Backoff;
use crate::outbox::bell::CHANNEL;
use crate::postgres::Settings;

/// A session that lasted this long was made for good, so the backoff starts over.
const LASTED: Duration = Duration::from_secs(10);

/// Listens until `stop`. Wakes the loop at every notification, every reconnect and every lost connection.
pub(super) async fn listen(
    database: Settings,
    relay: String,
    wake: Arc<Notify>,
    state: StateHandle,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let name = format!("aftercommit relay {relay} listener");
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => {
                metrics.listening.set(0);
                return;
            }
            ended = listen_once(&database, &name, &wake, &state, &metrics, &mut backoff) => ended,
        };
        state.listening(false);
        metrics.listening.set(0);
        tracing::debug!(error = %ended, "the listener ended; polling until it is back");
        tokio::select! {
            () = stop.cancelled() => return,
            // A database that rests has closed its connections. A new one would wake it.
            () = state.awake() => {}
        }
        // Notifications sent meanwhile are lost, so look once.
        wake.notify_one();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
    }
}

async fn listen_once(
    database: &Settings,
    name: &str,
    wake: &Notify,
    state: &StateHandle,
    metrics: &Metrics,
    backoff: &mut Backoff,
) -> sqlx::Error {
    match database.listener(name, CHANNEL).await {
        Err(error) => error,
        Ok(mut listener) => {
            let since = Instant::now();
            // LISTEN is in force. Look once for events that were committed before.
            state.listening(true);
            metrics.listening.set(1);
            metrics.woken("reconnect");
            wake.notify_one();
            loop {
                match listener.try_recv().await {
                    Ok(Some(_notification)) => {
                        metrics.woken("notify");
                        wake.notify_one();
                    }
                    // The connection is lost. The next one is made here and not by the driver, so that its
                    // state is known.
                    ended => {
                        if since.elapsed() >= LASTED {
                            backoff.reset();
                        }
                        return ended.err().unwrap_or(sqlx::Error::WorkerCrashed);
                    }
                }
            }
        }
    }
}
