//! Publishes a batch without the events that are held, unreadable or refused by the sink.

use std::collections::{HashMap, HashSet};

use super::failure::Remedy;
use super::settings::OnPoison;
use super::sink::{Batch, Delivery, PublishError, PublishMode, Reached, Sink};
use super::submit::{SubmitMode, submit};
use crate::event::{Event, EventId, StreamId, Topic};
use crate::log::Position;
use crate::log::parked::Parked;
use crate::log::read::Row;
use crate::log::unreadable;

/// The events of a window that are not published in their turn.
#[derive(Debug)]
pub(super) struct Exceptions {
    /// Topics with parked events, and the number of each topic's first one. Later events of the topic wait
    /// behind it. Earlier ones have been published, and are published again to a sink that has forgotten
    /// them.
    held: HashMap<Topic, StreamId>,
    /// Rows that the sink already has, although no position records it.
    delivered_before: HashSet<(i64, EventId)>,
    /// Clients may have received the rows up to this id in an earlier epoch.
    rebased_id: i64,
    on_poison: OnPoison,
}

impl Exceptions {
    pub(super) fn new(
        held: HashMap<Topic, StreamId>,
        delivered_before: HashSet<(i64, EventId)>,
        rebased_id: i64,
        on_poison: OnPoison,
    ) -> Self {
        Self { held, delivered_before, rebased_id, on_poison }
    }

    /// Lets the topic's events flow again.
    pub(super) fn unhold(&mut self, topic: &Topic) {
        self.held.remove(topic);
    }

    /// Makes later events of these topics wait behind the parked ones with these numbers.
    pub(super) fn hold<'a>(&mut self, parked: impl Iterator<Item = (&'a Topic, StreamId)>) {
        for (topic, id) in parked {
            let first = self.held.entry(topic.clone()).or_insert(id);
            *first = (*first).min(id);
        }
    }

    /// Whether the event waits behind a parked one of its topic.
    fn holds(&self, delivery: &Delivery<'_>) -> bool {
        self.held.get(&delivery.event.topic).is_some_and(|first| delivery.id > *first)
    }

    fn is_delivered_before(&self, event: &Event) -> bool {
        self.delivered_before.contains(&(event.id, event.event_id))
    }

    fn may_be_of_an_earlier_epoch(&self, row: i64) -> bool {
        row <= self.rebased_id
    }
}

/// The rows of a batch that are not published.
#[derive(Debug, Default)]
pub(super) struct SetAside {
    pub(super) parked: Vec<Parked>,
    pub(super) unreadable: Vec<unreadable::Parked>,
    /// As in [`Published`].
    pub(super) has_arrived_before: bool,
}

impl SetAside {
    /// The number of rows, each of which uses up a number.
    pub(super) fn len(&self) -> usize {
        self.parked.len() + self.unreadable.len()
    }
}

/// Publishes a batch under the numbers that follow from the position, and returns the rows that must be set
/// aside.
pub(super) async fn publish_batch<S: Sink>(
    sink: &mut S,
    position: &Position,
    rows: &[Row],
    exceptions: &Exceptions,
    Attempt { submit_mode, is_own_window }: Attempt,
) -> Result<SetAside, PublishError> {
    let mut set_aside = SetAside::default();
    if rows.is_empty() {
        return Ok(set_aside);
    }
    let number = |i: usize| position.stream_id(position.next_seq + i as u64);
    let span = (number(0), number(rows.len() - 1));
    let mut deliveries = Vec::with_capacity(rows.len());
    let mut held: HashSet<&Topic> = HashSet::new();
    for (i, row) in rows.iter().enumerate() {
        match row {
            Row::Event(event) if held.contains(&event.topic) => {
                let delivery = Delivery { id: number(i), event };
                let may_have_arrived =
                    may_have_arrived(sink, exceptions, (delivery.id, event.id), is_own_window);
                set_aside.parked.push(parked_of(&delivery, WAITS, may_have_arrived));
            }
            Row::Event(event) => deliveries.push(Delivery { id: number(i), event }),
            Row::Unreadable(row) => {
                tracing::error!(row = row.id, reason = %row.reason, "a row that cannot be read is parked");
                held.extend(&row.topic);
                let (id, row) = (number(i), row.clone());
                let may_have_arrived = may_have_arrived(sink, exceptions, (id, row.id), is_own_window);
                set_aside.unreadable.push(unreadable::Parked { id, row, may_have_arrived });
            }
        }
    }
    let (mode, has_set_aside) = (PublishMode::Normal, set_aside.len() > 0);
    let publication = Publication { mode, span, lost: None, has_set_aside, submit_mode, is_own_window };
    let published = publish(sink, publication, deliveries, exceptions).await?;
    set_aside.has_arrived_before = published.has_arrived_before;
    set_aside.parked.extend(published.parked);
    set_aside.parked.sort_by_key(|parked| parked.id);
    Ok(set_aside)
}

/// The relay's knowledge of earlier tries to publish a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    pub(super) submit_mode: SubmitMode,
    /// Whether this relay has opened the window itself, so that nobody has published any of it before.
    pub(super) is_own_window: bool,
}

/// The reason of an event that is parked without a refusal of its own.
const WAITS: &str = "waits behind a parked event of its topic";

/// How events are published.
#[derive(Debug, Clone, Copy)]
pub(super) struct Publication {
    pub(super) mode: PublishMode,
    /// The first and the last number that they use up.
    pub(super) span: (StreamId, StreamId),
    /// As in [`Batch`].
    pub(super) lost: Option<StreamId>,
    /// Whether some rows of the span have been set aside already.
    pub(super) has_set_aside: bool,
    pub(super) submit_mode: SubmitMode,
    /// As in [`Attempt`].
    pub(super) is_own_window: bool,
}

/// The result of publishing.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// The events to set aside, in order: those that wait, and those that the sink refuses.
    pub(super) parked: Vec<Parked>,
    /// Whether events were left out that had arrived in an earlier try. The sink's number does not pass them
    /// before a call has proved that they are still there.
    pub(super) has_arrived_before: bool,
}

/// Publishes events under their numbers, without those that are held.
pub(super) async fn publish<S: Sink>(
    sink: &mut S,
    publication: Publication,
    mut all: Vec<Delivery<'_>>,
    exceptions: &Exceptions,
) -> Result<Published, PublishError> {
    let Publication { mode, span: (mut first, through), lost, has_set_aside, submit_mode, is_own_window } =
        publication;
    all.retain(|delivery| !exceptions.is_delivered_before(delivery.event));
    let mut rest = all.clone();
    let mut published = Published::default();
    let mut held_now: HashSet<&Topic> = HashSet::new();
    loop {
        let waiting = take_waiting(&mut rest, exceptions, &held_now);
        published.parked.extend(waiting.iter().map(|delivery| {
            let place = (delivery.id, delivery.event.id);
            parked_of(delivery, WAITS, may_have_arrived(sink, exceptions, place, is_own_window))
        }));
        // The call is made also without events, because the sink has to know that the numbers are used up.
        // But the sink's number must not pass an event that is not yet written down as set aside: a relay
        // that continued from there would count it as published.
        let is_whole = !has_set_aside && published.parked.is_empty() && !published.has_arrived_before;
        let through = is_whole.then_some(through);
        let batch = Batch { mode, deliveries: &rest, first, through, lost };
        let (at, reason) = match submit(sink, batch, submit_mode).await {
            Ok(()) => break,
            Err(PublishError::Poison { at, reason }) if at < rest.len() => (at, reason),
            Err(error) => return Err(error),
        };
        // Everything before it has arrived. If the sink forgets that meanwhile, the next call finds out.
        if let (Some(last), Some(_), false) = (rest[..at].last(), through, mode.is_release()) {
            first = StreamId::new(last.id.epoch, last.id.seq + 1);
        }
        rest.drain(..at);
        let refused = rest[0];
        match fate_of(sink, mode, &refused, &all, exceptions).await? {
            Fate::HasArrived { newest } => {
                let topic = &refused.event.topic;
                rest.retain(|delivery| delivery.event.topic != *topic || delivery.id > newest);
                published.has_arrived_before = true;
            }
            Fate::Park => {
                // An earlier try may have published it. If so, the sink has lost it since.
                let place = (refused.id, refused.event.id);
                let may_have_arrived = may_have_arrived(sink, exceptions, place, is_own_window);
                published.parked.push(refusal_of(&rest.remove(0), &reason, may_have_arrived));
                held_now.insert(&refused.event.topic);
            }
            Fate::StopAll => return Err(PublishError::Poison { at, reason }),
        }
    }
    published.parked.sort_by_key(|parked| parked.id);
    Ok(published)
}

/// What becomes of an event that the sink has refused.
enum Fate {
    /// It had arrived in an earlier try, with all of its topic up to `newest`.
    HasArrived { newest: StreamId },
    /// It is parked.
    Park,
    /// Nothing is delivered until a person has solved the cause.
    StopAll,
}

async fn fate_of<S: Sink>(
    sink: &mut S,
    mode: PublishMode,
    refused: &Delivery<'_>,
    batch: &[Delivery<'_>],
    exceptions: &Exceptions,
) -> Result<Fate, PublishError> {
    if let Some(newest) = newest_after_refused(sink, mode, refused, batch).await? {
        return Ok(Fate::HasArrived { newest });
    }
    Ok(if exceptions.on_poison == OnPoison::Park { Fate::Park } else { Fate::StopAll })
}

/// Takes out the events that wait behind a parked one.
fn take_waiting<'a>(
    rest: &mut Vec<Delivery<'a>>,
    exceptions: &Exceptions,
    held_now: &HashSet<&Topic>,
) -> Vec<Delivery<'a>> {
    rest.extract_if(.., |delivery| exceptions.holds(delivery) || held_now.contains(&delivery.event.topic))
        .collect()
}

/// Returns the number of the sink's newest event of this topic, if that event is a later one of this batch.
/// The refused event then arrived in an earlier try, because a topic's events arrive in order. The sink
/// refused it because its entry is gone and a history takes no entry below its newest one.
async fn newest_after_refused<S: Sink>(
    sink: &mut S,
    mode: PublishMode,
    refused: &Delivery<'_>,
    batch: &[Delivery<'_>],
) -> Result<Option<StreamId>, PublishError> {
    if mode != PublishMode::Normal {
        return Ok(None);
    }
    let newest = match sink.newest_of(&refused.event.topic).await {
        // The sink refuses to read this topic, so nothing shows that the event arrived.
        Err(PublishError::Poison { .. }) => None,
        Err(PublishError::Retry { failure, .. }) if failure.remedy == Remedy::SetAside => None,
        newest => newest?,
    };
    let Some(Reached { id, event: Some(event), .. }) = newest else { return Ok(None) };
    let is_of_batch = batch.iter().any(|delivery| {
        delivery.id == id && delivery.event.event_id == event && delivery.event.topic == refused.event.topic
    });
    Ok((is_of_batch && id > refused.id).then_some(id))
}

/// Whether clients may have received the event of a row that is to be parked under this number.
fn may_have_arrived<S: Sink>(
    sink: &S,
    exceptions: &Exceptions,
    (id, row): (StreamId, i64),
    is_own_window: bool,
) -> bool {
    !is_own_window || sink.may_have_delivered(id) || exceptions.may_be_of_an_earlier_epoch(row)
}

fn refusal_of(delivery: &Delivery<'_>, reason: &str, may_have_arrived: bool) -> Parked {
    let Delivery { id, event: Event { topic, event_id, .. } } = delivery;
    tracing::error!(%id, %topic, event = %event_id, %reason, may_have_arrived, "parked");
    parked_of(delivery, reason, may_have_arrived)
}

fn parked_of(delivery: &Delivery<'_>, reason: &str, may_have_arrived: bool) -> Parked {
    let (id, event) = (delivery.id, delivery.event.clone());
    Parked { id, event, reason: reason.to_owned(), may_have_arrived }
}

#[cfg(test)]
#[path = "publication_tests.rs"]
mod tests;
