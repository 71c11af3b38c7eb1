//! One word for how a relay is: the first thing that is read at night.

use std::fmt;

use serde::Serialize;

use crate::log::overview::RelayOverview;

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
        if relay.contradiction.is_some() || (relay.leader.is_none() && fails(relay)) {
            Self::Failing
        } else if relay.leader.is_none() {
            Self::NoLeader
        } else if relay.paused.is_some() {
            Self::Paused
        } else if fails(relay) {
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

/// Whether the process that leads says that it fails; or, until the leader has said anything, one that tries
/// to lead. What a process said before it ended says nothing of its successor.
fn fails(relay: &RelayOverview) -> bool {
    let of = |role: &str| {
        let of_role = relay.processes.iter().filter(|heard| heard.heartbeat.role == role && heard.is_fresh());
        of_role.max_by_key(|heard| heard.at)
    };
    let speaks = of("leading").or_else(|| of("disconnected"));
    speaks.is_some_and(|heard| heard.heartbeat.error.is_some())
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
