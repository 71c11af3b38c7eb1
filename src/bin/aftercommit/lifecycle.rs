//! Starting and ending: signals, and the time that is left after one.
//!
//! The first SIGTERM or SIGINT stops taking work and lets what is in hand finish within the grace time. The second one,
//! or the end of that time, ends the process at once.

use std::future::Future;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry;

/// Lets a file that has reached the limit of its size (`ulimit -f`) be an error of the write, as a full disk is. Without a
/// handler, the signal would end the process. Needs a runtime.
pub(crate) fn survive_full_files() -> Result<()> {
    let file_size = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    // It stays in force when this is dropped.
    signal(file_size).map(drop).context("cannot handle SIGXFSZ")
}

/// How long the last line of a process may take that is ended at once.
const LAST_LINE: Duration = Duration::from_millis(100);

/// A token that the first signal cancels. The second signal ends the process with code 1.
pub(crate) fn shutdown_on_signal() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let mut any = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        // Obeyed first: what is said of it may wait for a reader.
        any().await;
        stop.cancel();
        tracing::info!("stopping; a second signal ends at once");
        any().await;
        tracing::info!("ended by a second signal");
        telemetry::stderr().flush(LAST_LINE);
        std::process::exit(1);
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

/// The host of an address to listen on, without brackets; its name is not looked up.
///
/// # Errors
/// A sentence that goes on behind the setting's name.
pub(crate) fn check_listen(text: &str) -> Result<&str, String> {
    let wrong = || {
        format!(
            "is '{text}': it has to be an address and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080"
        )
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bare = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(host) => host.filter(|host| host.parse::<Ipv6Addr>().is_ok()).ok_or_else(wrong)?,
        None => host,
    };
    let is_name = |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let is_host = bare.len() < host.len() || (!host.is_empty() && is_name(host));
    let is_port = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if is_host && is_port { Ok(bare) } else { Err(wrong()) }
}

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
