//! A relay's steps, each with one effect on Postgres, on the sink, or on neither.

use super::postgres::{Fate, Id, Log, Parked, Position, Request, Step};
use super::redis::{Answer, Call, Circumstances, Item, Occasion, Prev, Redis};
use super::rules::Rules;
use super::state::{Batch, Doing, Relay, State};

/// Where the sink stands, seen from a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    InStep,
    /// It lacks the numbers from this one on.
    Behind(u64),
    /// It has so many more.
    Beyond(u64),
    LaterEpoch,
}

pub(super) fn standing(at: &Position, redis: &Redis) -> Standing {
    let reached = match redis.top {
        Some(top) if top.id.epoch > at.epoch => return Standing::LaterEpoch,
        Some(top) if top.id.epoch == at.epoch => top.id.seq,
        _ => 0,
    };
    match reached.cmp(&at.delivered()) {
        std::cmp::Ordering::Less => Standing::Behind(reached + 1),
        // Of an earlier epoch: the sink has forgotten that this one was claimed, and maybe more.
        std::cmp::Ordering::Equal if at.epoch > 1 && redis.top.is_none_or(|top| top.id.epoch < at.epoch) => {
            Standing::Behind(1)
        }
        std::cmp::Ordering::Equal => Standing::InStep,
        std::cmp::Ordering::Greater => Standing::Beyond(reached - at.delivered()),
    }
}

/// Whether what the sink has beyond the position is of the open window: published, and not written down.
pub(super) fn is_explained(rules: &Rules, log: &Log, at: &Position, redis: &Redis, by: u64) -> bool {
    let went_back = |id: Id| id.epoch == at.epoch && id.seq > at.delivered();
    if rules.sink_knows_what_is_recorded && redis.recorded.is_some_and(went_back) {
        return false;
    }
    let row = (at.done + 1..=at.end).nth(usize::try_from(by - 1).expect("few numbers"));
    match (row, redis.top.and_then(|top| top.uuid)) {
        (Some(row), Some(uuid)) => log.event(row).uuid == uuid,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// The parked events that a request names: those of the first one's epoch, unless a batch may mix them.
fn named(rules: &Rules, log: &Log, request: Request) -> Vec<Parked> {
    let mut named: Vec<Parked> =
        log.waiting(request.topic).filter(|parked| parked.row <= request.through).copied().collect();
    let epoch = named.first().map(|parked| parked.id.epoch);
    named.retain(|parked| !rules.one_epoch_a_batch || Some(parked.id.epoch) == epoch);
    named
}

impl Relay {
    fn is_connected(&self, incarnation: u8) -> bool {
        self.session == incarnation
    }

    /// The process starts over with nothing in memory.
    pub(super) fn stop(&mut self) {
        self.doing = Doing::Down;
        self.tails = [None; 2];
        self.held = 0;
        self.delivered_before = 0;
        self.is_tried = false;
    }
}

impl State {
    /// Reads the newest position.
    pub(super) fn load(&mut self, r: usize) {
        let relay = &mut self.relays[r];
        relay.stop();
        relay.session = self.incarnation;
        relay.at = self.log.position;
        self.log.lead = Some(r);
        relay.held = self.log.held();
        relay.delivered_before = self.log.delivered_before;
        relay.is_tried = relay.at.has_window();
        relay.doing = Doing::Loaded;
    }

    /// Whether the relay may write to Postgres now. A rebase locks the log.
    pub(super) fn can_write(&self, rules: &Rules, r: usize) -> bool {
        let leads = self.log.lead == Some(r) || !rules.one_lead_in_the_log;
        self.relays[r].is_connected(self.incarnation) && self.rebasing.is_none() && leads
    }

    /// Compares the sink with the position, and takes up what the sink lacks.
    pub(super) fn compare(&mut self, rules: &Rules, r: usize) {
        let at = self.relays[r].at;
        let is_newest = self.can_write(rules, r) && at.n == self.log.position.n;
        let doing = match standing(&at, &self.redis) {
            Standing::InStep => Doing::Ready,
            Standing::Behind(from) if self.relays[r].is_connected(self.incarnation) => {
                Doing::Holding(self.missing_batch(rules, &at, from))
            }
            Standing::Beyond(by) if is_newest && is_explained(rules, &self.log, &at, &self.redis, by) => {
                Doing::Ready
            }
            Standing::Beyond(_) | Standing::LaterEpoch if is_newest => Doing::Stopped { is_conflict: false },
            _ => Doing::Down,
        };
        match doing {
            Doing::Down => self.relays[r].stop(),
            doing => self.relays[r].doing = doing,
        }
        if let Doing::Holding(_) = &self.relays[r].doing {
            self.relays[r].tails = [None; 2];
        }
    }

    /// What the sink lacks from a number on, up to the end of a step whose rows are kept, or of those that
    /// are not.
    fn missing_batch(&self, rules: &Rules, at: &Position, from: u64) -> Batch {
        let number = |seq| Id::new(at.epoch, seq);
        // What the sink had of earlier epochs nobody can give back.
        let is_of_this_epoch = self.redis.top.is_some_and(|top| top.id.epoch == at.epoch);
        let mut lost = (at.epoch > 1 && !is_of_this_epoch).then(|| number(0));
        let kept = self.log.steps.iter().find(|step| {
            let end = step.first.seq + step.numbers();
            step.first.epoch == at.epoch && (step.first.seq..end).contains(&from)
        });
        let mut items = vec![];
        let through = match kept {
            Some(step) if step.is_release => {
                // What had not been written down as released is requested still, and gets another number.
                let is_of =
                    |parked: &&Parked| parked.release == Some(step.first) && parked.fate == Fate::Released;
                let own = self.log.parked.iter().filter(is_of);
                items.extend(own.map(|parked| self.item(parked.id, parked.row)));
                step.first.seq
            }
            Some(step) => {
                for (seq, row) in (step.first.seq..).zip(&step.rows) {
                    if seq >= from && self.was_published(rules, number(seq), *row) {
                        items.push(self.item(number(seq), *row));
                    }
                }
                step.first.seq + step.rows.len() as u64 - 1
            }
            None => {
                let later = self.log.steps.iter().find(|s| s.first.epoch == at.epoch && s.first.seq > from);
                let through = later.map_or(at.delivered(), |step| step.first.seq - 1);
                lost = lost.max(Some(number(through)));
                through
            }
        };
        let call = Call {
            occasion: Occasion::Restore,
            first: number(from),
            through: Some(number(through.min(at.delivered()))),
            items,
            lost,
        };
        Batch { call, first: number(from), rows: vec![], aside: vec![], request: None, fresh: vec![] }
    }

    /// Whether a delivered row stood in the sink under this number.
    fn was_published(&self, rules: &Rules, id: Id, row: u8) -> bool {
        if !rules.repairs_held_topics && self.log.held() & (1 << self.log.event(row).topic) != 0 {
            return false;
        }
        let is_before =
            self.log.delivered_before & (1 << row) != 0 && self.log.parked.iter().all(|p| p.row != row);
        let own = self.log.parked.iter().find(|parked| parked.id == id);
        match own {
            // Where a release is a step of its own, it is given again in its turn.
            Some(parked) => parked.fate == Fate::Released && !rules.releases_use_up_a_number,
            None => !is_before,
        }
    }

    fn item(&self, id: Id, row: u8) -> Item {
        let event = self.log.event(row);
        Item { id, uuid: event.uuid, topic: event.topic, row }
    }

    /// Opens a window if none is open, and reads the next batch of it.
    pub(super) fn read(&mut self, rules: &Rules, r: usize) {
        let mut at = self.relays[r].at;
        if !at.has_window() {
            at.end = self.log.last_row();
            at.n += 1;
            if !self.write_row(rules, r, at) {
                return;
            }
            self.relays[r].is_tried = false;
        }
        if !self.relays[r].is_connected(self.incarnation) {
            return self.relays[r].stop();
        }
        let rows: Vec<u8> = (at.done + 1..=at.end).take(usize::from(self.left.batch)).collect();
        let relay = &self.relays[r];
        let (mut items, mut aside) = (vec![], vec![]);
        for (seq, row) in (at.next_seq..).zip(&rows) {
            let id = Id::new(at.epoch, seq);
            let item = self.item(id, *row);
            if relay.delivered_before & (1 << row) != 0 {
                continue;
            }
            if relay.held & (1 << item.topic) != 0 { aside.push((id, *row)) } else { items.push(item) }
        }
        let through = Some(Id::new(at.epoch, at.next_seq + rows.len() as u64 - 1));
        let through = through.filter(|_| aside.is_empty() || !rules.parks_before_it_uses_up);
        let first = Id::new(at.epoch, at.next_seq);
        let call = Call { occasion: Occasion::Normal, first, through, items, lost: None };
        self.relays[r].doing =
            Doing::Holding(Batch { call, first, rows, aside, request: None, fresh: vec![] });
    }

    /// Calls the script with the batch in hand, and does what its answer asks for.
    pub(super) fn publish(&mut self, rules: &Rules, r: usize, fails_at: Option<usize>) {
        let Doing::Holding(mut batch) = self.relays[r].doing.clone() else { return };
        let prevs = self.prevs(rules, r, &batch.call);
        let around = Circumstances { refused: self.refused, fails_at };
        let (answer, told) = self.redis.publish(rules, &batch.call, &prevs, around);
        self.hear(rules, &told);
        let relay = &mut self.relays[r];
        match answer {
            Answer::Ok => {
                for item in &batch.call.items {
                    relay.tails[usize::from(item.topic)] = Some(batch.call.id_of(item));
                }
                // What a repair has done is seen by comparing again.
                relay.doing = match batch.call.occasion {
                    Occasion::Restore => Doing::Loaded,
                    Occasion::Normal | Occasion::Release => Doing::Published(batch),
                };
                return;
            }
            Answer::Gap => relay.doing = Doing::Loaded,
            Answer::Ahead => relay.stop(),
            Answer::Conflict | Answer::MixedEpochs => relay.doing = Doing::Stopped { is_conflict: true },
            Answer::Failed(_) => {
                relay.is_tried |= batch.call.occasion == Occasion::Normal;
                batch.fresh.clear();
                relay.doing = Doing::Holding(batch);
            }
            Answer::Refused(at) => match batch.call.occasion {
                Occasion::Normal if batch.request.is_none() => {
                    let topic = batch.call.items[at].topic;
                    if let Some(last) = batch.call.items.drain(..at).next_back() {
                        batch.call.first.seq = last.id.seq + 1;
                    }
                    let (held, rest) = batch.call.items.iter().partition(|item| item.topic == topic);
                    batch.call.items = rest;
                    let held: Vec<Item> = held;
                    batch.aside.extend(held.iter().map(|item| (item.id, item.row)));
                    batch.aside.sort_unstable();
                    if rules.parks_before_it_uses_up {
                        batch.call.through = None;
                    }
                    relay.doing = Doing::Holding(batch);
                }
                // A repair waits until the topic is mended; a release is given up.
                Occasion::Restore => {}
                Occasion::Normal | Occasion::Release => relay.doing = Doing::Published(arrived(batch, at)),
            },
        }
        relay.tails = [None; 2];
    }

    /// What the relay knows of each item's predecessor.
    fn prevs(&self, rules: &Rules, r: usize, call: &Call) -> Vec<Prev> {
        let mut before = self.relays[r].tails;
        let mut prevs = vec![];
        for item in &call.items {
            let tail = &mut before[usize::from(item.topic)];
            let in_log = || if rules.first_is_known { self.number_before(item) } else { None };
            let known = tail.filter(|tail| *tail < item.id);
            prevs.push(known.map_or_else(|| Prev::Unknown { in_log: in_log() }, Prev::Known));
            *tail = Some(call.id_of(item));
        }
        prevs
    }

    /// The number of the topic's event before this one, going by the log: any will do that is not empty.
    fn number_before(&self, item: &Item) -> Option<Id> {
        let has_earlier = self.log.rows_of(item.topic).any(|row| {
            row < item.row
                && self.log.event(row).uuid != item.uuid
                && self.discarded & (1 << self.log.event(row).uuid) == 0
        });
        has_earlier.then(|| Id::new(item.id.epoch, item.id.seq - 1))
    }

    /// Writes down what has been published, and what was set aside: then a comparison finds the sink behind,
    /// and gives it these numbers once more.
    pub(super) fn write_down(&mut self, rules: &Rules, r: usize) {
        let Doing::Published(batch) = self.relays[r].doing.clone() else { return };
        if batch.call.occasion == Occasion::Release {
            return self.write_release(rules, r, &batch);
        }
        let mut at = self.relays[r].at;
        at.n += 1;
        at.next_seq += batch.rows.len() as u64;
        at.done += u8::try_from(batch.rows.len()).expect("a small batch");
        if self.write_row(rules, r, at) {
            if !batch.rows.is_empty() {
                let (first, rows) = (batch.first, batch.rows.clone());
                self.log.steps.push(Step { first, rows, is_release: false });
            }
            let is_tried = std::mem::take(&mut self.relays[r].is_tried);
            for (id, row) in &batch.aside {
                let topic = self.log.event(*row).topic;
                self.log.parked.push(Parked {
                    id: *id,
                    row: *row,
                    topic,
                    fate: Fate::Waiting,
                    release: None,
                    may_have_arrived: is_tried,
                });
                self.relays[r].held |= 1 << topic;
            }
            if rules.parks_before_it_uses_up && !batch.aside.is_empty() {
                self.relays[r].doing = Doing::Loaded;
            }
        }
    }

    /// Inserts the next checkpoint row. False if another relay has, or if the session is dead: the relay
    /// starts over.
    pub(super) fn write_row(&mut self, rules: &Rules, r: usize, to: Position) -> bool {
        let is_first = self.log.position.n + 1 == to.n;
        if !self.can_write(rules, r) || !is_first {
            self.relays[r].stop();
            return false;
        }
        self.log.position = to;
        self.relays[r].at = to;
        self.relays[r].doing = Doing::Ready;
        true
    }

    /// Carries out what an operator asked for.
    pub(super) fn take_request(&mut self, rules: &Rules, r: usize) {
        let Some(request) = self.log.request else { return };
        if request.is_discard {
            let through = if rules.requests_name_rows { request.through } else { u8::MAX };
            for row in self.log.waiting(request.topic).filter(|p| p.row <= through).map(|p| p.row) {
                self.broken.unnamed_rows |= row > request.through;
            }
            if rules.discards_ask_the_sink {
                self.mark_arrived_released(request.topic);
            }
            let is_spared = |parked: &Parked| parked.row <= through && parked.may_have_arrived;
            let is_refused = self.log.waiting(request.topic).any(is_spared);
            // A Redis that has lost it since cannot be asked.
            if rules.discards_spare_what_may_have_arrived && is_refused {
                return self.finish_request(r, request);
            }
            for row in self.log.waiting(request.topic).filter(|p| p.row <= through).map(|p| p.row) {
                let uuid = 1 << self.log.event(row).uuid;
                self.broken.discarded_after_told |= (self.heard | self.reader.told) & uuid != 0;
                self.discarded |= if row <= request.through { uuid } else { 0 };
            }
            self.log.settle(request.topic, through, Fate::Discarded);
            return self.finish_request(r, request);
        }
        let named = named(rules, &self.log, request);
        let Some(old) = named.first().map(|parked| parked.id) else {
            return self.finish_request(r, request);
        };
        if rules.releases_use_up_a_number {
            let Some(number) = self.begin_release(rules, r, &named) else { return };
            return self.hold_release(r, request, &named, number, Some(number));
        }
        self.hold_release(r, request, &named, old, None);
    }

    /// Parked events that the sink holds have been released, or arrived before they were parked.
    fn mark_arrived_released(&mut self, topic: u8) {
        let newest = self.redis.histories[usize::from(topic)].last();
        let Some((id, uuid)) = newest.map(|entry| (entry.id, entry.uuid)) else { return };
        let is_parked = |p: &&Parked| p.id == id && self.log.event(p.row).uuid == uuid;
        if !self.log.waiting(topic).any(|parked| is_parked(&parked)) {
            return;
        }
        let is_held = |p: &Parked| p.topic == topic && p.fate == Fate::Waiting && p.id <= id;
        self.log.parked.retain(|parked| !is_held(parked) || parked.release.is_some());
        for parked in self.log.parked.iter_mut().filter(|parked| is_held(parked)) {
            parked.fate = Fate::Released;
        }
    }

    fn finish_request(&mut self, r: usize, request: Request) {
        if self.log.request == Some(request) {
            self.log.request = None;
        }
        let is_held = self.log.held() & (1 << request.topic) != 0;
        if !is_held {
            self.relays[r].held &= !(1 << request.topic);
        }
        self.relays[r].doing = Doing::Ready;
    }

    /// Writes down which parked events have arrived. No checkpoint row is written.
    fn write_release(&mut self, rules: &Rules, r: usize, batch: &Batch) {
        let Some(request) = batch.request else { return };
        if !self.can_write(rules, r) {
            return self.relays[r].stop();
        }
        match batch.rows.last() {
            Some(last) => {
                self.log.settle(request.topic, *last, Fate::Released);
                self.relays[r].doing = Doing::Ready;
            }
            None => self.finish_request(r, request),
        }
        for parked in &mut self.log.parked {
            let is_refused = batch.fresh.contains(&parked.row) && !batch.rows.contains(&parked.row);
            parked.may_have_arrived &= !is_refused;
        }
    }

    /// Writes a row that uses up the next number, and which parked events it is for, before any of them is
    /// published: so it is known whose number it is, whatever happens then.
    fn begin_release(&mut self, rules: &Rules, r: usize, named: &[Parked]) -> Option<Id> {
        let mut at = self.relays[r].at;
        let number = Id::new(at.epoch, at.next_seq);
        at.n += 1;
        at.next_seq += 1;
        if !self.write_row(rules, r, at) {
            return None;
        }
        self.log.steps.push(Step { first: number, rows: vec![], is_release: true });
        for parked in &mut self.log.parked {
            if named.iter().any(|named| named.id == parked.id) {
                parked.release = Some(number);
                parked.may_have_arrived = true;
            }
        }
        Some(number)
    }

    fn hold_release(&mut self, r: usize, request: Request, named: &[Parked], first: Id, through: Option<Id>) {
        let items = named.iter().map(|parked| self.item(parked.id, parked.row)).collect();
        let rows = named.iter().map(|parked| parked.row).collect();
        let fresh = named.iter().filter(|parked| !parked.may_have_arrived).map(|parked| parked.row);
        let fresh = fresh.collect();
        let call = Call { occasion: Occasion::Release, first, through, items, lost: None };
        self.relays[r].doing =
            Doing::Holding(Batch { call, first, rows, aside: vec![], request: Some(request), fresh });
    }
}

/// A release whose topic is still refused: what has arrived of it is written down, and that it is over.
fn arrived(mut batch: Batch, events: usize) -> Batch {
    batch.rows.truncate(events);
    batch
}
