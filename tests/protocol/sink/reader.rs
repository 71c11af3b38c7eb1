//! The reader: one client of topic 0 and the SSE server that it is connected to.
//!
//! The client begins at the topic's start, may go away, and comes back with its place. From a reset on it
//! has fetched the truth from Postgres, and is judged by what follows.

use super::postgres::Id;
use super::redis::{Entry, Envelope};
use super::rules::Rules;
use super::state::State;

/// The topic that it reads.
pub(super) const READ_TOPIC: u8 = 0;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Mode {
    Away,
    /// Subscribed; what is heard waits until the history has been read.
    Joining(Vec<Entry>),
    Live,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Reader {
    pub(super) mode: Mode,
    /// Its cursor: the id of the event before; none at the topic's start.
    pub(super) place: Option<Id>,
    /// The events that it was told since the last reset, as bits of their identities.
    pub(super) told: u8,
    /// The events that it knows from the truth.
    pub(super) known: u8,
    /// It was told an event that this Postgres does not have.
    pub(super) has_phantom: bool,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { mode: Mode::Away, place: None, told: 0, known: 0, has_phantom: false }
    }
}

/// What follows from the history alone.
enum Read {
    /// Entries that follow the place without a hole.
    Follows(Vec<Entry>),
    /// It cannot be proven that nothing is missing.
    Unproven,
}

/// What a history holds after a place: an entry follows if its `prev` is the id before it. What was lost
/// stands for an entry in every history, which follows nothing.
fn follow(rules: &Rules, history: &[Entry], lost: Option<Id>, place: Option<Id>) -> Read {
    if rules.reader_heeds_what_is_lost && place < lost {
        return Read::Unproven;
    }
    if rules.reader_needs_its_place && place > end(history, lost) {
        return Read::Unproven;
    }
    let mut before = place;
    let mut entries = vec![];
    for entry in history.iter().filter(|entry| Some(entry.id) > place) {
        if rules.reader_compares_prev && entry.prev != before {
            return Read::Unproven;
        }
        before = Some(entry.id);
        entries.push(*entry);
    }
    Read::Follows(entries)
}

/// The end of a history.
fn end(history: &[Entry], lost: Option<Id>) -> Option<Id> {
    history.last().map(|entry| entry.id).max(lost)
}

impl State {
    /// Whether the check of quiet topics finds that this reader may have missed something.
    pub(super) fn is_behind(&self, rules: &Rules) -> bool {
        rules.reader_heeds_what_is_lost
            && self.reader.mode == Mode::Live
            && self.reader.place < self.redis.lost
    }

    /// Messages reach the subscribers, in order.
    pub(super) fn hear(&mut self, rules: &Rules, told: &[Envelope]) {
        for envelope in told {
            if envelope.with_payload {
                let bit = 1 << envelope.entry.uuid;
                // A Redis that went back between the message and the checkpoint cannot know that it was told.
                self.broken.twice |= self.heard & bit != 0 && !self.causes.redis;
                self.heard |= bit;
            }
            if envelope.topic == READ_TOPIC {
                self.hear_entry(rules, envelope.entry);
            }
        }
    }

    fn hear_entry(&mut self, rules: &Rules, entry: Entry) {
        match &mut self.reader.mode {
            Mode::Away => {}
            Mode::Joining(heard) => heard.push(entry),
            Mode::Live if Some(entry.id) <= self.reader.place => {}
            Mode::Live if entry.prev == self.reader.place || !rules.reader_compares_prev => self.tell(entry),
            Mode::Live => self.reader.mode = Mode::Joining(vec![entry]),
        }
    }

    /// A join's read: tells what the history holds after the place, then what was heard meanwhile.
    pub(super) fn read_history(&mut self, rules: &Rules) {
        let heard = match std::mem::replace(&mut self.reader.mode, Mode::Live) {
            Mode::Joining(heard) => heard,
            mode => {
                self.reader.mode = mode;
                return;
            }
        };
        let history = &self.redis.histories[usize::from(READ_TOPIC)];
        match follow(rules, history, self.redis.lost, self.reader.place) {
            Read::Follows(entries) => entries.into_iter().for_each(|entry| self.tell(entry)),
            Read::Unproven => self.reset(),
        }
        for entry in heard {
            if Some(entry.id) <= self.reader.place {
                continue;
            }
            if entry.prev != self.reader.place && rules.reader_compares_prev {
                // The history was read after it was published: it cannot fill this hole.
                self.reset();
                self.reader.place = entry.prev;
            }
            self.tell(entry);
        }
    }

    /// The client fetches the truth and goes on from the end of the history.
    fn reset(&mut self) {
        let causes = self.causes;
        let has_cause = causes.redis || causes.postgres || causes.rebase || causes.discard;
        self.broken.groundless_reset |= !has_cause;
        self.fetch_truth();
        self.reader.place = end(&self.redis.histories[usize::from(READ_TOPIC)], self.redis.lost);
    }

    fn fetch_truth(&mut self) {
        let reader = &mut self.reader;
        reader.told = 0;
        reader.known =
            self.log.rows_of(READ_TOPIC).fold(0, |known, row| known | 1 << self.log.event(row).uuid);
        reader.has_phantom = false;
    }

    fn tell(&mut self, entry: Entry) {
        if self.reader.place.is_some_and(|place| place.epoch < entry.id.epoch) {
            // Clients may have been told what Postgres lost.
            self.broken.groundless_reset |= !self.causes.rebase;
            self.fetch_truth();
        }
        let bit = 1 << entry.uuid;
        self.broken.twice |= self.reader.told & bit != 0;
        let row = self.log.rows_of(READ_TOPIC).find(|row| self.log.event(*row).uuid == entry.uuid);
        match row {
            Some(row) => {
                let has = self.reader.told | self.reader.known | self.discarded;
                let bit_of = |row: u8| 1 << self.log.event(row).uuid;
                self.broken.lost |= self.log.rows_of(READ_TOPIC).any(|r| r < row && has & bit_of(r) == 0);
                self.broken.order |=
                    self.log.rows_of(READ_TOPIC).any(|r| r > row && self.reader.told & bit_of(r) != 0);
                self.broken.phantom |= self.reader.has_phantom;
            }
            None => self.reader.has_phantom = true,
        }
        self.reader.told |= bit;
        self.reader.place = Some(entry.id);
    }
}
