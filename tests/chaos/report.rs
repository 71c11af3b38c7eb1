//! The report of a run, on one screen.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use aftercommit::event::StreamId;

use crate::clients::{Received, Seen};
use crate::kinds::Kind;
use crate::ledger::Deed;
use crate::pages::PageNumbers;
use crate::payload;
use crate::truth::Truth;
use crate::writers::Commits;

/// The difference between the received events and the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) lost: usize,
    pub(crate) repeated: usize,
    pub(crate) reordered: usize,
    pub(crate) invented: usize,
    /// The number of resets.
    pub(crate) resets: usize,
}

impl Numbers {
    pub(crate) fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.reordered += other.reordered;
        self.invented += other.invented;
        self.resets += other.resets;
    }

    fn are_zero(&self) -> bool {
        self.lost + self.repeated + self.reordered + self.invented == 0
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, repeated, reordered, invented, .. } = self;
        write!(f, "lost {lost}, repeated {repeated}, reordered {reordered}, invented {invented}")
    }
}

/// How many faults of each kind were made.
#[derive(Debug, Default)]
pub(crate) struct Faults(BTreeMap<Kind, usize>);

impl Faults {
    pub(crate) fn of(deeds: &[Deed]) -> Self {
        let mut faults = Self::default();
        for deed in deeds {
            *faults.0.entry(deed.kind).or_default() += 1;
        }
        faults
    }

    fn all(&self) -> usize {
        self.0.values().sum()
    }
}

/// From a commit to the first client that received it.
#[derive(Debug)]
pub(crate) struct Delays {
    median: Duration,
    longest: Duration,
}

impl Delays {
    pub(crate) fn of(commits: &Commits, truth: &Truth, seed: u64, seen: &[Seen]) -> Self {
        let rows =
            truth.channels.iter().flat_map(|channel| &channel.rows).filter(|row| row.copy_of.is_none());
        let keys: HashMap<StreamId, u64> =
            rows.filter_map(|row| Some((row.stream_id?, payload::key_of(seed, row.event_id)?))).collect();
        let mut first = BTreeMap::new();
        for received in seen.iter().flat_map(|client| &client.received) {
            if let Received::Event { id: Some(id), at, .. } = received
                && let Some(key) = keys.get(id)
            {
                let earliest = first.entry(*key).or_insert(*at);
                *earliest = (*earliest).min(*at);
            }
        }
        let mut delays: Vec<Duration> = first
            .iter()
            .filter_map(|(key, at)| Some(at.saturating_duration_since(*commits.get(key)?)))
            .collect();
        delays.sort_unstable();
        let at = |place: usize| delays.get(place).copied().unwrap_or_default();
        Self { median: at(delays.len() / 2), longest: at(delays.len().saturating_sub(1)) }
    }
}

/// A whole run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    /// The round that was compared last, and the number of rounds in the plan.
    pub(crate) rounds: (usize, usize),
    pub(crate) made: Faults,
    pub(crate) events: usize,
    /// Of these, copies that replays made, and events that operators gave up.
    pub(crate) copies: usize,
    pub(crate) discarded: usize,
    /// Operators' requests to discard.
    pub(crate) requests: usize,
    /// Confirmed commits that the log does not hold.
    pub(crate) missing: usize,
    /// Everything arrived in the time that it was given.
    pub(crate) complete: bool,
    /// Processes that ended without a fault that ended them.
    pub(crate) crashed: usize,
    pub(crate) log: Numbers,
    pub(crate) redis: Numbers,
    pub(crate) clients: Numbers,
    pub(crate) pages: PageNumbers,
    /// Resets that no fault explains, by their reasons.
    pub(crate) causeless: BTreeMap<String, usize>,
    /// Operators' requests that were applied to other rows than they named.
    pub(crate) misdirected: usize,
    pub(crate) listeners: usize,
    pub(crate) connections: usize,
    pub(crate) delays: Delays,
    pub(crate) dead_tuples: [i64; 2],
}

impl Report {
    pub(crate) fn is_clean(&self) -> bool {
        self.complete
            && self.missing == 0
            && self.crashed == 0
            && self.events > 0
            && [self.log, self.redis, self.clients].iter().all(Numbers::are_zero)
            && self.pages.are_zero()
            && self.causeless.is_empty()
            && self.misdirected == 0
            // An insert that a fault or the fence ended leaves one; a relay that updated would leave one a
            // step.
            && usize::try_from(self.dead_tuples[1]).is_ok_and(|dead| dead <= self.made.all())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.length.as_secs_f64() / 60.0;
        let (round, rounds) = self.rounds;
        let faults = self.made.all();
        writeln!(
            f,
            "\nchaos: seed {}, {minutes:.1} min, {faults} faults, compared in round {round} of {rounds}",
            self.seed
        )?;
        for (kind, count) in &self.made.0 {
            writeln!(f, "  {kind:<28} {count:>4}")?;
        }
        let Self { events, missing, listeners, connections, copies, discarded, .. } = self;
        writeln!(f, "events    {events} committed, {missing} of them missing in the log")?;
        writeln!(
            f,
            "          {copies} copies by replays, {discarded} discarded by operators in {} requests",
            self.requests
        )?;
        writeln!(f, "log       {}", self.log)?;
        writeln!(f, "Redis     {}", self.redis)?;
        writeln!(f, "clients   {}", self.clients)?;
        let resets = self.clients.resets;
        writeln!(f, "          {listeners} clients, {connections} connections, {resets} resets")?;
        writeln!(f, "pages     {}", self.pages)?;
        let causeless: usize = self.causeless.values().sum();
        writeln!(f, "resets    {causeless} without a cause {:?}", self.causeless)?;
        writeln!(f, "requests  {} carried out on other rows than they named", self.misdirected)?;
        let Delays { median, longest } = self.delays;
        writeln!(f, "delay     commit to client: median {median:.0?}, longest stall {longest:.1?}")?;
        let [event, checkpoint] = self.dead_tuples;
        writeln!(f, "dead      {checkpoint} tuples in checkpoint, {event} in event (rolled back)")?;
        if self.crashed > 0 {
            writeln!(f, "CRASHED   {} processes ended by themselves", self.crashed)?;
        }
        if !self.complete {
            writeln!(f, "NOT everything arrived in the time that it was given")?;
        }
        Ok(())
    }
}
