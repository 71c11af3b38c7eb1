//! The rules against a simple model of a topic's true sequence. Histories are trimmed, expire, are lost,
//! deleted and repaired in part, and events are parked. A reader must receive every event after its place in
//! order, or be told that the order cannot be proven.

use proptest::prelude::*;

use super::*;

fn id(epoch: u64, seq: u64) -> StreamId {
    StreamId::new(epoch, seq)
}

fn link(seq: u64, prev: Option<u64>) -> Link {
    Link { id: id(1, seq), prev: prev.map_or(Prev::First, |prev| Prev::Event(id(1, prev))) }
}

fn below(number: StreamId) -> StreamId {
    id(number.epoch, number.seq - 1)
}

#[test]
fn a_field_says_first_or_an_id_and_everything_else_is_unknown() {
    assert_eq!(Prev::parse(Some("")), Prev::First);
    assert_eq!(Prev::parse(Some("1-7")), Prev::Event(id(1, 7)));
    for unknown in [None, Some("-"), Some("7"), Some("1-7 ")] {
        assert_eq!(Prev::parse(unknown), Prev::Unknown, "{unknown:?}");
    }
}

#[test]
fn a_place_is_followed_by_its_own_entry_or_by_one_that_names_it() {
    let entries = [link(4, Some(2)), link(6, Some(4))];
    let run = |skip, len| Some(Run { skip, len, is_broken: false });
    assert_eq!(follow(Place::After(id(1, 4)), &entries), run(1, 1));
    assert_eq!(follow(Place::After(id(1, 2)), &entries), run(0, 2), "the entry of the place was trimmed");
    assert_eq!(follow(Place::After(id(1, 3)), &entries), None, "not an event of this topic");
    assert_eq!(follow(Place::Start, &entries), None, "there were events before");
    assert_eq!(follow(Place::Start, &[link(4, None)]), run(0, 1));
    assert_eq!(follow(Place::Start, &[]), None, "no entries prove nothing");
}

#[test]
fn a_run_ends_before_a_hole() {
    let entries = [link(1, None), link(2, Some(1)), link(9, Some(5)), link(10, Some(9))];
    assert_eq!(follow(Place::Start, &entries), Some(Run { skip: 0, len: 2, is_broken: true }));
    assert_eq!(follow(Place::After(id(1, 2)), &entries[1..]), Some(Run { skip: 1, len: 0, is_broken: true }));
    assert_eq!(contiguous_end(&entries), 2);
    let foreign = Link { id: id(1, 3), prev: Prev::Unknown };
    assert_eq!(contiguous(&[link(1, None), foreign]), 1, "an entry that no relay wrote");
}

#[test]
fn a_missing_history_proves_that_nothing_happened_only_where_nothing_was_lost() {
    let absence = |has_vanished, lost_ms| Absence { has_vanished, lost_ms, ..Absence::default() };
    assert!(absence(false, None).proves_none_since(100));
    assert!(absence(false, Some(99)).proves_none_since(100));
    assert!(!absence(false, Some(100)).proves_none_since(100));
    assert!(!absence(true, None).proves_none_since(100));
}

/// One thing that happens to a topic, its history, the relay or Redis.
#[derive(Debug, Clone)]
enum Act {
    /// An event is published, after some numbers of other topics.
    Publish {
        others: u64,
    },
    /// An event is parked: its number is used up, and later events wait until its release.
    Park,
    Release,
    Discard,
    /// The history loses its oldest entries.
    Trim {
        keep: usize,
    },
    /// Redis goes back to an earlier state of everything, and the relay restores the events that the log
    /// still has.
    GoBack {
        lose: usize,
        log_keeps: usize,
    },
    /// The history alone vanishes. The key that outlives it stays.
    Vanish,
    /// The relay restarts, and remembers no ids.
    Forget,
    /// The log gets a new epoch, which is claimed in Redis.
    Rebase,
    /// A reader at some place reads on.
    Read {
        from: usize,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (0_u64..3).prop_map(|others| Act::Publish { others }),
        1 => Just(Act::Park),
        1 => Just(Act::Release),
        1 => Just(Act::Discard),
        2 => (0_usize..5).prop_map(|keep| Act::Trim { keep }),
        2 => ((0_usize..6), (0_usize..6)).prop_map(|(lose, log_keeps)| Act::GoBack { lose, log_keeps }),
        1 => Just(Act::Vanish),
        1 => Just(Act::Forget),
        1 => Just(Act::Rebase),
        6 => (0_usize..8).prop_map(|from| Act::Read { from }),
    ];
    proptest::collection::vec(act, 1..60)
}

/// The rules of `publish.lua` for one topic, without Redis.
#[derive(Default)]
struct Model {
    /// Every published event in its order: the truth.
    truth: Vec<StreamId>,
    history: Vec<Link>,
    has_begun: bool,
    /// Events up to this number may be missing.
    lost: Option<StreamId>,
    /// The topic's last event, as the relay remembers it.
    head: Option<StreamId>,
    parked: Vec<StreamId>,
    epoch: u64,
    next: u64,
}

impl Model {
    fn new() -> Self {
        Self { epoch: 1, next: 1, ..Self::default() }
    }

    fn number(&mut self) -> StreamId {
        self.next += 1;
        id(self.epoch, self.next - 1)
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Publish { others } => {
                self.next += others;
                let new = self.number();
                if self.parked.is_empty() {
                    self.publish(new);
                } else {
                    self.parked.push(new);
                }
            }
            Act::Park => {
                let new = self.number();
                self.parked.push(new);
            }
            Act::Release => {
                for parked in std::mem::take(&mut self.parked) {
                    self.publish(parked);
                }
            }
            Act::Discard => self.parked.clear(),
            Act::Trim { keep } => {
                let cut = self.history.len().saturating_sub(*keep.max(&1));
                self.history.drain(..cut);
            }
            Act::GoBack { lose, log_keeps } => self.go_back(*lose, *log_keeps),
            Act::Vanish => self.history.clear(),
            Act::Forget => self.head = None,
            Act::Rebase => (self.epoch, self.next) = (self.epoch + 1, 1),
            Act::Read { from } => self.read(*from),
        }
    }

    fn publish(&mut self, new: StreamId) {
        let prev = self.head.filter(|head| *head < new).map_or_else(|| self.previous(new), Prev::Event);
        self.truth.push(new);
        self.add(Link { id: new, prev });
    }

    fn add(&mut self, link: Link) {
        self.history.push(link);
        self.has_begun = true;
        self.head = Some(link.id);
    }

    /// As `previous` in `publish.lua`.
    fn previous(&self, new: StreamId) -> Prev {
        let newest = self.history.last().map(|link| link.id).or(self.has_begun.then(|| below(new)));
        let missing = self.lost.map(|lost| lost.min(below(new)));
        newest.max(missing).map_or(Prev::First, Prev::Event)
    }

    /// Redis loses its newest entries and its record of losses. The log then restores the newest of the
    /// missing events.
    fn go_back(&mut self, lose: usize, log_keeps: usize) {
        if lose == 0 {
            return;
        }
        self.head = None;
        self.lost = None;
        self.history.truncate(self.history.len().saturating_sub(lose));
        self.has_begun = !self.history.is_empty();
        let kept = self.history.last().map(|link| link.id);
        let lacks: Vec<StreamId> = self.truth.iter().copied().filter(|id| Some(*id) > kept).collect();
        // The relay compares only numbers of its own epoch.
        let given: Vec<StreamId> = lacks.iter().copied().filter(|id| id.epoch == self.epoch).collect();
        let given = &given[given.len().saturating_sub(log_keeps)..];
        if given.len() < lacks.len() {
            self.lost = Some(given.first().map_or(id(self.epoch, self.next - 1), |id| below(*id)));
        }
        for again in given {
            self.add(Link { id: *again, prev: self.previous(*again) });
        }
    }

    fn read(&self, from: usize) {
        let at = from.min(self.truth.len());
        let place = if at == 0 { Place::Start } else { Place::After(self.truth[at - 1]) };
        let page: Vec<Link> = match place {
            Place::Start => self.history.clone(),
            Place::After(after) => self.history.iter().copied().filter(|link| link.id >= after).collect(),
        };
        let Some(run) = follow(place, &page) else { return };
        let told: Vec<StreamId> = page[run.skip..run.skip + run.len].iter().map(|link| link.id).collect();
        let truth = &self.truth[at..];
        assert!(truth.starts_with(&told), "{place:?}: told {told:?} of {truth:?}, with {:?}", self.history);
        // Without a hole after the run, the run is all there is. Only a lost end is an exception, which top
        // shows and the entries do not.
        if !run.is_broken && self.lost.is_none() && !self.history.is_empty() {
            assert_eq!(told, truth, "{place:?}: {:?}", self.history);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    #[test]
    fn a_reader_is_told_the_truth_or_that_it_cannot_be_proven(acts in acts()) {
        let mut model = Model::new();
        for act in &acts {
            model.act(act);
        }
    }

    #[test]
    fn a_reader_that_gets_to_the_end_of_a_whole_history_has_everything(
        seqs in proptest::collection::btree_set(1_u64..99, 1..20),
    ) {
        let ids: Vec<u64> = seqs.into_iter().collect();
        let links: Vec<Link> =
            ids.iter().enumerate().map(|(at, seq)| link(*seq, (at > 0).then(|| ids[at - 1]))).collect();
        let whole = Run { skip: 0, len: links.len(), is_broken: false };
        prop_assert_eq!(follow(Place::Start, &links), Some(whole));
        for (at, link) in links.iter().enumerate() {
            let run = follow(Place::After(link.id), &links[at..]);
            prop_assert_eq!(run, Some(Run { skip: 1, len: links.len() - at - 1, is_broken: false }));
        }
    }
}
