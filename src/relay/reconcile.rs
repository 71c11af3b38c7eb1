//! Compares the sink with the position, and restores the events that the sink has forgotten.
//!
//! The sink keeps the highest number that it has used up. If that is below the position, the sink has gone
//! back: by a failover to a replica that lagged, or a restart without its last writes or without any. The log
//! still has those events and their numbers, so they are published again under these before anything else. If
//! it is above the position, at most one batch may have arrived without its position being written, and that
//! batch must be of the open window. Otherwise Postgres has gone back: its new events would take numbers that
//! clients have seen, and a person has to decide.

use std::time::Instant;

use super::leader::{stay_alive, staying_alive};
use super::publication::{Publication, publish};
use super::sink::{Delivery, PublishError, PublishMode, Reached, Sink};
use super::step::{Step, StepError, within_timeout};
use crate::event::StreamId;
use crate::failpoint;
use crate::log::restore::{DeliveredRange, DeliveredRanges};
use crate::log::{Position, read};
use crate::pluralize::pluralize;

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconciled {
    /// The sink has everything up to the position.
    InStep,
    /// The sink had forgotten events, and they were restored.
    Restored {
        /// Events published again.
        events: u64,
        /// Numbers whose events the log no longer has, or that are older than the sink keeps events.
        missing: u64,
    },
}

/// The state of one server of the sink, relative to a position.
#[derive(Debug, PartialEq, Eq)]
enum SinkState {
    InStep,
    /// The sink lacks the numbers from this one on.
    Behind {
        from: u64,
    },
    /// The sink has used up `by` more numbers.
    Beyond {
        by: u64,
    },
    /// The sink has numbers of a later epoch.
    LaterEpoch,
}

/// The lowest number that a server of the sink lacks, if one does.
fn lacks(position: &Position, servers: &[Option<Reached>]) -> Option<u64> {
    let behind = |reached: &Option<Reached>| match sink_state(position, *reached) {
        SinkState::Behind { from } => Some(from),
        _ => None,
    };
    servers.iter().filter_map(behind).min()
}

/// The place of the server that is furthest beyond the position; `None` if no server is beyond it.
fn furthest_beyond(position: &Position, servers: &[Option<Reached>]) -> Option<Reached> {
    let is_beyond = |reached: &&Option<Reached>| {
        matches!(sink_state(position, **reached), SinkState::Beyond { .. } | SinkState::LaterEpoch)
    };
    servers.iter().filter(is_beyond).flatten().max_by_key(|reached| reached.id).copied()
}

fn sink_state(position: &Position, reached: Option<Reached>) -> SinkState {
    let delivered = position.next_seq - 1;
    let reached = match reached {
        Some(reached) if reached.id.epoch > position.epoch => return SinkState::LaterEpoch,
        Some(reached) if reached.id.epoch == position.epoch => reached.id.seq,
        // The sink's number is of an earlier epoch, or there is none. A rebase claims its epoch in the sink,
        // so the sink has gone back since.
        _ if position.epoch > 1 => return SinkState::Behind { from: 1 },
        _ => 0,
    };
    match reached.cmp(&delivered) {
        std::cmp::Ordering::Less => SinkState::Behind { from: reached + 1 },
        std::cmp::Ordering::Equal => SinkState::InStep,
        std::cmp::Ordering::Greater => SinkState::Beyond { by: reached - delivered },
    }
}

impl Step {
    /// Compares the sink with the newest position, and restores the events that the sink lacks.
    ///
    /// Call it before the first step, after [`PublishError::Forgot`], and from time to time while idle.
    ///
    /// # Errors
    /// Returns [`PublishError::Stop`] if the sink has more than this log can have given it, and else fails as
    /// [`Step::step`].
    pub async fn reconcile<S: Sink>(&mut self, sink: &mut S) -> Result<Reconciled, StepError> {
        let reconciled = self.compare(sink).await?;
        self.note_lacking_events(sink).await?;
        Ok(reconciled)
    }

    async fn compare<S: Sink>(&mut self, sink: &mut S) -> Result<Reconciled, StepError> {
        let servers = sink.reached().await?;
        if servers.iter().all(|reached| sink_state(&self.position, *reached) == SinkState::InStep) {
            return Ok(Reconciled::InStep);
        }
        // Another relay may be moving both meanwhile. So missing numbers are judged by a position that was
        // read before the sink, and surplus numbers by a position that was read after it. Then the progress
        // of another relay looks like neither.
        self.reload().await?;
        let servers = sink.reached().await?;
        let lacks = lacks(&self.position, &servers);
        if furthest_beyond(&self.position, &servers).is_some() {
            self.reload().await?;
            if let Some(reached) = furthest_beyond(&self.position, &servers) {
                // The numbers of set-aside events and of releases stand in the log before the sink passes them.
                // So the open window explains none of them.
                if has_forgotten(&self.position, &servers) {
                    return Err(beyond(&self.position, reached).into());
                }
                self.explain(reached).await?;
                sink.vouch(reached.id);
            }
        }
        match lacks {
            Some(from) => self.restore(sink, from).await,
            None => Ok(Reconciled::InStep),
        }
    }

    /// Checks a sink that is beyond the position. It is in step if its last event is of the open window.
    async fn explain(&mut self, reached: Reached) -> Result<(), StepError> {
        let SinkState::Beyond { by } = sink_state(&self.position, Some(reached)) else {
            return Err(later_epoch(reached));
        };
        let timeout = self.rules.timeout;
        let identity =
            within_timeout(timeout, read::identity_of(&mut self.reader, &self.position, by)).await?;
        match (identity, reached.event) {
            (Some(identity), Some(expected)) if identity == expected => Ok(()),
            // The last number belongs to an event that was set aside.
            (Some(_), None) => Ok(()),
            _ => Err(beyond(&self.position, reached).into()),
        }
    }

    async fn restore<S: Sink>(&mut self, sink: &mut S, from: u64) -> Result<Reconciled, StepError> {
        let (epoch, end) = (self.position.epoch, self.position.next_seq);
        tracing::error!(
            reached = from - 1,
            published = end - 1,
            "Redis lacks published events; restoring them from the log"
        );
        let (relay, timeout) = (self.rules.relay.clone(), self.rules.timeout);
        // Numbers of an earlier epoch come before all of this one.
        let unpublished_above = sink.unpublished_above().map(|id| if id.epoch == epoch { id.seq } else { 0 });
        let begun =
            DeliveredRanges::from(&mut self.reader, &relay, epoch, from, sink.keeps(), unpublished_above);
        let mut ranges = within_timeout(timeout, begun).await?;
        // The numbers of an earlier epoch cannot be restored, and a sink without any number may have had
        // some.
        let before = (epoch > 1 && from == 1).then(|| StreamId::new(epoch, 0));
        let mut repair = Repair { first: from, next: from, events: 0, missing: 0, lost: before };
        let mut alive = Instant::now();
        while repair.next < end
            && let Some(range) = within_timeout(timeout, ranges.next(&mut self.reader)).await?
        {
            // A long repair of many short ranges must not cost the lead.
            stay_alive(&mut self.writer, self.rules.keepalive, &mut alive).await?;
            self.restore_range(sink, range, &mut repair).await?;
        }
        if repair.next < end {
            repair.lose(epoch, end - 1);
        }
        // The numbers of missing events are used up all the same.
        let span = repair.span(epoch, end - 1);
        self.republish(sink, PublishMode::Restore, Vec::new(), span, repair.lost).await?;
        let Repair { events, missing, .. } = repair;
        tracing::warn!(events, missing, "restored Redis from the log");
        Ok(Reconciled::Restored { events, missing })
    }

    /// Publishes the events of one range that the sink lacks. Events that the log no longer has are lost.
    async fn restore_range<S: Sink>(
        &mut self,
        sink: &mut S,
        range: DeliveredRange,
        repair: &mut Repair,
    ) -> Result<(), StepError> {
        let (epoch, end) = (self.position.epoch, self.position.next_seq);
        let through = (range.first + range.count).min(end) - 1;
        if through < repair.next {
            return Ok(());
        }
        if range.first > repair.next {
            repair.lose(epoch, range.first - 1);
        }
        let Some(events) = range.events else {
            repair.lose(epoch, through);
            return Ok(());
        };
        let deliveries: Vec<Delivery<'_>> = events
            .iter()
            .filter(|(id, _)| range.is_release || (repair.next..end).contains(&id.seq))
            .map(|(id, event)| Delivery { id: *id, event })
            .collect();
        let given = deliveries.len() as u64;
        let mode = if range.is_release { PublishMode::RestoreRelease } else { PublishMode::Restore };
        self.republish(sink, mode, deliveries, repair.span(epoch, through), repair.lost).await?;
        // Counted also if the rest fails: the next attempt continues after these events and does not count
        // them.
        self.republished += given;
        repair.events += given;
        (repair.first, repair.next) = (through + 1, through + 1);
        failpoint::reach("range_restored").await;
        Ok(())
    }

    /// Publishes once more the events that have arrived under these numbers, and uses the numbers up. Events
    /// that the sink refuses are set aside, as in a step, and then the rest is published again. So the sink's
    /// number passes only events that this call proves to be there, or that are written down as set aside.
    pub(super) async fn republish<S: Sink>(
        &mut self,
        sink: &mut S,
        mode: PublishMode,
        mut deliveries: Vec<Delivery<'_>>,
        span: (StreamId, StreamId),
        lost: Option<StreamId>,
    ) -> Result<(), StepError> {
        loop {
            let submit_mode = self.submit_mode();
            let publication =
                Publication { mode, span, lost, has_set_aside: false, submit_mode, is_own_window: false };
            let publishing = publish(sink, publication, deliveries.clone(), &self.exceptions);
            let published = staying_alive(&mut self.writer, self.rules.keepalive, publishing).await?;
            let parked = self.count_refusals(published)?.parked;
            if parked.is_empty() {
                return Ok(());
            }
            failpoint::reach("range_published").await;
            self.set_aside(&parked).await?;
            deliveries.retain(|delivery| parked.iter().all(|parked| parked.id != delivery.id));
        }
    }
}

/// How far a repair has come.
#[derive(Debug, Clone, Copy)]
struct Repair {
    /// The first number that the sink does not have.
    first: u64,
    /// The next number to restore. The numbers from `first` to here are lost.
    next: u64,
    /// Events restored.
    events: u64,
    /// Numbers that could not be restored.
    missing: u64,
    /// The highest of these.
    lost: Option<StreamId>,
}

impl Repair {
    /// The numbers that the next call uses up. Lost numbers are used up together with those after them, in
    /// the call that marks them as lost.
    fn span(&self, epoch: u64, through: u64) -> (StreamId, StreamId) {
        let last = through.max(self.first.saturating_sub(1));
        (StreamId::new(epoch, self.first), StreamId::new(epoch, last))
    }

    /// Leaves out the numbers from the next one to this one.
    fn lose(&mut self, epoch: u64, through: u64) {
        self.missing += through + 1 - self.next;
        self.next = through + 1;
        self.lost = Some(StreamId::new(epoch, through));
    }
}

/// Whether the log has not recorded, or no longer, what a server of the sink knows to have been recorded.
fn has_forgotten(position: &Position, servers: &[Option<Reached>]) -> bool {
    let recorded = servers.iter().flatten().filter_map(|reached| reached.recorded);
    recorded.into_iter().any(|id| id.epoch == position.epoch && id.seq >= position.next_seq)
}

fn later_epoch(Reached { id, .. }: Reached) -> StepError {
    PublishError::Stop(format!(
        "Redis is at {id}, of a later epoch than Postgres: Postgres was restored from a backup that is older \
         than its last rebase. Run `aftercommit rebase`"
    ))
    .into()
}

fn beyond(position: &Position, reached: Reached) -> PublishError {
    let by = (reached.id.seq + 1).saturating_sub(position.next_seq);
    PublishError::Stop(format!(
        "Redis has {} beyond {}-{}, where Postgres is, and not what Postgres would deliver next: Postgres \
         went back (a restored backup, a failover that lost commits), another Postgres with a copy of this log \
         has a relay too (an old primary, a clone), or REDIS_URL names another Redis. Nothing was published. If \
         Postgres was restored or replaced, run `aftercommit rebase`",
        pluralize(by, "event"),
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
        Some(Reached { id: StreamId::new(epoch, seq), event: None, recorded: None })
    }

    #[test]
    fn a_sink_that_has_nothing_lacks_all_that_was_delivered_in_this_epoch() {
        assert_eq!(sink_state(&Position::before_everything(), None), SinkState::InStep);
        assert_eq!(sink_state(&at(5), None), SinkState::Behind { from: 1 });
        assert_eq!(sink_state(&at(5), reached(1, 900)), SinkState::Behind { from: 1 });
        // The epoch has not been claimed, or the sink went back to before the claim.
        assert_eq!(sink_state(&at(1), reached(1, 900)), SinkState::Behind { from: 1 });
    }

    #[test]
    fn of_several_servers_the_one_that_lacks_most_is_given_events_from_there_on() {
        let servers = [reached(2, 4), reached(2, 2), reached(2, 3)];
        assert_eq!((lacks(&at(5), &servers), furthest_beyond(&at(5), &servers)), (Some(3), None));
        assert_eq!(lacks(&at(5), &[reached(2, 4), None]), Some(1));
        assert_eq!(lacks(&at(5), &[reached(2, 4), reached(2, 9)]), None);
    }

    #[test]
    fn of_several_servers_the_one_that_is_furthest_beyond_has_to_be_explained() {
        let servers = [reached(2, 6), reached(2, 2), reached(2, 7)];
        assert_eq!((lacks(&at(5), &servers), furthest_beyond(&at(5), &servers)), (Some(3), reached(2, 7)));
        let servers = [reached(3, 1), reached(2, 9)];
        assert_eq!(furthest_beyond(&at(5), &servers), reached(3, 1));
    }

    #[test]
    fn a_sink_is_behind_in_step_or_beyond_by_its_highest_number() {
        assert_eq!(sink_state(&at(5), reached(2, 2)), SinkState::Behind { from: 3 });
        assert_eq!(sink_state(&at(5), reached(2, 4)), SinkState::InStep);
        assert_eq!(sink_state(&at(5), reached(2, 6)), SinkState::Beyond { by: 2 });
        assert_eq!(sink_state(&at(5), reached(3, 1)), SinkState::LaterEpoch);
    }
}
