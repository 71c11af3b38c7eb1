//! Times on the command line: RFC 3339, or a time ago.

use chrono::{DateTime, TimeDelta, Utc};

/// Parses `2026-01-31T10:00:00Z`, or `90s`, `15m`, `2h`, `3d` for a time that long ago.
pub(super) fn parse(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.with_timezone(&Utc));
    }
    ago(text).and_then(|ago| Utc::now().checked_sub_signed(ago)).ok_or_else(|| {
        format!("'{text}' is not a time: write 2026-01-31T10:00:00Z, or 90s, 15m, 2h or 3d for a time ago")
    })
}

fn ago(text: &str) -> Option<TimeDelta> {
    let (unit_at, unit) = text.char_indices().last()?;
    let number: i64 = text[..unit_at].parse().ok().filter(|n| *n >= 0)?;
    match unit {
        's' => TimeDelta::try_seconds(number),
        'm' => TimeDelta::try_minutes(number),
        'h' => TimeDelta::try_hours(number),
        'd' => TimeDelta::try_days(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_absolute_or_so_long_ago() {
        assert_eq!(parse("2026-01-31T10:00:00Z").expect("a time").timestamp(), 1_769_853_600);
        assert_eq!(ago("15m"), TimeDelta::try_minutes(15));
        assert_eq!(ago("3d"), TimeDelta::try_days(3));
        for bad in ["", "m", "-5m", "5", "5w", "9999999999999d", "yesterday", "5é"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
