//! What operators do: requests for parked events, and the rebase of a log whose Postgres went back or was
//! moved.

use super::postgres::{Id, Request};
use super::redis::Top;
use super::relay::{Standing, is_explained, standing};
use super::rules::Rules;
use super::state::State;

impl State {
    /// Asks for a topic's parked events, as many as the operator sees now.
    pub(super) fn request(&mut self, topic: u8, is_discard: bool) {
        let Some(through) = self.log.waiting(topic).map(|parked| parked.row).max() else { return };
        if is_discard {
            self.causes.discard = true;
            self.left.discards -= 1;
        }
        self.log.request = Some(Request { topic, through, is_discard });
    }

    /// Whether a relay would say that Postgres went back.
    pub(super) fn needs_rebase(&self, rules: &Rules) -> bool {
        let at = &self.log.position;
        self.causes.postgres
            && match standing(at, &self.redis) {
                Standing::Beyond(by) => !is_explained(rules, &self.log, at, &self.redis, by),
                Standing::LaterEpoch => true,
                Standing::InStep | Standing::Behind(_) => false,
            }
    }

    /// The rebase locks the log and claims an epoch above every other in the sink.
    pub(super) fn claim(&mut self, rules: &Rules) {
        if !self.needs_rebase(rules) {
            self.left.moves -= 1;
        }
        let epoch = self.log.position.epoch.max(self.redis.top.map_or(0, |top| top.id.epoch)) + 1;
        self.rebasing = Some(epoch);
        let is_behind = matches!(standing(&self.log.position, &self.redis), Standing::Behind(_));
        if is_behind && rules.rebase_marks_what_is_lost {
            self.redis.lost = Some(Id::new(epoch, 0));
        }
        self.causes.rebase = true;
        if rules.claims_the_epoch {
            self.redis.top = Some(Top { id: Id::new(epoch, 0), uuid: None });
        }
    }

    /// The rebase looks at the histories for events that Postgres takes for pending, and commits.
    pub(super) fn commit_rebase(&mut self) {
        let Some(epoch) = self.rebasing.take() else { return };
        let from = self.log.position;
        let position = Id::new(from.epoch, from.delivered());
        let pending = from.done + 1..=self.log.last_row();
        let told = pending.filter(|row| {
            let event = self.log.event(*row);
            let history = &self.redis.histories[usize::from(event.topic)];
            history.iter().any(|entry| entry.uuid == event.uuid && entry.id > position)
        });
        self.log.delivered_before = told.fold(self.log.delivered_before, |all, row| all | 1 << row);
        self.log.position.n += 1;
        self.log.position.epoch = epoch;
        self.log.position.next_seq = 1;
    }
}
