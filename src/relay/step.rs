//! One bounded step: a batch of the log read, published and written down.
//!
//! The order of these effects must not change, because a process can die between any two of them:
//!
//! 1. The window is written down (`checkpoint::open`, or together with 4).
//! 2. A batch of it is read. The next one is read ahead during 3.
//! 3. The batch is published under the numbers that the position gives it.
//! 4. The position after the batch is written down, in one transaction with the events that were set aside.
//! 5. If events were set aside, the sink's number passes the batch.
//!
//! A death after 1 or 2 loses nothing: the next relay finds the window and reads the same rows. A death after
//! 3 repeats the batch under the same numbers, and the sink refuses repeats. Reading ahead has no effect, so
//! it may overlap anything. A death after 4 leaves the sink behind the position, and the next comparison
//! repairs it.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio::time;

use super::failure::Remedy;
use super::idle::LastLook;
use super::leader::staying_alive;
use super::publication::{Attempt, Exceptions, SetAside, publish_batch};
use super::settings::OnPoison;
use super::sink::{Delivery, PublishError, PublishMode, Sink};
use super::submit::SubmitMode;
use crate::event::LogId;
use crate::failpoint;
use crate::log;
use crate::log::parked::{self, Parked};
use crate::log::read::Limit;
use crate::log::{Position, checkpoint, delivered_before, identity, read, rotate, unreadable};

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
    /// Whether this relay has opened the window itself since it loaded the position. If not, an earlier relay
    /// may have published any part of the window.
    has_opened: bool,
    ahead: Option<read::Batch>,
    pub(super) last_look: LastLook,
    pub(super) exceptions: Exceptions,
    /// As it stands in the log; `None` if this relay has not written it yet.
    lacks_events: Option<bool>,
    /// Failed publishes in a row.
    refusals: u32,
    /// Events restored to the sink since the last [`Step::take_republished`].
    pub(super) republished: u64,
}

/// From this many failures in a row on, events are handed over one by one. Fewer may be the server's fault.
const REFUSALS_BEFORE_ONE_BY_ONE: u32 = 3;

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
        let position =
            within_timeout(rules.timeout, checkpoint::load_or_begin(&mut writer, &rules.relay)).await?;
        let log = within_timeout(rules.timeout, identity::of(&mut writer)).await?.id;
        let exceptions = load_exceptions(&mut writer, &rules).await?;
        Ok(Self {
            rules,
            writer,
            reader,
            position,
            log,
            has_opened: false,
            ahead: None,
            last_look: LastLook::default(),
            exceptions,
            lacks_events: None,
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
        self.has_opened = false;
        let Rules { relay, timeout, .. } = &self.rules;
        self.position = within_timeout(*timeout, checkpoint::load_or_begin(&mut self.writer, relay)).await?;
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
            match within_timeout(self.rules.timeout, opened).await? {
                None => return Ok(Outcome::Idle),
                Some(position) => self.position = position,
            }
            self.has_opened = true;
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
        let attempt =
            Attempt { submit_mode: submit_mode_after(self.refusals), is_own_window: self.has_opened };
        let publishing = publish_batch(sink, &self.position, &batch.rows, &self.exceptions, attempt);
        let both = Box::pin(async { tokio::join!(publishing, reading) });
        let (set_aside, ahead) = staying_alive(&mut self.writer, self.rules.keepalive, both).await?;
        let set_aside = self.count_refusals(set_aside)?;
        self.ahead = ahead?;
        failpoint::reach("batch_published").await;
        // Before the position passes the events that a server lacks: from then on rotation keeps them.
        self.note_lacking_events(sink).await?;
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
        let first = self.position.next_seq - batch.rows.len() as u64;
        let span = (self.position.stream_id(first), self.position.stream_id(self.position.next_seq - 1));
        let numbered = (first..).zip(&batch.rows);
        let arrived = numbered.filter_map(|(seq, row)| match row {
            read::Row::Event(event) => Some(Delivery { id: self.position.stream_id(seq), event }),
            read::Row::Unreadable(_) => None,
        });
        let arrived =
            arrived.filter(|delivery| set_aside.parked.iter().all(|parked| parked.id != delivery.id));
        self.republish(sink, PublishMode::Restore, arrived.collect(), span, None).await
    }

    /// Writes whether the sink lacks events that only the log has, if that has changed.
    pub(super) async fn note_lacking_events<S: Sink>(&mut self, sink: &S) -> Result<(), StepError> {
        let lacks = sink.lacks_events();
        if self.lacks_events != Some(lacks) {
            let Rules { relay, timeout, .. } = &self.rules;
            within_timeout(*timeout, rotate::note_lacking_events(&mut self.writer, relay, lacks)).await?;
            self.lacks_events = Some(lacks);
        }
        Ok(())
    }

    async fn write_down(
        &mut self,
        batch: &read::Batch,
        last_id: i64,
        set_aside: &SetAside,
    ) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = &self.rules;
        let written = write_position(&mut self.writer, relay, &self.position, batch, last_id, set_aside);
        self.position = within_timeout(*timeout, written).await?;
        // The row that closes a window opens the next one.
        self.has_opened |= self.position.window.as_ref().is_some_and(|window| window.after_id == 0);
        let unreadable =
            set_aside.unreadable.iter().filter_map(|parked| Some((parked.row.topic.as_ref()?, parked.id)));
        let parked = set_aside.parked.iter().map(|parked| (&parked.event.topic, parked.id));
        self.exceptions.hold(parked.chain(unreadable));
        Ok(())
    }

    /// How the next events are handed to the sink.
    pub(super) fn submit_mode(&self) -> SubmitMode {
        submit_mode_after(self.refusals)
    }

    /// Counts the sink's refusals, so that events are handed over one by one if it keeps refusing.
    pub(super) fn count_refusals<T>(
        &mut self,
        published: Result<T, PublishError>,
    ) -> Result<T, PublishError> {
        match &published {
            Ok(_) => self.refusals = 0,
            // The sink refuses one event of the batch and does not say which.
            Err(PublishError::Retry { failure, .. }) if failure.remedy == Remedy::SetAside => {
                self.refusals = REFUSALS_BEFORE_ONE_BY_ONE;
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
        within_timeout(*timeout, writing).await?;
        self.exceptions.hold(set_aside.iter().map(|parked| (&parked.event.topic, parked.id)));
        Ok(())
    }
}

fn submit_mode_after(refusals: u32) -> SubmitMode {
    if refusals < REFUSALS_BEFORE_ONE_BY_ONE { SubmitMode::Together } else { SubmitMode::OneByOne }
}

/// Writes the position after a batch and the events set aside from it, in one transaction.
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
    for row in &set_aside.unreadable {
        unreadable::park(&mut tx, relay, row).await?;
    }
    tx.commit().await.map_err(log::Error::from)?;
    Ok(to)
}

pub(super) async fn load_exceptions(
    writer: &mut PgConnection,
    rules: &Rules,
) -> Result<Exceptions, StepError> {
    let held = within_timeout(rules.timeout, parked::held_topics(writer, &rules.relay)).await?;
    let before = within_timeout(rules.timeout, delivered_before::of(writer, &rules.relay)).await?;
    let rebased_id =
        within_timeout(rules.timeout, delivered_before::rebased_id(writer, &rules.relay)).await?;
    Ok(Exceptions::new(held, before, rebased_id, rules.on_poison))
}

async fn read_batch(
    reader: &mut PgConnection,
    position: &Position,
    after_id: i64,
    rules: &Rules,
) -> Result<read::Batch, StepError> {
    let read = read::batch(reader, &rules.relay, position, after_id, rules.limit);
    within_timeout(rules.timeout, read).await
}

pub(super) async fn within_timeout<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, log::Error>>,
) -> Result<T, StepError> {
    match time::timeout(timeout, work).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => Err(StepError::NoAnswer(timeout)),
    }
}
