//! Tests of a publication, with a sink that answers as a test says.

use super::super::failure;
use super::super::scripted_sink::{Call, ScriptedSink, call, event, event_id_of};
use super::*;
use crate::log::read::Unreadable;

const FIRST: Attempt = Attempt { submit_mode: SubmitMode::Together, is_own_window: true };

fn exceptions(held: &[(&str, u64)], delivered_before: &[i64], on_poison: OnPoison) -> Exceptions {
    let topic = |name: &str| Topic::new(name).expect("a topic");
    let held = held.iter().map(|(name, seq)| (topic(name), StreamId::new(1, *seq))).collect();
    let delivered_before = delivered_before.iter().map(|id| (*id, event_id_of(*id))).collect();
    Exceptions::new(held, delivered_before, 0, on_poison)
}

/// Publishes a row for each topic, under the numbers from 1 on, and returns the rows that are set aside.
async fn publish_rows(
    rows: Vec<Row>,
    exceptions: &Exceptions,
    answer: impl FnMut(usize, &Call) -> Result<(), PublishError> + Send,
) -> (Result<SetAside, PublishError>, Vec<Call>) {
    let mut sink = ScriptedSink::new(answer);
    let position = Position::before_everything();
    let published = publish_batch(&mut sink, &position, &rows, exceptions, FIRST).await;
    (published, sink.calls)
}

fn rows(topics: &[&str]) -> Vec<Row> {
    (1..).zip(topics).map(|(id, topic)| Row::Event(event(id, topic))).collect()
}

fn unreadable(id: i64, topic: Option<&str>) -> Row {
    let topic = topic.map(|topic| Topic::new(topic).expect("a topic"));
    Row::Unreadable(Unreadable { id, topic, reason: "damaged".to_owned() })
}

fn numbers(set_aside: &SetAside) -> Vec<(u64, bool)> {
    set_aside.parked.iter().map(|parked| (parked.id.seq, parked.reason == WAITS)).collect()
}

#[tokio::test]
async fn all_that_is_taken_uses_up_its_numbers_in_one_batch() {
    let none = exceptions(&[], &[], OnPoison::Park);
    let (published, calls) = publish_rows(rows(&["a", "b", "a"]), &none, |_, _| Ok(())).await;
    assert_eq!(published.expect("all is taken").len(), 0);
    assert_eq!(calls, [call([1, 2, 3], 1, Some(3))]);
    let (_, calls) = publish_rows(Vec::new(), &none, |_, _| Ok(())).await;
    assert_eq!(calls, []);
}

#[tokio::test]
async fn events_wait_behind_a_parked_one_of_their_topic_and_not_before_it() {
    let held = exceptions(&[("a", 3)], &[], OnPoison::Park);
    let (published, calls) = publish_rows(rows(&["a", "b", "a", "a"]), &held, |_, _| Ok(())).await;
    assert_eq!(numbers(&published.expect("the rest is taken")), [(4, true)]);
    assert_eq!(calls, [call([1, 2, 3], 1, None)], "no number is passed before what waits is written down");
}

#[tokio::test]
async fn what_the_sink_has_already_is_left_out_and_its_number_is_used_up() {
    let before = exceptions(&[], &[1, 3], OnPoison::Park);
    let (published, calls) = publish_rows(rows(&["a", "a", "a"]), &before, |_, _| Ok(())).await;
    assert_eq!(published.expect("the rest is taken").len(), 0);
    assert_eq!(calls, [call([2], 1, Some(3))]);
}

#[tokio::test]
async fn another_event_that_has_got_the_id_of_one_that_the_sink_has_is_published() {
    let before = exceptions(&[], &[1, 3], OnPoison::Park);
    let mut rows = rows(&["a", "a", "a"]);
    if let Row::Event(event) = &mut rows[2] {
        event.event_id = EventId::new_v4();
    }
    let (published, calls) = publish_rows(rows, &before, |_, _| Ok(())).await;
    assert_eq!(published.expect("the rest is taken").len(), 0);
    assert_eq!(calls, [call([2, 3], 1, Some(3))]);
}

#[tokio::test]
async fn behind_a_refused_event_its_topic_waits_and_the_others_go_on_where_the_sink_is() {
    let none = exceptions(&[], &[], OnPoison::Park);
    let topics = ["a", "b", "a", "c", "b"];
    let (published, calls) = publish_rows(rows(&topics), &none, |n, _| match n {
        0 | 1 => Err(PublishError::Poison { at: 1, reason: "no".to_owned() }),
        _ => Ok(()),
    })
    .await;
    assert_eq!(numbers(&published.expect("the rest is taken")), [(2, false), (4, false), (5, true)]);
    let expected = [call([1, 2, 3, 4, 5], 1, Some(5)), call([3, 4], 2, None), call([], 2, None)];
    assert_eq!(calls, expected);
}

#[tokio::test]
async fn a_refused_first_event_moves_nothing() {
    let none = exceptions(&[], &[], OnPoison::Park);
    let (_, calls) = publish_rows(rows(&["a", "b"]), &none, |n, _| match n {
        0 => Err(PublishError::Poison { at: 0, reason: "no".to_owned() }),
        _ => Ok(()),
    })
    .await;
    assert_eq!(calls, [call([1, 2], 1, Some(2)), call([2], 1, None)]);
}

#[tokio::test]
async fn a_refusal_stops_the_batch_where_that_is_the_setting_and_where_it_names_no_event() {
    let poison = |at| move |_: usize, _: &Call| Err(PublishError::Poison { at, reason: "no".to_owned() });
    let halt = exceptions(&[], &[], OnPoison::Halt);
    let (published, _) = publish_rows(rows(&["a", "b"]), &halt, poison(1)).await;
    assert!(matches!(published, Err(PublishError::Poison { at: 1, .. })));
    let none = exceptions(&[], &[], OnPoison::Park);
    let (published, _) = publish_rows(rows(&["a", "b"]), &none, poison(2)).await;
    assert!(matches!(published, Err(PublishError::Poison { at: 2, .. })));
    let failed = |_: usize, _: &Call| Err(PublishError::retry(failure::TIMEOUT, "no"));
    let (published, calls) = publish_rows(rows(&["a"]), &none, failed).await;
    assert!(matches!(published, Err(PublishError::Retry { .. })) && calls.len() == 1);
}

/// Publishes two events of a topic to a sink that refuses the first one of a batch, if there is one, and
/// whose newest event is this.
async fn publish_behind_a_newest(
    newest: impl Fn(&[Event]) -> (u64, EventId),
    on_poison: OnPoison,
) -> (Result<SetAside, PublishError>, Vec<Call>) {
    let events = [event(1, "a"), event(2, "a")];
    let mut sink = ScriptedSink::new(|_, call: &Call| match call.events[..] {
        [] => Ok(()),
        _ => Err(PublishError::Poison { at: 0, reason: "another entry".to_owned() }),
    });
    let (seq, event) = newest(&events);
    sink.newest = Some(Reached { id: StreamId::new(1, seq), event: Some(event), recorded: None });
    let (position, none) = (Position::before_everything(), exceptions(&[], &[], on_poison));
    let rows = events.map(Row::Event);
    let published = publish_batch(&mut sink, &position, &rows, &none, FIRST).await;
    (published, sink.calls)
}

#[tokio::test]
async fn an_event_behind_which_the_sink_holds_another_of_its_batch_has_arrived_before() {
    for on_poison in [OnPoison::Park, OnPoison::Halt] {
        let (published, calls) = publish_behind_a_newest(|events| (2, events[1].event_id), on_poison).await;
        let set_aside = published.expect("all has arrived");
        assert_eq!((set_aside.len(), set_aside.has_arrived_before), (0, true));
        let nothing_is_passed = [call([1, 2], 1, Some(2)), call([], 1, None)];
        assert_eq!(calls, nothing_is_passed, "no number is passed without a proof");
    }
}

#[tokio::test]
async fn an_event_behind_which_the_sink_holds_another_program_s_entry_is_parked() {
    let of_another_program = |events: &[Event]| (3, events[1].event_id);
    let of_itself = |events: &[Event]| (1, events[0].event_id);
    let unknown = |_: &[Event]| (2, EventId::new_v4());
    for parked in [
        publish_behind_a_newest(of_another_program, OnPoison::Park).await,
        publish_behind_a_newest(of_itself, OnPoison::Park).await,
        publish_behind_a_newest(unknown, OnPoison::Park).await,
    ] {
        let set_aside = parked.0.expect("the event is parked");
        assert_eq!(numbers(&set_aside), [(1, false), (2, true)]);
        assert!(!set_aside.has_arrived_before);
    }
}

/// A repair proves its events itself, and parks what it cannot give back.
#[tokio::test]
async fn an_event_that_a_repair_cannot_give_back_is_parked_whatever_stands_behind_it() {
    let events = [event(1, "a"), event(2, "a")];
    let mut sink = ScriptedSink::new(|_, call: &Call| match call.events[..] {
        [] => Ok(()),
        _ => Err(PublishError::Poison { at: 0, reason: "another entry".to_owned() }),
    });
    sink.newest = Some(Reached { id: StreamId::new(1, 2), event: Some(events[1].event_id), recorded: None });
    let number = |seq| StreamId::new(1, seq);
    let deliveries = (1..).zip(&events).map(|(seq, event)| Delivery { id: number(seq), event });
    let publication = Publication {
        mode: PublishMode::Restore,
        span: (number(1), number(2)),
        lost: None,
        has_set_aside: false,
        submit_mode: SubmitMode::Together,
        is_own_window: false,
    };
    let none = exceptions(&[], &[], OnPoison::Park);
    let published = publish(&mut sink, publication, deliveries.collect(), &none).await.expect("parked");
    assert_eq!((published.parked.len(), published.has_arrived_before), (2, false));
    assert!(published.parked.iter().all(|parked| parked.may_have_arrived), "{published:?}");
}

/// Parks two events of a topic, the second one's neighbour and a row that cannot be read, and returns which of
/// them may have arrived.
async fn parks_what_may_have_arrived(is_own_window: bool, taken: u64, rebased_id: i64) -> Vec<bool> {
    let mut sink = ScriptedSink::new(|_, call: &Call| match call.events[..] {
        [] => Ok(()),
        _ => Err(PublishError::Poison { at: 0, reason: "no".to_owned() }),
    });
    sink.taken = taken;
    let mut exceptions = exceptions(&[], &[], OnPoison::Park);
    exceptions.rebased_id = rebased_id;
    let (position, attempt) = (Position::before_everything(), Attempt { is_own_window, ..FIRST });
    let mut rows = rows(&["a", "a", "b"]);
    rows.push(unreadable(4, None));
    let set_aside = publish_batch(&mut sink, &position, &rows, &exceptions, attempt).await.expect("parked");
    let unreadable = set_aside.unreadable.iter().map(|parked| parked.may_have_arrived);
    set_aside.parked.iter().map(|parked| parked.may_have_arrived).chain(unreadable).collect()
}

#[tokio::test]
async fn an_event_that_was_tried_before_may_have_arrived() {
    assert_eq!(parks_what_may_have_arrived(true, 0, 0).await, [false; 4]);
    assert_eq!(parks_what_may_have_arrived(true, 2, 0).await, [true, true, false, false]);
    assert_eq!(parks_what_may_have_arrived(true, 4, 0).await, [true; 4]);
    assert_eq!(parks_what_may_have_arrived(false, 0, 0).await, [true; 4], "by another relay");
    assert_eq!(parks_what_may_have_arrived(true, 0, 4).await, [true; 4], "in an earlier epoch");
}

#[tokio::test]
async fn behind_a_row_that_cannot_be_read_its_topic_waits_where_it_has_one() {
    let none = exceptions(&[], &[], OnPoison::Park);
    let rows = vec![
        Row::Event(event(1, "a")),
        unreadable(2, Some("a")),
        unreadable(3, None),
        Row::Event(event(4, "b")),
        Row::Event(event(5, "a")),
        Row::Event(event(6, "b")),
    ];
    let (published, calls) = publish_rows(rows, &none, |_, _| Ok(())).await;
    let set_aside = published.expect("the rest is taken");
    assert_eq!((numbers(&set_aside), set_aside.len()), (vec![(5, true)], 3));
    assert_eq!(set_aside.unreadable.iter().map(|parked| parked.id.seq).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(calls, [call([1, 4, 6], 1, None)]);
}

#[test]
fn a_topic_is_held_from_its_first_parked_event_until_it_is_let_go() {
    let mut exceptions = exceptions(&[], &[], OnPoison::Park);
    let (topic, event) = (Topic::new("a").expect("a topic"), event(1, "a"));
    let number = |seq| StreamId::new(1, seq);
    for seq in [7, 4, 9] {
        exceptions.hold([(&topic, number(seq))].into_iter());
    }
    let holds = |exceptions: &Exceptions, seq| exceptions.holds(&Delivery { id: number(seq), event: &event });
    assert_eq!([3, 4, 5].map(|seq| holds(&exceptions, seq)), [false, false, true]);
    exceptions.unhold(&topic);
    assert!(!holds(&exceptions, 5));
}
