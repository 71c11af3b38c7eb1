//! A sink for unit tests of handing over: it answers as the test says, and records its calls.

use std::time::Duration;

use super::sink::{Batch, PublishError, Reached, Sink};
use crate::event::{Event, EventId, EventType, LogId, StreamId, Topic};

/// One call to the sink: the numbers of its events, the first number, and the last one that it uses up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) events: Vec<u64>,
    pub(super) first: u64,
    pub(super) through: Option<u64>,
}

/// Makes a call to compare with.
pub(super) fn call<const N: usize>(events: [u64; N], first: u64, through: Option<u64>) -> Call {
    Call { events: events.into(), first, through }
}

/// Answers each call by its index, from 0, and its content.
pub(super) struct ScriptedSink<F> {
    answer: F,
    pub(super) calls: Vec<Call>,
    /// The newest event of every topic.
    pub(super) newest: Option<Reached>,
    /// The highest number that may have arrived.
    pub(super) taken: u64,
}

impl<F: FnMut(usize, &Call) -> Result<(), PublishError> + Send> ScriptedSink<F> {
    pub(super) fn new(answer: F) -> Self {
        Self { answer, calls: Vec::new(), newest: None, taken: 0 }
    }
}

impl<F: FnMut(usize, &Call) -> Result<(), PublishError> + Send> Sink for ScriptedSink<F> {
    fn begin_lead(&mut self, _log: LogId) {}

    async fn publish(&mut self, batch: Batch<'_>) -> Result<(), PublishError> {
        assert!(batch.has_one_epoch(), "{batch:?}");
        let events = batch.deliveries.iter().map(|delivery| delivery.id.seq).collect();
        let call = Call { events, first: batch.first.seq, through: batch.through.map(|id| id.seq) };
        let answer = (self.answer)(self.calls.len(), &call);
        self.calls.push(call);
        answer
    }

    async fn reached(&mut self) -> Result<Vec<Option<Reached>>, PublishError> {
        Ok(vec![None])
    }

    async fn newest_of(&mut self, _topic: &Topic) -> Result<Option<Reached>, PublishError> {
        Ok(self.newest)
    }

    fn vouch(&mut self, _through: StreamId) {}

    fn may_have_delivered(&self, id: StreamId) -> bool {
        id.seq <= self.taken
    }

    fn keeps(&self) -> Duration {
        Duration::ZERO
    }

    fn lacks_events(&self) -> bool {
        false
    }

    fn unpublished_above(&self) -> Option<StreamId> {
        None
    }
}

/// The event id of a row.
pub(super) fn event_id_of(row: i64) -> EventId {
    EventId::from_u128(row.cast_unsigned().into())
}

/// Makes an event with this row id and topic.
pub(super) fn event(id: i64, topic: &str) -> Event {
    Event {
        id,
        event_id: event_id_of(id),
        topic: Topic::new(topic).expect("a topic"),
        event_type: EventType::new("T").expect("a type"),
        payload: "1".to_owned(),
        created_at: chrono::DateTime::UNIX_EPOCH,
        xid: Some(3),
        trace: None,
    }
}
