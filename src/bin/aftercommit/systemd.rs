//! Notifies systemd that the process serves, how it is, that its loop still turns, and that it stops. Each
//! notification is one datagram to the socket that `NOTIFY_SOCKET` names. Without that variable nothing is
//! sent.

use std::io;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The number of keepalives within systemd's watchdog time.
const SIGNS: u32 = 4;
/// The interval for checking the status, if no keepalives are requested.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit for sending a message. The socket holds few messages, and systemd may be busy.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection to systemd. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notifier {
    socket: Option<Arc<UnixDatagram>>,
    /// The watchdog time: systemd ends the process if no keepalive arrives within it.
    watchdog: Option<Duration>,
}

/// A task that notifies systemd as soon as the process is asked to stop.
#[derive(Debug)]
#[must_use = "without waiting, the process may end before systemd is notified"]
pub(crate) struct Stopping(JoinHandle<()>);

impl Stopping {
    /// Waits until systemd has been notified. Call it last, before the process ends.
    pub(crate) async fn wait(self) {
        if tokio::time::timeout(SEND_TIMEOUT * 2, self.0).await.is_err() {
            tracing::debug!("ended before systemd was notified of the stop");
        }
    }
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`. Must be called within a Tokio runtime.
    pub(crate) fn from_environment() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(address) = variable("NOTIFY_SOCKET") else { return Self::default() };
        let socket = match connect(&address) {
            Ok(socket) => Some(Arc::new(socket)),
            Err(error) => {
                tracing::warn!(%error, %address, "cannot reach the socket that NOTIFY_SOCKET names");
                None
            }
        };
        let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = variable("WATCHDOG_USEC").filter(|_| is_ours).and_then(|usec| usec.parse().ok());
        Self { socket, watchdog: watchdog.map(Duration::from_micros) }
    }

    /// Notifies systemd that the process serves, and once `shutdown` is cancelled, that it stops.
    pub(crate) async fn serving(&self, shutdown: &CancellationToken) -> Stopping {
        self.send("READY=1").await;
        let (notifier, shutdown) = (self.clone(), shutdown.clone());
        Stopping(tokio::spawn(async move {
            shutdown.cancelled().await;
            notifier.send("STOPPING=1\nSTATUS=stopping: finishing what is in hand").await;
        }))
    }

    /// After each `turn`, sends a keepalive if one is due, and the status if it has changed. Never returns.
    ///
    /// `turn` must complete with each turn of the process's own loop, so that a stuck loop sends no
    /// keepalive.
    pub(crate) async fn watch(&self, mut turn: impl AsyncFnMut(), status: impl Fn() -> String) {
        let every = self.interval();
        let (mut sent, mut due) = (String::new(), Instant::now());
        loop {
            turn().await;
            if Instant::now() < due {
                continue;
            }
            due = Instant::now() + every;
            if self.watchdog.is_some() {
                self.send("WATCHDOG=1").await;
            }
            let status = status().replace('\n', " ");
            if status != sent {
                self.send(&format!("STATUS={status}")).await;
                sent = status;
            }
        }
    }

    /// The interval of keepalives, or of checking the status.
    pub(crate) fn interval(&self) -> Duration {
        self.watchdog.map_or(STATUS_INTERVAL, |within| within / SIGNS)
    }

    async fn send(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        match tokio::time::timeout(SEND_TIMEOUT, socket.send(state.as_bytes())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, state, "systemd was not notified"),
            Err(_elapsed) => tracing::debug!(state, "systemd was not notified: its socket is full"),
        }
    }
}

fn connect(address: &str) -> io::Result<UnixDatagram> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    // Tokio's own constructor does not support abstract names.
    socket.connect_addr(&address_of(address)?)?;
    UnixDatagram::from_std(socket)
}

/// Parses a path, or a name in the abstract namespace, which begins with '@'.
fn address_of(address: &str) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = address.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(address)
}
