//! A sink that keeps numbers the way Redis does, stops before it takes a batch until the test decides, and
//! can forget.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use aftercommit::event::{LogId, StreamId, Topic};
use aftercommit::relay::{Batch, Delivery, PublishError, PublishMode, Reached, Sink};

/// What has arrived: every number with the event that was published under it.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) by_number: BTreeMap<StreamId, (Uuid, Topic)>,
    pub(super) violations: Vec<String>,
    /// Events that were committed during the current pause.
    pub(super) held: HashSet<Uuid>,
    /// The highest number that a whole batch has used up, and its event.
    top: Option<Reached>,
    /// The highest number that was ever forgotten.
    forgotten: u64,
}

impl Arrived {
    fn take(&mut self, id: StreamId, event: Uuid, topic: &Topic) {
        if let Some((other, _)) = self.by_number.get(&id) {
            if *other != event {
                self.violations.push(format!("number {id} was given to {other} and to {event}"));
            }
            return;
        }
        if self.held.contains(&event) {
            self.violations.push(format!("{id} arrived, which was committed during a pause"));
        }
        // As in Redis: a topic's history only grows at its end.
        if let Some((last, _)) = self.by_number.iter().rfind(|(_, (_, t))| t == topic)
            && *last > id
        {
            self.violations.push(format!("{id} arrived in {topic} after {last}"));
        }
        self.by_number.insert(id, (event, topic.clone()));
    }

    /// Goes back to how it was when number `keep`, or the highest below it, was the highest.
    pub(super) fn forget(&mut self, keep: u64) {
        let Some(top) = self.top.filter(|top| top.id.seq > keep) else { return };
        self.forgotten = self.forgotten.max(top.id.seq);
        let kept = StreamId::new(top.id.epoch, keep);
        self.by_number.retain(|id, _| *id <= kept);
        self.top = (keep > 0).then(|| Reached {
            id: kept,
            event: self.by_number.get(&kept).map(|(event, _)| *event),
            recorded: None,
        });
    }

    /// Whether all forgotten events have been restored.
    pub(super) fn is_repaired(&self) -> bool {
        self.top.map_or(0, |top| top.id.seq) >= self.forgotten
    }

    fn lacks_before(&self, first: StreamId) -> Option<PublishError> {
        let reached = self.top.map_or(0, |top| top.id.seq);
        (first.seq > reached + 1).then(|| PublishError::Forgot { reached: reached.to_string() })
    }
}

/// The test's decision about a batch that a relay wants to publish.
#[derive(Debug)]
pub(super) enum Fate {
    Arrive,
    /// Only the first `published` events arrive, and the relay gets no answer.
    Die {
        published: usize,
    },
}

#[derive(Debug)]
pub(super) struct GatedSink {
    pub(super) arrived: Arc<Mutex<Arrived>>,
    pub(super) at_the_gate: mpsc::UnboundedSender<oneshot::Sender<Fate>>,
}

impl GatedSink {
    async fn fate(&self) -> Fate {
        let (decide, decided) = oneshot::channel();
        self.at_the_gate.send(decide).expect("the test is there");
        decided.await.expect("the test decides")
    }
}

impl Sink for GatedSink {
    fn begin_lead(&mut self, _log: LogId) {}

    async fn publish(&mut self, batch: Batch<'_>) -> Result<(), PublishError> {
        let fate = match batch.mode {
            PublishMode::Restore | PublishMode::RestoreRelease => Fate::Arrive,
            PublishMode::Normal | PublishMode::Release => self.fate().await,
        };
        let mut arrived = self.arrived.lock().expect("not poisoned");
        if let Some(forgot) = arrived.lacks_before(batch.first) {
            return Err(forgot);
        }
        let count = match fate {
            Fate::Arrive => batch.deliveries.len(),
            Fate::Die { published } => published.min(batch.deliveries.len()),
        };
        for Delivery { id, event } in &batch.deliveries[..count] {
            arrived.take(*id, event.event_id, &event.topic);
        }
        if matches!(fate, Fate::Die { .. }) {
            return Err(PublishError::retry(aftercommit::relay::failure::CONNECTION, "killed"));
        }
        if let Some(through) = batch.through.filter(|through| arrived.top.is_none_or(|top| top.id < *through))
        {
            let newest = batch.deliveries.last().filter(|last| last.id == through);
            arrived.top = Some(Reached {
                id: through,
                event: newest.map(|newest| newest.event.event_id),
                recorded: None,
            });
        }
        Ok(())
    }

    async fn reached(&mut self) -> Result<Vec<Option<Reached>>, PublishError> {
        Ok(vec![self.arrived.lock().expect("not poisoned").top])
    }

    async fn newest_of(&mut self, topic: &Topic) -> Result<Option<Reached>, PublishError> {
        let arrived = self.arrived.lock().expect("not poisoned");
        let newest = arrived.by_number.iter().rfind(|(_, (_, t))| t == topic);
        Ok(newest.map(|(id, (event, _))| Reached { id: *id, event: Some(*event), recorded: None }))
    }

    /// Nothing is parked here.
    fn vouch(&mut self, _through: StreamId) {}

    fn may_have_delivered(&self, _id: StreamId) -> bool {
        true
    }

    fn keeps(&self) -> Duration {
        Duration::from_secs(3600)
    }

    fn lacks_events(&self) -> bool {
        false
    }

    fn unpublished_above(&self) -> Option<StreamId> {
        None
    }
}
