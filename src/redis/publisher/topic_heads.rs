//! The publisher's bounded cache of topics: the last id of each, and the time at which its history's TTL was
//! last set.
//!
//! Only the relay writes the histories, so it can pass these facts to the script, which would otherwise look
//! them up for every event (measured: 118k events/s with the cache, 75k without). The cache is for speed
//! only: the script looks up a topic that the cache has dropped.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::event::{StreamId, Topic};

/// The newest event of a topic that the relay has published.
#[derive(Debug, Clone, Copy)]
pub(super) struct TopicHead {
    pub(super) last: StreamId,
    pub(super) ttl_set: Instant,
}

/// The heads of the most recently used topics, in two generations. The older one is dropped when the newer
/// one is full.
#[derive(Debug)]
pub(super) struct TopicHeads {
    young: HashMap<Topic, TopicHead>,
    old: HashMap<Topic, TopicHead>,
    capacity: usize,
    /// A TTL is set again when it is older than this.
    ttl_due_after: Duration,
}

impl TopicHeads {
    /// Makes a cache that keeps between `capacity` and twice as many topics.
    pub(super) fn new(capacity: usize, ttl: Duration) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            capacity: capacity.max(1),
            // Each history then lives for at least 95 % of its TTL, and most events need no EXPIRE.
            ttl_due_after: ttl / 20,
        }
    }

    pub(super) fn get(&self, topic: &Topic) -> Option<TopicHead> {
        self.young.get(topic).or_else(|| self.old.get(topic)).copied()
    }

    /// Whether the TTL of a topic with this head must be set again.
    pub(super) fn ttl_is_due(&self, head: Option<TopicHead>, now: Instant) -> bool {
        head.is_none_or(|head| now.duration_since(head.ttl_set) >= self.ttl_due_after)
    }

    pub(super) fn set(&mut self, topic: &Topic, head: TopicHead) {
        if let Some(known) = self.young.get_mut(topic) {
            *known = head;
            return;
        }
        if self.young.len() >= self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(topic.clone(), head);
    }

    /// Drops everything. Call it when it is not known what Redis holds.
    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(n: usize) -> Topic {
        Topic::new(format!("t:{n}")).expect("a topic")
    }

    #[test]
    fn a_million_topics_take_the_room_of_two_generations() {
        let mut heads = TopicHeads::new(100, Duration::from_secs(100));
        let now = Instant::now();
        for n in 0..1_000_000_u64 {
            heads.set(&topic(n as usize), TopicHead { last: StreamId::new(1, n + 1), ttl_set: now });
        }
        assert!(heads.young.len() + heads.old.len() <= 200);
        assert_eq!(heads.get(&topic(999_999)).map(|t| t.last.seq), Some(1_000_000));
        assert!(heads.get(&topic(0)).is_none());
    }

    #[test]
    fn a_topic_in_both_generations_answers_with_the_newer() {
        let mut heads = TopicHeads::new(1, Duration::from_secs(100));
        let now = Instant::now();
        heads.set(&topic(1), TopicHead { last: StreamId::new(1, 1), ttl_set: now });
        heads.set(&topic(2), TopicHead { last: StreamId::new(1, 2), ttl_set: now });
        heads.set(&topic(1), TopicHead { last: StreamId::new(1, 3), ttl_set: now });
        assert_eq!(heads.get(&topic(1)).map(|t| t.last.seq), Some(3));
    }

    #[test]
    fn the_ttl_is_due_for_an_unknown_topic_and_after_a_twentieth_of_it() {
        let heads = TopicHeads::new(10, Duration::from_secs(100));
        let now = Instant::now();
        assert!(heads.ttl_is_due(None, now));
        let head = TopicHead { last: StreamId::new(1, 1), ttl_set: now };
        for (seconds, due) in [(4, false), (5, true), (95, true)] {
            assert_eq!(heads.ttl_is_due(Some(head), now + Duration::from_secs(seconds)), due, "{seconds} s");
        }
    }
}
