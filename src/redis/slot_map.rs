//! Which server of a cluster has which slots. All users of the same settings share this knowledge. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::endpoint::Endpoint;
use super::slots::{COUNT, SlotSet, slot_of};

/// One server's answer to the question which slots belong to which primary.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// First and last slot, the primary, and the epoch of its claim: of two claims to a slot, the higher one
    /// counts, as it does in the cluster itself.
    pub(super) claims: Vec<(u16, u16, Endpoint, u64)>,
    /// All servers that are named, with replicas.
    pub(super) servers: Vec<Endpoint>,
}

/// The primary of each slot.
#[derive(Debug, Clone)]
pub(super) struct SlotMap {
    /// The primaries, in order.
    primaries: Vec<Endpoint>,
    /// For each slot the index of its primary.
    owners: Vec<Option<u16>>,
    /// All servers, with replicas.
    servers: Vec<Endpoint>,
}

/// Two maps are the same if each slot has the same primary: replicas come and go.
impl PartialEq for SlotMap {
    fn eq(&self, other: &Self) -> bool {
        self.primaries == other.primaries && self.owners == other.owners
    }
}

impl SlotMap {
    /// Joins the answers of several servers.
    pub(super) fn of(views: &[View]) -> Self {
        let mut best: Vec<Option<(u64, &Endpoint)>> = vec![None; usize::from(COUNT)];
        for (first, last, primary, epoch) in views.iter().flat_map(|view| &view.claims) {
            for claim in &mut best[usize::from(*first)..=usize::from((*last).min(COUNT - 1))] {
                if claim.is_none_or(|(known, _)| known < *epoch) {
                    *claim = Some((*epoch, primary));
                }
            }
        }
        let claimed: BTreeSet<&Endpoint> = best.iter().flatten().map(|(_, primary)| *primary).collect();
        let indexes: BTreeMap<&Endpoint, u16> = claimed.into_iter().zip(0..).collect();
        let mut servers: Vec<Endpoint> = views.iter().flat_map(|view| view.servers.clone()).collect();
        servers.sort();
        servers.dedup();
        Self {
            primaries: indexes.keys().map(|primary| (*primary).clone()).collect(),
            owners: best.iter().map(|claim| claim.map(|(_, primary)| indexes[primary])).collect(),
            servers,
        }
    }

    /// The index of the primary that has a key; `None` if no server has its slot.
    pub(super) fn index_of(&self, key: &str) -> Option<usize> {
        self.owners[usize::from(slot_of(key))].map(usize::from)
    }

    /// The primary that has a key; `None` if no server has its slot.
    pub(super) fn primary_of(&self, key: &str) -> Option<&Endpoint> {
        self.primary_of_slot(slot_of(key))
    }

    /// The primary that has a slot.
    pub(super) fn primary_of_slot(&self, slot: u16) -> Option<&Endpoint> {
        self.primaries.get(usize::from(self.owners[usize::from(slot)]?))
    }

    /// Each primary with its slots.
    pub(super) fn slots(&self) -> HashMap<&Endpoint, SlotSet> {
        let mut slots: HashMap<&Endpoint, SlotSet> = HashMap::new();
        for (slot, owner) in (0..COUNT).zip(&self.owners) {
            if let Some(primary) = owner.and_then(|index| self.primaries.get(usize::from(index))) {
                slots.entry(primary).or_default().push(slot);
            }
        }
        slots
    }

    /// The slots that no server has.
    pub(super) fn uncovered(&self) -> SlotSet {
        let mut uncovered = SlotSet::default();
        (0..COUNT)
            .zip(&self.owners)
            .filter(|(_, owner)| owner.is_none())
            .for_each(|(slot, _)| uncovered.push(slot));
        uncovered
    }

    /// All primaries that have a slot.
    pub(super) fn primaries(&self) -> &[Endpoint] {
        &self.primaries
    }

    /// All servers, with replicas.
    pub(super) fn servers(&self) -> &[Endpoint] {
        &self.servers
    }
}

/// The servers behind an address.
#[derive(Debug, Clone)]
pub(super) enum Layout {
    /// One server has all keys.
    Single,
    Cluster(Arc<SlotMap>),
}

/// The newest layout that is known. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Topology(pub(super) Arc<Shared>);

#[derive(Debug, Default)]
pub(super) struct Shared {
    newest: watch::Sender<Option<Layout>>,
    /// Notified when somebody met a server that does not have the slot that it should have.
    doubted: Notify,
}

impl Topology {
    /// The newest layout; `None` if nobody has asked yet.
    pub(super) fn layout(&self) -> Option<Layout> {
        self.0.newest.borrow().clone()
    }

    /// The newest map; `None` if this is no cluster, or it is not known yet.
    pub(super) fn map(&self) -> Option<Arc<SlotMap>> {
        match &*self.0.newest.borrow() {
            Some(Layout::Cluster(map)) => Some(map.clone()),
            Some(Layout::Single) | None => None,
        }
    }

    /// Asks for a new look: a server did not have the slot that it should have.
    pub(super) fn doubt(&self) {
        self.0.doubted.notify_one();
    }

    /// Returns when the map is not this one any more.
    pub(super) async fn changed_from(&self, map: &Arc<SlotMap>) {
        let is_new =
            |layout: &Option<Layout>| matches!(layout, Some(Layout::Cluster(newest)) if newest != map);
        let mut newest = self.0.newest.subscribe();
        // The sender lives as long as this.
        let _changed = newest.wait_for(is_new).await;
    }
}

impl Shared {
    /// Notes the layout. Returns whether it is new.
    pub(super) fn note(&self, layout: Layout) -> bool {
        self.newest.send_if_modified(|newest| {
            let is_same = match (&*newest, &layout) {
                (Some(Layout::Cluster(before)), Layout::Cluster(now)) => before == now,
                (Some(Layout::Single), Layout::Single) => true,
                _ => false,
            };
            // Replicas are kept too: one of them may have to be asked.
            *newest = Some(layout);
            !is_same
        })
    }

    /// Returns when somebody doubts the layout.
    pub(super) async fn doubted(&self) {
        self.doubted.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::slots::tag_of;
    use super::*;

    fn endpoint(port: u16) -> Endpoint {
        Endpoint { host: "127.0.0.1".to_owned(), port }
    }

    fn view(claims: &[(u16, u16, u16, u64)]) -> View {
        let claims = claims.iter().map(|(first, last, port, epoch)| (*first, *last, endpoint(*port), *epoch));
        View { claims: claims.collect(), servers: vec![endpoint(1)] }
    }

    #[test]
    fn of_two_claims_to_a_slot_the_later_one_counts() {
        let old = view(&[(0, 99, 1, 1), (100, 16_383, 2, 2)]);
        let new = view(&[(0, 49, 1, 1), (50, 99, 3, 3), (100, 16_383, 2, 2)]);
        for views in [[old.clone(), new.clone()], [new, old]] {
            let map = SlotMap::of(&views);
            assert_eq!(map.primaries(), [endpoint(1), endpoint(2), endpoint(3)]);
            assert_eq!(map.primary_of(&tag_of(49)), Some(&endpoint(1)));
            assert_eq!(map.primary_of(&tag_of(50)), Some(&endpoint(3)));
            assert_eq!(map.slots()[&endpoint(3)].to_string(), "50-99");
            assert_eq!(map.slots()[&endpoint(2)].to_string(), "100-16383");
        }
    }

    #[test]
    fn a_slot_that_no_server_claims_has_no_primary() {
        let map = SlotMap::of(&[view(&[(0, 99, 1, 1)])]);
        assert_eq!(map.primary_of(&tag_of(99)), Some(&endpoint(1)));
        assert_eq!(map.primary_of(&tag_of(100)), None);
    }
}
