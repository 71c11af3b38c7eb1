//! Finding the rows that were appended to a log after it was moved to another cluster.
//!
//! Logical replication moves rows and no sequences. So the sequence begins again in the new cluster, and the
//! positions call its ids delivered. The checkpoints that moved tell the rows apart: an id that a checkpoint
//! calls delivered was taken before that checkpoint was written, by a transaction that had begun by then. So
//! a row of that id that was created later is another row, and was appended after the move.

use sqlx::PgConnection;

use crate::log::Error;
use crate::log::contradiction::Contradiction;
use crate::log::contradictions::LOOKED_FOR;

/// Marks the rows that are to get new ids, in `pg_temp.renumbered`:
///
/// - a row that was created after the oldest checkpoint that calls its id delivered (`known_at`). One
///   checkpoint for each second is enough, and keeps the list short.
/// - of two rows with one delivered id: the row that its own transaction has inserted, if another transaction
///   has inserted the other one, as replication does. It helps where the clocks of the clusters differ.
/// - of two rows with one id that is not delivered: the younger one.
/// - further rows with ids that are not delivered, from the time on at which the first of these was created:
///   they come after rows that waited before the move. The sequence has come to their ids.
///
/// Arrays are looked up in by halving. They are values of the whole statement, because a join would copy them
/// into every row.
const MARK: &str = "
  with checkpoint as (
    select distinct on (c.relay, date_trunc('second', c.created_at))
           greatest(c.high_id, c.after_id) as id, c.created_at
    from outbox.checkpoint c
    order by c.relay, date_trunc('second', c.created_at), c.n desc
  ), delivered as materialized (
    select array_agg(d.id order by d.id) as ids, array_agg(d.known_at order by d.id) as known_at
    from (select distinct c.id, min(c.created_at) over (order by c.id desc) as known_at from checkpoint c) d
  ), examined as (
    select e.tableoid as part, e.ctid as place, e.id, e.xid, e.event_id, e.created_at,
           e.xmin::text::bigint = (e.xid::text::bigint & 4294967295) as is_own,
           (select d.known_at from delivered d)[
             width_bucket(e.id - 1::bigint, (select d.ids from delivered d)) + 1] as known_at
    from outbox.event e
  ), compared as (
    select x.*, row_number() over (partition by x.id order by x.created_at, x.is_own, x.event_id) as nth,
           bool_or(x.is_own) over (partition by x.id) and not bool_and(x.is_own) over (partition by x.id)
             as one_is_own
    from examined x
  ), judged as (
    select c.*, case when c.known_at is null then c.nth > 1
                     else c.created_at > c.known_at or c.is_own and c.one_is_own end as is_later
    from compared c
  )
  insert into pg_temp.renumbered (part, place, old_id, xid, event_id)
  select r.part, r.place, r.id, r.xid, r.event_id
  from (select j.*, min(j.created_at) filter (where j.is_later) over () as first_at from judged j) r
  cross join outbox.event_id_seq taken
  where r.is_later
     or r.known_at is null and r.created_at >= r.first_at
        and r.id < taken.last_value + case when taken.is_called then 1 else 0 end";

/// Marks the rows that were appended after the move and that the positions contradict. Returns their number.
pub(super) async fn mark(connection: &mut PgConnection) -> Result<u64, Error> {
    Ok(sqlx::query(MARK).execute(connection).await?.rows_affected())
}

/// Some of the marked rows.
pub(super) async fn marked(connection: &mut PgConnection) -> Result<Vec<Contradiction>, Error> {
    let ids: Vec<i64> = sqlx::query_scalar("select old_id from pg_temp.renumbered order by old_id limit $1")
        .bind(LOOKED_FOR)
        .fetch_all(connection)
        .await?;
    Ok(ids.into_iter().map(|id| Contradiction::of(id, "behind")).collect())
}

/// The lowest id that two rows have which keep it.
pub(super) async fn undecided(connection: &mut PgConnection) -> Result<Option<i64>, Error> {
    let sql = "
        select e.id from outbox.event e
        where not exists (
          select from pg_temp.renumbered r where r.part = e.tableoid and r.place = e.ctid)
        group by e.id having count(*) > 1 order by e.id limit 1";
    Ok(sqlx::query_scalar(sql).fetch_optional(connection).await?)
}
