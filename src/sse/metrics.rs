//! What the SSE server counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::connections::Refusal;
use super::frame::ResetReason;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Outcome {
    outcome: &'static str,
}

/// Handles on the SSE server's metrics. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Open streams.
    pub connections: Gauge,
    /// Topics in use.
    pub topics: Gauge,
    /// Events put into clients' queues.
    pub delivered: Counter,
    /// What waits in the clients' queues, in bytes.
    pub queued_bytes: Gauge,
    /// Clients cut off because they took too little or too slowly.
    pub slow_closes: Counter,
    /// Reads of a history in Redis.
    pub history_reads: Counter,
    /// Times that a topic was joined, or joined anew.
    pub joins: Counter,
    refused: Family<Reason, Counter>,
    resets: Family<Reason, Counter>,
    resumes: Family<Outcome, Counter>,
}

impl Metrics {
    /// Makes the metrics and puts them into the registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("aftercommit_sse_connections", "Open streams", metrics.connections.clone());
        registry.register("aftercommit_sse_topics", "Topics in use", metrics.topics.clone());
        registry.register(
            "aftercommit_sse_delivered",
            "Events queued for clients",
            metrics.delivered.clone(),
        );
        registry.register(
            "aftercommit_sse_queued_bytes",
            "Bytes that wait in the queues of clients",
            metrics.queued_bytes.clone(),
        );
        registry.register("aftercommit_sse_refused", "Streams refused, by reason", metrics.refused.clone());
        registry.register(
            "aftercommit_sse_slow_closes",
            "Clients cut off as too slow",
            metrics.slow_closes.clone(),
        );
        registry.register(
            "aftercommit_sse_history_reads",
            "Reads of a history",
            metrics.history_reads.clone(),
        );
        registry.register("aftercommit_sse_joins", "Topics joined or joined anew", metrics.joins.clone());
        registry.register("aftercommit_sse_resets", "Resets sent, by reason", metrics.resets.clone());
        registry.register(
            "aftercommit_sse_resumes",
            "Streams continued, by outcome",
            metrics.resumes.clone(),
        );
        metrics
    }

    pub(super) fn reset(&self, reason: ResetReason, clients: usize) {
        self.resets.get_or_create(&Reason { reason: reason.as_str() }).inc_by(clients as u64);
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.refused.get_or_create(&Reason { reason: refusal.as_str() }).inc();
    }

    /// A stream was continued: from `memory`, from `history`, or not (`reset`).
    pub(super) fn resumed(&self, outcome: &'static str) {
        self.resumes.get_or_create(&Outcome { outcome }).inc();
    }
}
