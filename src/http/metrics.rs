//! What a process's door counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why a connection was ended or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// It gave way to another one: all places were taken, and it was the one that had been idle for longest.
    GaveWay,
    /// Its peer had as many as a peer may have.
    Peer,
    /// All places were taken, also those kept for health.
    Full,
    /// Its request's head was too large, or none.
    BadHead,
}

impl Closed {
    const ALL: [Self; 4] = [Self::GaveWay, Self::Peer, Self::Full, Self::BadHead];

    fn as_str(self) -> &'static str {
        match self {
            Self::GaveWay => "gave_way",
            Self::Peer => "peer_limit",
            Self::Full => "full",
            Self::BadHead => "bad_head",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Handles on the metrics of a process's door. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(super) connections: Gauge,
    pub(super) connections_limit: Gauge,
    closed: Family<Reason, Counter>,
    operator_refused: Family<Reason, Counter>,
}

impl Metrics {
    /// Makes the metrics and puts them into the registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("aftercommit_http_connections", "Open connections", metrics.connections.clone());
        registry.register(
            "aftercommit_http_connections_limit",
            "Connections that this process holds at most",
            metrics.connections_limit.clone(),
        );
        registry.register(
            "aftercommit_http_closed",
            "Connections refused, or ended to make room, by reason",
            metrics.closed.clone(),
        );
        registry.register(
            "aftercommit_http_operator_refused",
            "Wrong operators' tokens, by what became of them",
            metrics.operator_refused.clone(),
        );
        // There from the start, so that a rate has a zero to begin with.
        for closed in Closed::ALL {
            drop(metrics.closed.get_or_create(&Reason { reason: closed.as_str() }));
        }
        for reason in ["wrong", "throttled"] {
            drop(metrics.operator_refused.get_or_create(&Reason { reason }));
        }
        metrics
    }

    pub(super) fn closed(&self, closed: Closed) {
        self.closed.get_or_create(&Reason { reason: closed.as_str() }).inc();
    }

    /// A wrong operators' token was sent, and looked at or not.
    pub(super) fn operator_refused(&self, was_looked_at: bool) {
        let reason = if was_looked_at { "wrong" } else { "throttled" };
        self.operator_refused.get_or_create(&Reason { reason }).inc();
    }
}
