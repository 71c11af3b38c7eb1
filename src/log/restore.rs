//! Reads delivered events again under the numbers that they were delivered with, for a sink that has
//! forgotten them.
//!
//! Two consecutive checkpoints define a range: the first one names the window and the id that the relay had
//! reached, and their numbers say how many events came between. Numbers are a function of the log, so nothing
//! is guessed. If rotation has dropped some of those rows, it is not known which numbers are missing, and the
//! whole range is left out.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use sqlx::PgConnection;

use super::checkpoint;
use super::position::Position;
use super::read::{self, Limit, Row};
use super::{Error, parked, release};
use crate::event::{Event, StreamId};

/// Checkpoints of one read.
const PAGE: i64 = 256;

/// Events that were delivered between two checkpoints.
#[derive(Debug)]
pub struct DeliveredRange {
    /// The number of the first one.
    pub first: u64,
    /// How many numbers the events used up.
    pub count: u64,
    /// Whether the number is that of a release. Its events keep earlier numbers.
    pub is_release: bool,
    /// The events and their numbers, without those that were parked. `None` if the log no longer holds all of
    /// them.
    pub events: Option<Vec<(StreamId, Event)>>,
}

/// Walks through the ranges that one relay has delivered in one epoch.
#[derive(Debug)]
pub struct DeliveredRanges {
    relay: String,
    epoch: u64,
    /// The checkpoint to read next.
    next_n: i64,
    page: VecDeque<Position>,
    from: Option<Position>,
}

impl DeliveredRanges {
    /// Begins with the range that holds the number `seq`. Leaves out ranges that are older than `not_older`,
    /// unless they are above the number `unpublished_above`.
    ///
    /// # Errors
    /// Returns [`Error::SchemaMissing`] if the schema is missing or too old, and [`Error::Database`] if
    /// Postgres refuses a statement or the connection breaks.
    pub async fn from(
        connection: &mut PgConnection,
        relay: &str,
        epoch: u64,
        seq: u64,
        not_older: Duration,
        unpublished_above: Option<u64>,
    ) -> Result<Self, Error> {
        let next_n: Option<i64> = sqlx::query_scalar(
            "select greatest(
               coalesce(
                 (select max(n) from outbox.checkpoint where relay = $1 and epoch = $2 and next_seq <= $3),
                 (select min(n) from outbox.checkpoint where relay = $1 and epoch = $2)),
               least(
                 -- If no checkpoint is that old, nothing is left out.
                 coalesce(
                   (select max(n) from outbox.checkpoint
                    where relay = $1 and epoch = $2 and created_at < now() - make_interval(secs => $4)), 0),
                 case when $5::bigint is not null then coalesce(
                   (select max(n) from outbox.checkpoint
                    where relay = $1 and epoch = $2 and next_seq <= $5 + 1::bigint), 0) end))",
        )
        .bind(relay)
        .bind(epoch.cast_signed())
        .bind(seq.cast_signed())
        .bind(not_older.as_secs_f64())
        .bind(unpublished_above.map(u64::cast_signed))
        .fetch_one(connection)
        .await?;
        Ok(Self {
            relay: relay.to_owned(),
            epoch,
            next_n: next_n.unwrap_or(0),
            page: VecDeque::new(),
            from: None,
        })
    }

    /// Returns the next range, or `None` after the newest checkpoint.
    ///
    /// # Errors
    /// Fails as [`read::batch`] and [`release::events`] do.
    pub async fn next(&mut self, connection: &mut PgConnection) -> Result<Option<DeliveredRange>, Error> {
        loop {
            if self.page.is_empty() {
                self.page =
                    checkpoint::page(connection, &self.relay, self.epoch, self.next_n, PAGE).await?.into();
            }
            let Some(to) = self.page.pop_front() else { return Ok(None) };
            self.next_n = to.n + 1;
            let Some(from) = self.from.replace(to.clone()) else { continue };
            if to.next_seq > from.next_seq {
                return Ok(Some(self.range(connection, &from, &to).await?));
            }
        }
    }

    async fn range(
        &self,
        connection: &mut PgConnection,
        from: &Position,
        to: &Position,
    ) -> Result<DeliveredRange, Error> {
        let (first, count) = (from.next_seq, to.next_seq - from.next_seq);
        let range = |events| DeliveredRange { first, count, is_release: false, events };
        // A gap in n: rotation has dropped the checkpoints between these two.
        if to.n != from.n + 1 {
            return Ok(range(None));
        }
        let Some(window) = &from.window else {
            // Between two windows only releases use up numbers, one each.
            let number = StreamId::new(self.epoch, first);
            let events = release::events(connection, &self.relay, number).await?;
            return Ok(DeliveredRange { is_release: true, ..range(Some(events)) });
        };
        let still_open = to.window.as_ref().filter(|open| open.upper == window.upper);
        let last_id = still_open.map_or(i64::MAX, |open| open.after_id);
        let limit = Limit { events: u32::try_from(count).unwrap_or(u32::MAX), bytes: i64::MAX as u64 };
        let rows = read::batch(connection, &self.relay, from, window.after_id, limit).await?.rows;
        let is_whole = rows.len() as u64 == count && rows.last().is_some_and(|last| last.id() <= last_id);
        if !is_whole {
            return Ok(range(None));
        }
        let numbers = StreamId::new(self.epoch, first)..=StreamId::new(self.epoch, first + count - 1);
        let set_aside: HashSet<StreamId> =
            parked::numbers(connection, &self.relay, *numbers.start(), *numbers.end()).await?;
        // Unreadable rows were parked.
        let numbered = (first..).zip(rows).filter_map(|(seq, row)| match row {
            Row::Event(event) => Some((StreamId::new(self.epoch, seq), event)),
            Row::Unreadable(_) => None,
        });
        Ok(range(Some(numbered.filter(|(id, _)| !set_aside.contains(id)).collect())))
    }
}
