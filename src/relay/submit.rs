//! Hands a batch to the sink: as a whole, or one event at a time if the sink keeps refusing.
//!
//! A server does not always say which event of a batch it refuses. A payload beyond its input buffer breaks
//! the connection, and permissions are checked for all keys of a script at once. In such cases each event is
//! submitted alone. If the sink refuses it while it takes everything else, then the event is at fault,
//! whatever the error says.

use std::time::Duration;

use super::failure::Remedy;
use super::sink::{Batch, PublishError, Sink};
use crate::event::StreamId;

/// Waits before the further tries of one event. Connections break by chance, also several times in a row.
const RETRY_WAITS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// How a batch is submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubmitMode {
    Together,
    OneByOne,
}

/// Hands a batch to the sink.
///
/// # Errors
/// Fails as [`Sink::publish`]. One by one, an event that is refused alone is [`PublishError::Poison`].
pub(super) async fn submit<S: Sink>(
    sink: &mut S,
    batch: Batch<'_>,
    submit_mode: SubmitMode,
) -> Result<(), PublishError> {
    match submit_mode {
        SubmitMode::Together => sink.publish(batch).await,
        SubmitMode::OneByOne => one_by_one(sink, batch).await,
    }
}

async fn one_by_one<S: Sink>(sink: &mut S, batch: Batch<'_>) -> Result<(), PublishError> {
    let mut first = batch.first;
    for (at, delivery) in batch.deliveries.iter().enumerate() {
        // A release's number is used up after the last of its events, in a call of its own.
        let through = batch.through.filter(|_| !batch.mode.is_release()).map(|_| delivery.id);
        let one = Batch { deliveries: std::slice::from_ref(delivery), first, through, ..batch };
        match alone(sink, one).await {
            Err(PublishError::Poison { reason, .. }) => return Err(PublishError::Poison { at, reason }),
            handed => handed?,
        }
        // If no numbers are used up, the sink's number does not move.
        first = through.map_or(first, |id| StreamId::new(id.epoch, id.seq + 1));
    }
    // Uses up the numbers above that of the last event.
    sink.publish(Batch { deliveries: &[], first, ..batch }).await
}

/// Hands over a batch of one event, and finds out whether a refusal is about that event.
///
/// Each try stands between two batches without events, on the same connection if it holds. The event is at
/// fault only if the sink refuses it in every try and takes the empty batches before and after it. A
/// connection that was cut while the relay waited breaks at the empty batch before the event.
async fn alone<S: Sink>(sink: &mut S, batch: Batch<'_>) -> Result<(), PublishError> {
    let nothing = Batch { deliveries: &[], through: None, ..batch };
    let mut waits = RETRY_WAITS.into_iter();
    loop {
        sink.publish(nothing).await?;
        let (failure, reason) = match sink.publish(batch).await {
            Err(PublishError::Retry { failure, reason }) => (failure, reason),
            other => return other,
        };
        sink.publish(nothing).await?;
        match waits.next() {
            Some(wait) if failure.remedy != Remedy::SetAside => tokio::time::sleep(wait).await,
            _ => return Err(PublishError::Poison { at: 0, reason }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::failure::{self, Failure};
    use super::super::scripted_sink::{Call, ScriptedSink, call, event};
    use super::super::sink::{Delivery, PublishMode};
    use super::*;
    use crate::event::Event;

    /// Hands over events with the numbers from 5 on, one by one, to a sink with these answers.
    async fn hand_over_to(
        count: u64,
        uses_numbers: bool,
        answer: impl FnMut(usize, &Call) -> Result<(), PublishError> + Send,
    ) -> (Result<(), PublishError>, Vec<Call>) {
        let events: Vec<Event> = (5..5 + count).map(|n| event(n.cast_signed(), "t")).collect();
        let number = |seq| StreamId::new(1, seq);
        let deliveries: Vec<Delivery<'_>> =
            (5..).zip(&events).map(|(seq, event)| Delivery { id: number(seq), event }).collect();
        let batch = Batch {
            mode: PublishMode::Normal,
            deliveries: &deliveries,
            first: number(5),
            // One number more than there are events: that of an event that was set aside.
            through: uses_numbers.then(|| number(5 + count)),
            lost: None,
        };
        let mut sink = ScriptedSink::new(answer);
        let handed = submit(&mut sink, batch, SubmitMode::OneByOne).await;
        (handed, sink.calls)
    }

    fn refused(failure: Failure) -> Result<(), PublishError> {
        Err(PublishError::retry(failure, "no"))
    }

    #[tokio::test(start_paused = true)]
    async fn each_event_is_handed_over_between_batches_without_any_and_uses_up_its_own_number() {
        let (handed, calls) = hand_over_to(2, true, |_, _| Ok(())).await;
        handed.expect("all is taken");
        let expected = [
            call([], 5, None),
            call([5], 5, Some(5)),
            call([], 6, None),
            call([6], 6, Some(6)),
            call([], 7, Some(7)),
        ];
        assert_eq!(calls, expected);
        let (handed, calls) = hand_over_to(2, false, |_, _| Ok(())).await;
        handed.expect("all is taken");
        let expected =
            [call([], 5, None), call([5], 5, None), call([], 5, None), call([6], 5, None), call([], 5, None)];
        assert_eq!(calls, expected, "where no numbers are used up, none is passed");
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_is_refused_in_every_try_while_all_else_is_taken_is_at_fault() {
        let (handed, calls) = hand_over_to(3, true, |_, call| match call.events[..] {
            [6] => refused(failure::CONNECTION),
            _ => Ok(()),
        })
        .await;
        assert!(matches!(handed, Err(PublishError::Poison { at: 1, .. })), "{handed:?}");
        let tries = calls.iter().filter(|call| call.events == [6]).count();
        assert_eq!(tries, 1 + RETRY_WAITS.len());
        assert!(calls.iter().all(|call| call.events != [7]), "nothing behind it is submitted");
        let before_and_behind =
            calls[2..].chunks(3).all(|calls| calls[0].events.is_empty() && calls[2].events.is_empty());
        assert!(before_and_behind, "{calls:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_by_chance_is_tried_again_and_nobodys_fault() {
        let mut failures = 0;
        let (handed, _) = hand_over_to(1, true, |_, call| {
            failures += usize::from(!call.events.is_empty());
            if !call.events.is_empty() && failures <= RETRY_WAITS.len() {
                refused(failure::TIMEOUT)
            } else {
                Ok(())
            }
        })
        .await;
        handed.expect("it is taken in the end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_takes_nothing_before_or_behind_an_event_says_nothing_about_it() {
        for fails_at in [0, 2] {
            let (handed, calls) = hand_over_to(1, true, |n, call| match n {
                n if n == fails_at => refused(failure::CONNECTION),
                _ if call.events.is_empty() => Ok(()),
                _ => refused(failure::CONNECTION),
            })
            .await;
            assert!(matches!(handed, Err(PublishError::Retry { .. })), "{fails_at}: {handed:?}");
            assert_eq!(calls.len(), fails_at + 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_is_about_one_event_by_its_kind_is_not_tried_again() {
        let (handed, calls) = hand_over_to(1, true, |_, call| match call.events[..] {
            [_] => refused(failure::REFUSED),
            _ => Ok(()),
        })
        .await;
        assert!(matches!(handed, Err(PublishError::Poison { at: 0, .. })), "{handed:?}");
        assert_eq!(calls.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_forgot_or_has_to_stop_is_no_events_fault() {
        for stops in [
            || PublishError::Stop("stop".to_owned()),
            || PublishError::Forgot { reached: "nothing".to_owned() },
        ] {
            let (handed, calls) =
                hand_over_to(2, true, |n, _| if n == 1 { Err(stops()) } else { Ok(()) }).await;
            assert!(matches!(handed, Err(PublishError::Stop(_) | PublishError::Forgot { .. })), "{handed:?}");
            assert_eq!(calls.len(), 2);
        }
    }
}
