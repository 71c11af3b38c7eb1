//! Start and end of a process: its listening sockets, signals, and the grace time after one.
//!
//! The first SIGTERM or SIGINT stops new work and lets work in hand finish within the grace time. A second
//! one, or the end of that time, ends the process at once.

use std::future::Future;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::telemetry;

/// Makes a file that has reached its size limit (`ulimit -f`) an error of the write, as a full disk is.
/// Without a handler, the signal SIGXFSZ would end the process. Needs a Tokio runtime.
pub(crate) fn survive_full_files() -> Result<()> {
    let file_size = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    // The handler stays in force after this is dropped.
    signal(file_size).map(drop).context("cannot handle SIGXFSZ")
}

/// The time limit for writing the last log line of a process that ends at once.
const LAST_LINE: Duration = Duration::from_millis(100);

/// Returns a token that the first signal cancels. A second signal ends the process with code 1.
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
        // Obeyed before it is logged, because the log line may wait for a reader.
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

/// Runs `work` to its end. Once `shutdown` is cancelled, `work` has `grace` left.
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

/// The number of connections that may wait to be accepted. All clients of a restarted server reconnect
/// together. A client that finds no room sends again only after one second, then two, then four. The standard
/// library would ask for 128.
const BACKLOG: u32 = 4096;

/// Returns the host of an address to listen on, without brackets. Does not look its name up.
///
/// # Errors
/// A sentence that continues after the setting's name, if the address has no valid host and port.
pub(crate) fn check_listen(text: &str) -> Result<&str, String> {
    let wrong = || {
        format!(
            "is '{text}': it must be an address and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080"
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

/// Binds a listening socket. `setting` is named in the error.
pub(crate) async fn bind(listen: &str, setting: &str) -> Result<(TcpListener, SocketAddr)> {
    let listener = listen_on(listen).await.with_context(|| {
        format!("cannot listen on {listen}: is it taken? Set {setting} to another address")
    })?;
    let address = listener.local_addr().context("a listener without an address")?;
    Ok((listener, address))
}

/// Listens on the first address of a name that can be bound.
async fn listen_on(name: &str) -> io::Result<TcpListener> {
    let mut failed = None;
    for address in tokio::net::lookup_host(name).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // So a restart can bind the port while connections of the previous process are still closing.
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has no address")))
}
