//! The `[relay]` section.

use std::time::Duration;

use serde::Deserialize;

use crate::log::read::Limit;

/// The `[relay]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The name under which the position is stored.
    pub name: String,
    /// The address that serves health and metrics.
    pub listen: String,
    /// The longest wait between two looks for events without a notification, in milliseconds.
    pub poll_interval_ms: u64,
    /// How long the relay sleeps after a silence, in milliseconds; 0: never. Postgres gets no query
    /// meanwhile.
    pub idle_interval_ms: u64,
    /// The most events of one step.
    pub batch_size: u32,
    /// The most events of one call to the sink.
    pub chunk_size: usize,
    /// The most bytes of payload of one step.
    pub batch_bytes: u64,
    /// What to do with an event that the sink refuses for a reason of its own.
    pub on_poison: OnPoison,
    /// The longest wait after a failure, in milliseconds.
    pub backoff_max_ms: u64,
    /// How long a leader may be silent before Postgres ends its session and a standby takes over, in seconds.
    pub takeover_seconds: u64,
    /// How often an idle leader compares Redis with its position, in milliseconds.
    pub reconcile_interval_ms: u64,
    /// The age of the oldest pending event above which the relay is not ready, in seconds.
    pub ready_max_pending_seconds: u64,
}

/// What to do with an event that the sink refuses for a reason of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPoison {
    /// Park it with all later events of its topic, in order.
    Park,
    /// Deliver nothing until a person has solved the cause.
    Halt,
}

/// How often a standby asks whether it may lead. One look-up of a lock: cheap enough to take over at once.
const STANDBY_INTERVAL: Duration = Duration::from_millis(200);
/// The longest name of a relay, in characters. The schema's check `name_fits` has the same limit.
const NAME_LENGTH_MAX: usize = 60;

/// Why a relay cannot run with its settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The name is empty, too long, or holds a character that is not allowed.
    #[error("relay.name has to be 1 to {NAME_LENGTH_MAX} characters of A-Z a-z 0-9 . _ -")]
    Name,
}

impl Settings {
    /// Checks that a relay can run with these settings.
    ///
    /// # Errors
    /// Returns [`SettingsError::Name`] if the name breaks the rules.
    pub fn check(&self) -> Result<(), SettingsError> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !(1..=NAME_LENGTH_MAX).contains(&self.name.len()) || !self.name.chars().all(is_allowed) {
            return Err(SettingsError::Name);
        }
        Ok(())
    }

    pub(super) fn limit(&self) -> Limit {
        Limit { events: self.batch_size.max(1), bytes: self.batch_bytes.max(1) }
    }

    pub(super) fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms.max(1)).min(self.keepalive())
    }

    /// The length of a sleep. `None` if the relay never sleeps longer than a poll.
    pub(super) fn idle_interval(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.idle_interval_ms)).filter(|sleep| *sleep > self.poll_interval())
    }

    /// How long the leader's session may be silent before the server ends it.
    pub(super) fn takeover(&self) -> Duration {
        Duration::from_secs(self.takeover_seconds.max(1))
    }

    /// How long a leader's session may be silent, also one that sleeps.
    pub(super) fn longest_silence(&self) -> Duration {
        self.takeover() + self.idle_interval().unwrap_or_default()
    }

    /// The time between two signs of life: a third of the takeover time, so that one of them may come late.
    pub(super) fn keepalive(&self) -> Duration {
        self.takeover() / 3
    }

    /// The wait between two attempts of a standby to take the lead.
    pub(super) fn standby_interval(&self) -> Duration {
        STANDBY_INTERVAL.min(self.keepalive())
    }

    pub(super) fn reconcile_interval(&self) -> Duration {
        Duration::from_millis(self.reconcile_interval_ms.max(10))
    }
}
