//! Finds rows that contradict a position.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::Error;
use super::contradiction::Contradiction;

/// The most rows that a search returns.
pub(crate) const LOOKED_FOR: i64 = 10;

/// Returns signs that the log contradicts the position of `relay`. The cost is bounded, so the search can
/// miss rows.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn signs(connection: &mut PgConnection, relay: &str) -> Result<Vec<Contradiction>, Error> {
    find(
        connection,
        relay,
        "select x.row_id, x.cause
         from outbox.position p
         cross join lateral outbox.signs_of_contradiction(p.lower_horizon, p.high_id, $2) x
         where p.relay = $1",
    )
    .await
}

/// Returns a few of the rows that contradict the position of `relay`, or none if it has no position. Walks
/// the index over all pending rows.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub async fn of_relay(connection: &mut PgConnection, relay: &str) -> Result<Vec<Contradiction>, Error> {
    let mut found = find(
        connection,
        relay,
        "select x.row_id, x.cause
         from outbox.position p
         cross join lateral outbox.contradictions(p.lower_horizon, p.high_id, $2) x
         where p.relay = $1",
    )
    .await?;
    if found.is_empty() {
        found = signs(connection, relay).await?;
    }
    Ok(found)
}

async fn find(
    connection: &mut PgConnection,
    relay: &str,
    sql: &'static str,
) -> Result<Vec<Contradiction>, Error> {
    let rows = sqlx::query(sql).bind(relay).bind(LOOKED_FOR).fetch_all(connection).await?;
    rows.iter().map(of_row).collect()
}

fn of_row(row: &PgRow) -> Result<Contradiction, Error> {
    Ok(Contradiction::of(row.try_get("row_id")?, row.try_get("cause")?))
}
