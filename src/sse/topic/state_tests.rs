//! A model of Redis and of many clients drives the topic: whatever is lost, repeated or trimmed on the way,
//! each client gets every event after its place once and in order, or is told to fetch its state.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::event::EventType;
use crate::redis::continuity::{self, Link, Place, Prev};
use crate::sse::Naming;
use crate::sse::queue::send_queue::{SendLimits, SendQueue, Written};
use crate::sse::topic::attach::{Attached, Begin};
use crate::sse::wire::start::StartAt;

/// What can happen.
#[derive(Debug, Clone)]
enum Act {
    /// An event is published; the live message arrives, arrives twice, or is lost.
    Publish {
        copies: usize,
    },
    /// The subscription breaks: the topic is joined anew.
    Interrupt,
    /// A round of the join reads the history and tries to end.
    JoinRound,
    /// The log is given a new epoch.
    Rebase,
    /// The history loses its oldest entries.
    Trim {
        keep: usize,
    },
    /// A client connects: a new one, or one that continues where it was.
    Connect {
        client: usize,
    },
    Disconnect {
        client: usize,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => prop_oneof![8 => Just(1_usize), 1 => Just(0), 1 => Just(2)]
            .prop_map(|copies| Act::Publish { copies }),
        1 => Just(Act::Interrupt),
        4 => Just(Act::JoinRound),
        1 => Just(Act::Rebase),
        1 => (0_usize..6).prop_map(|keep| Act::Trim { keep }),
        2 => (0_usize..4).prop_map(|client| Act::Connect { client }),
        1 => (0_usize..4).prop_map(|client| Act::Disconnect { client }),
    ];
    proptest::collection::vec(act, 1..120)
}

/// A client's connection: the stream is over when it is dropped.
struct Connected(Arc<SendQueue>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A client as the model sees it: what it has been given, in order.
#[derive(Default)]
struct Client {
    connection: Option<Connected>,
    number: u64,
    /// The numbers of the events since it first connected, or since its last reset.
    seen: Vec<u64>,
    /// Where its account begins: the id that it was given first, or at its last reset.
    base: Option<u64>,
    cursor: Option<Cursor>,
    /// Its last block was a reset.
    was_reset: bool,
}

impl Client {
    /// Reads everything that waits, as a browser would.
    fn read(&mut self) {
        let Some(connection) = &self.connection else { return };
        let mut read = Vec::new();
        let is_over = !matches!(connection.0.write_to(&mut read), Written::Open(_));
        let text = String::from_utf8(read).expect("UTF-8");
        if is_over {
            self.connection = None; // Cut off: it comes back for the rest.
        }
        for block in text.split_terminator("\n\n") {
            self.take(block);
        }
    }

    fn take(&mut self, block: &str) {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        let cursor = Cursor::parse(field("id: ").expect("an id")).expect("a cursor");
        let seq = cursor.id().map_or(0, |id| id.seq);
        let before = self.cursor.replace(cursor).and_then(Cursor::id);
        let name = field("event: ");
        if let (Some(before), Some(here), Some("T")) = (before, cursor.id(), name) {
            assert!(
                here.epoch == before.epoch || self.was_reset,
                "{before} {here}: no reset between two epochs"
            );
        }
        self.was_reset = name == Some("reset");
        match name {
            // Its place; the first one counts.
            None => {
                self.base.get_or_insert(seq);
            }
            // A reset to an empty history does not say what came before: the account begins with the next
            // event.
            Some("reset") => {
                self.base = cursor.id().map(|id| id.seq);
                self.seen.clear();
            }
            Some(_) => {
                self.base.get_or_insert(seq - 1);
                self.seen.push(seq);
            }
        }
    }
}

struct Model {
    topic: TopicState,
    /// Everything ever published.
    published: Vec<StreamId>,
    /// What the history still holds.
    history: Vec<Link>,
    /// The next event's. (Numbers go on growing in a new epoch here, so that one alone tells an event.)
    next: StreamId,
    clients: Vec<Client>,
    next_client: u64,
    holes: u32,
    /// What waits for a client at most, in bytes.
    queued_bytes: usize,
}

fn frame(id: StreamId) -> Frame {
    let kind = EventType::new("T").expect("a type");
    Frame::of_event(id, &kind, "1", Naming::OfType)
}

impl Model {
    fn new(recent_events: usize, queued_bytes: usize) -> Self {
        let recent_limits = RecentLimits {
            events: recent_events,
            bytes: 1_000_000,
            all_bytes: 1_000_000,
            all_used: Arc::new(AtomicUsize::new(0)),
        };
        let topic = Topic::new("t").expect("a topic");
        Self {
            topic: TopicState::new(topic, recent_limits, Arc::default(), Metrics::default()),
            published: Vec::new(),
            history: Vec::new(),
            next: StreamId::new(1, 1),
            clients: (0..4).map(|_| Client::default()).collect(),
            next_client: 1,
            holes: 0,
            queued_bytes,
        }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Publish { copies } => self.publish(*copies),
            Act::Interrupt => {
                self.topic.begin_join();
            }
            Act::JoinRound => self.join_round(),
            Act::Rebase => self.next.epoch += 1,
            Act::Trim { keep } => {
                let cut = self.history.len().saturating_sub(*keep);
                self.history.drain(..cut);
            }
            Act::Connect { client } => self.connect(*client),
            Act::Disconnect { client } => {
                self.clients[*client].read();
                self.clients[*client].connection = None;
                self.topic.detach(self.clients[*client].number);
            }
        }
        self.clients.iter_mut().for_each(Client::read);
    }

    fn publish(&mut self, copies: usize) {
        // The script knows the stream's last id, also of an entry that has been trimmed.
        let prev = self.published.last().copied();
        let id = self.next;
        self.next.seq += 2; // Other topics use numbers too.
        self.published.push(id);
        self.history.push(Link { id, prev: prev.map_or(Prev::First, Prev::Event) });
        for _ in 0..copies {
            let message = TopicMessage::Event { prev, is_restored: false, frame: frame(id) };
            if self.topic.receive(message) == Next::Join {
                self.holes = 0;
            }
        }
    }

    /// What `join::run` does in one round, with this model's history.
    fn join_round(&mut self) {
        if self.topic.is_live() {
            return;
        }
        self.topic.begin_round();
        if !self.follow() {
            let is_reset = self.topic.end_cursor().is_some() || self.topic.has_clients();
            let skip = self.history.len() - self.history.len().min(3);
            let base = match self.history.get(skip).map(|first| first.prev) {
                Some(Prev::First) => Some(Cursor::Start { seen_ms: 0 }),
                Some(Prev::Event(id)) => Some(Cursor::After(id)),
                Some(Prev::Unknown) => None,
                // It has vanished with all that Redis knew of it: only this server knows better.
                None if self.published.is_empty() || is_reset => Some(Cursor::Start { seen_ms: 0 }),
                // It has vanished, and Redis says so.
                None => Some(Cursor::start_now()),
            };
            let newest: Vec<Frame> = self.history[skip..].iter().map(|link| frame(link.id)).collect();
            self.topic.begin_with(base, newest, is_reset.then_some(ResetReason::Gap));
        }
        if self.topic.finish_join(if self.holes >= 1 { Unfit::OlderDropped } else { Unfit::Kept })
            == Joined::Hole
        {
            self.holes += 1;
        }
    }

    /// Adds what the history proves to follow the topic's place. False if it proves nothing.
    fn follow(&mut self) -> bool {
        let Some(place) = self.topic.end_cursor() else { return false };
        let after: Vec<Link> = self
            .history
            .iter()
            .copied()
            .filter(|link| place.id().is_none_or(|place| link.id >= place))
            .collect();
        if after.is_empty() {
            return matches!(place, Cursor::Start { .. }) && self.published.is_empty();
        }
        let run = continuity::follow(place.id().map_or(Place::Start, Place::After), &after);
        let Some(run) = run.filter(|run| !run.is_broken) else { return false };
        self.topic.extend(after[run.skip..].iter().map(|link| frame(link.id)));
        true
    }

    fn connect(&mut self, client: usize) {
        let client = &mut self.clients[client];
        if client.connection.is_some() {
            return;
        }
        let limits = SendLimits { queued_bytes: self.queued_bytes, expires_at: None };
        let queue = Arc::new(SendQueue::new(self.next_client, limits, None, CancellationToken::new()));
        let stream = StreamTopic { queue: queue.clone(), at: 0, resume: None, is_text: false };
        let from = client.cursor.map_or(StartAt::Latest, StartAt::After);
        client.number = self.next_client;
        client.connection = Some(Connected(queue));
        self.next_client += 1;
        let attached = match begin(&mut self.topic, client, &stream, from) {
            // The way through the history is not part of this model: such a client is reset.
            Attached::Behind | Attached::Ahead => {
                begin(&mut self.topic, client, &stream, StartAt::Reset(ResetReason::HistoryGone))
            }
            other => other,
        };
        if attached != Attached::Yes {
            client.connection = None; // It gives up.
        }
    }

    fn settle(&mut self) {
        // A last event, so that every loss shows as a hole, and the rounds that a join needs at most.
        self.publish(1);
        for _ in 0..6 {
            self.join_round();
        }
        self.clients.iter_mut().for_each(Client::read);
    }
}

/// Tells a client where it begins, and attaches it. It reads whenever there is no more room for it.
fn begin(topic: &mut TopicState, client: &mut Client, stream: &StreamTopic, start: StartAt) -> Attached {
    let Begin::At { mut cursor, block } = topic.begin(start, None) else { return Attached::WhenLive };
    if block.is_some_and(|block| stream.put(&block) != Put::Queued) {
        return Attached::Gone;
    }
    loop {
        match topic.attach(stream, cursor) {
            Attached::Partly(here) => {
                client.read();
                cursor = here;
            }
            attached => return attached,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn each_client_gets_every_event_after_its_place_once_and_in_order(
        acts in acts(),
        recent_events in 1_usize..8,
        // The smaller one has room for about two events.
        queued_bytes in prop_oneof![Just(60_usize), Just(1_000_000)],
    ) {
        let mut model = Model::new(recent_events, queued_bytes);
        for act in &acts {
            model.act(act);
        }
        model.settle();
        prop_assert!(model.topic.is_live());
        for client in &model.clients {
            let (Some(base), Some(_)) = (client.base, &client.connection) else { continue };
            let expected: Vec<u64> =
                model.published.iter().map(|id| id.seq).filter(|seq| *seq > base).collect();
            prop_assert_eq!(&client.seen, &expected);
        }
    }
}

fn live_topic() -> TopicState {
    let mut model = Model::new(8, 1_000_000);
    model.join_round();
    assert!(model.topic.is_live());
    model.topic
}

fn event(prev: Option<u64>, seq: u64) -> TopicMessage {
    let id = |seq| StreamId::new(1, seq);
    TopicMessage::Event { prev: prev.map(id), is_restored: false, frame: frame(id(seq)) }
}

#[test]
fn the_first_event_of_a_topic_follows_its_start_and_the_next_one_that_one() {
    let mut topic = live_topic();
    assert_eq!(topic.receive(event(None, 4)), Next::Nothing);
    assert_eq!(topic.receive(event(Some(4), 9)), Next::Nothing);
    assert_eq!(topic.receive(event(None, 4)), Next::Nothing, "a repeat");
    assert_eq!(topic.end_cursor(), Some(Cursor::After(StreamId::new(1, 9))));
    assert_eq!(topic.receive(event(Some(10), 12)), Next::Join, "a hole");
    assert!(!topic.is_live());
}

#[test]
fn an_id_below_the_place_that_nobody_was_told_has_the_history_read() {
    let id = |seq| StreamId::new(1, seq);
    let mut topic = live_topic();
    topic.receive(event(None, 4));
    // Somebody publishes on the live channel and names the topic's place: nobody can tell yet.
    assert_eq!(topic.receive(event(Some(4), 9_000_000)), Next::Nothing);
    assert_eq!(topic.receive(event(Some(4), 5)), Next::Join, "a real event, taken for a repeat before");
    // An event of before this server's memory, which Redis has got again, needs no look.
    let mut topic = live_topic();
    topic.begin_with(Some(Cursor::After(id(8))), [frame(id(9))], None);
    let restored = TopicMessage::Event { prev: Some(id(2)), is_restored: true, frame: frame(id(4)) };
    assert_eq!(topic.receive(restored), Next::Nothing);
    assert_eq!(topic.end_cursor(), Some(Cursor::After(id(9))));
}

#[test]
fn an_event_that_no_history_has_is_dropped_and_the_topic_goes_on() {
    let mut topic = live_topic();
    topic.receive(event(None, 4));
    assert_eq!(topic.receive(event(Some(7), 9_000_000)), Next::Join, "a hole, as it seems");
    assert_eq!(topic.finish_join(Unfit::Kept), Joined::Hole, "it may be newer than what was read");
    topic.begin_round();
    assert_eq!(topic.finish_join(Unfit::OlderDropped), Joined::Live);
    assert_eq!(topic.end_cursor(), Some(Cursor::After(StreamId::new(1, 4))));
    assert_eq!(topic.receive(event(Some(4), 5)), Next::Nothing, "the topic goes on");
}

/// It may have been published after the read, and after an event whose message was lost.
#[test]
fn an_event_that_came_during_the_last_read_is_not_dropped_with_one_that_no_history_has() {
    let mut topic = live_topic();
    topic.receive(event(None, 4));
    assert_eq!(topic.receive(event(Some(7), 9_000_000)), Next::Join);
    assert_eq!(topic.finish_join(Unfit::Kept), Joined::Hole);
    topic.begin_round();
    topic.receive(event(Some(5), 6));
    assert_eq!(topic.finish_join(Unfit::OlderDropped), Joined::Hole, "the history may have it by now");
    topic.begin_round();
    topic.extend([frame(StreamId::new(1, 5)), frame(StreamId::new(1, 6))]);
    assert_eq!(topic.finish_join(Unfit::OlderDropped), Joined::Live);
    assert_eq!(topic.end_cursor(), Some(Cursor::After(StreamId::new(1, 6))));
    // A program that goes on with it does not keep the topic from being live.
    assert_eq!(topic.receive(event(Some(7), 9_000_000)), Next::Join);
    assert_eq!(topic.finish_join(Unfit::AllDropped), Joined::Live);
}

#[test]
fn a_start_is_only_as_old_as_what_is_known_of_it() {
    let mut topic = live_topic();
    topic.begin_with(Some(Cursor::Start { seen_ms: 1000 }), [frame(StreamId::new(1, 9))], None);
    let limits = SendLimits { queued_bytes: 20_000, expires_at: None };
    let stream = StreamTopic {
        queue: Arc::new(SendQueue::new(1, limits, None, CancellationToken::new())),
        at: 0,
        resume: None,
        is_text: false,
    };
    let start = |seen_ms| Cursor::Start { seen_ms };
    assert_eq!(topic.attach(&stream, start(999)), Attached::Behind, "something may have vanished since");
    assert_eq!(topic.attach(&stream, start(1000)), Attached::Yes);
    // Clients were reset since the history is gone, although Redis says that there has never been one.
    topic.begin_with(Some(Cursor::Start { seen_ms: 0 }), [], Some(ResetReason::Gap));
    assert_eq!(topic.attach(&stream, start(1001)), Attached::Behind);
}

#[test]
fn too_much_heard_while_joining_begins_the_round_again() {
    let mut topic = live_topic();
    topic.begin_join();
    topic.begin_round();
    topic.receive(TopicMessage::Foreign(frame::foreign(&"x".repeat(5 * 1024 * 1024))));
    assert_eq!(topic.finish_join(Unfit::Kept), Joined::Again);
    topic.begin_round();
    assert_eq!(topic.finish_join(Unfit::Kept), Joined::Live);
}

#[test]
fn the_newest_event_of_a_topic_without_an_earlier_place_tells_the_client_its_place() {
    let mut topic = live_topic();
    topic.begin_with(None, [frame(StreamId::new(1, 9))], None);
    let newest = Cursor::After(StreamId::new(1, 9));
    assert!(matches!(
        topic.begin(StartAt::Last, None),
        Begin::At { cursor, block: Some(block) } if cursor == newest && block.is_event()
    ));
    topic.begin_with(Some(Cursor::After(StreamId::new(1, 4))), [frame(StreamId::new(1, 9))], None);
    assert!(matches!(
        topic.begin(StartAt::Last, None),
        Begin::At { cursor, block: Some(block) }
            if cursor.id() == Some(StreamId::new(1, 4)) && !block.is_event()
    ));
}

#[test]
fn a_client_without_room_is_given_nothing_and_one_with_room_at_least_one_event() {
    let id = |seq| StreamId::new(1, seq);
    let mut topic = live_topic();
    topic.begin_with(Some(Cursor::After(id(4))), [frame(id(5)), frame(id(6))], None);
    let limits = SendLimits { queued_bytes: 40, expires_at: None };
    let queue = Arc::new(SendQueue::new(1, limits, None, CancellationToken::new()));
    let stream = StreamTopic { queue: queue.clone(), at: 0, resume: None, is_text: false };
    assert_eq!(topic.attach(&stream, Cursor::After(id(4))), Attached::Partly(Cursor::After(id(5))));
    assert_eq!(topic.attach(&stream, Cursor::After(id(5))), Attached::Partly(Cursor::After(id(5))));
    assert!(!topic.has_clients());
}

#[test]
fn what_a_join_has_read_past_is_no_hole_when_it_was_heard_as_well() {
    let mut topic = live_topic();
    topic.begin_join();
    topic.begin_round();
    topic.receive(event(None, 4));
    topic.receive(event(Some(4), 5));
    // The history that is read ends with the second one, and its memory begins with it.
    let id = |seq| StreamId::new(1, seq);
    topic.begin_with(Some(Cursor::After(id(4))), [frame(id(5))], None);
    assert_eq!(topic.finish_join(Unfit::Kept), Joined::Live);
    assert_eq!(topic.end_cursor(), Some(Cursor::After(id(5))));
}

#[test]
fn a_client_without_a_place_waits_for_a_topic_that_is_joining() {
    let mut topic = live_topic();
    topic.receive(event(None, 4));
    topic.begin_join();
    let limits = SendLimits { queued_bytes: 20_000, expires_at: None };
    let stream = StreamTopic {
        queue: Arc::new(SendQueue::new(1, limits, None, CancellationToken::new())),
        at: 0,
        resume: None,
        is_text: false,
    };
    for from in [StartAt::Latest, StartAt::Last, StartAt::Earliest, StartAt::Reset(ResetReason::Gap)] {
        assert!(
            matches!(topic.begin(from, None), Begin::WhenLive),
            "{from:?}: the events it would get may be old"
        );
    }
    let cursor = Cursor::After(StreamId::new(1, 4));
    assert!(matches!(topic.begin(StartAt::After(cursor), None), Begin::At { .. }));
    assert_eq!(topic.attach(&stream, cursor), Attached::Yes, "a place that it names is proven at any time");
}
