//! Reading a `timestamptz`, of which Postgres knows more than chrono does: infinity, and years that chrono cannot hold.
//! The driver's own decoding panics there. The log's checks keep to the years 1970 to 9999, which every client can hold.

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

    /// Those between 1970 and 9999.
    fn checked(&self) -> Option<DateTime<Utc>> {
        let micros = self.since_1970();
        (0..=LAST_MICROS).contains(&micros).then(|| at(micros))
    }

    fn clamped(&self) -> DateTime<Utc> {
        at(self.since_1970().clamp(0, LAST_MICROS))
    }
}

/// A number of microseconds from 0 to [`LAST_MICROS`], which chrono can hold.
fn at(micros: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::microseconds(micros)
}

/// A time that must be one.
///
/// # Errors
/// That it is infinite or outside those years, or the driver's.
pub(crate) fn exact(row: &PgRow, column: &str) -> Result<DateTime<Utc>, sqlx::Error> {
    let micros: Micros = row.try_get(column)?;
    let refused = || sqlx::Error::Decode("it is infinite, or not in the years 1970 to 9999".into());
    micros.checked().ok_or_else(refused)
}

/// A time to be shown: the first or the last one of those years stands for all beyond.
///
/// # Errors
/// The driver's.
pub(crate) fn shown(row: &PgRow, column: &str) -> Result<DateTime<Utc>, sqlx::Error> {
    Ok(row.try_get::<Micros, _>(column)?.clamped())
}

/// [`shown`], where there may be none.
///
/// # Errors
/// The driver's.
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
