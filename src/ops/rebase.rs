//! Rebase: giving a log a new lineage of numbers after Postgres was restored or moved.
//!
//! What can have happened:
//!
//! - **The same cluster went back** (a point-in-time restore, a failover that lost commits). Positions and
//!   transaction numbers still fit each other, but Redis has numbers that this Postgres would give to other
//!   events. A higher epoch puts every new number above them.
//! - **The log is in another database** (dump and restore, logical replication, a copy). Transaction numbers of the
//!   old cluster mean nothing in this one, so every row gets a new one. Rows that the same relays have
//!   delivered get the same number. It is one of the lowest numbers, which no cluster gives out again. Each
//!   relay's position becomes a snapshot that sees only the numbers of the rows that it has delivered.
//!
//! - **The log contradicts the positions** (a sequence that was set back, ids chosen by hand: see
//!   [`crate::log::contradiction`]). Rows that are not delivered get new ids above those of all delivered
//!   rows, in order.
//! - **The log is a copy** that shall live beside its original. It gets an identity of its own, so that Redis
//!   can tell the two apart.
//!
//! In every case, events that Redis has and the position does not know are written down, so that no client
//! receives them twice.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Row, Transaction};

use super::audit::{self, Operator};
use super::log_lock;
use super::moved;
use super::renumber::{self, IN_REDIS};
use crate::event::{EventId, Topic};
use crate::log::contradiction::Contradiction;
use crate::log::contradictions;
use crate::log::position::{Position, Snapshot, Xid};
use crate::log::{Error, checkpoint, identity, lead};

/// The first xid that a cluster gives out (`FirstNormalTransactionId`).
const FIRST_XID: i64 = 3;
/// Relays that a log can have when it moves. Every combination of relays takes one xid, and a fresh cluster
/// has used up about seven hundred.
const MAX_RELAYS: usize = 8;

/// Why a log was not rebased. Nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub enum RebaseError {
    /// A relay is at work.
    #[error("relay '{0}' leads at this moment: stop every relay of this log first")]
    Led(String),
    /// There is no such relay.
    #[error("no relay named '{0}' has ever delivered from this log: nothing to rebase")]
    Unknown(String),
    /// More relays than a move can tell apart.
    #[error(
        "the log has {0} relays and can be moved with at most {MAX_RELAYS}: delete those that no longer \
         exist from outbox.relay"
    )]
    TooManyRelays(usize),
    /// Rows of one id, of which nothing tells which were appended after a move.
    #[error(
        "id {0} stands twice in the log, and nothing tells which row was appended after the move: run \
         `update outbox.event set created_at = now() where event_id = '…'` for each row that was appended \
         in this cluster, and rebase again"
    )]
    Undecided(i64),
    /// Transactions that have appended do not end.
    #[error(
        "the log cannot be locked: a transaction that has appended stays open; end it (`aftercommit doctor` \
         lists open transactions) and rebase again"
    )]
    Busy,
    /// [`Rebase::finish`] after [`Rebase::look`].
    #[error("the log was looked at without the lock under which it is changed")]
    NotLocked,
    /// The log.
    #[error(transparent)]
    Outbox(#[from] Error),
}

impl From<sqlx::Error> for RebaseError {
    fn from(error: sqlx::Error) -> Self {
        Self::Outbox(error.into())
    }
}

/// Where the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// In the database in which it was made.
    Same,
    /// In another one: it was moved, or copied.
    Other,
}

/// An event that the position does not know to be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its row.
    pub id: i64,
    /// Its identity, which a replay's copy shares with the original.
    pub event_id: EventId,
    /// Its topic; none if the row's text is no topic. Redis cannot have such a row: a relay parks it.
    pub topic: Option<Topic>,
}

/// A rebase under way, or a look at what it would do.
#[derive(Debug)]
pub struct Rebase<'c> {
    tx: Transaction<'c, Postgres>,
    hold: Hold,
    relay: String,
    position: Position,
    home: Home,
    contradictions: Vec<Contradiction>,
    /// The relays whose positions the log contradicts.
    contradicted: Vec<String>,
    /// The number of rows that were appended after a move and get new ids.
    appended_since_the_move: u64,
    /// How many events it has found that were delivered although the position does not say so.
    delivered_before: u64,
}

/// Whether the log is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Not at all: one snapshot shows it.
    Snapshot,
    /// Against appends and relays.
    Lock,
}

/// What a rebase is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    /// The epoch in which this relay's numbers go on.
    pub epoch: u64,
    /// Whether this log is a copy beside its original, and becomes a log of its own.
    pub is_copy: bool,
}

impl<'c> Rebase<'c> {
    /// Locks the log against appends and relays, and finds out what happened.
    ///
    /// # Errors
    /// [`RebaseError`].
    pub async fn begin(connection: &'c mut PgConnection, relay: &str) -> Result<Self, RebaseError> {
        let mut tx = connection.begin().await?;
        if !log_lock::take(&mut tx).await? {
            return Err(RebaseError::Busy);
        }
        for name in relays(&mut tx).await? {
            if !log_lock::hold(&mut tx, &name).await? {
                return Err(RebaseError::Led(name));
            }
        }
        renumber::raise_identities(&mut tx).await?;
        Self::examine(tx, relay, Hold::Lock).await
    }

    /// Finds out what happened, from one snapshot. Nobody waits for it.
    ///
    /// # Errors
    /// [`RebaseError`].
    pub async fn look(connection: &'c mut PgConnection, relay: &str) -> Result<Self, RebaseError> {
        let mut tx = connection.begin_with("begin isolation level repeatable read").await?;
        for name in relays(&mut tx).await? {
            if !lead::is_free(&mut tx, &name).await? {
                return Err(RebaseError::Led(name));
            }
        }
        Self::examine(tx, relay, Hold::Snapshot).await
    }

    async fn examine(
        mut tx: Transaction<'c, Postgres>,
        relay: &str,
        hold: Hold,
    ) -> Result<Self, RebaseError> {
        let is_same = identity::of(&mut tx).await?.is_at_home();
        let home = if is_same { Home::Same } else { Home::Other };
        let position = match checkpoint::newest(&mut tx, relay).await? {
            Some(position) => position,
            // A log that was moved is refused for a relay that is new to it, too.
            None if home == Home::Other => Position::before_everything(),
            None => return Err(RebaseError::Unknown(relay.to_owned())),
        };
        let mut rebase = Self {
            tx,
            hold,
            relay: relay.to_owned(),
            position,
            home,
            contradictions: Vec::new(),
            contradicted: Vec::new(),
            appended_since_the_move: 0,
            delivered_before: 0,
        };
        renumber::begin(&mut rebase.tx).await?;
        match home {
            Home::Same => rebase.look_for_contradictions().await?,
            Home::Other => rebase.look_for_appended_since_the_move().await?,
        }
        Ok(rebase)
    }

    async fn look_for_contradictions(&mut self) -> Result<(), RebaseError> {
        for name in relays(&mut self.tx).await? {
            let mut found = contradictions::of_relay(&mut self.tx, &name).await?;
            found.extend(renumber::twice(&mut self.tx, &name).await?);
            found.extend(renumber::behind_the_window(&mut self.tx, &name).await?);
            if !found.is_empty() {
                self.contradicted.push(name);
            }
            self.contradictions.extend(found);
        }
        Ok(())
    }

    async fn look_for_appended_since_the_move(&mut self) -> Result<(), RebaseError> {
        let relays = relays(&mut self.tx).await?;
        if relays.len() > MAX_RELAYS {
            return Err(RebaseError::TooManyRelays(relays.len()));
        }
        self.appended_since_the_move = moved::mark(&mut self.tx).await?;
        self.contradictions = moved::marked(&mut self.tx).await?;
        match moved::undecided(&mut self.tx).await? {
            Some(id) => Err(RebaseError::Undecided(id)),
            None => Ok(()),
        }
    }

    /// The position as it stands.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Rows that the log's positions cannot stand beside, some of them.
    pub fn contradictions(&self) -> &[Contradiction] {
        &self.contradictions
    }

    /// The number of rows that were appended after the log was moved and get new ids. Redis cannot have them:
    /// no relay delivers from a log that was moved.
    pub fn appended_since_the_move(&self) -> u64 {
        self.appended_since_the_move
    }

    /// Where the log is.
    pub fn home(&self) -> Home {
        self.home
    }

    /// The relay's pending events after `after`, `limit` at most, without those that
    /// [`Self::appended_since_the_move`] counts. They are in order of id, and rows of one id in order of their
    /// event ids, because a sequence that was set back gives ids twice.
    ///
    /// # Errors
    /// [`RebaseError::Outbox`].
    pub async fn pending(
        &mut self,
        after: Option<&Pending>,
        limit: i64,
    ) -> Result<Vec<Pending>, RebaseError> {
        // By the rows' own numbers and the position's: they fit each other, whichever cluster made them.
        let sql = format!(
            "select e.id, e.event_id, e.topic
             from outbox.event e, outbox.position p
             where p.relay = $1 and (e.id, e.event_id) > ($2, $3) and not {IN_REDIS}
               and not exists (
                 select from pg_temp.renumbered r where r.part = e.tableoid and r.place = e.ctid)
             order by e.id, e.event_id limit $4",
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(&self.relay)
            .bind(after.map_or(0, |last| last.id))
            .bind(after.map_or_else(EventId::nil, |last| last.event_id))
            .bind(limit)
            .fetch_all(&mut *self.tx)
            .await?;
        rows.iter().map(pending_of).collect()
    }

    /// Writes down that these events have been delivered, whatever the position says. A look only counts
    /// them.
    ///
    /// # Errors
    /// [`RebaseError::Outbox`] if Postgres refuses.
    pub async fn delivered_before(&mut self, told: &[Pending]) -> Result<(), RebaseError> {
        self.delivered_before += told.len() as u64;
        if self.hold == Hold::Snapshot {
            return Ok(());
        }
        let (ids, event_ids): (Vec<i64>, Vec<EventId>) =
            told.iter().map(|event| (event.id, event.event_id)).unzip();
        sqlx::query(
            "insert into outbox.delivered_before (relay, id, event_id)
             select $1, told.id, told.event_id from unnest($2::bigint[], $3::uuid[]) as told (id, event_id)",
        )
        .bind(&self.relay)
        .bind(ids)
        .bind(event_ids)
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Gives the log its new lineage, writes that into the audit with the findings that led to it, and
    /// commits.
    ///
    /// # Errors
    /// [`RebaseError::NotLocked`] after a look; [`RebaseError::Outbox`] if Postgres refuses. Then nothing has
    /// changed.
    pub async fn finish(
        mut self,
        lineage: Lineage,
        operator: &Operator,
        findings: &serde_json::Value,
    ) -> Result<(), RebaseError> {
        if self.hold == Hold::Snapshot {
            return Err(RebaseError::NotLocked);
        }
        self.give(lineage).await?;
        audit::write(&mut self.tx, operator, "rebase", findings, self.delivered_before).await?;
        self.tx.commit().await?;
        Ok(())
    }

    async fn give(&mut self, lineage: Lineage) -> Result<(), RebaseError> {
        if lineage.is_copy {
            sqlx::query("update outbox.log set id = gen_random_uuid()").execute(&mut *self.tx).await?;
        }
        match self.home {
            Home::Same if self.contradicted.is_empty() => {}
            Home::Same => renumber::undelivered(&mut self.tx, &self.contradicted).await?,
            Home::Other => renumber::appended_since_the_move(&mut self.tx).await?,
        }
        // Copies of tables do not always bring their sequences' values along.
        renumber::raise_sequence(&mut self.tx).await?;
        match self.home {
            Home::Other => self.adopt(lineage.epoch).await?,
            Home::Same => self.begin_epochs(lineage).await?,
        }
        Ok(())
    }

    /// Begins an epoch of this relay, and of every other relay whose numbers or rows mean something else now.
    /// In a copy these are all relays, because the original goes on giving out their numbers.
    async fn begin_epochs(&mut self, lineage: Lineage) -> Result<(), RebaseError> {
        for relay in relays(&mut self.tx).await? {
            let is_own = relay == self.relay;
            if !is_own && !lineage.is_copy && !self.contradicted.contains(&relay) {
                continue;
            }
            let Some(from) = checkpoint::newest(&mut self.tx, &relay).await? else { continue };
            let epoch = if is_own { lineage.epoch } else { from.epoch + 1 };
            checkpoint::insert(&mut self.tx, &relay, &from.rebased(epoch)).await?;
            may_have_arrived(&mut self.tx, &relay).await?;
        }
        Ok(())
    }

    /// Translates every row and every position into this cluster's numbers.
    async fn adopt(&mut self, epoch: u64) -> Result<(), RebaseError> {
        let relays = relays(&mut self.tx).await?;
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
        .execute(&mut *self.tx)
        .await?;
        let adopted = self.adopted_positions(&relays, epoch).await?;
        // Older positions name transactions by the old cluster's numbers, which would be misread.
        sqlx::raw_sql("delete from outbox.checkpoint").execute(&mut *self.tx).await?;
        for (relay, position) in &adopted {
            checkpoint::insert(&mut self.tx, relay, position).await?;
            may_have_arrived(&mut self.tx, relay).await?;
            // A replay that was interrupted goes on with the events that have been delivered by now, up to
            // its last row.
            sqlx::query(
                "update outbox.replay set lower = $2::text::pg_snapshot, upper = null
                 where relay = $1 and not finished",
            )
            .bind(relay)
            .bind(&position.lower.0)
            .execute(&mut *self.tx)
            .await?;
        }
        sqlx::raw_sql(
            "update outbox.log l set system_identifier = c.system_identifier, database_oid = d.oid
             from pg_control_system() c, pg_database d where d.datname = current_database()",
        )
        .execute(&mut *self.tx)
        .await?;
        Ok(())
    }

    /// Each relay's position in this cluster's numbers.
    async fn adopted_positions<'r>(
        &mut self,
        relays: &'r [String],
        epoch: u64,
    ) -> Result<Vec<(&'r str, Position)>, RebaseError> {
        let high_id: i64 = sqlx::query_scalar("select coalesce(max(id), 0) from outbox.event")
            .fetch_one(&mut *self.tx)
            .await?;
        let mut adopted = Vec::new();
        for (bit, relay) in relays.iter().enumerate() {
            let Some(from) = checkpoint::newest(&mut self.tx, relay).await? else { continue };
            let epoch = if *relay == self.relay { epoch } else { from.epoch + 1 };
            let (lower, lower_horizon) = sees_bit(bit, relays.len());
            let position = Position { lower, lower_horizon, high_id, window: None, ..from.rebased(epoch) };
            adopted.push((relay.as_str(), position));
        }
        Ok(adopted)
    }
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
async fn relays(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    Ok(sqlx::query_scalar("select relay from outbox.position order by relay").fetch_all(connection).await?)
}

fn pending_of(row: &PgRow) -> Result<Pending, RebaseError> {
    Ok(Pending {
        id: row.try_get("id")?,
        event_id: row.try_get("event_id")?,
        topic: Topic::new(row.try_get::<String, _>("topic")?).ok(),
    })
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
