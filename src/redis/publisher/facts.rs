//! What a server of a cluster knows of all its histories, beside its top. When slots move, the facts move
//! with them.

use crate::event::StreamId;
use crate::redis::kept_times::KeptTimes;

/// The facts beside a top that concern all histories of its server: they outlive its slots.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts {
    /// The number and the time of a loss.
    pub(super) lost: Option<(StreamId, u64)>,
    pub(super) times: KeptTimes,
    /// As in [`Reached`](crate::relay::Reached).
    pub(super) recorded: Option<StreamId>,
}

impl Facts {
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            lost: self.lost.max(other.lost),
            times: self.times.and(other.times),
            recorded: self.recorded.max(other.recorded),
        }
    }

    /// The fields of the owner's hash that keep them.
    pub(super) fn of_owner(&self) -> Vec<(&'static str, String)> {
        let number = |name, value: Option<u64>| value.map(|value| (name, value.to_string()));
        let lost = self.lost.map(|(through, _)| ("lost", through.to_string()));
        let KeptTimes { ttl, raised_ms, before } = self.times;
        [
            lost,
            number("lost_at", self.lost.map(|(_, at)| at)),
            number("ttl", ttl),
            number("raised_at", raised_ms),
            number("kept_before", before),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_servers_the_gravest_facts_hold_for_all() {
        let id = |seq| StreamId::new(1, seq);
        let times = KeptTimes { ttl: Some(9), raised_ms: Some(5), before: Some(7) };
        let one = Facts { lost: Some((id(3), 30)), times, recorded: Some(id(4)) };
        let all = one.and(Facts { lost: Some((id(2), 40)), recorded: Some(id(6)), ..Facts::default() });
        assert_eq!((all.lost, all.times, all.recorded), (Some((id(3), 30)), times, Some(id(6))));
        let fields: Vec<String> =
            all.of_owner().iter().map(|(name, value)| format!("{name} {value}")).collect();
        assert_eq!(fields, ["lost 1-3", "lost_at 30", "ttl 9", "raised_at 5", "kept_before 7"]);
        assert!(Facts::default().of_owner().is_empty());
    }
}
