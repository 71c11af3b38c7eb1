//! The metrics of the SSE server.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::wire::frame::ResetReason;
use super::wire::refusal::Refusal;

/// Buckets of the time from a commit to a client, in seconds.
const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Outcome {
    outcome: &'static str,
}

/// Handles on the SSE server's metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Open streams.
    pub connections: Gauge,
    /// Topics in use.
    pub topics: Gauge,
    /// Events put into clients' queues.
    pub delivered: Counter,
    /// Bytes that wait in the clients' queues.
    pub queued_bytes: Gauge,
    /// Bytes held for all streams: recent events, pages of histories, and the clients' queues.
    pub held_bytes: Gauge,
    /// Bytes that may be held for all streams.
    pub held_bytes_limit: Gauge,
    /// Topics that this process has in use at most.
    pub topics_limit: Gauge,
    /// Clients cut off because all streams together held too much.
    pub relief_closes: Counter,
    /// Reads of a history that waited until there was room for them.
    pub room_waits: Counter,
    /// Clients cut off because they read too slowly.
    pub slow_closes: Counter,
    /// Streams ended because an operator revoked their credentials.
    pub revoked: Counter,
    /// Reads of a history in Redis.
    pub history_reads: Counter,
    /// Times that a topic was joined, or joined anew.
    pub joins: Counter,
    /// Times that Redis refused a topic, so that its clients were told to come back later.
    pub topics_refused: Counter,
    /// Events on a live channel that no history had: no relay published them.
    pub dropped_events: Counter,
    refused: Family<Reason, Counter>,
    /// From the begin of an event's transaction until it was put into its clients' queues, in seconds.
    pub commit_to_client_seconds: Histogram,
    /// Times that the subscription to Redis was lost.
    pub interruptions: Counter,
    /// Streams that this process holds at most.
    pub connections_limit: Gauge,
    resets: Family<Reason, Counter>,
    resumes: Family<Outcome, Counter>,
}

impl Default for Metrics {
    /// Metrics that are in no registry.
    fn default() -> Self {
        Self {
            connections: Gauge::default(),
            topics: Gauge::default(),
            delivered: Counter::default(),
            queued_bytes: Gauge::default(),
            held_bytes: Gauge::default(),
            held_bytes_limit: Gauge::default(),
            topics_limit: Gauge::default(),
            relief_closes: Counter::default(),
            room_waits: Counter::default(),
            refused: Family::default(),
            slow_closes: Counter::default(),
            revoked: Counter::default(),
            history_reads: Counter::default(),
            joins: Counter::default(),
            topics_refused: Counter::default(),
            dropped_events: Counter::default(),
            commit_to_client_seconds: Histogram::new(SECONDS),
            interruptions: Counter::default(),
            connections_limit: Gauge::default(),
            resets: Family::default(),
            resumes: Family::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics and puts them into the registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let to = registry.sub_registry_with_prefix("aftercommit_sse");
        metrics.register_streams(to);
        metrics.register_events(to);
        metrics.register_room(to);
        metrics
    }

    fn register_streams(&self, to: &mut Registry) {
        to.register("connections", "Open streams", self.connections.clone());
        to.register(
            "connections_limit",
            "Streams that this process holds at most",
            self.connections_limit.clone(),
        );
        to.register("topics", "Topics in use", self.topics.clone());
        to.register("topics_limit", "Topics in use at most", self.topics_limit.clone());
        to.register("refused", "Streams refused, by reason", self.refused.clone());
        to.register("slow_closes", "Clients cut off as too slow", self.slow_closes.clone());
        to.register(
            "revoked",
            "Streams ended because an operator revoked their credentials",
            self.revoked.clone(),
        );
        to.register("resumes", "Streams continued, by outcome", self.resumes.clone());
        to.register("resets", "Resets sent, by reason", self.resets.clone());
        // Present from the start, so that a first one shows as an increase, and a rate has a zero to begin with.
        for refusal in Refusal::ALL {
            drop(self.refused.get_or_create(&Reason { reason: refusal.as_str() }));
        }
        for reason in ResetReason::ALL {
            self.reset(reason, 0);
        }
        for outcome in ["memory", "history", "reset"] {
            drop(self.resumes.get_or_create(&Outcome { outcome }));
        }
    }

    fn register_events(&self, to: &mut Registry) {
        to.register("delivered", "Events queued for clients", self.delivered.clone());
        to.register(
            "commit_to_client_seconds",
            "From the begin of an event's transaction, so an upper bound from its commit, until it was \
             queued for its clients",
            self.commit_to_client_seconds.clone(),
        );
        to.register("history_reads", "Reads of a history", self.history_reads.clone());
        to.register("joins", "Topics joined or joined anew", self.joins.clone());
        to.register("topics_refused", "Times that Redis refused a topic", self.topics_refused.clone());
        to.register(
            "dropped_events",
            "Events on live channels that no history has",
            self.dropped_events.clone(),
        );
        to.register(
            "interruptions",
            "Times that the subscription to Redis was lost",
            self.interruptions.clone(),
        );
    }

    fn register_room(&self, to: &mut Registry) {
        to.register("queued_bytes", "Bytes that wait in the queues of clients", self.queued_bytes.clone());
        to.register(
            "held_bytes",
            "Bytes held for all streams: recent events, pages of histories, and what waits for clients",
            self.held_bytes.clone(),
        );
        to.register(
            "held_bytes_limit",
            "Bytes that may be held for all streams",
            self.held_bytes_limit.clone(),
        );
        to.register(
            "relief_closes",
            "Clients cut off because all streams together held too much",
            self.relief_closes.clone(),
        );
        to.register("room_waits", "Reads of a history that waited for room", self.room_waits.clone());
    }

    /// Records that an event whose transaction began at `at` (milliseconds since 1970) was queued for its
    /// clients.
    pub(super) fn observe_delivery(&self, at: i64) {
        let took_ms = (chrono::Utc::now().timestamp_millis() - at).max(0);
        self.commit_to_client_seconds.observe(took_ms as f64 / 1000.0);
    }

    pub(super) fn reset(&self, reason: ResetReason, clients: usize) {
        self.resets.get_or_create(&Reason { reason: reason.as_str() }).inc_by(clients as u64);
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.refused.get_or_create(&Reason { reason: refusal.as_str() }).inc();
    }

    /// Counts a stream that was continued: from `memory`, from `history`, or not (`reset`).
    pub(super) fn resumed(&self, outcome: &'static str) {
        self.resumes.get_or_create(&Outcome { outcome }).inc();
    }
}
