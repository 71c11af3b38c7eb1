//! Comparing the sink with the position, and giving it again what it has forgotten.
//!
//! The sink keeps the highest number that it has used up. Below the position, it has gone back: a failover to a replica
//! that lagged, a restart without its last writes or without any. The log still has those events and the numbers that
//! they had, so they are published again under them before anything else is. Above the position, at most a chunk may
//! have arrived that nobody wrote down, and it must be of the window that is open: otherwise Postgres has gone back, its
//! new events would take numbers that clients have seen already, and a person has to decide.

use super::leader::staying_alive;
use super::sink::{Batch, Delivery, Occasion, PublishError, Reached, Sink};
use super::step::{Step, StepError, answered, publish};
use crate::counted::counted;
use crate::event::StreamId;
use crate::failpoint;
use crate::outbox::restore::Stretches;
use crate::outbox::{Position, read};

/// What the comparison found, and what was done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconciled {
    /// The sink has what the position says.
    InStep,
    /// The sink had forgotten something and has been given it again.
    Restored {
        /// Events published again.
        events: u64,
        /// Numbers whose events the log no longer has, or that are older than histories are kept.
        missing: u64,
    },
}

/// Where the sink stands, seen from a position.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    InStep,
    /// It lacks the numbers from this one on.
    Behind {
        from: u64,
    },
    /// It has so many more.
    Beyond {
        by: u64,
    },
    /// It has numbers of a later epoch.
    LaterEpoch,
}

fn standing(position: &Position, reached: Option<Reached>) -> Standing {
    let delivered = position.next_seq - 1;
    let reached = match reached {
        Some(reached) if reached.id.epoch > position.epoch => return Standing::LaterEpoch,
        // Of an earlier epoch: of this one, nothing.
        Some(reached) if reached.id.epoch == position.epoch => reached.id.seq,
        _ => 0,
    };
    match reached.cmp(&delivered) {
        std::cmp::Ordering::Less => Standing::Behind { from: reached + 1 },
        std::cmp::Ordering::Equal => Standing::InStep,
        std::cmp::Ordering::Greater => Standing::Beyond { by: reached - delivered },
    }
}

impl Step {
    /// Compares the sink with the newest position, and restores what the sink lacks.
    ///
    /// Call it before the first step, after [`PublishError::Forgot`], and now and then while idle.
    ///
    /// # Errors
    /// [`PublishError::Stop`] if the sink has more than this log can have given it; else as [`Step::step`].
    pub async fn reconcile<S: Sink>(&mut self, sink: &mut S) -> Result<Reconciled, StepError> {
        let reached = sink.reached().await?;
        if standing(&self.position, reached) == Standing::InStep {
            return Ok(Reconciled::InStep);
        }
        // Another relay may have moved both. What the sink lacks is judged by a position from before it was asked, what
        // it has beyond by one from after: so neither can seem so only because the other one went on meanwhile.
        self.reload().await?;
        let reached = sink.reached().await?;
        if let Standing::Behind { from } = standing(&self.position, reached) {
            return self.restore(sink, from).await;
        }
        self.reload().await?;
        match standing(&self.position, reached) {
            Standing::Beyond { by } => self.explain(by, reached).await,
            Standing::LaterEpoch => Err(later_epoch(reached)),
            Standing::InStep | Standing::Behind { .. } => Ok(Reconciled::InStep),
        }
    }

    /// The sink is beyond the position: in step all the same if that is a chunk of the open window.
    async fn explain(&mut self, by: u64, reached: Option<Reached>) -> Result<Reconciled, StepError> {
        let patience = self.rules.patience;
        let identity = answered(patience, read::identity_of(&mut self.reader, &self.position, by)).await?;
        let expected = reached.and_then(|reached| reached.event);
        match (identity, expected) {
            (Some(identity), Some(expected)) if identity == expected => Ok(Reconciled::InStep),
            // The last number went to an event that was set aside.
            (Some(_), None) => Ok(Reconciled::InStep),
            _ => Err(beyond(&self.position, by).into()),
        }
    }

    async fn restore<S: Sink>(&mut self, sink: &mut S, from: u64) -> Result<Reconciled, StepError> {
        let (epoch, end) = (self.position.epoch, self.position.next_seq);
        tracing::error!(
            reached = from - 1,
            published = end - 1,
            "Redis has forgotten what was published; giving it again from the log"
        );
        let (relay, patience) = (self.rules.relay.clone(), self.rules.patience);
        let begun = Stretches::from(&mut self.reader, &relay, epoch, from, sink.keeps());
        let mut stretches = answered(patience, begun).await?;
        let (mut next, mut events, mut missing) = (from, 0, 0);
        while let Some(stretch) = answered(patience, stretches.next(&mut self.reader)).await? {
            let through = (stretch.first + stretch.count).min(end) - 1;
            if through < next {
                continue;
            }
            missing += stretch.first.saturating_sub(next);
            let lost = stretch.events.unwrap_or_else(|| {
                missing += through + 1 - next.max(stretch.first);
                Vec::new()
            });
            let deliveries: Vec<Delivery<'_>> = lost
                .iter()
                .filter(|(id, _)| (next..end).contains(&id.seq))
                .map(|(id, event)| Delivery { id: *id, event })
                .collect();
            let given = deliveries.len() as u64;
            self.give_again(sink, deliveries, next, through).await?;
            events += given;
            // Also if the rest fails: the next attempt goes on from here, and knows nothing of these.
            self.given_again += given;
            next = through + 1;
            failpoint::reach("stretch_restored").await;
            if next >= end {
                break;
            }
        }
        missing += end - next;
        // The numbers of what is missing are used up all the same.
        self.give_again(sink, Vec::new(), next, end - 1).await?;
        tracing::warn!(events, missing, "Redis has again what the log has of it");
        Ok(Reconciled::Restored { events, missing })
    }

    /// Publishes a stretch once more. What the sink refuses is set aside, as in a step.
    async fn give_again<S: Sink>(
        &mut self,
        sink: &mut S,
        deliveries: Vec<Delivery<'_>>,
        first: u64,
        through: u64,
    ) -> Result<(), StepError> {
        let number = |seq| StreamId::new(self.position.epoch, seq);
        let span = (number(first), number(through.max(first.saturating_sub(1))));
        let published = publish(sink, Occasion::Restore, deliveries, span, &self.exceptions);
        let parked = staying_alive(&mut self.writer, self.rules.sign_of_life, published).await??;
        if parked.is_empty() {
            return Ok(());
        }
        failpoint::reach("stretch_published").await;
        self.set_aside(&parked).await?;
        // Only now: whoever goes on from here looks at nothing before the sink's number.
        let (first, through) = span;
        let counted = sink.publish(Batch {
            occasion: Occasion::Restore,
            deliveries: &[],
            first,
            through: Some(through),
        });
        Ok(staying_alive(&mut self.writer, self.rules.sign_of_life, counted).await??)
    }
}

fn later_epoch(reached: Option<Reached>) -> StepError {
    let id = reached.map_or_else(String::new, |reached| reached.id.to_string());
    PublishError::Stop(format!(
        "Redis is at {id}, of a later epoch than Postgres: Postgres was restored from a backup that is older than its last \
         rebase. Run `aftercommit rebase`"
    ))
    .into()
}

fn beyond(position: &Position, by: u64) -> PublishError {
    PublishError::Stop(format!(
        "Redis has {} beyond {}-{}, where Postgres is, and not what Postgres would deliver next: \
         Postgres went back (a restored backup, a failover that lost commits), or REDIS_URL names another Redis. Nothing \
         was published. If Postgres was restored, run `aftercommit rebase`",
        counted(by, "event"),
        position.epoch,
        position.next_seq - 1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(next_seq: u64) -> Position {
        Position { epoch: 2, next_seq, ..Position::before_everything() }
    }

    fn reached(epoch: u64, seq: u64) -> Option<Reached> {
        Some(Reached { id: StreamId::new(epoch, seq), event: None })
    }

    #[test]
    fn a_sink_that_has_nothing_lacks_all_that_was_delivered_in_this_epoch() {
        assert_eq!(standing(&at(1), None), Standing::InStep);
        assert_eq!(standing(&at(5), None), Standing::Behind { from: 1 });
        assert_eq!(standing(&at(5), reached(1, 900)), Standing::Behind { from: 1 });
        assert_eq!(standing(&at(1), reached(1, 900)), Standing::InStep);
    }

    #[test]
    fn a_sink_is_behind_in_step_or_beyond_by_its_highest_number() {
        assert_eq!(standing(&at(5), reached(2, 2)), Standing::Behind { from: 3 });
        assert_eq!(standing(&at(5), reached(2, 4)), Standing::InStep);
        assert_eq!(standing(&at(5), reached(2, 6)), Standing::Beyond { by: 2 });
        assert_eq!(standing(&at(5), reached(3, 1)), Standing::LaterEpoch);
    }
}
