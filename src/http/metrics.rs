//! Metrics of a process's HTTP server: connections and refused operators' tokens.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why a connection was ended or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// It was closed for a new connection: all places were taken, and this one had been idle for longest.
    GaveWay,
    /// Its peer had the largest number of connections that a peer may have.
    Peer,
    /// All places were taken, including those reserved for health checks.
    Full,
    /// The head of its request was too large or not HTTP.
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

/// Handles to the metrics of a process's HTTP server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(super) connections: Gauge,
    pub(super) connections_limit: Gauge,
    closed: Family<Reason, Counter>,
    operator_refused: Family<Reason, Counter>,
}

impl Metrics {
    /// Creates the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("aftercommit_http_connections", "Open connections", metrics.connections.clone());
        registry.register(
            "aftercommit_http_connections_limit",
            "The largest number of open connections",
            metrics.connections_limit.clone(),
        );
        registry.register(
            "aftercommit_http_closed",
            "Connections refused, or ended to make room, by reason",
            metrics.closed.clone(),
        );
        registry.register(
            "aftercommit_http_operator_refused",
            "Wrong operators' tokens, compared or throttled",
            metrics.operator_refused.clone(),
        );
        // Every label exists from the start, so that a rate begins at zero.
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

    /// Counts a wrong operators' token. `was_compared` is false if it was refused without a comparison.
    pub(super) fn operator_refused(&self, was_compared: bool) {
        let reason = if was_compared { "wrong" } else { "throttled" };
        self.operator_refused.get_or_create(&Reason { reason }).inc();
    }
}
