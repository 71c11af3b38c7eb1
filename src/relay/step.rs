//! One bounded step: a chunk of the log read, published and written down.
//!
//! What may not change here is the order of effects, as each gap between two of them is a place to die:
//!
//! 1. the window is written down (`checkpoint::open`, or together with 4);
//! 2. a chunk of it is read; the next one is read ahead while
//! 3. the chunk is published under the numbers that the position gives it;
//! 4. the position behind the chunk is written down.
//!
//! Dying after 1 or 2 loses nothing: the next relay finds the window and reads the same. Dying after 3 repeats the
//! chunk under the same numbers, and the sink refuses repeats. Reading ahead has no effect, so it may overlap anything.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::timeout;

use super::sink::{Delivery, PublishError, Sink};
use crate::event::{Event, StreamId};
use crate::outbox::read::Limit;
use crate::outbox::{self, Position, checkpoint, read};

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to deliver, and nothing was written.
    Idle,
    /// So many events were delivered, and there may be more.
    Delivered(usize),
}

/// Why a step failed. The position is as it was.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The log.
    #[error(transparent)]
    Outbox(#[from] outbox::Error),
    /// The sink.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Postgres did not answer in time; its connections are not to be used any more.
    #[error("Postgres did not answer within {0:?}")]
    NoAnswer(Duration),
}

/// A relay's hands: its two connections, its position, and what it has read ahead.
#[derive(Debug)]
pub struct Step {
    relay: String,
    limit: Limit,
    /// How long Postgres may take to answer. The server has its own limit; this one is for a server that is gone.
    patience: Duration,
    /// Holds the leader's lock and writes positions: a leader that lost its lock's session can write nothing either.
    writer: PgConnection,
    reader: PgConnection,
    position: Position,
    ahead: Option<Chunk>,
}

/// Events of a window, and whether they are its last ones.
#[derive(Debug)]
struct Chunk {
    events: Vec<Event>,
    is_last: bool,
}

impl Step {
    /// Takes two prepared connections and loads, or begins, the position of `relay`.
    ///
    /// # Errors
    /// [`StepError::Outbox`], [`StepError::NoAnswer`].
    pub async fn begin(
        relay: &str,
        limit: Limit,
        patience: Duration,
        mut writer: PgConnection,
        reader: PgConnection,
    ) -> Result<Self, StepError> {
        let position = answered(patience, checkpoint::load_or_begin(&mut writer, relay)).await?;
        Ok(Self { relay: relay.to_owned(), limit, patience, writer, reader, position, ahead: None })
    }

    /// The position as this relay knows it.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Reads the newest position again, for after another relay has written one.
    ///
    /// # Errors
    /// [`StepError::Outbox`], [`StepError::NoAnswer`].
    pub async fn reload(&mut self) -> Result<(), StepError> {
        self.ahead = None;
        self.position =
            answered(self.patience, checkpoint::load_or_begin(&mut self.writer, &self.relay)).await?;
        Ok(())
    }

    /// Does one step.
    ///
    /// # Errors
    /// [`StepError`]. After [`PublishError::Retry`] the same step may be tried again; after
    /// [`outbox::Error::Fenced`], [`Step::reload`] first; after anything else of Postgres's, begin anew.
    pub async fn step<S: Sink>(&mut self, sink: &mut S) -> Result<Outcome, StepError> {
        if self.position.window.is_none() {
            let opened = checkpoint::open(&mut self.writer, &self.relay, &self.position);
            match answered(self.patience, opened).await? {
                None => return Ok(Outcome::Idle),
                Some(position) => self.position = position,
            }
        }
        let after_id = self.position.window.as_ref().map_or(0, |w| w.after_id);
        let chunk = match self.ahead.take() {
            Some(chunk) => chunk,
            None => self.read(after_id).await?,
        };
        let Some(last_id) = chunk.events.last().map(|e| e.id) else {
            // A window whose last chunk ended exactly at the limit.
            self.settle(after_id, 0).await?;
            return Ok(Outcome::Delivered(0));
        };
        if !chunk.is_last {
            let (published, ahead) = self.publish_and_read_ahead(sink, &chunk, last_id).await;
            published?;
            self.ahead = Some(ahead?);
        } else {
            publish(sink, &self.position, &chunk.events).await?;
        }
        self.write_down(&chunk, last_id).await?;
        Ok(Outcome::Delivered(chunk.events.len()))
    }

    async fn publish_and_read_ahead<S: Sink>(
        &mut self,
        sink: &mut S,
        chunk: &Chunk,
        last_id: i64,
    ) -> (Result<(), PublishError>, Result<Chunk, StepError>) {
        let publishing = publish(sink, &self.position, &chunk.events);
        let reading = read_chunk(&mut self.reader, &self.position, last_id, self.limit, self.patience);
        tokio::join!(publishing, reading)
    }

    async fn write_down(&mut self, chunk: &Chunk, last_id: i64) -> Result<(), StepError> {
        let events = chunk.events.len() as u64;
        if chunk.is_last {
            return self.settle(last_id, events).await;
        }
        let written = checkpoint::advance(&mut self.writer, &self.relay, &self.position, last_id, events);
        self.position = answered(self.patience, written).await?;
        Ok(())
    }

    async fn settle(&mut self, last_id: i64, events: u64) -> Result<(), StepError> {
        let written = checkpoint::settle(&mut self.writer, &self.relay, &self.position, last_id, events);
        self.position = answered(self.patience, written).await?;
        Ok(())
    }

    async fn read(&mut self, after_id: i64) -> Result<Chunk, StepError> {
        read_chunk(&mut self.reader, &self.position, after_id, self.limit, self.patience).await
    }
}

/// Publishes a chunk under the numbers that follow from the position.
async fn publish<S: Sink>(sink: &mut S, position: &Position, events: &[Event]) -> Result<(), PublishError> {
    let number = |i: usize| StreamId::new(position.epoch, position.next_seq + i as u64);
    let batch: Vec<Delivery<'_>> =
        events.iter().enumerate().map(|(i, event)| Delivery { id: number(i), event }).collect();
    sink.publish(&batch, number(events.len().saturating_sub(1))).await
}

async fn read_chunk(
    reader: &mut PgConnection,
    position: &Position,
    after_id: i64,
    limit: Limit,
    patience: Duration,
) -> Result<Chunk, StepError> {
    let events = answered(patience, read::chunk(reader, position, after_id, limit)).await?;
    let bytes: u64 = events.iter().map(|e| e.payload.len() as u64).sum();
    // Fewer than both limits allow means that the window holds no more. At a limit it is not known: read on.
    let is_last = events.len() < limit.events as usize && bytes < limit.bytes;
    Ok(Chunk { events, is_last })
}

async fn answered<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, outbox::Error>>,
) -> Result<T, StepError> {
    match timeout(patience, work).await {
        Ok(result) => Ok(result?),
        Err(_elapsed) => Err(StepError::NoAnswer(patience)),
    }
}
