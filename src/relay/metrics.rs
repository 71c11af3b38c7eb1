//! What a relay counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The label of failures: one of the fixed set of [`super::failure`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Class {
    /// Its name.
    pub class: &'static str,
}

/// Handles on a relay's metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Events published.
    pub published: Counter,
    /// Events set aside.
    pub parked: Counter,
    /// Slots of the log emptied.
    pub rotations: Counter,
    /// Steps that delivered something.
    pub steps: Counter,
    /// Failures of Postgres or Redis, by class.
    pub failures: Family<Class, Counter>,
    /// Times that Redis was found to have forgotten something.
    pub repairs: Counter,
    /// Events that Redis was given again.
    pub restored: Counter,
    /// Times that another relay's row was found where this one's should go.
    pub fenced: Counter,
    /// 1 while this process leads.
    pub leading: Gauge,
    /// 1 while an operator has paused the relay.
    pub paused: Gauge,
    /// How long the oldest event that waits has waited, in seconds; 0 if none waits.
    pub oldest_pending: Gauge<f64, AtomicU64>,
    /// Events that wait, at most.
    pub backlog: Gauge,
}

impl Metrics {
    /// Makes the metrics and puts them into the registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            published: Counter::default(),
            parked: Counter::default(),
            rotations: Counter::default(),
            steps: Counter::default(),
            failures: Family::default(),
            repairs: Counter::default(),
            restored: Counter::default(),
            fenced: Counter::default(),
            leading: Gauge::default(),
            paused: Gauge::default(),
            oldest_pending: Gauge::default(),
            backlog: Gauge::default(),
        };
        registry.register("aftercommit_relay_published", "Events published", metrics.published.clone());
        registry.register(
            "aftercommit_relay_rotations",
            "Slots of the log emptied",
            metrics.rotations.clone(),
        );
        registry.register("aftercommit_relay_parked", "Events set aside", metrics.parked.clone());
        registry.register("aftercommit_relay_steps", "Steps that delivered something", metrics.steps.clone());
        registry.register(
            "aftercommit_relay_failures",
            "Failures of Postgres or Redis, by class",
            metrics.failures.clone(),
        );
        registry.register(
            "aftercommit_relay_repairs",
            "Times that Redis had forgotten something",
            metrics.repairs.clone(),
        );
        registry.register(
            "aftercommit_relay_restored",
            "Events that Redis was given again after it forgot them",
            metrics.restored.clone(),
        );
        registry.register("aftercommit_relay_fenced", "Steps lost to another relay", metrics.fenced.clone());
        registry.register("aftercommit_relay_leading", "1 while this process leads", metrics.leading.clone());
        registry.register(
            "aftercommit_relay_paused",
            "1 while an operator has paused it",
            metrics.paused.clone(),
        );
        registry.register(
            "aftercommit_relay_oldest_pending_seconds",
            "How long the oldest event that waits has waited",
            metrics.oldest_pending.clone(),
        );
        registry.register(
            "aftercommit_relay_backlog",
            "Events that wait, at most: row numbers taken since the position",
            metrics.backlog.clone(),
        );
        metrics
    }

    pub(super) fn failed(&self, class: &'static str) {
        self.failures.get_or_create(&Class { class }).inc();
    }
}
