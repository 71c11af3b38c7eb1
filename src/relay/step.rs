//! One bounded step: a batch of the log read, published and written down.
//!
//! What may not change here is the order of effects, as each gap between two of them is a place to die:
//!
//! 1. the window is written down (`checkpoint::open`, or together with 4);
//! 2. a batch of it is read; the next one is read ahead while
//! 3. the batch is published under the numbers that the position gives it;
//! 4. the position behind the batch is written down, in one transaction with the events that were set aside.
//!
//! Dying after 1 or 2 loses nothing: the next relay finds the window and reads the same. Dying after 3 repeats the
//! batch under the same numbers, and the sink refuses repeats. Reading ahead has no effect, so it may overlap anything.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time;

use super::failure::Remedy;
use super::handing::{Handing, hand_over};
use super::leader::staying_alive;
use super::publication::{Exceptions, SetAside, publish_batch};
use super::settings::OnPoison;
use super::sink::{Batch, Delivery, PublishError, PublishMode, Reached, Sink};
use crate::event::{LogId, StreamId, Topic};
use crate::failpoint;
use crate::log;
use crate::log::parked::{self, Action, Parked};
use crate::log::read::Limit;
use crate::log::{Position, checkpoint, delivered_before, identity, read, release, unreadable};

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to deliver, and nothing was written.
    Idle,
    /// The position moved, and there may be more to do.
    Delivered {
        /// Events published.
        published: usize,
        /// Events set aside.
        parked: usize,
    },
}

/// Why a step failed. The position is as it was.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The log.
    #[error(transparent)]
    Outbox(#[from] log::Error),
    /// The sink.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Postgres did not answer in time; its connections are not to be used any more.
    #[error("Postgres did not answer within {0:?}")]
    NoAnswer(Duration),
}

impl From<sqlx::Error> for StepError {
    fn from(error: sqlx::Error) -> Self {
        Self::Outbox(error.into())
    }
}

/// What a step is allowed.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The relay's name.
    pub relay: String,
    /// How much of the log is read at once.
    pub limit: Limit,
    /// What happens to an event that the sink refuses for a reason of its own.
    pub on_poison: OnPoison,
    /// How long Postgres may take to answer. The server has its own limit; this one is for a server that is gone.
    pub timeout: Duration,
    /// How often the leader's session lets the server hear of it while the sink is busy.
    pub keepalive: Duration,
}

/// A relay's hands: its two connections, its position, and what it has read ahead.
#[derive(Debug)]
pub struct Step {
    pub(super) rules: Rules,
    /// Holds the leader's lock and writes positions: a leader that lost its lock's session can write nothing either.
    pub(super) writer: PgConnection,
    pub(super) reader: PgConnection,
    pub(super) position: Position,
    log: LogId,
    ahead: Option<read::Batch>,
    pub(super) exceptions: Exceptions,
    /// How often in a row the sink has refused what it was handed.
    refusals: u32,
    /// Events that a sink which forgot was given again, since somebody asked.
    pub(super) republished: u64,
}

/// After so many refusals in a row, events are handed over one by one: until then the server may be at fault.
const REFUSALS_TOGETHER: u32 = 3;
/// Parked events that are released at once.
const RELEASED_AT_ONCE: u32 = 256;

impl Step {
    /// Takes two prepared connections and loads, or begins, the position of the relay.
    ///
    /// # Errors
    /// [`StepError::Outbox`], [`StepError::NoAnswer`].
    pub async fn begin(
        rules: Rules,
        mut writer: PgConnection,
        reader: PgConnection,
    ) -> Result<Self, StepError> {
        let position = answered(rules.timeout, checkpoint::load_or_begin(&mut writer, &rules.relay)).await?;
        let log = answered(rules.timeout, identity::of(&mut writer)).await?.id;
        let exceptions = load_exceptions(&mut writer, &rules).await?;
        Ok(Self {
            rules,
            writer,
            reader,
            position,
            log,
            ahead: None,
            exceptions,
            refusals: 0,
            republished: 0,
        })
    }

    /// The identity of the log that is delivered.
    pub fn log(&self) -> LogId {
        self.log
    }

    /// The position as this relay knows it.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// How many events a sink which forgot was given again since the last call, also by comparisons that failed in the middle.
    pub(super) fn take_republished(&mut self) -> u64 {
        std::mem::take(&mut self.republished)
    }

    /// The session that leads, for while the relay waits.
    pub(super) fn session(&mut self) -> &mut PgConnection {
        &mut self.writer
    }

    /// Reads the newest position again, for after another relay has written one.
    ///
    /// # Errors
    /// [`StepError::Outbox`], [`StepError::NoAnswer`].
    pub async fn reload(&mut self) -> Result<(), StepError> {
        self.ahead = None;
        let Rules { relay, timeout, .. } = &self.rules;
        self.position = answered(*timeout, checkpoint::load_or_begin(&mut self.writer, relay)).await?;
        self.exceptions = load_exceptions(&mut self.writer, &self.rules).await?;
        Ok(())
    }

    /// Does one step.
    ///
    /// # Errors
    /// [`StepError`]. After [`PublishError::Retry`] the same step may be tried again; after
    /// [`log::Error::Fenced`], [`Step::reload`] first; after anything else of Postgres's, begin anew.
    pub async fn step<S: Sink>(&mut self, sink: &mut S) -> Result<Outcome, StepError> {
        if self.position.window.is_none() {
            let opened = checkpoint::open(&mut self.writer, &self.rules.relay, &self.position);
            match answered(self.rules.timeout, opened).await? {
                None => return Ok(Outcome::Idle),
                Some(position) => self.position = position,
            }
            failpoint::reach("window_written").await;
        }
        let after_id = self.position.window.as_ref().map_or(0, |w| w.after_id);
        let batch = match self.ahead.take() {
            Some(batch) => batch,
            None => {
                // A large batch takes its time, which must not cost the lead.
                let reading = Box::pin(read_batch(&mut self.reader, &self.position, after_id, &self.rules));
                staying_alive(&mut self.writer, self.rules.keepalive, reading).await??
            }
        };
        failpoint::reach("batch_read").await;
        let last_id = batch.rows.last().map_or(after_id, read::Row::id);
        let reading = async {
            if batch.is_last {
                return Ok(None);
            }
            read_batch(&mut self.reader, &self.position, last_id, &self.rules).await.map(Some)
        };
        let handing = handing_after(self.refusals);
        let publishing = publish_batch(sink, &self.position, &batch.rows, &self.exceptions, handing);
        let both = Box::pin(async { tokio::join!(publishing, reading) });
        let (set_aside, ahead) = staying_alive(&mut self.writer, self.rules.keepalive, both).await?;
        let set_aside = self.counting(set_aside)?;
        self.ahead = ahead?;
        failpoint::reach("batch_published").await;
        self.write_down(&batch, last_id, &set_aside).await?;
        failpoint::reach("checkpoint_written").await;
        if set_aside.len() > 0 {
            self.use_up_numbers(sink, &batch, &set_aside).await?;
        }
        let parked = set_aside.len();
        Ok(Outcome::Delivered { published: batch.rows.len() - parked, parked })
    }

    /// Lets the sink's number pass a batch of which events are written down as set aside. The others come again: the sink may
    /// have forgotten them meanwhile.
    async fn use_up_numbers<S: Sink>(
        &mut self,
        sink: &mut S,
        batch: &read::Batch,
        set_aside: &SetAside,
    ) -> Result<(), StepError> {
        let number = |seq| StreamId::new(self.position.epoch, seq);
        let first = self.position.next_seq - batch.rows.len() as u64;
        let span = (number(first), number(self.position.next_seq - 1));
        let numbered = (first..).zip(&batch.rows);
        let arrived = numbered.filter_map(|(seq, row)| match row {
            read::Row::Event(event) => Some(Delivery { id: number(seq), event }),
            read::Row::Unreadable(_) => None,
        });
        let arrived =
            arrived.filter(|delivery| set_aside.parked.iter().all(|parked| parked.id != delivery.id));
        self.republish(sink, PublishMode::Restore, arrived.collect(), span, None).await
    }

    async fn write_down(
        &mut self,
        batch: &read::Batch,
        last_id: i64,
        set_aside: &SetAside,
    ) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = &self.rules;
        let written = write_position(&mut self.writer, relay, &self.position, batch, last_id, set_aside);
        self.position = answered(*timeout, written).await?;
        let unreadable = set_aside.unreadable.iter().filter_map(|(id, row)| Some((row.topic.as_ref()?, *id)));
        let parked = set_aside.parked.iter().map(|parked| (&parked.event.topic, parked.id));
        self.exceptions.hold(parked.chain(unreadable));
        Ok(())
    }

    /// How the sink is handed the next events.
    pub(super) fn handing(&self) -> Handing {
        handing_after(self.refusals)
    }

    /// Counts what the sink refuses, so that it is handed events one by one where it goes on refusing.
    pub(super) fn counting<T>(&mut self, published: Result<T, PublishError>) -> Result<T, PublishError> {
        match &published {
            Ok(_) => self.refusals = 0,
            // It is about one event; Redis does not say about which one.
            Err(PublishError::Retry { failure, .. }) if failure.remedy == Remedy::SetAside => {
                self.refusals = REFUSALS_TOGETHER;
            }
            Err(_) => self.refusals = self.refusals.saturating_add(1),
        }
        published
    }

    /// Sets events aside that the position is past already.
    pub(super) async fn set_aside(&mut self, set_aside: &[Parked]) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = &self.rules;
        let writing = async {
            let mut tx = self.writer.begin().await?;
            parked::park(&mut tx, relay, set_aside).await?;
            tx.commit().await?;
            Ok(())
        };
        answered(*timeout, writing).await?;
        self.exceptions.hold(set_aside.iter().map(|parked| (&parked.event.topic, parked.id)));
        Ok(())
    }

    /// Carries out what an operator has requested for one topic's parked events. False if nothing is requested, or while a
    /// window is open.
    ///
    /// The request names rows. Later events of the topic, which only waited behind them, flow on.
    ///
    /// # Errors
    /// As [`Step::step`]. Events that the sink refuses again stay parked, with its words.
    pub async fn apply_request<S: Sink>(&mut self, sink: &mut S) -> Result<bool, StepError> {
        if self.position.window.is_some() {
            return Ok(false);
        }
        let Rules { relay, timeout, .. } = self.rules.clone();
        let requested = answered(timeout, parked::next_request(&mut self.writer, &relay)).await?;
        let Some((topic, action)) = requested else { return Ok(false) };
        let carried_out = match action {
            Action::Discard => self.discard(sink, &topic).await,
            Action::Release => self.release(sink, &topic).await,
        };
        match carried_out {
            // Only now may later events of the topic be published: everything before them has been.
            Ok(()) => {
                self.exceptions.let_go(&topic);
            }
            Err(StepError::Publish(PublishError::Poison { reason, .. })) => {
                self.refuse_request(&topic, &reason).await?;
            }
            // A row that could not be read when it was parked cannot be read now.
            Err(StepError::Outbox(error)) if read::is_about_a_row(&error) => {
                self.refuse_request(&topic, &format!("it cannot be read: {error}")).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    async fn refuse_request(&mut self, topic: &Topic, reason: &str) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = &self.rules;
        let refused = parked::refuse_request(&mut self.writer, relay, topic, reason);
        answered(*timeout, refused).await?;
        self.exceptions = load_exceptions(&mut self.writer, &self.rules).await?;
        Ok(())
    }

    /// Gives up those of a topic's parked events whose discard is requested, and publishes the others.
    async fn discard<S: Sink>(&mut self, sink: &mut S, topic: &Topic) -> Result<(), StepError> {
        self.count_held_as_released(sink, topic).await?;
        let Rules { relay, timeout, .. } = &self.rules;
        answered(*timeout, parked::discard(&mut self.writer, relay, topic)).await?;
        self.release(sink, topic).await
    }

    /// Events that the sink holds have been released, or were delivered before they were parked: clients have them, so they
    /// cannot be given up, and a sink that forgets them has to be given them again.
    async fn count_held_as_released<S: Sink>(
        &mut self,
        sink: &mut S,
        topic: &Topic,
    ) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = self.rules.clone();
        let asking = sink.newest_of(topic);
        let newest = match staying_alive(&mut self.writer, self.rules.keepalive, asking).await? {
            // The sink refuses whatever concerns this topic. It has taken nothing if no release has begun.
            Err(PublishError::Poison { .. })
                if !answered(timeout, release::has_begun(&mut self.writer, &relay, topic)).await? =>
            {
                None
            }
            answer => self.counting(answer)?,
        };
        let Some(Reached { id, event: Some(event) }) = newest else { return Ok(()) };
        answered(timeout, release::mark_held_released(&mut self.writer, &relay, topic, (id, event))).await
    }

    /// Publishes a topic's parked events in order.
    async fn release<S: Sink>(&mut self, sink: &mut S, topic: &Topic) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = self.rules.clone();
        loop {
            let limit = self.rules.limit.events.min(RELEASED_AT_ONCE);
            let mut events =
                answered(timeout, parked::of_topic(&mut self.writer, &relay, topic, limit)).await?;
            let Some(epoch) = events.first().map(|(id, _)| id.epoch) else { return Ok(()) };
            // Those of a later epoch make a batch of their own: a number alone does not say which of two came first.
            events.retain(|(id, _)| id.epoch == epoch);
            let deliveries: Vec<Delivery<'_>> =
                events.iter().map(|(id, event)| Delivery { id: *id, event }).collect();
            let number = self.begin_release(topic, &deliveries).await?;
            failpoint::reach("release_written").await;
            let batch = Batch {
                mode: PublishMode::Release,
                deliveries: &deliveries,
                first: number,
                through: Some(number),
                lost: None,
            };
            let publishing = hand_over(sink, batch, self.handing());
            let published = staying_alive(&mut self.writer, self.rules.keepalive, publishing).await?;
            failpoint::reach("released").await;
            let arrived = match &published {
                Ok(()) => &deliveries[..],
                Err(PublishError::Poison { at, .. }) => &deliveries[..*at],
                Err(_) => &[],
            };
            if let Some(Delivery { id, .. }) = arrived.last() {
                answered(timeout, release::mark_released(&mut self.writer, &relay, topic, *id)).await?;
            }
            if let Err(PublishError::Poison { .. }) = &published {
                let mode = PublishMode::RestoreRelease;
                self.republish(sink, mode, arrived.to_vec(), (number, number), None).await?;
            }
            self.counting(published)?;
        }
    }

    /// Takes the next number for these parked events. No window is open.
    async fn begin_release(
        &mut self,
        topic: &Topic,
        deliveries: &[Delivery<'_>],
    ) -> Result<StreamId, StepError> {
        let Rules { relay, timeout, .. } = &self.rules;
        let number = StreamId::new(self.position.epoch, self.position.next_seq);
        let through = deliveries.last().map_or(number, |last| last.id);
        let begun = release::begin(&mut self.writer, relay, &self.position, topic, through);
        self.position = answered(*timeout, begun).await?;
        Ok(number)
    }
}

fn handing_after(refusals: u32) -> Handing {
    if refusals < REFUSALS_TOGETHER { Handing::Together } else { Handing::OneByOne }
}

/// The position behind a batch and the events set aside from it, in one transaction.
async fn write_position(
    writer: &mut PgConnection,
    relay: &str,
    from: &Position,
    batch: &read::Batch,
    last_id: i64,
    set_aside: &SetAside,
) -> Result<Position, log::Error> {
    let events = batch.rows.len() as u64;
    if set_aside.len() == 0 {
        return if batch.is_last {
            checkpoint::close_window(writer, relay, from, last_id, events).await
        } else {
            checkpoint::advance(writer, relay, from, last_id, events).await
        };
    }
    let mut tx = writer.begin().await.map_err(log::Error::from)?;
    // Leaves the window open even at its end: settling opens the next one, whose horizon must come from a transaction
    // that had no xid before, and this one gets its own from the parked rows.
    let to = checkpoint::advance(&mut tx, relay, from, last_id, events).await?;
    parked::park(&mut tx, relay, &set_aside.parked).await?;
    for (number, row) in &set_aside.unreadable {
        unreadable::park(&mut tx, relay, *number, row).await?;
    }
    tx.commit().await.map_err(log::Error::from)?;
    Ok(to)
}

async fn load_exceptions(writer: &mut PgConnection, rules: &Rules) -> Result<Exceptions, StepError> {
    let held = answered(rules.timeout, parked::held_topics(writer, &rules.relay)).await?;
    let before = answered(rules.timeout, delivered_before::of(writer, &rules.relay)).await?;
    Ok(Exceptions::new(held, before, rules.on_poison))
}

async fn read_batch(
    reader: &mut PgConnection,
    position: &Position,
    after_id: i64,
    rules: &Rules,
) -> Result<read::Batch, StepError> {
    let read = read::batch(reader, &rules.relay, position, after_id, rules.limit);
    answered(rules.timeout, read).await
}

pub(super) async fn answered<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, log::Error>>,
) -> Result<T, StepError> {
    match time::timeout(timeout, work).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => Err(StepError::NoAnswer(timeout)),
    }
}
