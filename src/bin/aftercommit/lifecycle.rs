//! Starting and ending: signals, and the time that is left after one.
//!
//! The first SIGTERM or SIGINT stops taking work and lets what is in hand finish within the grace time. The second one,
//! or the end of that time, ends the process at once.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that the first signal cancels. The second signal ends the process with code 1.
pub(crate) fn shutdown_on_signal() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        for told in ["stopping; a second signal ends at once", "ended by a second signal"] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("{told}");
            if first.is_cancelled() {
                std::process::exit(1);
            }
            first.cancel();
        }
    });
    Ok(token)
}

/// Runs `work` to its end; once `shutdown` is cancelled it has `grace` left.
pub(crate) async fn within_grace<T>(
    work: impl Future<Output = T>,
    shutdown: &CancellationToken,
    grace: Duration,
) -> Result<T> {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return Ok(done),
        () = shutdown.cancelled() => {}
    }
    tokio::time::timeout(grace, work)
        .await
        .with_context(|| format!("did not stop within {} s: ended without finishing", grace.as_secs()))
}

/// Connections that may wait to be accepted. All clients of a server that was restarted come back together, and one that
/// finds no room waits a second, then two, then four: its kernel sends again only then. The standard library asks for 128.
const BACKLOG: u32 = 4096;

/// Binds a listening socket.
pub(crate) async fn bind(listen: &str, setting: &str) -> Result<(TcpListener, SocketAddr)> {
    let listener = listen_on(listen).await.with_context(|| {
        format!("cannot listen on {listen}: is it taken? Set {setting} to another address")
    })?;
    let address = listener.local_addr().context("a listener without an address")?;
    Ok((listener, address))
}

/// Listens on the first address of a name that can be had.
async fn listen_on(name: &str) -> io::Result<TcpListener> {
    let mut failed = None;
    for address in tokio::net::lookup_host(name).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart finds the port free although connections of before are still being closed.
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has no address")))
}
