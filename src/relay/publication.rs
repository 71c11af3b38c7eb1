//! Publishing a chunk around what is held, what cannot be read and what the sink refuses.

use std::collections::{HashMap, HashSet};

use super::handing::{Handing, hand_over};
use super::settings::OnPoison;
use super::sink::{Batch, Delivery, PublishError, PublishMode, Sink};
use crate::event::{StreamId, Topic};
use crate::outbox::Position;
use crate::outbox::parked::Parked;
use crate::outbox::read::{Row, Unreadable};

/// What of a window is not published in its turn.
#[derive(Debug)]
pub(super) struct Exceptions {
    /// Topics with parked events, and the number of the first one: later events of the topic wait behind it. Earlier ones
    /// have been published, and are published again to a sink that has forgotten them.
    held: HashMap<Topic, StreamId>,
    /// Rows that the sink has already, although the position does not know.
    delivered_before: HashSet<i64>,
    on_poison: OnPoison,
}

impl Exceptions {
    pub(super) fn new(
        held: HashMap<Topic, StreamId>,
        delivered_before: HashSet<i64>,
        on_poison: OnPoison,
    ) -> Self {
        Self { held, delivered_before, on_poison }
    }

    /// The topic's events flow again.
    pub(super) fn let_go(&mut self, topic: &Topic) {
        self.held.remove(topic);
    }

    /// Has later events of these topics wait behind the parked ones with these numbers.
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
}

/// What of a chunk is not published.
#[derive(Debug, Default)]
pub(super) struct SetAside {
    pub(super) parked: Vec<Parked>,
    pub(super) unreadable: Vec<(StreamId, Unreadable)>,
}

impl SetAside {
    /// How many numbers it uses up.
    pub(super) fn len(&self) -> usize {
        self.parked.len() + self.unreadable.len()
    }
}

/// Publishes a chunk under the numbers that follow from the position, and returns what has to be set aside.
pub(super) async fn publish_chunk<S: Sink>(
    sink: &mut S,
    position: &Position,
    rows: &[Row],
    exceptions: &Exceptions,
    handing: Handing,
) -> Result<SetAside, PublishError> {
    let mut set_aside = SetAside::default();
    if rows.is_empty() {
        return Ok(set_aside);
    }
    let number = |i: usize| StreamId::new(position.epoch, position.next_seq + i as u64);
    let span = (number(0), number(rows.len() - 1));
    let mut deliveries = Vec::with_capacity(rows.len());
    let mut held: HashSet<&Topic> = HashSet::new();
    for (i, row) in rows.iter().enumerate() {
        match row {
            Row::Event(event) => {
                let delivery = Delivery { id: number(i), event };
                if held.contains(&event.topic) {
                    set_aside.parked.push(parked_of(&delivery, WAITS));
                } else {
                    deliveries.push(delivery);
                }
            }
            Row::Unreadable(unreadable) => {
                tracing::error!(row = unreadable.id, reason = %unreadable.reason, "a row that cannot be read is parked");
                held.extend(&unreadable.topic);
                set_aside.unreadable.push((number(i), unreadable.clone()));
            }
        }
    }
    let (mode, has_set_aside) = (PublishMode::Normal, set_aside.len() > 0);
    let publication = Publication { mode, span, lost: None, has_set_aside, handing };
    set_aside.parked.extend(publish(sink, publication, deliveries, exceptions).await?);
    set_aside.parked.sort_by_key(|parked| parked.id);
    Ok(set_aside)
}

/// Why an event is set aside that nobody refused.
const WAITS: &str = "waits behind a parked event of its topic";

/// How events are published.
#[derive(Debug, Clone, Copy)]
pub(super) struct Publication {
    pub(super) mode: PublishMode,
    /// The first and the last number that they use up.
    pub(super) span: (StreamId, StreamId),
    /// As in [`Batch`].
    pub(super) lost: Option<StreamId>,
    /// Something of the span has been set aside already.
    pub(super) has_set_aside: bool,
    pub(super) handing: Handing,
}

/// Publishes events under their numbers around what is held and what the sink refuses; returns these, in order, to be set
/// aside.
pub(super) async fn publish<S: Sink>(
    sink: &mut S,
    Publication { mode, span: (first, through), lost, has_set_aside, handing }: Publication,
    mut rest: Vec<Delivery<'_>>,
    exceptions: &Exceptions,
) -> Result<Vec<Parked>, PublishError> {
    let Exceptions { delivered_before, on_poison, .. } = exceptions;
    rest.retain(|delivery| !delivered_before.contains(&delivery.event.id));
    let mut set_aside: Vec<Parked> = Vec::new();
    let mut held_now: HashSet<&Topic> = HashSet::new();
    let mut first = first;
    loop {
        rest.retain(|delivery| {
            let waits = exceptions.holds(delivery) || held_now.contains(&delivery.event.topic);
            if waits {
                set_aside.push(parked_of(delivery, WAITS));
            }
            !waits
        });
        // Also when nothing is left: the numbers are used up, and the sink has to know. But its number must not pass what
        // is not yet written down as set aside: a relay that goes on from there would take that for published.
        let through = (!has_set_aside && set_aside.is_empty()).then_some(through);
        match hand_over(sink, Batch { mode, deliveries: &rest, first, through, lost }, handing).await {
            Ok(()) => break,
            Err(PublishError::Poison { at, reason }) if *on_poison == OnPoison::Park && at < rest.len() => {
                let Delivery { id, event } = rest[at];
                tracing::error!(%id, topic = %event.topic, event = %event.event_id, %reason, "parked");
                set_aside.push(parked_of(&rest[at], &reason));
                held_now.insert(&event.topic);
                // Everything before it has arrived. If the sink forgets that meanwhile, the next call finds out.
                if let (Some(last), Some(_), false) = (rest[..at].last(), through, mode.is_release()) {
                    first = StreamId::new(last.id.epoch, last.id.seq + 1);
                }
                rest.drain(..=at);
            }
            Err(error) => return Err(error),
        }
    }
    set_aside.sort_by_key(|parked| parked.id);
    Ok(set_aside)
}

fn parked_of(delivery: &Delivery<'_>, reason: &str) -> Parked {
    Parked { id: delivery.id, event: delivery.event.clone(), reason: reason.to_owned() }
}
