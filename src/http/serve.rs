//! The accept loop. Beyond `axum::serve` it limits the time and the size of a request's head, limits
//! connections with a rule which of them gives way, reserves places for health checks, and lets a handler end
//! its own connection or take its socket over.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Problem;
use super::connection::{Accepted, Limits};
use super::connection_limiter::{ConnectionLimiter, ConnectionPermit, Room};
use super::metrics::Metrics;
use super::proxies::{ProxyError, TrustedProxies, counted_as};
use super::settings::Settings;

/// Connections beyond the limit that serve health, readiness and metrics when all others are taken.
pub const RESERVED_CONNECTIONS: usize = 16;

/// The pause after a failed accept. Most often the process has run out of file descriptors.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// The longest time between two turns of the accept loop, also when nobody connects.
const TURN_AT_LEAST: Duration = Duration::from_millis(250);

/// Signals each turn of the accept loop, several times a second or more. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct AcceptTicks(Arc<Notify>);

impl AcceptTicks {
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
    places: ConnectionLimiter,
    turns: AcceptTicks,
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
            places: ConnectionLimiter::new(room, metrics),
            turns: AcceptTicks::default(),
        })
    }

    /// Serves `answer` when all connections are taken, in place of a 503.
    #[must_use]
    pub fn when_full(mut self, answer: Router) -> Self {
        self.when_full = self.when_full.fallback_service(answer);
        self
    }

    /// Signals the turns of the accept loop.
    pub fn turns(&self) -> AcceptTicks {
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
                    let accepted = self.accepted(stream, peer, end, place, connections.clone());
                    connections.spawn(accepted.serve(shutdown.clone()));
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

    fn accepted(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        end: CancellationToken,
        place: ConnectionPermit,
        open: TaskTracker,
    ) -> Accepted {
        let router = if place.is_in_reserve { &self.when_full } else { &self.router };
        Accepted {
            stream,
            peer,
            end,
            place: Arc::new(place),
            places: self.places.clone(),
            router: router.clone(),
            limits: self.limits,
            proxies: self.proxies.clone(),
            open,
        }
    }

    /// The address under which a peer's connections are limited, or `None` if they are not. Proxies are not
    /// limited, because many clients share them. Nor is this machine itself: its users could do worse, and
    /// mostly it is a proxy too.
    fn limit_key(&self, peer: SocketAddr) -> Option<IpAddr> {
        let address = peer.ip().to_canonical();
        let is_counted = !address.is_loopback() && !self.proxies.trust(address);
        is_counted.then(|| counted_as(address))
    }
}

/// The answer when all connections are taken.
async fn full() -> Problem {
    Problem::unavailable("this process has as many connections as it may have: try again after a while")
}

/// The answer for unknown paths.
pub async fn no_route() -> Problem {
    Problem::not_found("there is nothing at this path")
}
