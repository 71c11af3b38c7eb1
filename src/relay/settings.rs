//! The `[relay]` section.

use std::time::Duration;

use serde::Deserialize;

use crate::log::read::Limit;

/// The `[relay]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The name under which the position is kept.
    pub name: String,
    /// Where health and metrics are served.
    pub listen: String,
    /// How often to look without being told, in milliseconds.
    pub poll_interval_ms: u64,
    /// Events of one step at most.
    pub batch_size: u32,
    /// Events of one call to the sink at most.
    pub chunk_size: usize,
    /// Bytes of payload of one step at most.
    pub batch_bytes: u64,
    /// What to do with an event that the sink refuses for a reason of its own.
    pub on_poison: OnPoison,
    /// The first wait after a failure, in milliseconds.
    pub backoff_min_ms: u64,
    /// The longest wait after a failure, in milliseconds.
    pub backoff_max_ms: u64,
    /// How long a leader may be silent before Postgres ends its session and a standby takes over, in seconds.
    pub takeover_seconds: u64,
    /// How often a standby asks whether it may lead, in milliseconds.
    pub standby_interval_ms: u64,
    /// How often the idle leader compares Redis with its position, in milliseconds.
    pub reconcile_interval_ms: u64,
    /// How long the oldest event may wait before the relay counts as not ready, in seconds.
    pub ready_max_pending_seconds: u64,
}

/// What to do with an event that the sink refuses for a reason of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPoison {
    /// Set it aside with all later events of its topic, in order.
    Park,
    /// Deliver nothing until it is solved.
    Halt,
}

/// The longest name of a relay, in characters. The schema (`name_fits`) refuses what is not allowed here.
const NAME_LENGTH_MAX: usize = 60;

/// Why a relay cannot run with its settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The name is none.
    #[error("relay.name has to be 1 to {NAME_LENGTH_MAX} characters of A-Z a-z 0-9 . _ -")]
    Name,
    /// The waits contradict each other.
    #[error("relay.backoff_min_ms ({0}) is more than relay.backoff_max_ms ({1})")]
    Backoff(u64, u64),
}

impl Settings {
    /// Whether a relay can run with them.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn check(&self) -> Result<(), SettingsError> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !(1..=NAME_LENGTH_MAX).contains(&self.name.len()) || !self.name.chars().all(is_allowed) {
            return Err(SettingsError::Name);
        }
        if self.backoff_min_ms > self.backoff_max_ms {
            return Err(SettingsError::Backoff(self.backoff_min_ms, self.backoff_max_ms));
        }
        Ok(())
    }

    pub(super) fn limit(&self) -> Limit {
        Limit { events: self.batch_size.max(1), bytes: self.batch_bytes.max(1) }
    }

    pub(super) fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms.max(1)).min(self.keepalive())
    }

    /// How long the leader's session may be silent.
    pub(super) fn takeover(&self) -> Duration {
        Duration::from_secs(self.takeover_seconds.max(1))
    }

    /// How often it lets the server hear something: twice within that time, should one sign come late.
    pub(super) fn keepalive(&self) -> Duration {
        self.takeover() / 3
    }

    pub(super) fn standby_interval(&self) -> Duration {
        Duration::from_millis(self.standby_interval_ms.max(10)).min(self.keepalive())
    }

    pub(super) fn reconcile_interval(&self) -> Duration {
        Duration::from_millis(self.reconcile_interval_ms.max(10))
    }
}
