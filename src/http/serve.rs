//! The accept loop: what `axum::serve` lacks is a limit on how long a request's head may take, a limit on connections,
//! and a way to end one connection from inside its handler.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::Problem;

/// What connections may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Open connections at most; more wait in the kernel's queue.
    pub connections: usize,
    /// How long a request's head may take, also the idle time of a kept-alive connection.
    pub head: Duration,
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
            unacknowledged: Duration::from_secs(30),
            send_buffer: 256 * 1024,
        }
    }
}

/// The connection that a request came on. Among a request's extensions.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Who is at its other end: the client, or a proxy.
    pub peer: SocketAddr,
    /// Ends it, whatever it is in the middle of.
    pub end: CancellationToken,
}

/// What one connection holds in unsent bytes before its body is asked for no more.
const WRITE_BUFFER_BYTES: usize = 16 * 1024;

/// After a failed accept, which is mostly a lack of file descriptors: how long until the next.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Serves `router` on `listener` until `shutdown`; then accepts no more, lets requests in hand finish, and returns when
/// every connection has ended. Streams must end by themselves: the caller sees to that, and to a time limit.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, shutdown: CancellationToken) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                let serving = connection(stream, peer, router.clone(), limits, shutdown.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(permit);
                });
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

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> std::io::Result<Accepted> {
    // The place first: a connection beyond the limit stays in the kernel's queue and costs this process nothing.
    let permit = room.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    if let Err(error) = prepare(&stream, limits) {
        tracing::debug!(%error, %peer, "the connection ended before it began");
        return;
    }
    let ended = CancellationToken::new();
    let on = Connection { peer, end: ended.clone() };
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(on.clone());
        router.clone().oneshot(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(WRITE_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        // Dropping the connection closes the socket, also where the peer takes no bytes.
        () = ended.cancelled() => return,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                served = &mut serving => served,
                () = ended.cancelled() => return,
            }
        }
    };
    if let Err(error) = served {
        tracing::trace!(%error, %peer, "the connection ended");
    }
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
