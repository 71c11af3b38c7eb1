//! Numbers and epochs that go on after a rebase: positions that begin a new epoch, and rows and positions
//! in the transaction numbers of another cluster.

use sqlx::PgConnection;

use crate::log::position::{Position, Snapshot, Xid};
use crate::log::{Error, checkpoint};

/// The first xid that a cluster gives out (`FirstNormalTransactionId`).
const FIRST_XID: i64 = 3;
/// Relays that a log can have when it moves. Every combination of relays takes one xid, and a fresh cluster
/// has used up about seven hundred.
pub(super) const MAX_RELAYS: usize = 8;

/// What a rebase is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    /// The epoch in which this relay's numbers go on.
    pub epoch: u64,
    /// Whether this log is a copy beside its original, and becomes a log of its own.
    pub is_copy: bool,
}

/// Begins an epoch of this relay. In a copy, begins one of every relay, because the original goes on giving
/// out their numbers. The other relays need a rebase of their own if rows got new ids: their sinks may have
/// events that their positions do not know.
pub(super) async fn begin_epochs(
    tx: &mut PgConnection,
    relay: &str,
    contradicted: &[String],
    lineage: Lineage,
) -> Result<(), Error> {
    for name in relays(tx).await? {
        let is_own = name == relay;
        if !is_own && !lineage.is_copy {
            if !contradicted.is_empty() {
                needs_a_rebase(tx, &name, true).await?;
            }
            continue;
        }
        let Some(from) = checkpoint::newest(tx, &name).await? else { continue };
        let epoch = if is_own { lineage.epoch } else { from.epoch + 1 };
        checkpoint::insert(tx, &name, &from.rebased(epoch)).await?;
        may_have_arrived(tx, &name).await?;
        needs_a_rebase(tx, &name, false).await?;
    }
    Ok(())
}

/// Translates every row and every position into this cluster's numbers, and begins an epoch of this relay;
/// in a copy, of every relay. The other relays keep their numbers, and need a rebase of their own.
pub(super) async fn adopt(tx: &mut PgConnection, relay: &str, lineage: Lineage) -> Result<(), Error> {
    let relays = relays(tx).await?;
    // A row's number says which relays have delivered it: one bit for each, in the order of their names.
    sqlx::query(
        "with relay as (
           select p.*, row_number() over (order by p.relay)::int - 1 as bit from outbox.position p)
         update outbox.event e set xid = ($1 + coalesce((
           select sum(1 << p.bit) from relay p
           where outbox.is_delivered(e.id, e.xid, p.high_id, p.lower, p.after_id, p.upper)),
           0))::text::xid8",
    )
    .bind(FIRST_XID)
    .execute(&mut *tx)
    .await?;
    let adopted = adopted_positions(tx, &relays, relay, lineage).await?;
    // Older positions name transactions by the old cluster's numbers, which would be misread.
    sqlx::raw_sql("delete from outbox.checkpoint").execute(&mut *tx).await?;
    for (name, position) in &adopted {
        checkpoint::insert(tx, name, position).await?;
        may_have_arrived(tx, name).await?;
        needs_a_rebase(tx, name, *name != relay && !lineage.is_copy).await?;
        // A replay that was interrupted goes on with the events that have been delivered by now, up to
        // its last row.
        sqlx::query(
            "update outbox.replay set lower = $2::text::pg_snapshot, upper = null
             where relay = $1 and not finished",
        )
        .bind(name)
        .bind(&position.lower.0)
        .execute(&mut *tx)
        .await?;
    }
    sqlx::raw_sql(
        "update outbox.log l set system_identifier = c.system_identifier, database_oid = d.oid
         from pg_control_system() c, pg_database d where d.datname = current_database()",
    )
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Each relay's position in this cluster's numbers.
async fn adopted_positions<'r>(
    tx: &mut PgConnection,
    relays: &'r [String],
    own: &str,
    lineage: Lineage,
) -> Result<Vec<(&'r str, Position)>, Error> {
    let high_id: i64 =
        sqlx::query_scalar("select coalesce(max(id), 0) from outbox.event").fetch_one(&mut *tx).await?;
    let mut adopted = Vec::new();
    for (bit, relay) in relays.iter().enumerate() {
        let Some(from) = checkpoint::newest(tx, relay).await? else { continue };
        let begun = match relay == own {
            true => from.rebased(lineage.epoch),
            false if lineage.is_copy => from.rebased(from.epoch + 1),
            false => from,
        };
        let (lower, lower_horizon) = sees_bit(bit, relays.len());
        let position = Position { lower, lower_horizon, high_id, window: None, ..begun };
        adopted.push((relay.as_str(), position));
    }
    Ok(adopted)
}

/// Writes whether this relay needs a rebase of its own before it delivers anything.
async fn needs_a_rebase(tx: &mut PgConnection, relay: &str, is_needed: bool) -> Result<(), Error> {
    sqlx::query("update outbox.relay set rebase_needed = $2 where name = $1")
        .bind(relay)
        .bind(is_needed)
        .execute(tx)
        .await?;
    Ok(())
}

/// Writes down that clients may have received every event of the log, also the parked ones: in the time that
/// this log has lost, or in an epoch whose end it did not see. Redis can prove that only for the events that
/// it still has. Later rows have higher ids.
async fn may_have_arrived(tx: &mut PgConnection, relay: &str) -> Result<(), Error> {
    sqlx::query(
        "update outbox.relay set rebased_id = (select coalesce(max(e.id), 0) from outbox.event e)
         where name = $1",
    )
    .bind(relay)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "update outbox.parked set may_have_arrived = true
         where relay = $1 and settled_as is null and not may_have_arrived",
    )
    .bind(relay)
    .execute(tx)
    .await?;
    Ok(())
}

/// The snapshot that sees only the numbers in which this bit is set, and the horizon above all of them.
fn sees_bit(bit: usize, bits: usize) -> (Snapshot, Xid) {
    let end = FIRST_XID + (1 << bits);
    let unseen: Vec<String> = (0..1_i64 << bits)
        .filter(|mask| mask & (1 << bit) == 0)
        .map(|mask| (FIRST_XID + mask).to_string())
        .collect();
    (Snapshot(format!("{FIRST_XID}:{end}:{}", unseen.join(","))), Xid(end.to_string()))
}

/// All relays that have a position, by name, in the order that `order by` gives them.
pub(super) async fn relays(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    Ok(sqlx::query_scalar("select relay from outbox.position order by relay").fetch_all(connection).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relays_snapshot_sees_the_numbers_of_what_it_has_delivered() {
        let text = |bit, bits| {
            let (snapshot, horizon) = sees_bit(bit, bits);
            (snapshot.to_string(), horizon.to_string())
        };
        assert_eq!(text(0, 1), ("3:5:3".to_owned(), "5".to_owned()));
        // Of two relays' four combinations: none, the first, the second, both.
        assert_eq!(text(0, 2), ("3:7:3,5".to_owned(), "7".to_owned()));
        assert_eq!(text(1, 2), ("3:7:3,4".to_owned(), "7".to_owned()));
    }
}
