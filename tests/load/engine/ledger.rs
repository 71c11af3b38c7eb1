//! When each event was committed: written by the writer, read by the clients, in one process and by one
//! clock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// All events of a run, by topic and number.
#[derive(Debug)]
pub(crate) struct Ledger {
    begun: Instant,
    topics: Vec<Events>,
}

#[derive(Debug)]
struct Events {
    /// When each commit was sent, in nanoseconds since the run began; 0 for one that was not. Number 1 is at
    /// 0.
    sent: Box<[AtomicU64]>,
    /// The highest number whose commit is known to have happened.
    committed: AtomicU32,
}

impl Ledger {
    /// A ledger with room for so many events of each topic.
    pub(crate) fn new(topics: usize, events: usize) -> Self {
        let events_of_topic = || Events {
            sent: std::iter::repeat_with(AtomicU64::default).take(events).collect(),
            committed: AtomicU32::new(0),
        };
        Self { begun: Instant::now(), topics: std::iter::repeat_with(events_of_topic).take(topics).collect() }
    }

    pub(crate) fn topics(&self) -> usize {
        self.topics.len()
    }

    /// The next number of a topic, or `None` if the ledger is full. A topic has one writer.
    pub(crate) fn next(&self, topic: usize) -> Option<u32> {
        let number = self.committed(topic) + 1;
        (self.topics[topic].sent.len() >= number as usize).then_some(number)
    }

    /// Notes that the commit is about to be sent. From here on clients may receive the event.
    pub(crate) fn is_sent(&self, topic: usize, number: u32, at: Instant) {
        let nanos = at.saturating_duration_since(self.begun).as_nanos();
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX).max(1);
        self.topics[topic].sent[number as usize - 1].store(nanos, Ordering::Release);
    }

    /// Notes that the commit has happened.
    pub(crate) fn is_committed(&self, topic: usize, number: u32) {
        self.topics[topic].committed.store(number, Ordering::Release);
    }

    /// The highest committed number of a topic, 0 before the first.
    pub(crate) fn committed(&self, topic: usize) -> u32 {
        self.topics[topic].committed.load(Ordering::Acquire)
    }

    /// The time from just before an event's commit was sent until `now`. `None` for an event that nobody
    /// committed.
    pub(crate) fn age(&self, topic: usize, number: u32, now: Instant) -> Option<Duration> {
        let place = (number as usize).checked_sub(1)?;
        let nanos = self.topics[topic].sent.get(place)?.load(Ordering::Acquire);
        let sent = self.begun.checked_add(Duration::from_nanos(nanos))?;
        (nanos > 0).then(|| now.saturating_duration_since(sent))
    }
}
