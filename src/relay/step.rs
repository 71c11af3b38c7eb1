//! One bounded step: a batch of the log read, published and written down.
//!
//! The order of these effects must not change, because a process can die between any two of them:
//!
//! 1. The window is written down (`checkpoint::open`, or together with 4).
//! 2. A batch of it is read. The next one is read ahead during 3.
//! 3. The batch is published under the numbers that the position gives it.
//! 4. The position behind the batch is written down, in one transaction with the events that were set aside.
//!
//! A death after 1 or 2 loses nothing: the next relay finds the window and reads the same rows. A death after
//! 3 repeats the batch under the same numbers, and the sink refuses repeats. Reading ahead has no effect, so
//! it may overlap anything.

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

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to deliver, and nothing was written.
    Idle,
    /// The position moved, and there may be more to do.
    Delivered {
        /// Events published.
        published: usize,
        /// Rows set aside.
        parked: usize,
    },
}

/// Why a step failed. The position is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The log could not be read or written.
    #[error(transparent)]
    Outbox(#[from] log::Error),
    /// The sink did not take the batch.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Postgres did not answer in time. Its connections must not be used any more.
    #[error("Postgres did not answer within {0:?}")]
    NoAnswer(Duration),
}

impl From<sqlx::Error> for StepError {
    fn from(error: sqlx::Error) -> Self {
        Self::Outbox(error.into())
    }
}

/// The settings of a step.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The relay's name.
    pub relay: String,
    /// The size of one read.
    pub limit: Limit,
    /// What to do with an event that the sink refuses for a reason of its own.
    pub on_poison: OnPoison,
    /// How long Postgres may take to answer. The server has a limit of its own; this one is for a server that
    /// is gone.
    pub timeout: Duration,
    /// How often the leader's session sends a sign of life while the sink is busy.
    pub keepalive: Duration,
}

/// The state of a leading relay: its two connections, its position, and the batch that it has read ahead.
#[derive(Debug)]
pub struct Step {
    pub(super) rules: Rules,
    /// Holds the leader's lock and writes positions, so a leader that has lost the lock's session cannot
    /// write either.
    pub(super) writer: PgConnection,
    pub(super) reader: PgConnection,
    pub(super) position: Position,
    log: LogId,
    ahead: Option<read::Batch>,
    pub(super) exceptions: Exceptions,
    /// How often in a row the sink has refused a batch.
    refusals: u32,
    /// Events restored to the sink since the last [`Step::take_republished`].
    pub(super) republished: u64,
}

/// From this many refusals in a row on, events are handed over one by one. Before that, the server may be at
/// fault.
const REFUSALS_TOGETHER: u32 = 3;
/// The most parked events of one release.
const RELEASED_AT_ONCE: u32 = 256;

impl Step {
    /// Takes two prepared connections and loads the relay's position, or begins one.
    ///
    /// # Errors
    /// Returns [`StepError::Outbox`] if the log cannot be read or written, and [`StepError::NoAnswer`] if
    /// Postgres does not answer in time.
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

    /// Returns how many events were restored to the sink since the last call, also by comparisons that failed
    /// in the middle.
    pub(super) fn take_republished(&mut self) -> u64 {
        std::mem::take(&mut self.republished)
    }

    /// The session that leads, for signs of life while the relay waits.
    pub(super) fn session(&mut self) -> &mut PgConnection {
        &mut self.writer
    }

    /// Reads the newest position again, after another relay has written one.
    ///
    /// # Errors
    /// Returns [`StepError::Outbox`] if the log cannot be read or written, and [`StepError::NoAnswer`] if
    /// Postgres does not answer in time.
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
    /// Returns [`StepError::Publish`] if the sink does not take the batch; after [`PublishError::Retry`] the
    /// same step may be tried again. Returns [`StepError::Outbox`] if the log fails; call [`Step::reload`]
    /// after [`log::Error::Fenced`], and begin anew after any other of these errors. Returns
    /// [`StepError::NoAnswer`] if Postgres does not answer in time; then begin anew as well.
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
                // Reading a large batch takes time, and must not cost the lead.
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
        if set_aside.len() > 0 || set_aside.has_arrived_before {
            self.use_up_numbers(sink, &batch, &set_aside).await?;
        }
        let parked = set_aside.len();
        Ok(Outcome::Delivered { published: batch.rows.len() - parked, parked })
    }

    /// Lets the sink's number pass a batch, some of whose events are written down as set aside. The others
    /// are published again, because the sink may have forgotten them since they arrived.
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

    /// How the next events are handed to the sink.
    pub(super) fn handing(&self) -> Handing {
        handing_after(self.refusals)
    }

    /// Counts the sink's refusals, so that events are handed over one by one if it keeps refusing.
    pub(super) fn counting<T>(&mut self, published: Result<T, PublishError>) -> Result<T, PublishError> {
        match &published {
            Ok(_) => self.refusals = 0,
            // The refusal is about one event, and Redis does not say about which one.
            Err(PublishError::Retry { failure, .. }) if failure.remedy == Remedy::SetAside => {
                self.refusals = REFUSALS_TOGETHER;
            }
            Err(_) => self.refusals = self.refusals.saturating_add(1),
        }
        published
    }

    /// Sets events aside that the position has passed already.
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

    /// Carries out an operator's request for one topic's parked events. Returns false if there is no request,
    /// or while a window is open.
    ///
    /// The request names rows. Later events of the topic that only waited behind them flow on.
    ///
    /// # Errors
    /// Fails as [`Step::step`]. Events that the sink refuses again stay parked, with its words, and are no
    /// error.
    pub async fn apply_request<S: Sink>(&mut self, sink: &mut S) -> Result<bool, StepError> {
        if self.position.window.is_some() {
            return Ok(false);
        }
        let Rules { relay, timeout, .. } = self.rules.clone();
        let requested = answered(timeout, parked::next_request(&mut self.writer, &relay)).await?;
        let Some((topic, action)) = requested else { return Ok(false) };
        match self.carry_out(sink, &topic, action).await {
            // Later events of the topic may be published only now, after everything before them.
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

    /// Discards the topic's parked events with a requested discard, and publishes the others.
    async fn carry_out<S: Sink>(
        &mut self,
        sink: &mut S,
        topic: &Topic,
        action: Action,
    ) -> Result<(), StepError> {
        self.count_held_as_released(sink, topic).await?;
        if action == Action::Discard {
            let Rules { relay, timeout, .. } = &self.rules;
            answered(*timeout, parked::discard(&mut self.writer, relay, topic)).await?;
        }
        self.release(sink, topic).await
    }

    /// Marks the events that the sink holds as released. They were released, or delivered before they were
    /// parked. Clients have them, so they cannot be discarded; they are not published once more, because some
    /// of their entries may be gone; and a sink that forgets them must receive them again. If the sink refuses to
    /// say, the request is refused: the events may have arrived in a try that broke off.
    async fn count_held_as_released<S: Sink>(
        &mut self,
        sink: &mut S,
        topic: &Topic,
    ) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = self.rules.clone();
        let asking = sink.newest_of(topic);
        let newest = match staying_alive(&mut self.writer, self.rules.keepalive, asking).await? {
            // There is no history in the topic's place. If no release has begun, it has taken nothing.
            Err(PublishError::Poison { .. })
                if !answered(timeout, release::has_begun(&mut self.writer, &relay, topic)).await? =>
            {
                None
            }
            Err(PublishError::Retry { failure, reason }) if failure.remedy == Remedy::SetAside => {
                let reason = format!("it is not known which of these events clients have: {reason}");
                return Err(PublishError::Poison { at: 0, reason }.into());
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
            // Events of a later epoch make a batch of their own, because a number alone does not tell which
            // of two epochs came first.
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
                // The topic is held from the refused event on: the events before it do not wait any more.
                self.exceptions = load_exceptions(&mut self.writer, &self.rules).await?;
                let mode = PublishMode::RestoreRelease;
                self.republish(sink, mode, arrived.to_vec(), (number, number), None).await?;
            }
            self.counting(published)?;
        }
    }

    /// Takes the next number for the release of these parked events. No window may be open.
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

/// Writes the position behind a batch and the events set aside from it, in one transaction.
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
    // The window stays open even at its end. Closing it opens the next one, whose horizon must come from a
    // transaction that had no xid before, and this transaction gets its xid from the parked rows.
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
