//! Giving rows that contradict a position new ids above those of all delivered rows, in order.
//!
//! This runs only within a rebase, whose lock keeps appends and relays away.

use sqlx::PgConnection;

use crate::log::Error;
use crate::log::contradiction::Contradiction;
use crate::log::contradictions::LOOKED_FOR;

/// Whether Redis has the row `e` from the relay of the position `p`, as SQL: by that position, or because an
/// earlier rebase has found it there.
pub(super) const IN_REDIS: &str = "
  (outbox.is_delivered(e.id, e.xid, p.high_id, p.lower, p.after_id, p.upper)
   or exists (
     select from outbox.delivered_before d
     where d.relay = p.relay and (d.id, d.event_id) = (e.id, e.event_id)))";

/// Rows of one id of which the relay has not delivered one.
pub(super) async fn twice(connection: &mut PgConnection, relay: &str) -> Result<Vec<Contradiction>, Error> {
    let sql = format!(
        "select e.id from outbox.event e join outbox.position p on p.relay = $1
         group by e.id having count(*) > 1 and not bool_and({IN_REDIS}) order by e.id limit $2"
    );
    let ids: Vec<i64> = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(relay)
        .bind(LOOKED_FOR)
        .fetch_all(connection)
        .await?;
    Ok(ids.into_iter().map(|id| Contradiction::of(id, "twice")).collect())
}

/// Rows that were appended after the open window, with ids that will be delivered by its end. The relay has
/// no reason to refuse them before that.
pub(super) async fn behind_the_window(
    connection: &mut PgConnection,
    relay: &str,
) -> Result<Vec<Contradiction>, Error> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "select e.id
         from outbox.position p
         cross join lateral (
           select max(w.id) as last_id from outbox.event w where pg_visible_in_snapshot(w.xid, p.upper)
         ) open_window
         join outbox.event e on e.xid >= p.upper_horizon and e.id <= open_window.last_id
         where p.relay = $1
         order by e.id limit $2",
    )
    .bind(relay)
    .bind(LOOKED_FOR)
    .fetch_all(connection)
    .await?;
    Ok(ids.into_iter().map(|id| Contradiction::of(id, "behind")).collect())
}

/// Gives new ids and this transaction's xid to the rows that one of these relays has not delivered, so that
/// they are new to every relay. If another relay has delivered such a row, that is written down.
pub(super) async fn undelivered(connection: &mut PgConnection, relays: &[String]) -> Result<(), Error> {
    let sql = format!(
        "insert into pg_temp.renumbered (part, place, old_id, xid, event_id)
         select e.tableoid, e.ctid, e.id, e.xid, e.event_id
         from outbox.event e
         where exists (select from outbox.position p where p.relay = any ($1) and not {IN_REDIS})"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(relays).execute(&mut *connection).await?;
    number(connection, Order::BySequenceRun).await?;
    let sql = format!(
        "insert into outbox.delivered_before (relay, id, event_id)
         select p.relay, r.new_id, r.event_id
         from pg_temp.renumbered r
         join outbox.event e on e.tableoid = r.part and e.ctid = r.place
         join outbox.position p on {IN_REDIS}
         on conflict do nothing"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *connection).await?;
    apply(connection, "pg_current_xact_id()").await
}

/// Gives new ids to the rows that are marked as appended after the log was moved (see [`super::moved`]).
pub(super) async fn appended_since_the_move(connection: &mut PgConnection) -> Result<(), Error> {
    number(connection, Order::ById).await?;
    // These rows have xids of this cluster. The rebase replaces every xid afterwards.
    apply(connection, "e.xid").await
}

/// Moves the sequence above every id of the log.
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

/// Moves the sequences of the tables of operators above the rows that are there: logical replication moves
/// rows and no sequences.
pub(super) async fn raise_identities(connection: &mut PgConnection) -> Result<(), Error> {
    for sql in [
        "select setval('outbox.audit_id_seq', a.id) from (select max(id) as id from outbox.audit) a
         cross join outbox.audit_id_seq s where a.id >= s.last_value",
        "select setval('outbox.replay_id_seq', r.id) from (select max(id) as id from outbox.replay) r
         cross join outbox.replay_id_seq s where r.id >= s.last_value",
    ] {
        sqlx::query(sql).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Makes the list of the rows that get new ids.
pub(super) async fn begin(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::raw_sql(
        "create temporary table renumbered (
           part oid, place tid, old_id bigint, xid xid8, event_id uuid, new_id bigint,
           primary key (part, place)) on commit drop",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// How rows are ordered that get new ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// One sequence has given their ids, and went one way.
    ById,
    /// The sequence was set back between them.
    BySequenceRun,
}

/// What tells, as SQL, that a row was appended after the sequence was set back: the sequence has come to its
/// id again, and its transaction is newer than all rows that are older for certain. These have ids that the
/// sequence has not come to again, or ids that it has given to a newer row. Where there are none, a row is
/// newer than a position that calls its id delivered, or that has a window open over higher ids.
///
/// If a transaction was under way when the sequence was set back, nothing tells which rows it appended before
/// that and which after.
const APPENDED_AFTER: &str = "
  with delivered as materialized (
    select p.high_id, p.lower_horizon, p.upper_horizon, (
             select max(w.old_id) from pg_temp.renumbered w
             where pg_visible_in_snapshot(w.xid, p.upper)) as window_id
    from outbox.position p
  )
  select r.part, r.place, r.old_id, r.old_id <= sequence.id and r.xid >= run.first_xid as is_after
  from pg_temp.renumbered r
  cross join (select last_value as id from outbox.event_id_seq) sequence
  left join lateral (
    select n.xid as newest
    from (
      select k.xid, k.old_id,
             first_value(k.xid) over (partition by k.old_id order by k.xid desc) as newest_of_id
      from pg_temp.renumbered k
    ) n
    where n.old_id > sequence.id or n.xid < n.newest_of_id
    order by n.xid desc limit 1
  ) older on true
  left join lateral (
    select k.xid as first_xid
    from pg_temp.renumbered k
    where k.old_id <= sequence.id
      and case when older.newest is not null then k.xid > older.newest
               else exists (
                 select from delivered p
                 where k.old_id <= p.high_id and k.xid >= p.lower_horizon
                    or k.old_id <= p.window_id and k.xid >= p.upper_horizon) end
    order by k.xid limit 1
  ) run on true";

/// Chooses the new ids: above all ids that are kept, in the order of the old ones; those that the sequence
/// gave before it was set back come before those that it gave afterwards.
async fn number(connection: &mut PgConnection, order: Order) -> Result<(), Error> {
    let rows = match order {
        Order::ById => "select part, place, old_id, false as is_after from pg_temp.renumbered",
        Order::BySequenceRun => APPENDED_AFTER,
    };
    let sql = format!(
        "update pg_temp.renumbered r set new_id = base.id + ordered.place
         from (
           select part, place as at, row_number() over (order by coalesce(is_after, false), old_id) as place
           from ({rows}) as known
         ) ordered
         cross join (
           select greatest(
             (select case when is_called then last_value else 0 end from outbox.event_id_seq),
             (select max(greatest(high_id, after_id)) from outbox.position),
             (select max(e.id) from outbox.event e
              where not exists (
                select from pg_temp.renumbered k where k.part = e.tableoid and k.place = e.ctid)), 0) as id
         ) base
         where r.part = ordered.part and r.place = ordered.at",
    );
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// Widens the range of ids in which a replay looks for its copies, so that copies with new ids still count as
/// copies. It comes before the rows change, because it finds them at their old places.
const COPIES: &str = "
  with moved as (
    select r.id, min(n.new_id) as first_id, max(n.new_id) as last_id
    from pg_temp.renumbered n
    join outbox.event e on e.tableoid = n.part and e.ctid = n.place
    join outbox.replay r on n.old_id between r.first_copy and r.last_copy
      and e.headers->'replay' @> jsonb_build_object('replay', r.id)
    group by r.id
  )
  update outbox.replay r
  set first_copy = least(r.first_copy, m.first_id), last_copy = greatest(r.last_copy, m.last_id)
  from moved m where r.id = m.id";

/// Writes the new ids into the log and wherever rows are named.
async fn apply(connection: &mut PgConnection, xid: &str) -> Result<(), Error> {
    let event = format!(
        "update outbox.event e set id = r.new_id, xid = {xid}
         from pg_temp.renumbered r where e.tableoid = r.part and e.ctid = r.place"
    );
    let parked = "update outbox.parked k set id = r.new_id
         from pg_temp.renumbered r where k.id = r.old_id and k.event_id = r.event_id";
    // A row that may have arrived at a relay's clients may have arrived under its new id too.
    let rebased = "update outbox.relay set rebased_id = (select max(e.id) from outbox.event e)
         where rebased_id > 0 and exists (select from pg_temp.renumbered)";
    for sql in [COPIES, &event, parked, rebased, "drop table pg_temp.renumbered"] {
        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await?;
    }
    Ok(())
}
