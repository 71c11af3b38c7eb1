//! The `[sse]` section.

use std::time::Duration;

use serde::Deserialize;

/// The `[sse]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where streams are served.
    pub listen: String,
    /// Streams at most.
    pub max_connections: usize,
    /// Streams of one user at most; 0 for no limit.
    pub max_connections_per_user: usize,
    /// Topics in use at most.
    pub max_topics: usize,
    /// Topics of all streams of one user at most; 0 for no limit.
    pub max_topics_per_user: usize,
    /// A quiet stream gets a comment this often, in seconds.
    pub heartbeat_seconds: u64,
    /// How long a browser waits before it reconnects, in milliseconds; each connection gets between this and
    /// twice this.
    pub retry_ms: u64,
    /// Bytes that may wait in one client's queue.
    pub max_queued_bytes: usize,
    /// Bytes that a process may hold for all streams.
    pub max_held_bytes: usize,
    /// How long a client may read nothing although bytes wait, in seconds.
    pub write_timeout_seconds: u64,
    /// Recent events kept for each topic.
    pub recent_events: usize,
    /// Recent events kept for all topics together, in bytes.
    pub recent_bytes: usize,
    /// How long a topic without clients stays subscribed, in seconds.
    pub topic_grace_seconds: u64,
    /// How often a quiet topic is compared with its history, in seconds.
    pub verify_seconds: u64,
    /// How long a client that is ahead of the history waits until the events that Redis forgot are restored,
    /// in milliseconds.
    pub repair_wait_ms: u64,
    /// Over how long streams are ended at shutdown, in seconds.
    pub drain_seconds: u64,
    /// Origins whose pages may open streams from another site.
    pub cors_origins: Vec<String>,
}

impl Settings {
    pub(super) fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.heartbeat_seconds.max(1))
    }

    pub(super) fn write_timeout(&self) -> Duration {
        Duration::from_secs(self.write_timeout_seconds.max(1))
    }

    pub(super) fn topic_grace(&self) -> Duration {
        Duration::from_secs(self.topic_grace_seconds)
    }

    pub(super) fn verify(&self) -> Duration {
        Duration::from_secs(self.verify_seconds.max(1))
    }

    pub(super) fn repair_wait(&self) -> Duration {
        Duration::from_millis(self.repair_wait_ms)
    }

    /// Over how long streams are ended at shutdown.
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    /// Bytes of the recent events of all topics: at most a quarter of the bytes for all streams, so that
    /// there is room for clients that come back.
    pub(super) fn recent_bytes_of_all(&self) -> usize {
        self.recent_bytes.min(self.max_held_bytes / 4)
    }

    /// Bytes of the recent events of one topic: half of a client's queue, so that a client that comes back
    /// can be given all of them at once.
    pub(super) fn recent_bytes_of_topic(&self) -> usize {
        self.max_queued_bytes / 2
    }
}
