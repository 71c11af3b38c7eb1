//! What the publisher remembers of topics: the last id, and when the history's TTL was last set. Bounded.
//!
//! The relay is the only writer of the histories, so it can tell the script what the script would otherwise have to look
//! up for every event (measured: 75k events/s asking, 118k told). Forgetting is safe: the script then looks. What it cannot see
//! then is whether a history that is not there has expired or has vanished.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::event::{StreamId, Topic};

/// The tail of a topic's history, as the relay left it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    pub(super) last: StreamId,
    pub(super) ttl_set: Instant,
}

/// The tails of the topics used most recently: two generations, of which the older one is dropped when the newer is full.
#[derive(Debug)]
pub(super) struct Tails {
    young: HashMap<Topic, Tail>,
    old: HashMap<Topic, Tail>,
    capacity: usize,
    ttl: Duration,
    /// A TTL is set again when it is older than this.
    ttl_due_after: Duration,
}

impl Tails {
    /// Remembers between `capacity` and twice as many topics.
    pub(super) fn new(capacity: usize, ttl: Duration) -> Self {
        // A twentieth of the TTL: a history then lives at least 95 % of it, for one EXPIRE in many events.
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            capacity: capacity.max(1),
            ttl,
            ttl_due_after: ttl / 20,
        }
    }

    pub(super) fn get(&self, topic: &Topic) -> Option<Tail> {
        self.young.get(topic).or_else(|| self.old.get(topic)).copied()
    }

    pub(super) fn ttl_is_due(&self, topic: &Topic, now: Instant) -> bool {
        self.get(topic).is_none_or(|tail| now.duration_since(tail.ttl_set) >= self.ttl_due_after)
    }

    /// How a history with this tail stands, as the publishing script takes it: `new` if there need not be one, else it must
    /// be there, and its TTL is due (`aged`) or not (`kept`).
    pub(super) fn history_of(&self, tail: Tail, now: Instant) -> &'static str {
        let age = now.duration_since(tail.ttl_set);
        // Some time before it expires it is left open whether it has, as clocks differ.
        if age >= self.ttl.saturating_sub(self.ttl_due_after) {
            "new"
        } else if age >= self.ttl_due_after {
            "aged"
        } else {
            "kept"
        }
    }

    pub(super) fn set(&mut self, topic: &Topic, tail: Tail) {
        if let Some(known) = self.young.get_mut(topic) {
            *known = tail;
            return;
        }
        if self.young.len() >= self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(topic.clone(), tail);
    }

    /// Forgets everything: for whenever it is not known what Redis holds.
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
        let mut tails = Tails::new(100, Duration::from_secs(100));
        let now = Instant::now();
        for n in 0..1_000_000_u64 {
            tails.set(&topic(n as usize), Tail { last: StreamId::new(1, n + 1), ttl_set: now });
        }
        assert!(tails.young.len() + tails.old.len() <= 200);
        assert_eq!(tails.get(&topic(999_999)).map(|t| t.last.seq), Some(1_000_000));
        assert!(tails.get(&topic(0)).is_none());
    }

    #[test]
    fn a_topic_in_both_generations_answers_with_the_newer() {
        let mut tails = Tails::new(1, Duration::from_secs(100));
        let now = Instant::now();
        tails.set(&topic(1), Tail { last: StreamId::new(1, 1), ttl_set: now });
        tails.set(&topic(2), Tail { last: StreamId::new(1, 2), ttl_set: now });
        tails.set(&topic(1), Tail { last: StreamId::new(1, 3), ttl_set: now });
        assert_eq!(tails.get(&topic(1)).map(|t| t.last.seq), Some(3));
    }

    #[test]
    fn the_ttl_is_due_for_an_unknown_topic_and_after_a_twentieth_of_it() {
        let mut tails = Tails::new(10, Duration::from_secs(100));
        let now = Instant::now();
        assert!(tails.ttl_is_due(&topic(1), now));
        let tail = Tail { last: StreamId::new(1, 1), ttl_set: now };
        tails.set(&topic(1), tail);
        for (seconds, history) in [(4, "kept"), (5, "aged"), (94, "aged"), (95, "new")] {
            let later = now + Duration::from_secs(seconds);
            assert_eq!(tails.history_of(tail, later), history, "{seconds} s");
            assert_eq!(tails.ttl_is_due(&topic(1), later), history != "kept", "{seconds} s");
        }
    }
}
