//! `aftercommit healthcheck`: asks the processes of this host whether they are ready. The container image and
//! its health checks call it, because a small image has no curl.

use anyhow::{Result, bail};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::ops::{output, probe};

/// Asks each process that listens at its configured address.
///
/// # Errors
/// If no process listens, or if one is not ready: the reasons of its failing checks.
pub(crate) async fn run(config: &Config) -> Result<()> {
    let roles = [("api", &config.api.listen), ("relay", &config.relay.listen), ("sse", &config.sse.listen)];
    let mut listening = false;
    for (role, listen) in roles {
        // A container runs one role: nothing listens at the addresses of the others.
        if TcpStream::connect(listen).await.is_err() {
            continue;
        }
        listening = true;
        let answer = probe::readiness(listen).await;
        if !answer.ok {
            bail!("{role}: {}", answer.says);
        }
        output::text(&format!("{role}: {}\n", answer.says));
    }
    if !listening {
        let addresses = roles.map(|(role, listen)| format!("{role} at {listen}")).join(", ");
        bail!("no process listens here: {addresses}");
    }
    Ok(())
}
