//! Slows down whoever guesses the token.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong tokens that one address may send before it has to wait.
const FREE: u32 = 5;
/// How long until one more may be sent.
const REGAINED_AFTER: Duration = Duration::from_secs(10);
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 1024;

/// Wrong tokens of late, by address.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<IpAddr, Failures>>);

/// One address's wrong tokens: so many at a time, one fewer after each [`REGAINED_AFTER`].
#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    counted: Instant,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    Right,
    Wrong,
    /// It was not looked at: too many were wrong. Try again after this time.
    TooMany(Duration),
}

impl Attempts {
    /// Looks at a token, unless this address has sent too many wrong ones. A right one is refused then as well: otherwise
    /// guessing would cost nothing. One at a time, so that guesses in parallel are counted too.
    pub(super) fn attempt(&self, from: IpAddr, now: Instant, is_right: impl FnOnce() -> bool) -> Attempt {
        let mut addresses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures =
            addresses.get(&from).map_or(Failures { count: 0, counted: now }, |known| known.at(now));
        if failures.count >= FREE {
            return Attempt::TooMany(failures.counted + REGAINED_AFTER - now);
        }
        if is_right() {
            return Attempt::Right;
        }
        make_room(&mut addresses, now);
        addresses.insert(from, Failures { count: failures.count + 1, ..failures });
        Attempt::Wrong
    }
}

impl Failures {
    fn at(self, now: Instant) -> Self {
        let regained = now.saturating_duration_since(self.counted).as_secs() / REGAINED_AFTER.as_secs();
        match u32::try_from(regained) {
            Ok(regained) if regained < self.count => {
                Self { count: self.count - regained, counted: self.counted + REGAINED_AFTER * regained }
            }
            _ => Self { count: 0, counted: now },
        }
    }
}

fn make_room(addresses: &mut HashMap<IpAddr, Failures>, now: Instant) {
    if addresses.len() < ADDRESSES_MAX {
        return;
    }
    addresses.retain(|_, failures| failures.at(now).count > 0);
    let oldest = addresses.iter().min_by_key(|(_, failures)| failures.counted).map(|(address, _)| *address);
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
    fn who_guesses_has_to_wait_and_then_regains_one_attempt_at_a_time() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for _ in 0..FREE {
            assert_eq!(attempts.attempt(HOME, at(0), || false), Attempt::Wrong);
        }
        let refused = attempts.attempt(HOME, at(4), || panic!("it is not looked at"));
        assert_eq!(refused, Attempt::TooMany(Duration::from_secs(6)));
        assert_eq!(attempts.attempt(ELSEWHERE, at(4), || true), Attempt::Right);
        assert_eq!(attempts.attempt(HOME, at(10), || false), Attempt::Wrong);
        assert_eq!(attempts.attempt(HOME, at(11), || true), Attempt::TooMany(Duration::from_secs(9)));
        assert_eq!(attempts.attempt(HOME, at(20), || true), Attempt::Right);
        for _ in 0..FREE {
            assert_eq!(attempts.attempt(HOME, at(1000), || false), Attempt::Wrong);
        }
    }

    #[test]
    fn many_addresses_take_bounded_room() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..3 * ADDRESSES_MAX as u32 {
            attempts.attempt(IpAddr::V4(n.into()), now, || false);
        }
        assert!(attempts.0.lock().expect("no panic").len() <= ADDRESSES_MAX);
    }
}
