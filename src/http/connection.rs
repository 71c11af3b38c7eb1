//! One connection: its requests, each with what is known of the peer, until it ends or a handler takes its
//! socket over.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response, response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::body::Holding;
use super::connection_limiter::{ActiveRequest, ConnectionLimiter, ConnectionPermit};
use super::metrics::Closed;
use super::proxies::TrustedProxies;
use super::refusal::Explained;
use super::takeover::{Lease, TakenSocket, Takeover, head_until_close};

/// Limits on the resources of connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest number of open connections, beside [`RESERVED_CONNECTIONS`](super::RESERVED_CONNECTIONS).
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

/// The longest time for a request's head on a reserved connection.
const RESERVED_HEAD: Duration = Duration::from_secs(2);

/// The connection of a request, as one of its extensions.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The other end: the client or a proxy.
    pub peer: SocketAddr,
    /// The client's address, as far as trusted proxies report it.
    pub client: IpAddr,
    /// Ends the connection at once, even in the middle of an answer, unless a [`Takeover`] has taken it.
    pub end: CancellationToken,
    place: Arc<ConnectionPermit>,
}

impl Connection {
    /// Keeps the connection from giving way until the request in hand ends. Call it once the request has
    /// shown a valid token.
    pub fn vouch(&self) {
        self.place.vouch();
    }
}

/// An accepted connection with a place, and what its requests need.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) end: CancellationToken,
    pub(super) place: Arc<ConnectionPermit>,
    pub(super) places: ConnectionLimiter,
    pub(super) router: Router,
    pub(super) limits: Limits,
    pub(super) proxies: TrustedProxies,
    /// The connections that the server waits for at its end.
    pub(super) open: TaskTracker,
}

/// A response whose socket is to be taken over.
struct Handover {
    parts: response::Parts,
    takeover: Takeover,
    asking: ActiveRequest,
}

/// Where the service leaves a handover for the connection that runs it.
type HandoverCell = Arc<Mutex<Option<Handover>>>;

/// How hyper's work on a connection ended.
enum Served {
    Ended(hyper::Result<()>),
    TakenOver(Handover),
}

impl Accepted {
    /// Serves the connection until it ends, is taken over, or `shutdown` lets no further request begin.
    pub(super) async fn serve(self, shutdown: CancellationToken) {
        if let Err(error) = prepare(&self.stream, self.limits) {
            tracing::debug!(%error, peer = %self.peer, "the connection ended before it began");
            return;
        }
        let Self { stream, peer, end, place, places, router, limits, proxies, open } = self;
        let is_reserved = place.is_in_reserve;
        let slot = HandoverCell::default();
        let on = Connection { peer, client: peer.ip(), end: end.clone(), place: place.clone() };
        let left = slot.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            let client = proxies.client(on.peer.ip(), request.headers());
            request.extensions_mut().insert(Connection { client, ..on.clone() });
            answer(router.clone(), request, place.ask(), left.clone())
        });
        let explained = Explained::new(stream, limits.head_bytes);
        let mut serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(if is_reserved { limits.head.min(RESERVED_HEAD) } else { limits.head })
            .keep_alive(!is_reserved)
            .max_buf_size(limits.head_bytes)
            .serve_connection(TokioIo::new(explained), service);
        let served = tokio::select! {
            served = poll_fn(|context| poll_served(&mut serving, context, &slot)) => served,
            // Dropping the connection closes the socket, even if the peer reads no bytes.
            () = end.cancelled() => return,
            () = shutdown.cancelled() => {
                Pin::new(&mut serving).graceful_shutdown();
                tokio::select! {
                    served = poll_fn(|context| poll_served(&mut serving, context, &slot)) => served,
                    () = end.cancelled() => return,
                }
            }
        };
        match served {
            // Bytes that the peer has sent after the head belong to no request that is answered.
            Served::TakenOver(handover) => {
                hand_over(handover, serving.into_parts().io.into_inner().into_inner(), &open);
            }
            Served::Ended(Err(error)) => report(&error, peer, &places),
            Served::Ended(Ok(())) => {}
        }
    }
}

/// Notes how a connection failed.
fn report(error: &hyper::Error, peer: SocketAddr, places: &ConnectionLimiter) {
    if error.is_parse() {
        places.tell(Closed::BadHead, Some(peer.ip()), Instant::now());
    }
    tracing::trace!(%error, %peer, "the connection ended");
}

/// Lets hyper work until the connection ends, or a response is to be taken over. All responses before it
/// are with the kernel then: hyper reads a request only when it has flushed them.
fn poll_served<S>(
    serving: &mut http1::Connection<TokioIo<Explained<TcpStream>>, S>,
    context: &mut Context<'_>,
    slot: &HandoverCell,
) -> Poll<Served>
where
    S: HttpService<Incoming, ResBody = Holding<ActiveRequest>>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Poll::Ready(ended) = Pin::new(serving).poll(context) {
        return Poll::Ready(Served::Ended(ended));
    }
    match slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(handover) => Poll::Ready(Served::TakenOver(handover)),
        None => Poll::Pending,
    }
}

/// Answers a request by `router`. A response that is to be taken over is left in `slot` instead, and the
/// request stays in hand until the connection is dropped.
async fn answer(
    router: Router,
    request: Request<Body>,
    asking: ActiveRequest,
    slot: HandoverCell,
) -> Result<Response<Holding<ActiveRequest>>, Infallible> {
    // The answer to HEAD is that to GET without its body, and nothing is taken over for it.
    let has_body = request.method() == Method::GET;
    let mut response = router.oneshot(request).await?;
    let takeover = response.extensions_mut().remove::<Takeover>();
    let Some(takeover) = takeover.filter(|_| has_body) else {
        return Ok(response.map(|body| Holding::new(body, asking)));
    };
    let (parts, _placeholder) = response.into_parts();
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Handover { parts, takeover, asking });
    std::future::pending().await
}

/// Gives the socket away. One that cannot be had any more ends here, with its response.
fn hand_over(handover: Handover, stream: TcpStream, open: &TaskTracker) {
    let Handover { mut parts, takeover, asking } = handover;
    match stream.into_std() {
        Ok(socket) => takeover.give(TakenSocket {
            socket,
            head: head_until_close(&mut parts),
            lease: Lease { _asking: asking, _open: open.token() },
        }),
        Err(error) => tracing::debug!(%error, "a connection ended before its stream began"),
    }
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
