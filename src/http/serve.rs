//! The accept loop. Beyond `axum::serve` it limits the time and the size of a request's head, limits
//! connections with a rule which of them gives way, reserves places for health checks, and lets a handler end
//! its own connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::Problem;
use super::body::Holding;
use super::metrics::{Closed, Metrics};
use super::places::{Place, Places, Room};
use super::proxies::{ProxyError, TrustedProxies, counted_as};
use super::refusal::Explained;
use super::settings::Settings;

/// Limits on the resources of connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest number of open connections, beside [`RESERVED_CONNECTIONS`].
    pub connections: usize,
    /// The longest time for a request's head, and the longest idle time of a kept-alive connection.
    pub head: Duration,
    /// The largest head of a request, in bytes.
    pub head_bytes: usize,
    /// How long sent bytes may stay unacknowledged before the peer counts as gone (`TCP_USER_TIMEOUT`).
    pub unacknowledged: Duration,
    /// Bytes that the kernel buffers for a peer that does not read (`SO_SNDBUF`). Without a limit these are
    /// up to megabytes.
    pub send_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            head: Duration::from_secs(15),
            head_bytes: 16 * 1024,
            unacknowledged: Duration::from_secs(30),
            send_buffer: 256 * 1024,
        }
    }
}

/// Connections beyond the limit that serve health, readiness and metrics when all others are taken.
pub const RESERVED_CONNECTIONS: usize = 16;

/// The longest time for a request's head on a reserved connection.
const RESERVED_HEAD: Duration = Duration::from_secs(2);

/// The connection of a request, as one of its extensions.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The other end: the client or a proxy.
    pub peer: SocketAddr,
    /// The client's address, as far as trusted proxies report it.
    pub client: IpAddr,
    /// Ends the connection at once, even in the middle of an answer.
    pub end: CancellationToken,
    place: Option<Arc<Place>>,
}

impl Connection {
    /// Keeps the connection from giving way until the request in hand ends. Call it once the request has
    /// shown a valid token.
    pub fn vouch(&self) {
        if let Some(place) = &self.place {
            place.vouch();
        }
    }
}

/// The pause after a failed accept. Most often the process has run out of file descriptors.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// The longest time between two turns of the accept loop, also when nobody connects.
const TURN_AT_LEAST: Duration = Duration::from_millis(250);

/// Signals each turn of the accept loop, several times a second or more. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Notify>);

impl Turns {
    /// Waits for the next turn.
    pub async fn next(&self) {
        self.0.notified().await;
    }
}

/// The routes and limits of a process at one address.
#[derive(Debug, Clone)]
pub struct Server {
    router: Router,
    /// The routes of the reserved connections.
    when_full: Router,
    limits: Limits,
    proxies: TrustedProxies,
    places: Places,
    turns: Turns,
}

impl Server {
    /// Serves `application` and `operations`. The latter is served even when all connections are taken.
    ///
    /// # Errors
    /// [`ProxyError`] for an entry of the list of trusted proxies that is neither an address nor a network.
    pub fn new(
        application: Router,
        operations: Router,
        limits: Limits,
        settings: &Settings,
        metrics: Metrics,
    ) -> Result<Self, ProxyError> {
        let most = limits.connections.div_ceil(2);
        let of_a_peer = match settings.max_connections_per_peer {
            0 => usize::MAX,
            set => set.min(most),
        };
        let room = Room { connections: limits.connections, reserve: RESERVED_CONNECTIONS, of_a_peer };
        Ok(Self {
            router: application.merge(operations.clone()),
            when_full: operations.fallback(full),
            limits,
            proxies: TrustedProxies::new(&settings.trusted_proxies)?,
            places: Places::new(room, metrics),
            turns: Turns::default(),
        })
    }

    /// Serves `answer` when all connections are taken, in place of a 503.
    #[must_use]
    pub fn when_full(mut self, answer: Router) -> Self {
        self.when_full = self.when_full.fallback_service(answer);
        self
    }

    /// Signals the turns of the accept loop.
    pub fn turns(&self) -> Turns {
        self.turns.clone()
    }

    /// Serves on `listener` until `shutdown`. Then it accepts no more, lets requests in hand finish, and
    /// returns when every connection has ended. The caller must end the streams and set a time limit.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let connections = TaskTracker::new();
        let mut ticks = tokio::time::interval(TURN_AT_LEAST);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.turns.0.notify_one();
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
                _ = ticks.tick() => continue,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let end = CancellationToken::new();
                    let Some(place) = self.places.take(self.limit_key(peer), end.clone(), Instant::now())
                    else {
                        // No answer is sent: a browser reconnects after a broken connection.
                        continue;
                    };
                    let connection = Accepted { stream, peer, end, place: Arc::new(place) };
                    connections.spawn(self.clone().connection(connection, shutdown.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }

    /// The address under which a peer's connections are limited, or `None` if they are not. Proxies are not
    /// limited, because many clients share them. Nor is this machine itself: its users could do worse, and
    /// mostly it is a proxy too.
    fn limit_key(&self, peer: SocketAddr) -> Option<IpAddr> {
        let address = peer.ip().to_canonical();
        let is_counted = !address.is_loopback() && !self.proxies.trust(address);
        is_counted.then(|| counted_as(address))
    }

    async fn connection(self, accepted: Accepted, shutdown: CancellationToken) {
        let Accepted { stream, peer, end, place } = accepted;
        let limits = self.limits;
        if let Err(error) = prepare(&stream, limits) {
            tracing::debug!(%error, %peer, "the connection ended before it began");
            return;
        }
        let is_reserved = place.is_in_reserve;
        let router = if is_reserved { self.when_full } else { self.router };
        let on = Connection { peer, client: peer.ip(), end: end.clone(), place: Some(place.clone()) };
        let proxies = self.proxies;
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let asking = place.ask();
            let mut request = request.map(axum::body::Body::new);
            let client = proxies.client(on.peer.ip(), request.headers());
            request.extensions_mut().insert(Connection { client, ..on.clone() });
            let answering = router.clone().oneshot(request);
            async move {
                answering.await.map(|response: Response<_>| response.map(|body| Holding::new(body, asking)))
            }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(if is_reserved { limits.head.min(RESERVED_HEAD) } else { limits.head })
            .keep_alive(!is_reserved)
            .max_buf_size(limits.head_bytes)
            .serve_connection(TokioIo::new(Explained::new(stream, limits.head_bytes)), service);
        tokio::pin!(serving);
        let served = tokio::select! {
            served = &mut serving => served,
            // Dropping the connection closes the socket, even if the peer reads no bytes.
            () = end.cancelled() => return,
            () = shutdown.cancelled() => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    served = &mut serving => served,
                    () = end.cancelled() => return,
                }
            }
        };
        if let Err(error) = served {
            if error.is_parse() {
                self.places.tell(Closed::BadHead, Some(peer.ip()), Instant::now());
            }
            tracing::trace!(%error, %peer, "the connection ended");
        }
    }
}

/// A connection with a place.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    end: CancellationToken,
    place: Arc<Place>,
}

/// The answer when all connections are taken.
async fn full() -> Problem {
    Problem::unavailable("this process has as many connections as it may have: try again after a while")
}

fn prepare(stream: &TcpStream, limits: Limits) -> std::io::Result<()> {
    // Otherwise an event waits for the acknowledgement of the previous one.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(limits.send_buffer)?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(limits.unacknowledged))?;
    #[cfg(not(target_os = "linux"))]
    let _only_on_linux = limits.unacknowledged;
    Ok(())
}

/// The answer for unknown paths.
pub async fn no_route() -> Problem {
    Problem::not_found("there is nothing at this path")
}
