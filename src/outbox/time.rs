//! Reading a `timestamptz`, of which Postgres knows more than chrono does: infinity, and years that chrono cannot hold.
//! The driver's own decoding panics there.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgRow, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Postgres, Row, Type};

/// 2000-01-01, from which Postgres counts, in microseconds since 1970.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Microseconds since 2000-01-01, whatever they are.
struct Micros(i64);

impl Type<Postgres> for Micros {
    fn type_info() -> PgTypeInfo {
        <DateTime<Utc> as Type<Postgres>>::type_info()
    }
}

impl Decode<'_, Postgres> for Micros {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => Ok(Self(i64::from_be_bytes(value.as_bytes()?.try_into()?))),
            PgValueFormat::Text => Err("a time came as text, which no statement of this crate asks for".into()),
        }
    }
}

impl Micros {
    fn checked(&self) -> Option<DateTime<Utc>> {
        let since_1970 = self.0.checked_add(EPOCH_MICROS)?;
        DateTime::UNIX_EPOCH.checked_add_signed(TimeDelta::microseconds(since_1970))
    }
}

/// A time that must be one.
///
/// # Errors
/// That it is infinite or outside what chrono can hold, or the driver's.
pub(super) fn exact(row: &PgRow, column: &str) -> Result<DateTime<Utc>, sqlx::Error> {
    let micros: Micros = row.try_get(column)?;
    let refused = || sqlx::Error::Decode("it is infinite, or in a year that no client can hold".into());
    micros.checked().ok_or_else(refused)
}

/// A time to be shown: the first or the last one that chrono can hold stands for all beyond.
///
/// # Errors
/// The driver's.
pub(super) fn shown(row: &PgRow, column: &str) -> Result<DateTime<Utc>, sqlx::Error> {
    Ok(saturated(&row.try_get(column)?))
}

/// [`shown`], where there may be none.
///
/// # Errors
/// The driver's.
pub(super) fn shown_if_any(row: &PgRow, column: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    Ok(row.try_get::<Option<Micros>, _>(column)?.as_ref().map(saturated))
}

fn saturated(micros: &Micros) -> DateTime<Utc> {
    let edge = if micros.0 < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    micros.checked().unwrap_or(edge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_chrono_cannot_hold_is_no_time_and_is_shown_as_the_last_one() {
        assert_eq!(Micros(0).checked().map(|at| at.to_rfc3339()), Some("2000-01-01T00:00:00+00:00".to_owned()));
        for beyond in [i64::MAX, i64::MIN, 9_224_318_015_999_999_999] {
            assert_eq!(Micros(beyond).checked(), None, "{beyond}");
        }
        assert_eq!(saturated(&Micros(i64::MAX)), DateTime::<Utc>::MAX_UTC);
        assert_eq!(saturated(&Micros(i64::MIN)), DateTime::<Utc>::MIN_UTC);
    }
}
