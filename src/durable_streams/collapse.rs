//! `Stream-Cursor`: the number of the time interval, which clients send with their next live read. So caches
//! that answer several clients with one response never do it for longer than an interval.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::backoff::random_fraction;

/// 2024-10-09T00:00:00Z, where the protocol begins to count, in seconds since 1970.
const BEGIN: i64 = 1_728_432_000;
const INTERVAL: Duration = Duration::from_secs(20);
/// The longest jump over intervals to come: an hour of them.
const JUMP_MAX: f64 = 180.0;

/// The cursor of an answer at this time, always past the one that the client has sent.
pub(super) fn cursor(sent: Option<u64>, now: DateTime<Utc>) -> u64 {
    let current = u64::try_from(now.timestamp() - BEGIN).unwrap_or(0) / INTERVAL.as_secs();
    match sent {
        Some(sent) if sent >= current => {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 180")]
            let jump = (random_fraction() * JUMP_MAX) as u64 + 1;
            // No server gives a cursor so large that there is no larger one.
            sent.checked_add(jump).unwrap_or(current)
        }
        _ => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_counts_intervals_and_passes_the_one_that_was_sent() {
        let now = DateTime::from_timestamp(BEGIN + 2000, 0).expect("a time");
        assert_eq!(cursor(None, now), 100);
        assert_eq!(cursor(Some(99), now), 100);
        for sent in [100, 101, 5000] {
            assert!((sent + 1..=sent + 181).contains(&cursor(Some(sent), now)));
        }
        assert_eq!(cursor(Some(u64::MAX), now), 100);
    }
}
