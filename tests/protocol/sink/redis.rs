//! The sink: Redis's keys, and the script that publishes a batch.

use super::postgres::Id;
use super::rules::Rules;

/// An entry of a topic's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) id: Id,
    pub(super) uuid: u8,
    /// The id of the topic's previous event.
    pub(super) prev: Option<Id>,
}

/// The highest number that has been used up, and the event that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Top {
    pub(super) id: Id,
    pub(super) uuid: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Redis {
    pub(super) top: Option<Top>,
    /// The log had recorded this number when a call used it up.
    pub(super) recorded: Option<Id>,
    /// Some of the events up to this number are lost.
    pub(super) lost: Option<Id>,
    pub(super) histories: [Vec<Entry>; 2],
}

/// Why a batch is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Occasion {
    /// The position has come to it.
    Normal,
    /// It was parked, and keeps the number of then.
    Release,
    /// The sink has forgotten it.
    Restore,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Item {
    pub(super) id: Id,
    pub(super) uuid: u8,
    pub(super) topic: u8,
    pub(super) row: u8,
}

/// What the relay knows of the topic's event before an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prev {
    Known(Id),
    /// Nothing. `in_log`: the number of the topic's event before it, going by the log.
    Unknown {
        in_log: Option<Id>,
    },
}

/// One call of the script.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub(super) occasion: Occasion,
    pub(super) first: Id,
    /// The last number that it uses up, if it uses up any.
    pub(super) through: Option<Id>,
    pub(super) items: Vec<Item>,
    /// Some of the events up to this number cannot be given back.
    pub(super) lost: Option<Id>,
}

impl Call {
    /// The id that the script gives an item: it is told one epoch for all of them. Released events keep the
    /// numbers of the epoch in which they were parked.
    pub(super) fn id_of(&self, item: &Item) -> Id {
        let epoch = self.items.first().map_or(self.first.epoch, |first| first.id.epoch);
        Id::new(epoch, item.id.seq)
    }
}

/// What the script answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Ok,
    Gap,
    Ahead,
    Conflict,
    MixedEpochs,
    /// The item at this index is refused; those before it have arrived.
    Refused(usize),
    /// The server failed at this index.
    Failed(usize),
}

/// A message to the subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Envelope {
    pub(super) topic: u8,
    pub(super) entry: Entry,
    /// The bare payload follows, for those who know nothing of envelopes.
    pub(super) with_payload: bool,
}

/// Who calls, and what goes wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances {
    /// Topics whose events are refused, as bits.
    pub(super) refused: u8,
    /// The server fails at the item with this index.
    pub(super) fails_at: Option<usize>,
}

impl Redis {
    /// The script.
    pub(super) fn publish(
        &mut self,
        rules: &Rules,
        call: &Call,
        prevs: &[Prev],
        around: Circumstances,
    ) -> (Answer, Vec<Envelope>) {
        let epoch = call.first.epoch;
        let published = match self.top {
            Some(top) if top.id.epoch == epoch => top.id.seq,
            Some(top) if top.id.epoch > epoch && call.through.is_some() => return (Answer::Ahead, vec![]),
            Some(top) if top.id.epoch > epoch => u64::MAX,
            _ => 0,
        };
        if rules.refuses_a_gap && call.first.seq > published.saturating_add(1) {
            return (Answer::Gap, vec![]);
        }
        // Its number is new: another one is of a leader that was frozen meanwhile, or was used up by a
        // repair.
        let is_numbered_release = rules.releases_use_up_a_number && call.occasion == Occasion::Release;
        if is_numbered_release && call.first.seq != published + 1 {
            return (Answer::Gap, vec![]);
        }
        let is_claimed = epoch == 1 || self.top.is_some_and(|top| top.id.epoch >= epoch);
        if rules.needs_the_claim && !is_claimed && call.occasion != Occasion::Restore {
            return (Answer::Gap, vec![]);
        }
        if rules.one_epoch_a_batch && call.items.iter().any(|item| call.id_of(item) != item.id) {
            return (Answer::MixedEpochs, vec![]);
        }
        if rules.marks_what_is_lost {
            self.lost = self.lost.max(call.lost);
        }
        let mut told = vec![];
        let mut newest = None;
        for (at, (item, prev)) in call.items.iter().zip(prevs).enumerate() {
            let id = call.id_of(item);
            // Also where the topic is refused by now: another relay was told that it arrived, and parks
            // nothing.
            let has_arrived =
                rules.used_up_is_arrived && call.occasion == Occasion::Normal && id.seq <= published;
            let stop = if around.fails_at == Some(at) {
                Some(Answer::Failed(at))
            } else if has_arrived {
                None
            } else if around.refused & (1 << item.topic) != 0 {
                Some(Answer::Refused(at))
            } else {
                self.add(call, item, id, *prev, Id::new(epoch, published), &mut told)
            };
            if let Some(answer) = stop {
                if rules.sets_top_on_errors && call.occasion != Occasion::Release {
                    self.raise_top(call, newest);
                }
                return (answer, told);
            }
            newest = Some(Top { id, uuid: Some(item.uuid) });
        }
        if let Some(through) = call.through {
            let last = newest.filter(|top| top.id == through);
            self.raise_top(call, Some(last.unwrap_or(Top { id: through, uuid: None })));
        }
        (Answer::Ok, told)
    }

    fn raise_top(&mut self, call: &Call, to: Option<Top>) {
        if self.top.map(|top| top.id) < to.map(|top| top.id) {
            self.top = to;
            // Of all but normal calls, the log has recorded the numbers before.
            if call.occasion != Occasion::Normal {
                self.recorded = self.recorded.max(to.map(|top| top.id));
            }
        }
    }

    /// Adds one event and tells the subscribers. A repeat changes nothing.
    fn add(
        &mut self,
        call: &Call,
        item: &Item,
        id: Id,
        prev: Prev,
        published: Id,
        told: &mut Vec<Envelope>,
    ) -> Option<Answer> {
        let history = &mut self.histories[usize::from(item.topic)];
        let newest = history.last().map(|entry| entry.id);
        if newest >= Some(id) {
            let is_repeat = match history.iter().find(|entry| entry.id == id) {
                Some(entry) => entry.uuid == item.uuid,
                None => match call.occasion {
                    Occasion::Normal => id <= published,
                    Occasion::Release => false,
                    Occasion::Restore => true,
                },
            };
            return (!is_repeat).then_some(Answer::Conflict);
        }
        let prev = match prev {
            Prev::Known(id) => Some(id),
            Prev::Unknown { in_log } => {
                let lost = self.lost.filter(|lost| *lost < id);
                newest.or(in_log).max(lost)
            }
        };
        let entry = Entry { id, uuid: item.uuid, prev };
        history.push(entry);
        let with_payload = call.occasion != Occasion::Restore;
        told.push(Envelope { topic: item.topic, entry, with_payload });
        None
    }
}
