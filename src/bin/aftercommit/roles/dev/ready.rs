//! Waits until every role is ready, so that `dev` says that it is up only when the first event is delivered at
//! once.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ops::probe::{self, Answer};

/// The longest wait. The addresses are printed then all the same, since they help to find the cause.
const LIMIT: Duration = Duration::from_secs(15);
/// The wait between two looks: a role gives no signal when it becomes ready.
const EVERY: Duration = Duration::from_millis(20);

/// The addresses of these listeners, as `/readyz` is asked for there.
pub(super) fn addresses<const N: usize>(listeners: [&TcpListener; N]) -> Result<Vec<String>> {
    let address = |listener: &TcpListener| {
        let address = listener.local_addr().context("a listener without an address")?;
        anyhow::Ok(address.to_string())
    };
    listeners.into_iter().map(address).collect()
}

/// Waits until `/readyz` of each address answers 200, or until `stop`. Says what is not ready at the end of a
/// time limit.
pub(super) async fn wait_until_all_are(addresses: &[String], stop: &CancellationToken) {
    let deadline = Instant::now() + LIMIT;
    for address in addresses {
        while let Err(why) = ready(address).await {
            if Instant::now() > deadline {
                note!("not ready after {} s: {why}", LIMIT.as_secs());
                break;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }
}

/// Whether a role is ready; why not, in words.
async fn ready(address: &str) -> Result<(), String> {
    match probe::readiness(address).await {
        Answer { ok: true, .. } => Ok(()),
        Answer { says, .. } => Err(says),
    }
}
