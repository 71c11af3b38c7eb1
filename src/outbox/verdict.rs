//! One word for how a relay is: the first thing that is read at night.

use std::fmt;

use serde::Serialize;

use super::overview::RelayOverview;

/// How a relay is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Nobody leads: nothing is delivered.
    NoLeader,
    /// An operator has paused it.
    Paused,
    /// The leader fails.
    Failing,
    /// Events wait for longer than the limit.
    Late,
    /// It delivers, but for topics that are parked.
    Parked,
    /// It delivers.
    Delivering,
}

impl Verdict {
    /// Judges a relay whose events may wait for `limit` seconds.
    pub fn of(relay: &RelayOverview, limit: u64) -> Self {
        let fails = |heard: &&super::heartbeat::Heard| {
            heard.heartbeat.role != "standby" && heard.heartbeat.error.is_some()
        };
        if relay.leader.is_none() {
            Self::NoLeader
        } else if relay.paused.is_some() {
            Self::Paused
        } else if relay.processes.iter().any(|heard| fails(&heard)) {
            Self::Failing
        } else if relay.oldest_pending_seconds.is_some_and(|age| age > limit as f64) {
            Self::Late
        } else if relay.parked_events > 0 {
            Self::Parked
        } else {
            Self::Delivering
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoLeader => "NO LEADER",
            Self::Paused => "PAUSED",
            Self::Failing => "FAILING",
            Self::Late => "LATE",
            Self::Parked => "PARKED",
            Self::Delivering => "delivering",
        })
    }
}
