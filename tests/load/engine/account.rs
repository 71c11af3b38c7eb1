//! What one client has been given, against what its topic had: exact, number by number.

use std::ops::Range;

/// One client's account of one topic, whose events are numbered from 1.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    /// The number that should come next.
    next: u32,
    /// Numbers that were passed over and have not come since. Empty as long as all is well.
    holes: Vec<Range<u32>>,
    pub(crate) twice: u64,
    pub(crate) out_of_order: u64,
    pub(crate) resets: u64,
}

/// What an event was to its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// Not seen before.
    New,
    Twice,
}

impl Default for Account {
    fn default() -> Self {
        Self { next: 1, holes: Vec::new(), twice: 0, out_of_order: 0, resets: 0 }
    }
}

impl Account {
    /// Enters an event.
    pub(crate) fn enter(&mut self, number: u32) -> Receipt {
        if number >= self.next {
            if number > self.next {
                self.holes.push(self.next..number);
            }
            self.next = number + 1;
            return Receipt::New;
        }
        let Some(at) = self.holes.iter().position(|hole| hole.contains(&number)) else {
            self.twice += 1;
            return Receipt::Twice;
        };
        self.out_of_order += 1;
        let hole = self.holes.swap_remove(at);
        let around = [hole.start..number, number + 1..hole.end];
        self.holes.extend(around.into_iter().filter(|part| !part.is_empty()));
        Receipt::New
    }

    /// The highest number so far, 0 before the first.
    pub(crate) fn highest(&self) -> u32 {
        self.next - 1
    }

    /// How many of the numbers up to `last` have not come.
    pub(crate) fn missing(&self, last: u32) -> u64 {
        let passed_over: u64 = self.holes.iter().map(|hole| u64::from(hole.end - hole.start)).sum();
        passed_over + u64::from((last + 1).saturating_sub(self.next))
    }
}

/// All clients' accounts together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    pub(crate) missing: u64,
    pub(crate) twice: u64,
    pub(crate) out_of_order: u64,
    /// Events that nobody committed, or that say something else than what was committed.
    pub(crate) invented: u64,
    pub(crate) resets: u64,
}

impl Balance {
    /// Adds the account of a client whose topic had `last` events.
    pub(crate) fn add(&mut self, account: &Account, last: u32) {
        self.missing += account.missing(last);
        self.twice += account.twice;
        self.out_of_order += account.out_of_order;
        self.resets += account.resets;
    }

    /// Whether every client got every event once and in order. A reset alone is no fault: it loses nothing.
    pub(crate) fn is_exact(&self) -> bool {
        self.missing + self.twice + self.out_of_order + self.invented == 0
    }
}
