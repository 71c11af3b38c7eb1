//! Giving rows new ids behind everything that is delivered, in order: for rows that a position cannot stand beside.
//!
//! Only within a rebase, whose lock keeps appends and relays away.

use sqlx::PgConnection;

use super::Error;
use super::contradiction::Contradiction;
use super::contradictions::LOOKED_FOR;

/// Whether the relay of the position `p` has delivered the row `e`, as SQL.
const DELIVERED: &str = "
  ((e.id <= p.high_id and pg_visible_in_snapshot(e.xid, p.lower))
   or coalesce(e.id <= p.after_id and pg_visible_in_snapshot(e.xid, p.upper), false)
   or exists (select from outbox.delivered_before d where d.relay = p.relay and d.id = e.id))";

/// Rows of one id of which the relay has not delivered one.
pub(super) async fn twice(connection: &mut PgConnection, relay: &str) -> Result<Vec<Contradiction>, Error> {
    let sql = format!(
        "select e.id from outbox.event e join outbox.position p on p.relay = $1
         group by e.id having count(*) > 1 and not bool_and({DELIVERED}) order by e.id limit $2"
    );
    let ids: Vec<i64> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(relay)
        .bind(LOOKED_FOR)
        .fetch_all(connection)
        .await?;
    Ok(ids.into_iter().map(|id| Contradiction::of(id, "twice")).collect())
}

/// Gives what one of these relays has not delivered new ids and this transaction's xid, so that it is new to every relay. A
/// relay that has delivered such a row all the same is told so.
pub(super) async fn undelivered(connection: &mut PgConnection, relays: &[String]) -> Result<(), Error> {
    let sql = format!(
        "insert into pg_temp.renumbered (part, place, old_id, xid, event_id)
         select e.tableoid, e.ctid, e.id, e.xid, e.event_id
         from outbox.event e
         where exists (select from outbox.position p where p.relay = any ($1) and not {DELIVERED})"
    );
    begin(connection).await?;
    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(relays).execute(&mut *connection).await?;
    number(connection).await?;
    let sql = format!(
        "insert into outbox.delivered_before (relay, id)
         select p.relay, r.new_id
         from pg_temp.renumbered r
         join outbox.event e on e.tableoid = r.part and e.ctid = r.place
         join outbox.position p on {DELIVERED}
         on conflict do nothing"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *connection).await?;
    apply(connection, "pg_current_xact_id()").await
}

/// Gives new ids to what was appended after the log was moved, where its sequence was not moved with it: those rows have ids
/// that the positions call delivered. Known by their time, as nothing else tells them from older ones.
pub(super) async fn appended_since_the_move(connection: &mut PgConnection) -> Result<(), Error> {
    begin(connection).await?;
    sqlx::query(
        "insert into pg_temp.renumbered (part, place, old_id, xid, event_id)
         select e.tableoid, e.ctid, e.id, e.xid, e.event_id
         from outbox.event e
         cross join (select case when is_called then last_value else last_value - 1::bigint end as id from outbox.event_id_seq) taken
         cross join (select max(high_id) as id, max(created_at) as moved_at from outbox.position) delivered
         where taken.id < delivered.id and e.id <= taken.id and e.created_at > delivered.moved_at",
    )
    .execute(&mut *connection)
    .await?;
    number(connection).await?;
    // Their xids are this cluster's, which the rebase replaces by what is delivered.
    apply(connection, "e.xid").await
}

/// Moves the sequence behind everything that has an id.
pub(super) async fn raise_sequence(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(
        "select setval('outbox.event_id_seq', greatest(
           (select last_value from outbox.event_id_seq), (select max(id) from outbox.event),
           (select max(greatest(high_id, after_id)) from outbox.position), 1))",
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn begin(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::raw_sql(
        "create temporary table renumbered (
           part oid, place tid, old_id bigint, xid xid8, event_id uuid, new_id bigint) on commit drop",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Chooses the new ids: behind all that keep theirs, in the order of the old ones; or, where the sequence has given some
/// twice, in the order of their transactions, which is as near as one can come to it then.
async fn number(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(
        "update pg_temp.renumbered r set new_id = base.id + ordered.place
         from (
           select part, place as at,
                  row_number() over (order by case when exists (
                    select from pg_temp.renumbered group by old_id having count(*) > 1) then xid end, old_id) as place
           from pg_temp.renumbered
         ) ordered
         cross join (
           select greatest(
             (select case when is_called then last_value else 0 end from outbox.event_id_seq),
             (select max(greatest(high_id, after_id)) from outbox.position),
             (select max(e.id) from outbox.event e
              where not exists (select from pg_temp.renumbered k where k.part = e.tableoid and k.place = e.ctid)), 0) as id
         ) base
         where r.part = ordered.part and r.place = ordered.at",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes the new ids into the log and wherever rows are named.
async fn apply(connection: &mut PgConnection, xid: &str) -> Result<(), Error> {
    let event = format!(
        "update outbox.event e set id = r.new_id, xid = {xid}
         from pg_temp.renumbered r where e.tableoid = r.part and e.ctid = r.place"
    );
    let parked = "update outbox.parked k set id = r.new_id
         from pg_temp.renumbered r where k.id = r.old_id and k.event_id = r.event_id";
    for sql in [event, parked.to_owned(), "drop table pg_temp.renumbered".to_owned()] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    Ok(())
}
