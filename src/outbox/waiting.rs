//! What waits longest, at a cost that has a bound.
//!
//! Rows of transactions that are open or rolled back cannot be seen, and yet an index scan walks over them: five million of
//! them in front of the oldest event that waits would cost seconds. So no more than [`LOOKED_AT`] row numbers behind the
//! position are looked at one by one; behind that, samples spread over the rest.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use super::Error;

/// Row numbers behind the position that are looked at one by one.
pub(super) const LOOKED_AT: i64 = 2000;
/// Samples of the row numbers behind those, evenly spread up to the newest.
const SAMPLES: i64 = 32;
/// Row numbers in each sample.
const SAMPLE_WIDTH: i64 = 50;

/// The oldest event that waits, as columns `created_at` and `id`, for a position `p`: late ones by their transactions, then
/// the first behind the position. Everything visible behind it waits, as the position sees nothing of it.
pub(super) fn oldest() -> String {
    format!(
        "select w.created_at, w.id from (
           select late.created_at, late.id
           from outbox.ended_since(p.lower, p.lower_horizon) ended(xid)
           cross join lateral (
             select e.created_at, e.id from outbox.event e
             where (e.xid, e.id) > (ended.xid, case when p.upper is null then 0 else p.after_id end)
               and (e.xid, e.id) <= (ended.xid, p.high_id)
             order by e.xid, e.id limit 1
           ) late
           union all
           select late.created_at, late.id
           from outbox.ended_since(p.upper, p.upper_horizon) ended(xid)
           cross join lateral (
             select e.created_at, e.id from outbox.event e
             where (e.xid, e.id) > (ended.xid, 0::bigint) and (e.xid, e.id) <= (ended.xid, greatest(p.high_id, p.after_id))
             order by e.xid, e.id limit 1
           ) late
           union all
           (
             select e.created_at, e.id from outbox.event e
             where e.id > greatest(p.high_id, p.after_id) and e.id <= greatest(p.high_id, p.after_id) + {LOOKED_AT}
             order by e.id limit 1
           )
         ) w
         order by w.id limit 1"
    )
}

/// When the oldest event of the samples between two row numbers was appended, and how long it has waited in seconds.
///
/// # Errors
/// [`Error`].
pub(super) async fn sampled(
    connection: &mut PgConnection,
    behind: i64,
    through: i64,
) -> Result<Option<(DateTime<Utc>, f64)>, Error> {
    let row = sqlx::query(
        "select found.created_at, extract(epoch from clock_timestamp() - found.created_at)::float8 as waited
         from generate_series(1, $3) nth
         cross join lateral (select $1 + ($2 - $1) * nth / $3 as last_id) piece
         cross join lateral (
           select e.created_at, e.id from outbox.event e
           where e.id > piece.last_id - $4 and e.id <= piece.last_id
           order by e.id limit 1
         ) found
         order by found.id limit 1",
    )
    .bind(behind)
    .bind(through)
    .bind(SAMPLES)
    .bind(SAMPLE_WIDTH)
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok((row.try_get("created_at")?, row.try_get("waited")?))).transpose()
}
