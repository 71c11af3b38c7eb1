//! Finds the oldest pending event at a bounded cost.
//!
//! Rows of transactions that are open or rolled back are invisible, and yet an index scan walks over them:
//! five million of them before the oldest pending event would cost seconds. So only the first [`LOOKED_AT`]
//! row numbers after the position are looked at one by one. The rest is sampled.

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::{Error, time};

/// The number of row numbers after the position that are looked at one by one.
pub(super) const LOOKED_AT: i64 = 2000;
/// The number of samples of the row numbers after those, evenly spread up to the newest.
const SAMPLES: i64 = 32;
/// The number of row numbers in each sample.
const SAMPLE_WIDTH: i64 = 50;

/// The range that an event's time is clamped to, as SQL. `outbox.event` has no check for it, and subtracting
/// an infinite time or a far year fails.
const FIRST: &str = "'1970-01-01 00:00:00+00'::timestamptz";
const LAST: &str = "'9999-12-31 23:59:59+00'::timestamptz";

/// The oldest pending event of a position `p`, as SQL with the columns `created_at` and `id`. It looks at
/// late rows by their transactions, and then at the first row after the position. Every visible row after the
/// position is pending, because the position sees none of them.
pub(super) fn oldest() -> String {
    format!(
        "select greatest(least(w.created_at, {LAST}), {FIRST}) as created_at, w.id from (
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
             where (e.xid, e.id) > (ended.xid, 0::bigint)
               and (e.xid, e.id) <= (ended.xid, greatest(p.high_id, p.after_id))
             order by e.xid, e.id limit 1
           ) late
           union all
           -- Rows that came later with a delivered id: see `outbox.signs_of_contradiction`.
           select late.created_at, late.id
           from generate_series(
             p.lower_horizon::text::bigint,
             least(p.lower_horizon::text::bigint + 9::bigint,
                   pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1::bigint)) n
           cross join lateral (
             select e.created_at, e.id from outbox.event e
             where (e.xid, e.id) > (n::text::xid8, 0::bigint) and (e.xid, e.id) <= (n::text::xid8, p.high_id)
             order by e.xid, e.id limit 1
           ) late
           union all
           (
             select e.created_at, e.id from outbox.event e
             where e.id > greatest(p.high_id, p.after_id)
               and e.id <= greatest(p.high_id, p.after_id) + {LOOKED_AT}
             order by e.id limit 1
           )
         ) w
         order by w.id limit 1"
    )
}

/// Returns when the oldest event in the samples between two row numbers was appended, and its age in seconds.
///
/// # Errors
/// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if Postgres
/// refuses the statement or the connection breaks.
pub(super) async fn sampled(
    connection: &mut PgConnection,
    behind: i64,
    through: i64,
) -> Result<Option<(DateTime<Utc>, f64)>, Error> {
    let sql = format!(
        "select shown.created_at, extract(epoch from clock_timestamp() - shown.created_at)::float8 as waited
         from generate_series(1, $3::bigint) nth
         cross join lateral (select $1::bigint + ($2::bigint - $1) * nth / $3 as last_id) piece
         cross join lateral (
           select e.created_at, e.id from outbox.event e
           where e.id > piece.last_id - $4 and e.id <= piece.last_id
           order by e.id limit 1
         ) found
         cross join lateral (select greatest(least(found.created_at, {LAST}), {FIRST}) as created_at) shown
         order by found.id limit 1"
    );
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(behind)
        .bind(through)
        .bind(SAMPLES)
        .bind(SAMPLE_WIDTH)
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok((time::shown(&row, "created_at")?, row.try_get("waited")?))).transpose()
}
