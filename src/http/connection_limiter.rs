//! The places of a process's connections: which connections have one, and which one is closed when all are
//! taken.
//!
//! A connection is *idle* between requests and before its first one, *asking* while a request is in hand, and
//! *vouched for* once that request has shown a valid token. When all places are taken, the connection that
//! has been idle for longest gives way. If none is idle, the connection that has been asking for longest
//! gives way, if it has been asking for a second or more. A connection that is vouched for never gives way.
//! If no connection gives way, a few reserved places remain for health, readiness and metrics, under the same
//! rule. So clients that open many connections and send nothing lose them again, and a request that is sent
//! at once is answered.
//!
//! The number of connections of one peer that are not vouched for is limited. Beyond the limit an idle
//! connection of the same peer gives way, or the new one is refused.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::log_limiter::LogLimiter;
use super::metrics::{Closed, Metrics};

/// How long a request without a valid token may be in hand before its connection may have to give way.
const REQUEST_AT_LEAST: Duration = Duration::from_secs(1);

/// Numbers of places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// ConnectionLimiter for all clients.
    pub(super) connections: usize,
    /// Reserved for health, readiness and metrics, beyond `connections`.
    pub(super) reserve: usize,
    /// For connections of one peer without a valid token.
    pub(super) of_a_peer: usize,
}

/// All places of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    room: Room,
    metrics: Metrics,
    log: LogLimiter,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: HashMap<u64, Open>,
    /// Connections that may have to give way, in the order in which they do.
    waiting: BTreeSet<EvictionOrder>,
    /// The number of those connections, by counted peer.
    of_peer: HashMap<IpAddr, usize>,
    in_reserve: usize,
}

/// The order in which connections give way: idle ones first, and of these the one that has been idle for
/// longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct EvictionOrder {
    has_request: bool,
    since: Instant,
    number: u64,
}

#[derive(Debug)]
struct Open {
    /// The peer, if its connections are counted.
    peer: Option<IpAddr>,
    is_in_reserve: bool,
    /// `None` while it is vouched for.
    turn: Option<EvictionOrder>,
    end: CancellationToken,
}

impl State {
    fn add(&mut self, number: u64, open: Open) {
        self.in_reserve += usize::from(open.is_in_reserve);
        if let Some(peer) = open.peer {
            *self.of_peer.entry(peer).or_default() += 1;
        }
        self.waiting.extend(open.turn);
        self.open.insert(number, open);
    }

    fn remove(&mut self, number: u64) -> Option<Open> {
        self.set_turn(number, None);
        let open = self.open.remove(&number)?;
        self.in_reserve -= usize::from(open.is_in_reserve);
        Some(open)
    }

    /// Changes a connection's position among those that may have to give way. `None` removes it from them.
    fn set_turn(&mut self, number: u64, turn: Option<EvictionOrder>) {
        let Some(open) = self.open.get_mut(&number) else { return };
        let before = std::mem::replace(&mut open.turn, turn);
        let peer = open.peer;
        if let Some(before) = before {
            self.waiting.remove(&before);
        }
        self.waiting.extend(turn);
        let Some(peer) = peer.filter(|_| before.is_some() != turn.is_some()) else { return };
        let count = self.of_peer.entry(peer).or_default();
        *count = if turn.is_some() { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            self.of_peer.remove(&peer);
        }
    }

    /// Ends the first connection that may give way now and fits. Returns whether there was one.
    fn evict_one(&mut self, now: Instant, fits: impl Fn(&Open) -> bool) -> bool {
        let may = |turn: &&EvictionOrder| {
            !turn.has_request || now.saturating_duration_since(turn.since) >= REQUEST_AT_LEAST
        };
        let found =
            self.waiting.iter().filter(may).find(|turn| self.open.get(&turn.number).is_some_and(&fits));
        let Some(number) = found.map(|turn| turn.number) else { return false };
        if let Some(open) = self.remove(number) {
            open.end.cancel();
        }
        true
    }
}

impl ConnectionLimiter {
    pub(super) fn new(room: Room, metrics: Metrics) -> Self {
        metrics.connections_limit.set(room.connections.try_into().unwrap_or(i64::MAX));
        Self(Arc::new(Shared { room, metrics, log: LogLimiter::default(), state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a new connection, or returns `None` if there is none and the connection must be
    /// closed. `end` is cancelled when the connection has to give way. `peer` is `None` if the peer's
    /// connections are not counted.
    pub(super) fn take(
        &self,
        peer: Option<IpAddr>,
        end: CancellationToken,
        now: Instant,
    ) -> Option<ConnectionPermit> {
        let room = self.0.room;
        let mut state = self.state();
        let of_peer = peer.and_then(|peer| state.of_peer.get(&peer)).copied().unwrap_or_default();
        if of_peer >= room.of_a_peer {
            let gave_way = state
                .evict_one(now, |open| open.peer == peer && open.turn.is_some_and(|turn| !turn.has_request));
            self.tell(Closed::Peer, peer, now);
            if !gave_way {
                return None;
            }
        }
        let is_full = state.open.len() - state.in_reserve >= room.connections;
        let is_in_reserve = is_full && !self.make_room(&mut state, false, now);
        if is_in_reserve && state.in_reserve >= room.reserve && !self.make_room(&mut state, true, now) {
            self.tell(Closed::Full, peer, now);
            return None;
        }
        let number = state.next;
        state.next += 1;
        let turn = Some(EvictionOrder { has_request: false, since: now, number });
        state.add(number, Open { peer, is_in_reserve, turn, end });
        self.0.metrics.connections.set(state.open.len().try_into().unwrap_or(i64::MAX));
        Some(ConnectionPermit { places: self.clone(), number, is_in_reserve })
    }

    fn make_room(&self, state: &mut State, in_reserve: bool, now: Instant) -> bool {
        let gave_way = state.evict_one(now, |open| open.is_in_reserve == in_reserve);
        if gave_way {
            self.tell(Closed::GaveWay, None, now);
        }
        gave_way
    }

    /// Counts a closed connection, and logs at intervals.
    pub(super) fn tell(&self, closed: Closed, peer: Option<IpAddr>, now: Instant) {
        self.0.metrics.closed(closed);
        let Some(times) = self.0.log.count(now) else { return };
        let limit = self.0.room.connections;
        let peer = peer.map_or_else(String::new, |peer| peer.to_string());
        match closed {
            Closed::GaveWay => {
                tracing::warn!(
                    times,
                    limit,
                    %peer,
                    "all connections are taken: closing those that have been idle for longest"
                );
            }
            Closed::Peer => {
                tracing::warn!(
                    times,
                    limit = self.0.room.of_a_peer,
                    %peer,
                    "a peer has as many connections without a valid token as [http] max_connections_per_peer \
                     allows: closing its idle ones, refusing new ones"
                );
            }
            Closed::Full => {
                tracing::warn!(times, limit, %peer, "all connections are taken: refusing new ones")
            }
            Closed::BadHead => {
                tracing::warn!(times, %peer, "the head of a request cannot be read, or is too large: refused")
            }
        }
    }
}

/// A connection's place. Dropping it gives the place back.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    places: ConnectionLimiter,
    number: u64,
    /// Whether it is reserved for health, readiness and metrics.
    pub(super) is_in_reserve: bool,
}

impl ConnectionPermit {
    /// Begins a request, which ends when the returned value is dropped.
    pub(super) fn ask(self: &Arc<Self>) -> ActiveRequest {
        self.wait(true);
        ActiveRequest(self.clone())
    }

    fn wait(&self, has_request: bool) {
        let turn = EvictionOrder { has_request, since: Instant::now(), number: self.number };
        self.places.state().set_turn(self.number, Some(turn));
    }

    /// Marks the connection as vouched for: its request has shown a valid token.
    pub(super) fn vouch(&self) {
        self.places.state().set_turn(self.number, None);
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut state = self.places.state();
        state.remove(self.number);
        self.places.0.metrics.connections.set(state.open.len().try_into().unwrap_or(i64::MAX));
    }
}

/// A request in hand.
#[derive(Debug)]
pub(super) struct ActiveRequest(Arc<ConnectionPermit>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.wait(false);
    }
}

#[cfg(test)]
#[path = "connection_limiter_tests.rs"]
mod tests;
