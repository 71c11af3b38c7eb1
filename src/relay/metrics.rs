//! A relay's metrics. `docs/metrics.md` lists all of them.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::failure;

/// Upper bounds of all durations, in seconds: from a local script call to the longest time-out.
pub const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];
/// Upper bounds of the events in a step.
const EVENTS: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0];

/// The label of failures: one of the fixed set of classes in [`super::failure`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Class {
    /// The class's name.
    pub class: &'static str,
}

/// The label of wake-ups.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// `notify`, `poll` or `reconnect`.
    pub kind: &'static str,
}

/// The label of emptied slots.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Log {
    /// `event` or `checkpoint`.
    pub log: &'static str,
}

/// The label of receivers.
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
    /// Duration of those steps, in seconds.
    pub step_seconds: Histogram,
    /// Number of events of those steps.
    pub step_events: Histogram,
    /// Duration of script calls that succeeded, in seconds.
    pub publish_seconds: Histogram,
    /// Time from the beginning of an event's transaction until Redis had it, in seconds.
    pub commit_to_publish_seconds: Histogram,
    /// Subscribers that received a message, by channel.
    pub receivers: Family<Channel, Counter>,
    /// Failures of Postgres or Redis, by class.
    pub failures: Family<Class, Counter>,
    /// Times that the same events were tried again.
    pub retries: Counter,
    /// 1 from a failure until something succeeds.
    pub failing: Gauge,
    /// Repairs of a Redis that had forgotten events.
    pub repairs: Counter,
    /// Servers of a cluster that lack events, because they are or were away.
    pub servers_behind: Gauge,
    /// Events restored to Redis.
    pub restored: Counter,
    /// Times that another relay had inserted the row that this one tried to insert.
    pub fenced: Counter,
    /// Causes that made the relay look for events, by kind.
    pub wake_ups: Family<Kind, Counter>,
    /// 1 while the relay receives notifications.
    pub listening: Gauge,
    /// 1 while this process leads and sleeps.
    pub asleep: Gauge,
    /// 1 while this process leads.
    pub leading: Gauge,
    /// Times that this process took the lead.
    pub leads_taken: Counter,
    /// 1 while a relay of this name leads, here or elsewhere.
    pub has_leader: Gauge,
    /// 1 while an operator has paused the relay.
    pub paused: Gauge,
    /// Age of the oldest pending event, in seconds; 0 if there is none.
    pub oldest_pending: Gauge<f64, AtomicU64>,
    /// Time of the newest look at the backlog, in seconds since 1970. The gauges of the backlog are as old as
    /// that.
    pub last_look: Gauge<f64, AtomicU64>,
    /// The most events that can be pending.
    pub backlog: Gauge,
    /// Events that are parked at present.
    pub parked_events: Gauge,
    /// Topics with parked events.
    pub parked_topics: Gauge,
}

impl Default for Metrics {
    /// Metrics without a registry.
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
            servers_behind: Gauge::default(),
            restored: Counter::default(),
            fenced: Counter::default(),
            wake_ups: Family::default(),
            listening: Gauge::default(),
            asleep: Gauge::default(),
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
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("aftercommit_relay");
        metrics.register_deliveries(registry);
        metrics.register_failures(registry);
        metrics.register_status(registry);
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
            "Duration of script calls to Redis that succeeded",
            self.publish_seconds.clone(),
        );
        to.register(
            "commit_to_publish_seconds",
            "From the beginning of an event's transaction until Redis had it: an upper bound of the time \
             since its commit",
            self.commit_to_publish_seconds.clone(),
        );
        to.register("receivers", "Subscribers that received a message, by channel", self.receivers.clone());
        to.register("wake_ups", "Causes that made the relay look for events, by kind", self.wake_ups.clone());
        to.register("rotations", "Slots emptied, by log", self.rotations.clone());
        // All series exist from the start, so that a rate begins at zero.
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
        to.register("repairs", "Repairs of a Redis that had forgotten events", self.repairs.clone());
        to.register(
            "redis_servers_behind",
            "Servers of the Redis Cluster that lack events, because they are or were away",
            self.servers_behind.clone(),
        );
        to.register("restored", "Events restored to a Redis that had forgotten them", self.restored.clone());
        for class in [failure::CONNECTION.class, failure::TIMEOUT.class] {
            drop(self.failures.get_or_create(&Class { class }));
        }
        to.register("fenced", "Steps lost to another relay", self.fenced.clone());
    }

    fn register_status(&self, to: &mut Registry) {
        to.register("leading", "1 while this process leads", self.leading.clone());
        to.register("leads_taken", "Times that this process took the lead", self.leads_taken.clone());
        to.register("has_leader", "1 while a relay of this name leads anywhere", self.has_leader.clone());
        to.register("listening", "1 while the relay receives notifications", self.listening.clone());
        to.register("asleep", "1 while the leader sleeps after a silence", self.asleep.clone());
        to.register("paused", "1 while an operator has paused the relay", self.paused.clone());
        to.register(
            "oldest_pending_seconds",
            "Age of the oldest pending event; 0 if there is none",
            self.oldest_pending.clone(),
        );
        to.register(
            "last_look_timestamp_seconds",
            "Time of the newest look at the backlog, in seconds since 1970",
            self.last_look.clone(),
        );
        to.register(
            "backlog",
            "The most events that can be pending: row numbers taken since the position",
            self.backlog.clone(),
        );
        to.register("parked_events", "Events that are parked at present", self.parked_events.clone());
        to.register("parked_topics", "Topics with parked events", self.parked_topics.clone());
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

    /// Counts the subscribers that received a chunk's messages, by channel.
    pub fn received_by(&self, live: u64, public: u64) {
        self.receivers.get_or_create(&Channel { channel: "live" }).inc_by(live);
        self.receivers.get_or_create(&Channel { channel: "public" }).inc_by(public);
    }
}
