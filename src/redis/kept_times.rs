//! For how long the relay keeps histories, as it says in Redis: the reader may be set to another time, and
//! the relay may have kept them for a shorter time before.

use std::time::Duration;

/// The relay's times. What is not known decides nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct KeptTimes {
    /// For how many seconds it keeps a history after its last event.
    pub(super) ttl: Option<u64>,
    /// When that time was last made longer, in milliseconds since 1970.
    pub(super) raised_ms: Option<u64>,
    /// For how many seconds it kept histories at least before that.
    pub(super) before: Option<u64>,
}

impl KeptTimes {
    /// What holds at several servers.
    pub(super) fn and(self, other: Self) -> Self {
        let least = |one: Option<u64>, other: Option<u64>| one.into_iter().chain(other).min();
        Self {
            ttl: least(self.ttl, other.ttl),
            raised_ms: self.raised_ms.max(other.raised_ms),
            before: least(self.before, other.before),
        }
    }

    /// For how long the history of an event of this time (milliseconds since 1970) or a later one is kept at
    /// least, if the reader is set to `own`.
    pub(super) fn since(self, at_ms: u64, own: Duration) -> Duration {
        let before = self.before.filter(|_| self.raised_ms.is_some_and(|raised_ms| at_ms <= raised_ms));
        let times = self.ttl.into_iter().chain(before).map(Duration::from_secs);
        times.fold(own, Duration::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn an_event_of_before_the_time_was_raised_is_kept_for_the_shorter_time() {
        let raised = KeptTimes { ttl: Some(86_400), raised_ms: Some(1000), before: Some(3600) };
        assert_eq!(raised.since(1000, DAY), Duration::from_secs(3600));
        assert_eq!(raised.since(1001, DAY), DAY);
    }

    #[test]
    fn a_reader_that_is_set_to_a_longer_time_goes_by_the_relays() {
        let shorter = KeptTimes { ttl: Some(3600), ..KeptTimes::default() };
        assert_eq!(shorter.since(u64::MAX, DAY), Duration::from_secs(3600));
        assert_eq!(shorter.since(u64::MAX, Duration::from_secs(60)), Duration::from_secs(60));
        assert_eq!(KeptTimes::default().since(0, DAY), DAY);
    }

    #[test]
    fn of_several_servers_the_one_that_keeps_least_decides() {
        let one = KeptTimes { ttl: Some(9), raised_ms: Some(5), before: Some(7) };
        let other = KeptTimes { ttl: Some(8), raised_ms: None, before: None };
        assert_eq!(one.and(other), KeptTimes { ttl: Some(8), raised_ms: Some(5), before: Some(7) });
    }
}
