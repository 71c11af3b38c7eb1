//! What a relay counts and measures. `docs/metrics.md` lists all of it.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::failure;

/// Upper bounds of everything that is measured in seconds: from what a local script call takes to what nobody waits for.
pub const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];
/// Upper bounds of the events in a step.
const EVENTS: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0];

/// The label of failures: one of the fixed set of [`super::failure`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Class {
    /// Its name.
    pub class: &'static str,
}

/// The label of wake-ups.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// `notify`, `poll` or `reconnect`.
    pub kind: &'static str,
}

/// The label of what is emptied by rotation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Log {
    /// `event` or `checkpoint`.
    pub log: &'static str,
}

/// The label of who was told.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Channel {
    /// `live` (envelopes, for SSE servers) or `public` (bare payloads, for anybody).
    pub channel: &'static str,
}

/// Handles on a relay's metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Events published.
    pub published: Counter,
    /// Events set aside.
    pub parked: Counter,
    /// Slots emptied, by log.
    pub rotations: Family<Log, Counter>,
    /// 1 while something keeps an old slot from being emptied.
    pub rotation_blocked: Gauge,
    /// Steps that delivered something.
    pub steps: Counter,
    /// How long those took, in seconds.
    pub step_seconds: Histogram,
    /// How many events those had.
    pub step_events: Histogram,
    /// How long script calls took that succeeded, in seconds.
    pub publish_seconds: Histogram,
    /// From the begin of an event's transaction until Redis had it, in seconds.
    pub commit_to_publish_seconds: Histogram,
    /// Subscribers that Redis told, by channel.
    pub receivers: Family<Channel, Counter>,
    /// Failures of Postgres or Redis, by class.
    pub failures: Family<Class, Counter>,
    /// Times that the same events were tried again.
    pub retries: Counter,
    /// 1 from a failure until something succeeds.
    pub failing: Gauge,
    /// Times that Redis was found to have forgotten something.
    pub repairs: Counter,
    /// Events that Redis was given again.
    pub restored: Counter,
    /// Times that another relay's row was found where this one's should go.
    pub fenced: Counter,
    /// What made the relay look for events, by kind.
    pub wake_ups: Family<Kind, Counter>,
    /// 1 while notifications are heard.
    pub listening: Gauge,
    /// 1 while this process leads.
    pub leading: Gauge,
    /// Times that this process took the lead.
    pub leads_taken: Counter,
    /// 1 while a relay of this name leads, here or elsewhere.
    pub has_leader: Gauge,
    /// 1 while an operator has paused the relay.
    pub paused: Gauge,
    /// How long the oldest event that waits has waited, in seconds; 0 if none waits.
    pub oldest_pending: Gauge<f64, AtomicU64>,
    /// When it was last looked how long events wait, in seconds since 1970. What hangs on that look is no younger.
    pub last_look: Gauge<f64, AtomicU64>,
    /// Events that wait, at most.
    pub backlog: Gauge,
    /// Events that are set aside at present.
    pub parked_events: Gauge,
    /// Topics that wait behind one of those.
    pub parked_topics: Gauge,
}

impl Default for Metrics {
    /// Metrics that nobody asks for.
    fn default() -> Self {
        Self {
            published: Counter::default(),
            parked: Counter::default(),
            rotations: Family::default(),
            rotation_blocked: Gauge::default(),
            steps: Counter::default(),
            step_seconds: Histogram::new(SECONDS),
            step_events: Histogram::new(EVENTS),
            publish_seconds: Histogram::new(SECONDS),
            commit_to_publish_seconds: Histogram::new(SECONDS),
            receivers: Family::default(),
            failures: Family::default(),
            retries: Counter::default(),
            failing: Gauge::default(),
            repairs: Counter::default(),
            restored: Counter::default(),
            fenced: Counter::default(),
            wake_ups: Family::default(),
            listening: Gauge::default(),
            leading: Gauge::default(),
            leads_taken: Counter::default(),
            has_leader: Gauge::default(),
            paused: Gauge::default(),
            oldest_pending: Gauge::default(),
            last_look: Gauge::default(),
            backlog: Gauge::default(),
            parked_events: Gauge::default(),
            parked_topics: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics and puts them into the registry.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("aftercommit_relay");
        metrics.register_deliveries(registry);
        metrics.register_failures(registry);
        metrics.register_standing(registry);
        metrics
    }

    fn register_deliveries(&self, to: &mut Registry) {
        to.register("published", "Events published", self.published.clone());
        to.register("parked", "Events set aside", self.parked.clone());
        to.register("steps", "Steps that delivered something", self.steps.clone());
        to.register("step_seconds", "How long those steps took", self.step_seconds.clone());
        to.register("step_events", "How many events those steps had", self.step_events.clone());
        to.register(
            "publish_seconds",
            "How long script calls to Redis took that succeeded",
            self.publish_seconds.clone(),
        );
        to.register(
            "commit_to_publish_seconds",
            "From the begin of an event's transaction, so an upper bound from its commit, until Redis had it",
            self.commit_to_publish_seconds.clone(),
        );
        to.register("receivers", "Subscribers that Redis told, by channel", self.receivers.clone());
        to.register("wake_ups", "What made the relay look for events, by kind", self.wake_ups.clone());
        to.register("rotations", "Slots emptied, by log", self.rotations.clone());
        // There from the start, so that a rate has a zero to begin with.
        for kind in ["notify", "poll", "reconnect"] {
            drop(self.wake_ups.get_or_create(&Kind { kind }));
        }
        for log in ["event", "checkpoint"] {
            drop(self.rotations.get_or_create(&Log { log }));
        }
        for channel in ["live", "public"] {
            drop(self.receivers.get_or_create(&Channel { channel }));
        }
    }

    fn register_failures(&self, to: &mut Registry) {
        to.register("failures", "Failures of Postgres or Redis, by class", self.failures.clone());
        to.register("retries", "Times that the same events were tried again", self.retries.clone());
        to.register("failing", "1 from a failure until something succeeds", self.failing.clone());
        to.register("repairs", "Times that Redis had forgotten something", self.repairs.clone());
        to.register(
            "restored",
            "Events that Redis was given again after it forgot them",
            self.restored.clone(),
        );
        for class in [failure::CONNECTION.class, failure::TIMEOUT.class] {
            drop(self.failures.get_or_create(&Class { class }));
        }
        to.register("fenced", "Steps lost to another relay", self.fenced.clone());
    }

    fn register_standing(&self, to: &mut Registry) {
        to.register("leading", "1 while this process leads", self.leading.clone());
        to.register("leads_taken", "Times that this process took the lead", self.leads_taken.clone());
        to.register("has_leader", "1 while a relay of this name leads anywhere", self.has_leader.clone());
        to.register("listening", "1 while notifications are heard", self.listening.clone());
        to.register("paused", "1 while an operator has paused the relay", self.paused.clone());
        to.register(
            "oldest_pending_seconds",
            "How long the oldest event that waits has waited; 0 if none waits",
            self.oldest_pending.clone(),
        );
        to.register(
            "last_look_timestamp_seconds",
            "When it was last looked how long events wait, in seconds since 1970",
            self.last_look.clone(),
        );
        to.register(
            "backlog",
            "Events that wait, at most: row numbers taken since the position",
            self.backlog.clone(),
        );
        to.register("parked_events", "Events that are set aside at present", self.parked_events.clone());
        to.register("parked_topics", "Topics that wait behind one of those", self.parked_topics.clone());
        to.register(
            "rotation_blocked",
            "1 while something keeps an old slot from being emptied",
            self.rotation_blocked.clone(),
        );
    }

    pub(super) fn failed(&self, class: &'static str) {
        self.failures.get_or_create(&Class { class }).inc();
        self.failing.set(1);
    }

    pub(super) fn woken(&self, kind: &'static str) {
        self.wake_ups.get_or_create(&Kind { kind }).inc();
    }

    pub(super) fn emptied(&self, table: &str) {
        let log = if table.starts_with("checkpoint") { "checkpoint" } else { "event" };
        self.rotations.get_or_create(&Log { log }).inc();
    }

    pub(super) fn stepped(&self, took: Duration, events: usize) {
        self.steps.inc();
        self.step_seconds.observe(took.as_secs_f64());
        self.step_events.observe(events as f64);
    }

    /// Redis told so many subscribers of a chunk.
    pub fn received_by(&self, live: u64, public: u64) {
        self.receivers.get_or_create(&Channel { channel: "live" }).inc_by(live);
        self.receivers.get_or_create(&Channel { channel: "public" }).inc_by(public);
    }
}
