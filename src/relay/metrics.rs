//! What a relay counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

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
    /// Failures of Postgres or Redis that were retried.
    pub retries: Counter,
    /// Times that another relay's row was found where this one's should go.
    pub fenced: Counter,
    /// 1 while this process leads.
    pub leading: Gauge,
}

impl Metrics {
    /// Makes the metrics and puts them into the registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            published: Counter::default(),
            parked: Counter::default(),
            rotations: Counter::default(),
            steps: Counter::default(),
            retries: Counter::default(),
            fenced: Counter::default(),
            leading: Gauge::default(),
        };
        registry.register("aftercommit_relay_published", "Events published", metrics.published.clone());
        registry.register(
            "aftercommit_relay_rotations",
            "Slots of the log emptied",
            metrics.rotations.clone(),
        );
        registry.register("aftercommit_relay_parked", "Events set aside", metrics.parked.clone());
        registry.register("aftercommit_relay_steps", "Steps that delivered something", metrics.steps.clone());
        registry.register("aftercommit_relay_retries", "Failures that were retried", metrics.retries.clone());
        registry.register("aftercommit_relay_fenced", "Steps lost to another relay", metrics.fenced.clone());
        registry.register("aftercommit_relay_leading", "1 while this process leads", metrics.leading.clone());
        metrics
    }
}
