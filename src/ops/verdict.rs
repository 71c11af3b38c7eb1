//! One word for the state of a relay: the first thing that an operator reads at night.

use std::fmt;

use serde::Serialize;

use crate::log::overview::RelayOverview;

/// The state of a relay, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// No process leads: nothing is delivered.
    NoLeader,
    /// An operator has paused it.
    Paused,
    /// The leader fails.
    Failing,
    /// Events wait for longer than the limit.
    Late,
    /// It delivers, except for topics with parked events.
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

/// Whether the newest heartbeat of the leader reports an error. Until the leader has sent one, the heartbeat
/// of a process that tries to lead counts. An old heartbeat does not count: the process may have ended, and
/// its error says nothing about its successor.
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
