//! The number that each server of a cluster has provably reached. Pure.
//!
//! A relay keeps one top at each server. A call of the script writes it together with the events, and a
//! replica receives both in one order. So if a server went back, its top went back with it. A top names the
//! slots that it speaks for. When slots move to another server, their histories move with them, and the old
//! top goes on speaking for them until the relay has written the tops anew.

use std::collections::HashMap;

use crate::event::{EventId, StreamId};
use crate::redis::slots::SlotSet;

/// A top that was found.
#[derive(Debug, Clone)]
pub(super) struct Top {
    /// `None` if nothing has been published to the server since its slots were written down.
    pub(super) id: Option<StreamId>,
    pub(super) event: Option<EventId>,
    pub(super) slots: SlotSet,
}

/// What a server has reached: the number up to which none of its slots lacks an event, and the event with
/// that number.
pub(super) type Reach = Option<(StreamId, Option<EventId>)>;

/// Returns what the slots of each server have reached. If several tops speak for a slot, the lowest counts: a
/// relay died after it had written the new top and before it removed the old one. A slot that no top speaks
/// for may have nothing.
pub(super) fn reaches<'s>(tops: &[Top], servers: impl Iterator<Item = &'s SlotSet>) -> Vec<Reach> {
    let mut spoken_for: HashMap<u16, &Top> = HashMap::new();
    for top in tops {
        for slot in top.slots.iter() {
            let lowest = spoken_for.entry(slot).or_insert(top);
            if top.id < lowest.id {
                *lowest = top;
            }
        }
    }
    let reach = |slots: &SlotSet| {
        let tops = slots.iter().map(|slot| spoken_for.get(&slot).copied());
        let lowest = tops.min_by_key(|top| top.and_then(|top| top.id)).flatten()?;
        Some((lowest.id?, lowest.event))
    };
    servers.map(reach).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(seq: u64, slots: &str) -> Top {
        let id = (seq > 0).then(|| StreamId::new(1, seq));
        Top { id, event: None, slots: SlotSet::parse(slots) }
    }

    fn reached(tops: &[Top], servers: &[&str]) -> Vec<Option<u64>> {
        let servers: Vec<SlotSet> = servers.iter().map(|slots| SlotSet::parse(slots)).collect();
        reaches(tops, servers.iter()).into_iter().map(|reach| reach.map(|(id, _)| id.seq)).collect()
    }

    #[test]
    fn each_server_has_reached_what_its_top_says() {
        let tops = [top(7, "0-99"), top(9, "100-199")];
        assert_eq!(reached(&tops, &["0-99", "100-199"]), [Some(7), Some(9)]);
    }

    #[test]
    fn a_slot_that_moved_is_spoken_for_by_its_old_servers_top() {
        let tops = [top(7, "0-99"), top(9, "100-199")];
        assert_eq!(reached(&tops, &["0-49", "50-199"]), [Some(7), Some(7)]);
        assert_eq!(reached(&tops, &["0-99", "100-149", "150-199"]), [Some(7), Some(9), Some(9)]);
    }

    #[test]
    fn of_two_tops_for_a_slot_the_lower_one_counts() {
        let tops = [top(9, "0-99"), top(7, "50-99"), top(9, "50-99")];
        assert_eq!(reached(&tops, &["0-49", "50-99"]), [Some(9), Some(7)]);
    }

    #[test]
    fn a_slot_that_no_top_speaks_for_may_have_nothing() {
        assert_eq!(reached(&[], &["0-99"]), [None]);
        assert_eq!(reached(&[top(7, "0-98")], &["0-99"]), [None]);
        assert_eq!(reached(&[top(0, "0-99"), top(7, "0-99")], &["0-99"]), [None]);
    }
}
