//! Rebase: giving a log a new lineage of numbers after Postgres was restored or moved.
//!
//! What can have happened:
//!
//! - **The same cluster went back** (a point-in-time restore, a failover that lost commits). Positions and
//!   transaction numbers still fit each other, but Redis has numbers that this Postgres would give to other
//!   events. A higher epoch puts every new number above them.
//! - **The log is in another database** (dump and restore, logical replication, a copy). Transaction numbers
//!   of the old cluster mean nothing in this one, so every row gets a new one. Rows that the same relays have
//!   delivered get the same number. It is one of the lowest numbers, which no cluster gives out again. Each
//!   relay's position becomes a snapshot that sees only the numbers of the rows that it has delivered.
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
pub use super::lineage::Lineage;
use super::lineage::{self, MAX_RELAYS, relays};
use super::log_lock;
use super::moved;
use super::renumber::{self, IN_REDIS};
use crate::event::{EventId, Topic};
use crate::log::contradiction::Contradiction;
use crate::log::contradictions;
use crate::log::position::Position;
use crate::log::{Error, checkpoint, identity, lead};

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
    is_needed_since_another: bool,
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
        let is_needed_since_another = lead::is_rebase_needed(&mut tx, relay).await?;
        let mut rebase = Self {
            tx,
            hold,
            relay: relay.to_owned(),
            position,
            home,
            is_needed_since_another,
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

    /// Whether a rebase for another relay has changed the log since.
    pub fn is_needed_since_another(&self) -> bool {
        self.is_needed_since_another
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

    async fn give(&mut self, given: Lineage) -> Result<(), RebaseError> {
        if given.is_copy {
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
            Home::Other => lineage::adopt(&mut self.tx, &self.relay, given).await?,
            Home::Same => {
                lineage::begin_epochs(&mut self.tx, &self.relay, &self.contradicted, given).await?;
            }
        }
        Ok(())
    }
}

fn pending_of(row: &PgRow) -> Result<Pending, RebaseError> {
    Ok(Pending {
        id: row.try_get("id")?,
        event_id: row.try_get("event_id")?,
        topic: Topic::new(row.try_get::<String, _>("topic")?).ok(),
    })
}
