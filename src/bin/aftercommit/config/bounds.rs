//! Bounds of all numbers. A 0 that would stop a loop, and a time that no clock can represent, are refused
//! before a process starts. The bounds hold for every setting, not only for settings with a check of their
//! own.

use toml::{Table, Value};

use super::Problem;

/// Settings that may be 0. It means "none", "at once" or "unlimited", as their comments in
/// `config/default.toml` say.
const MAY_BE_ZERO: [&str; 10] = [
    "relay.idle_interval_ms",
    "redis.min_replicas",
    "sse.max_connections_per_user",
    "sse.recent_events",
    "sse.recent_bytes",
    "sse.topic_grace_seconds",
    "sse.repair_wait_ms",
    "sse.drain_seconds",
    "jwt.leeway_seconds",
    "jwt.ticket_seconds",
];

/// Settings below which a stream could not go on: there would be no room for an event, or for a page of a
/// history.
const SMALLEST: [(&str, i64); 2] =
    [("sse.max_queued_bytes", 16 * 1024), ("sse.max_held_bytes", 16 * 1024 * 1024)];

/// The largest value of a setting by its unit, which is the suffix of its name: ten years, one day, one
/// tebibyte, or a number that fits every type.
const LARGEST: [(&str, i64); 4] =
    [("_seconds", 315_360_000), ("_ms", 86_400_000), ("_bytes", 1 << 40), ("", i32::MAX as i64)];

/// A problem for each integer that is out of bounds.
pub(super) fn check(table: &Table) -> Vec<Problem> {
    let settings = table.iter().flat_map(|(section, keys)| {
        let keys = keys.as_table().into_iter().flatten();
        keys.map(move |(key, value)| (format!("{section}.{key}"), value))
    });
    settings
        .filter_map(|(setting, value)| {
            let Value::Integer(number) = value else { return None };
            let own = SMALLEST.iter().find(|(name, _)| *name == setting).map(|(_, smallest)| *smallest);
            let smallest = own.unwrap_or(i64::from(!MAY_BE_ZERO.contains(&setting.as_str())));
            let largest =
                LARGEST.iter().find(|(unit, _)| setting.ends_with(unit)).map_or(i64::MAX, |(_, n)| *n);
            (!(smallest..=largest).contains(number)).then(|| {
                Problem::new(format!(
                    "{setting} is {number}: it must be at least {smallest} and at most {largest}"
                ))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DEFAULT_TOML;

    #[test]
    fn what_may_be_zero_or_has_a_bound_of_its_own_is_a_setting() {
        let table: Table = DEFAULT_TOML.parse().expect("defaults");
        for setting in MAY_BE_ZERO.into_iter().chain(SMALLEST.map(|(setting, _)| setting)) {
            let (section, key) = setting.split_once('.').expect("a section and a key");
            assert!(table[section].get(key).is_some_and(Value::is_integer), "{setting}");
        }
    }

    #[test]
    fn a_number_that_cannot_be_meant_is_named_with_its_bounds() {
        for (text, problem) in [
            (
                "[sse]\nheartbeat_seconds = 0",
                "sse.heartbeat_seconds is 0: it must be at least 1 and at most 315360000",
            ),
            (
                "[sse]\nmax_connections = -1",
                "sse.max_connections is -1: it must be at least 1 and at most 2147483647",
            ),
            (
                "[sse]\nmax_queued_bytes = 5000",
                "sse.max_queued_bytes is 5000: it must be at least 16384 and at most 1099511627776",
            ),
            ("[relay]\npoll_interval_ms = 9223372036854775807", "it must be at least 1 and at most 86400000"),
        ] {
            let problems = check(&text.parse().expect("TOML"));
            assert_eq!(problems.len(), 1);
            assert!(problems[0].text.contains(problem), "{problems:?}");
        }
        assert_eq!(check(&DEFAULT_TOML.parse().expect("defaults")), []);
        assert_eq!(check(&"[sse]\ndrain_seconds = 0".parse().expect("TOML")), []);
    }
}
