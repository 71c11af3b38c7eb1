//! The accept loop: what `axum::serve` lacks is a limit on how long a request's head may take and how large it may be, a
//! limit on connections with a rule who gives way, places that are kept for health, and a way to end one connection from
//! inside its handler.

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

/// What connections may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections at most, beside [`RESERVED_CONNECTIONS`].
    pub connections: usize,
    /// How long a request's head may take, also the idle time of a kept-alive connection.
    pub head: Duration,
    /// How large a request's head may be, in bytes.
    pub head_bytes: usize,
    /// How long sent bytes may stay unacknowledged before the peer counts as gone (`TCP_USER_TIMEOUT`).
    pub unacknowledged: Duration,
    /// Bytes that the kernel keeps for a peer that does not take them (`SO_SNDBUF`), where left alone up to megabytes.
    pub send_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            head: Duration::from_secs(30),
            head_bytes: 16 * 1024,
            unacknowledged: Duration::from_secs(30),
            send_buffer: 256 * 1024,
        }
    }
}

/// Connections beyond the limit, on which health, readiness and metrics are answered when all others are taken.
pub const RESERVED_CONNECTIONS: usize = 16;

/// How long a request's head may take on one of these.
const RESERVED_HEAD: Duration = Duration::from_secs(2);

/// The connection that a request came on. Among a request's extensions.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Who is at its other end: the client, or a proxy.
    pub peer: SocketAddr,
    /// The client, as far as the trusted proxies between it and this process tell.
    pub client: IpAddr,
    /// Ends it, whatever it is in the middle of.
    pub end: CancellationToken,
    place: Option<Arc<Place>>,
}

impl Connection {
    /// A valid token came with the request in hand: until that is over, the connection does not give way to others.
    pub fn vouch(&self) {
        if let Some(place) = &self.place {
            place.vouch();
        }
    }
}

/// After a failed accept, which is mostly a lack of file descriptors: how long until the next.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// The accept loop turns at least this often, also when nobody connects.
const TURN_AT_LEAST: Duration = Duration::from_millis(250);

/// Tells whenever the accept loop has turned, which it does a few times a second and more. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Notify>);

impl Turns {
    /// Waits for the next turn.
    pub async fn next(&self) {
        self.0.notified().await;
    }
}

/// What a process serves at one address.
#[derive(Debug, Clone)]
pub struct Server {
    router: Router,
    /// What is served on the reserved connections.
    when_full: Router,
    limits: Limits,
    proxies: TrustedProxies,
    places: Places,
    turns: Turns,
}

impl Server {
    /// A server of `application`, and of `operations` also when all connections are taken.
    ///
    /// # Errors
    /// [`ProxyError`] for a list of trusted proxies that is none.
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

    /// With this answer, and not a 503, to what cannot be served because all connections are taken.
    #[must_use]
    pub fn when_full(mut self, answer: Router) -> Self {
        self.when_full = self.when_full.fallback_service(answer);
        self
    }

    /// Tells of the accept loop's turns.
    pub fn turns(&self) -> Turns {
        self.turns.clone()
    }

    /// Serves on `listener` until `shutdown`; then accepts no more, lets requests in hand finish, and returns when every
    /// connection has ended. Streams must end by themselves: the caller sees to that, and to a time limit.
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
                    let Some(place) = self.places.take(self.pluralize(peer), end.clone(), Instant::now())
                    else {
                        // Nothing is answered: a browser takes a broken connection for a reason to come back.
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

    /// The peer as it is counted. Not counted are proxies, behind which there are many, and this machine itself: whoever is
    /// on it can do worse, and mostly it is a proxy too.
    fn pluralize(&self, peer: SocketAddr) -> Option<IpAddr> {
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
            // Dropping the connection closes the socket, also where the peer takes no bytes.
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

/// The answer to what cannot be served because all connections are taken.
async fn full() -> Problem {
    Problem::unavailable("this process has as many connections as it may have: try again after a while")
}

fn prepare(stream: &TcpStream, limits: Limits) -> std::io::Result<()> {
    // Without it an event waits for the acknowledgement of the one before.
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

/// The answer for paths that lead nowhere.
pub async fn no_route() -> Problem {
    Problem::not_found("there is nothing at this path")
}
