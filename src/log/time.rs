//! Reads `timestamptz` values that chrono cannot hold: infinity, and years outside its range. The driver's
//! own decoding panics on them. An event's time must be in the years 1970 to 9999, which every client can
//! hold. `outbox.event` has no check for that. The relay parks a row with any other time, and gives the
//! parked row a time that the check of `outbox.parked` allows.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgRow, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{ColumnIndex, Decode, Postgres, Row, Type};

/// 2000-01-01, the zero of Postgres's times, in microseconds since 1970.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Microseconds since 2000-01-01, in the full range of Postgres.
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
            PgValueFormat::Text => {
                Err("a time came as text, which no statement of this crate asks for".into())
            }
        }
    }
}

/// The end of 9999, in microseconds since 1970.
const LAST_MICROS: i64 = 253_402_300_799_999_999;

impl Micros {
    fn since_1970(&self) -> i64 {
        self.0.saturating_add(EPOCH_MICROS)
    }

    /// The time, if it is between 1970 and 9999.
    fn checked(&self) -> Option<DateTime<Utc>> {
        let micros = self.since_1970();
        (0..=LAST_MICROS).contains(&micros).then(|| at(micros))
    }

    fn clamped(&self) -> DateTime<Utc> {
        at(self.since_1970().clamp(0, LAST_MICROS))
    }
}

/// The time at `micros`, which must be from 0 to [`LAST_MICROS`], so that chrono can hold it.
fn at(micros: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::microseconds(micros)
}

/// Reads a time that must be between 1970 and 9999.
///
/// # Errors
/// Returns [`sqlx::Error::Decode`] if the time is infinite or outside those years, or the driver's error if
/// the column cannot be read.
pub(crate) fn exact(row: &PgRow, column: impl ColumnIndex<PgRow>) -> Result<DateTime<Utc>, sqlx::Error> {
    let micros: Micros = row.try_get(column)?;
    let refused = || sqlx::Error::Decode("it is infinite, or not in the years 1970 to 9999".into());
    micros.checked().ok_or_else(refused)
}

/// Reads a time to show. A time outside 1970 to 9999 becomes the first or the last one of that range.
///
/// # Errors
/// Returns the driver's error if the column cannot be read.
pub(crate) fn shown(row: &PgRow, column: &str) -> Result<DateTime<Utc>, sqlx::Error> {
    Ok(row.try_get::<Micros, _>(column)?.clamped())
}

/// As [`shown`], for a column that may be null.
///
/// # Errors
/// Returns the driver's error if the column cannot be read.
pub(crate) fn shown_if_any(row: &PgRow, column: &str) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    Ok(row.try_get::<Option<Micros>, _>(column)?.map(|micros| micros.clamped()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_client_can_hold_is_none_and_is_shown_as_the_first_or_last_one() {
        let text = |micros: i64| Micros(micros).checked().map(|at| at.to_rfc3339());
        assert_eq!(text(0).as_deref(), Some("2000-01-01T00:00:00+00:00"));
        for beyond in [i64::MAX, i64::MIN, -EPOCH_MICROS - 1, LAST_MICROS - EPOCH_MICROS + 1] {
            assert_eq!(text(beyond), None, "{beyond}");
        }
        assert_eq!(Micros(i64::MAX).clamped().to_rfc3339(), "9999-12-31T23:59:59.999999+00:00");
        assert_eq!(Micros(i64::MIN).clamped(), DateTime::UNIX_EPOCH);
    }
}
