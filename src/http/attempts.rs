//! Slows down clients that guess a secret, without locking out clients that know it.
//!
//! Each address has five attempts and regains one a second. A wrong guess costs an attempt; the right secret
//! costs none. Without an attempt left, nothing is compared, so guessing yields one comparison a second. The
//! same wrong secret sent again costs no attempt, because it reveals nothing: a script with an old token does
//! not lock out other clients behind the same proxy. The right secret is therefore accepted at once from
//! every address that sends fewer than one new guess a second, and sooner or later from an address that sends
//! more.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::proxies::counted_as;

/// Wrong guesses that one address may send before it has to wait.
const ATTEMPTS: u32 = 5;
/// The time after which an address regains one attempt.
const REGAINED_AFTER: Duration = Duration::from_secs(1);
/// The number of addresses that are remembered.
const ADDRESSES_MAX: usize = 1024;
/// The number of wrong guesses of one address that are recognized when they are repeated.
const REMEMBERED: usize = 8;

/// Recent wrong guesses, by address.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    addresses: Mutex<HashMap<IpAddr, Guesses>>,
    /// Guesses are remembered as keyed hashes; their text is not kept.
    hasher: RandomState,
}

/// Wrong guesses of one address.
#[derive(Debug, Clone, Default)]
struct Guesses {
    new: Spent,
    repeated: Spent,
    known: VecDeque<u64>,
}

/// A count of attempts spent. One is regained after each [`REGAINED_AFTER`].
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    count: u32,
    counted: Option<Instant>,
}

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Right,
    Wrong,
    /// The address has sent too many wrong guesses, or the same one too often. This one was not compared. Try
    /// again after this time.
    TooMany(Duration),
}

impl Attempts {
    /// Compares a secret, unless this address has no attempt left. Holds the lock meanwhile, so that parallel
    /// guesses count too.
    pub(super) fn attempt(
        &self,
        from: IpAddr,
        secret: &str,
        now: Instant,
        is_right: impl FnOnce() -> bool,
    ) -> Attempt {
        let (from, mark) = (counted_as(from), self.hasher.hash_one(secret));
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(guesses) = addresses.get_mut(&from) else {
            if is_right() {
                return Attempt::Right;
            }
            make_room(&mut addresses, now);
            addresses.entry(from).or_default().add(mark, now);
            return Attempt::Wrong;
        };
        if guesses.known.contains(&mark) {
            return guesses.repeated.spend(now);
        }
        if let Some(wait) = guesses.new.wait(now) {
            return Attempt::TooMany(wait);
        }
        if is_right() {
            return Attempt::Right;
        }
        guesses.add(mark, now);
        Attempt::Wrong
    }
}

impl Guesses {
    fn add(&mut self, mark: u64, now: Instant) {
        self.new.spend(now);
        self.known.push_back(mark);
        if self.known.len() > REMEMBERED {
            self.known.pop_front();
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.new.at(now).count == 0 && self.repeated.at(now).count == 0
    }
}

impl Spent {
    /// The attempts that are still spent at this time.
    fn at(self, now: Instant) -> Self {
        let Some(counted) = self.counted else { return Self::default() };
        let regained = now.saturating_duration_since(counted).as_secs() / REGAINED_AFTER.as_secs();
        match u32::try_from(regained) {
            Ok(regained) if regained < self.count => {
                Self { count: self.count - regained, counted: Some(counted + REGAINED_AFTER * regained) }
            }
            _ => Self::default(),
        }
    }

    /// The time until an attempt is regained, if all are spent.
    fn wait(self, now: Instant) -> Option<Duration> {
        let spent = self.at(now);
        (spent.count >= ATTEMPTS).then(|| {
            let since =
                spent.counted.map_or(Duration::ZERO, |counted| now.saturating_duration_since(counted));
            REGAINED_AFTER.saturating_sub(since)
        })
    }

    /// Spends one attempt, if one is left.
    fn spend(&mut self, now: Instant) -> Attempt {
        if let Some(wait) = self.wait(now) {
            return Attempt::TooMany(wait);
        }
        let spent = self.at(now);
        *self = Self { count: spent.count + 1, counted: Some(spent.counted.unwrap_or(now)) };
        Attempt::Wrong
    }
}

fn make_room(addresses: &mut HashMap<IpAddr, Guesses>, now: Instant) {
    if addresses.len() < ADDRESSES_MAX {
        return;
    }
    addresses.retain(|_, guesses| !guesses.is_over(now));
    let oldest = addresses.iter().min_by_key(|(_, guesses)| guesses.new.counted).map(|(address, _)| *address);
    if let Some(oldest) = oldest.filter(|_| addresses.len() >= ADDRESSES_MAX) {
        addresses.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    #[test]
    fn who_guesses_has_to_wait_and_then_regains_one_look_at_a_time() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        let at = |millis: u64| start + Duration::from_millis(millis);
        let guess = |n: u64, from, millis| attempts.attempt(from, &n.to_string(), at(millis), || false);
        for n in 0..u64::from(ATTEMPTS) {
            assert_eq!(guess(n, HOME, 0), Attempt::Wrong);
        }
        let refused = attempts.attempt(HOME, "right", at(400), || panic!("it is not looked at"));
        assert_eq!(refused, Attempt::TooMany(Duration::from_millis(600)));
        assert_eq!(attempts.attempt(ELSEWHERE, "right", at(400), || true), Attempt::Right);
        assert_eq!(guess(10, HOME, 1000), Attempt::Wrong);
        assert_eq!(guess(11, HOME, 1100), Attempt::TooMany(Duration::from_millis(900)));
        assert_eq!(attempts.attempt(HOME, "right", at(2000), || true), Attempt::Right);
        for n in 20..20 + u64::from(ATTEMPTS) {
            assert_eq!(guess(n, HOME, 100_000), Attempt::Wrong);
        }
    }

    #[test]
    fn the_same_wrong_secret_again_and_again_keeps_nobody_out_and_is_answered_with_a_wait() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let mut answers = Vec::new();
        for _ in 0..100 {
            answers.push(attempts.attempt(HOME, "an old token", now, || false));
            assert_eq!(attempts.attempt(HOME, "right", now, || true), Attempt::Right);
        }
        let wrong = answers.iter().filter(|answer| **answer == Attempt::Wrong).count();
        assert_eq!(wrong, 1 + ATTEMPTS as usize, "then it is told to wait");
    }

    #[test]
    fn a_new_guess_every_second_or_two_keeps_nobody_out() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        for n in 0..100 {
            let now = start + Duration::from_millis(1100 * n);
            attempts.attempt(HOME, &n.to_string(), now, || false);
            assert_eq!(attempts.attempt(HOME, "right", now, || true), Attempt::Right);
        }
    }

    #[test]
    fn many_addresses_take_bounded_room() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..3 * ADDRESSES_MAX as u32 {
            attempts.attempt(IpAddr::V4(n.into()), "x", now, || false);
        }
        assert!(attempts.addresses.lock().expect("no panic").len() <= ADDRESSES_MAX);
    }
}
