//! Slots in the middle of a move that does not end. A `redis-cli --cluster reshard` that was stopped leaves
//! such a slot.
//!
//! The map still names the old server of such a slot. That server refuses every key of the slot that it does
//! not have: keys that have moved already, and keys that never existed. If slots of one server are refused
//! for long, they are isolated: they count as a server of their own, which is away until they are stable.
//! So all other topics flow on. Slots that no server has count as a server of their own, too.
//!
//! The top of half moved slots names the number up to which they lack nothing. It is kept at the server that
//! the map names, in another slot, so that the next leader finds it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::Publisher;
use super::fleet::TRY_LIMIT;
use super::server::Server;
use crate::event::Topic;
use crate::redis::endpoint::Endpoint;
use crate::redis::reply_codes;
use crate::redis::slot_map::SlotMap;
use crate::redis::slots::{SlotSet, slot_of};
use crate::relay::PublishError;

/// How long a slot may be refused before it is isolated. A move of a slot that is not stuck ends sooner.
const ISOLATED_AFTER: Duration = Duration::from_secs(1);
/// Refusals that are further apart than this belong to two moves.
const ONE_MOVE: Duration = Duration::from_secs(5);

/// The first and the last refusal of a slot by one server.
#[derive(Debug)]
struct Refused {
    server: Endpoint,
    since: Instant,
    last: Instant,
}

/// The slots that are refused.
#[derive(Debug, Default)]
pub(super) struct MigratingSlots {
    refused: BTreeMap<u16, Refused>,
    /// The slots that are isolated, each with the server that has it by the map.
    isolated: BTreeMap<u16, Endpoint>,
}

impl MigratingSlots {
    /// Notes a refusal. Returns whether the slot has been refused for long.
    fn refused(&mut self, slot: u16, server: &Endpoint, now: Instant) -> bool {
        let fresh = || Refused { server: server.clone(), since: now, last: now };
        let refused = self.refused.entry(slot).or_insert_with(fresh);
        if refused.server != *server || now.duration_since(refused.last) > ONE_MOVE {
            *refused = fresh();
        }
        refused.last = now;
        now.duration_since(refused.since) >= ISOLATED_AFTER
    }

    /// Forgets slots that have another server by now.
    pub(super) fn follow(&mut self, map: &SlotMap) {
        self.isolated.retain(|slot, server| map.primary_of_slot(*slot) == Some(&*server));
    }

    /// The slots of a server that are not isolated, and those that are. If the server would have too few
    /// other slots, none is isolated.
    pub(super) fn divide(&mut self, server: &Endpoint, slots: &SlotSet) -> (SlotSet, SlotSet) {
        let (mut stable, mut isolated) = (SlotSet::default(), SlotSet::default());
        for slot in slots.iter() {
            let part = if self.isolated.get(&slot) == Some(server) { &mut isolated } else { &mut stable };
            part.push(slot);
        }
        if stable.two_highest().is_none() {
            self.isolated.retain(|_, of| of != server);
            return (slots.clone(), SlotSet::default());
        }
        (stable, isolated)
    }

    fn is_isolated(&self, slot: u16) -> bool {
        self.isolated.contains_key(&slot)
    }
}

impl Publisher {
    /// The index of the server that has a topic, or that stands for its slot.
    pub(super) fn owner_of(&self, topic: &Topic) -> Option<usize> {
        let slot = slot_of(topic.as_str());
        let is_isolated = self.migrating.is_isolated(slot);
        let of_map = self.map.as_ref()?.index_of(topic.as_str()).filter(|_| !is_isolated);
        of_map.or_else(|| {
            self.servers.iter().position(|server| server.is_isolated && server.slots.contains(slot))
        })
    }

    /// Handles a failure that concerns one slot of a server: isolates the slot if it has been refused for
    /// long. Returns whether the failure is of this kind. If so, it does not count as a failure of the
    /// server.
    ///
    /// A slot with the server's own keys cannot be isolated from it: then the whole server is left behind.
    pub(super) fn handle_slot_failure(
        &mut self,
        server: usize,
        topic: Option<&Topic>,
        error: &PublishError,
    ) -> bool {
        let PublishError::Retry { failure, reason } = error else { return false };
        let (Some(map), true) = (self.map.clone(), reply_codes::is_class_of_slots(failure.class)) else {
            return false;
        };
        let Some(slot) = topic.map(|topic| slot_of(topic.as_str())).or_else(|| slot_named_in(reason)) else {
            return false;
        };
        let Some(endpoint) = self.servers[server].endpoint.clone() else { return false };
        if self.servers[server].is_isolated {
            return false;
        }
        self.settings.topology.doubt();
        if !self.migrating.refused(slot, &endpoint, Instant::now())
            || map.primary_of_slot(slot) != Some(&endpoint)
        {
            return true;
        }
        tracing::error!(
            slot, server = %endpoint, %error,
            "a slot of the cluster is half moved: its topics wait; end the move with `redis-cli --cluster fix`"
        );
        // The two slots that hold tops: the server's own, and that of the slots that are isolated.
        let own = self.servers[server].slots.two_highest();
        if own.is_some_and(|own| !own.contains(&slot)) {
            self.migrating.isolated.insert(slot, endpoint);
            self.regroup(map);
        } else {
            self.servers[server].leave_behind_for(slot, error.to_string());
            // The batch is published anew, without this server.
            self.is_compared = false;
            self.tell();
        }
        true
    }

    /// Looks whether slots that are isolated are stable, from time to time.
    pub(super) async fn try_isolated(&mut self) {
        let Some(map) = self.map.clone() else { return };
        let (settings, keys) = (&self.settings, &self.keys);
        let is_due = |it: &mut Server| it.is_isolated && it.endpoint.is_some() && it.is_due();
        let due = self.servers.iter_mut().filter_map(|server| is_due(server).then_some(server));
        let trying = due.map(async |server| {
            let looking = server.stable_slots(settings, keys);
            // A server that does not answer in time says nothing.
            timeout(TRY_LIMIT, looking).await.unwrap_or_default()
        });
        let stable = join_all(trying).await.concat();
        if !stable.is_empty() {
            self.migrating.isolated.retain(|slot, _| !stable.contains(slot));
            self.regroup(map);
        }
    }

    /// Hands the state of slots that are isolated, or were, to the servers that have these slots now.
    pub(super) fn hand_on(&mut self, before: &[Server]) {
        for old in before {
            let unpublished_above = old.unpublished_above.or(old.reached);
            for server in &mut self.servers {
                let lacks = old.is_isolated || old.is_behind || server.is_isolated;
                if lacks && old.slots.iter().any(|slot| server.slots.contains(slot)) {
                    server.is_behind = true;
                    server.unpublished_above =
                        server.unpublished_above.into_iter().chain(unpublished_above).min();
                }
            }
        }
    }
}

/// The slot that a reply names, as in `ASK 2138 127.0.0.1:7001`.
fn slot_named_in(reason: &str) -> Option<u16> {
    let (_, behind) = reason.split_once("ASK ")?;
    behind.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_refused_for_long_when_it_is_refused_again_and_again() {
        let (mut migrating, begun) = (MigratingSlots::default(), Instant::now());
        let [here, there] = ["a", "b"].map(|host| Endpoint { host: host.to_owned(), port: 1 });
        let mut refused = |ms| migrating.refused(7, &here, begun + Duration::from_millis(ms));
        assert_eq!([0, 400, 999, 1000].map(&mut refused), [false, false, false, true]);
        assert!(!refused(6001), "another move");
        assert!(refused(7001));
        assert!(!migrating.refused(7, &there, begun + Duration::from_millis(7002)), "by another server");
    }

    #[test]
    fn slots_are_set_apart_until_they_have_another_server() {
        let (here, there) = ["a", "b"].map(|host| Endpoint { host: host.to_owned(), port: 1 }).into();
        let mut migrating = MigratingSlots::default();
        migrating.isolated.insert(7, Endpoint::clone(&here));
        let divided = migrating.divide(&here, &SlotSet::parse("0-9"));
        assert_eq!((divided.0.to_string(), divided.1.to_string()), ("0-6,8-9".to_owned(), "7".to_owned()));
        let divided = migrating.divide(&there, &SlotSet::parse("0-9"));
        assert_eq!((divided.0.to_string(), divided.1.to_string()), ("0-9".to_owned(), String::new()));
    }

    #[test]
    fn the_slot_is_read_from_the_reply() {
        assert_eq!(slot_named_in("Redis: ASK 2138 127.0.0.1:7001"), Some(2138));
        assert_eq!(slot_named_in("Redis: MOVED 2138 127.0.0.1:7001"), None);
        assert_eq!(slot_named_in("ASK"), None);
    }
}
