//! What all clients together have seen.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::histogram::Histogram;

/// The sums of a run.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    begun: Instant,
    /// From just before an event's commit was sent until a client had read it; without what a client missed
    /// while it was told to be away.
    pub(crate) latency: Histogram,
    /// Events that reached a client, repeats not counted.
    pub(crate) deliveries: u64,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Since when clients have been told to connect, and how long each took to be where it should be.
    returning_since: Instant,
    pub(crate) returns: Histogram,
    /// When each stream was opened, since the run began.
    opened: Vec<Duration>,
    pub(crate) invented: u64,
    /// Connections that nobody took; that broke; that the server ended.
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) ended: u64,
    /// Streams that the server ended before they told their place: it had no room.
    pub(crate) turned_away: u64,
    /// Answers other than 200, by status.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Responses that are not HTTP as it should be, by what is wrong with them.
    pub(crate) malformed: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            latency: Histogram::default(),
            deliveries: 0,
            first: None,
            last: None,
            returning_since: now,
            returns: Histogram::default(),
            opened: Vec::new(),
            invented: 0,
            refused: 0,
            lost: 0,
            ended: 0,
            turned_away: 0,
            statuses: BTreeMap::new(),
            malformed: BTreeMap::new(),
        }
    }

    /// An event has reached a client. Its age counts unless the client is only catching up.
    pub(super) fn is_delivered(&mut self, now: Instant, age: Option<Duration>) {
        self.deliveries += 1;
        self.first.get_or_insert(now);
        self.last = Some(now);
        if let Some(age) = age {
            self.latency.record(age);
        }
    }

    /// All clients are told to connect: their times count from here.
    pub(super) fn return_begins(&mut self, now: Instant) {
        self.returning_since = now;
        self.returns = Histogram::default();
    }

    /// A client has all that it missed.
    pub(super) fn is_back(&mut self, now: Instant) {
        self.returns.record(now.saturating_duration_since(self.returning_since));
    }

    pub(super) fn is_opened(&mut self, now: Instant) {
        self.opened.push(now.saturating_duration_since(self.begun));
    }

    /// The most streams that were opened within any one second, leaving out the first so many.
    pub(crate) fn peak_of_opened(&self, leaving_out: usize) -> usize {
        let opened = self.opened.get(leaving_out..).unwrap_or_default();
        let until = |from: &Duration| opened.partition_point(|at| *at < *from + Duration::from_secs(1));
        opened.iter().enumerate().map(|(place, from)| until(from) - place).max().unwrap_or(0)
    }

    /// Deliveries a second, from the first to the last.
    pub(crate) fn rate(&self) -> f64 {
        let (Some(first), Some(last)) = (self.first, self.last) else { return 0.0 };
        self.deliveries as f64 / last.saturating_duration_since(first).as_secs_f64().max(0.001)
    }
}
