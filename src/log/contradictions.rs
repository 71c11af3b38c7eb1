//! Looking for the rows that a position cannot stand beside.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::Error;
use super::contradiction::Contradiction;

/// Rows that are looked for.
pub(crate) const LOOKED_FOR: i64 = 10;

/// What tells that the log contradicts the position of `relay`, at a bounded cost: not every such row is found.
///
/// # Errors
/// [`Error`].
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

/// The rows that the position of `relay` cannot stand beside, a few of them. None where there is no position. Walks an index
/// of all that waits.
///
/// # Errors
/// [`Error`].
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
