//! A publisher of Redis in which a test makes one call fail, or lets something happen beside it.

use std::time::Duration;

use aftercommit::event::{LogId, StreamId, Topic};
use aftercommit::redis::Publisher;
use aftercommit::relay::{Batch, PublishError, Reached, Sink};

/// The calls in which a fault takes part. Each one passes unless it says otherwise.
pub(crate) trait Fault: Send {
    fn publish(
        &mut self,
        publisher: &mut Publisher,
        batch: Batch<'_>,
    ) -> impl Future<Output = Result<(), PublishError>> + Send {
        publisher.publish(batch)
    }

    fn reached(
        &mut self,
        publisher: &mut Publisher,
    ) -> impl Future<Output = Result<Vec<Option<Reached>>, PublishError>> + Send {
        publisher.reached()
    }

    fn newest_of(
        &mut self,
        publisher: &mut Publisher,
        topic: &Topic,
    ) -> impl Future<Output = Result<Option<Reached>, PublishError>> + Send {
        publisher.newest_of(topic)
    }
}

/// A publisher with a fault.
pub(crate) struct FaultySink<'a, F> {
    pub(crate) publisher: &'a mut Publisher,
    pub(crate) fault: F,
}

impl<F: Fault> Sink for FaultySink<'_, F> {
    fn begin_lead(&mut self, log: LogId) {
        self.publisher.begin_lead(log);
    }

    async fn publish(&mut self, batch: Batch<'_>) -> Result<(), PublishError> {
        self.fault.publish(self.publisher, batch).await
    }

    async fn reached(&mut self) -> Result<Vec<Option<Reached>>, PublishError> {
        self.fault.reached(self.publisher).await
    }

    async fn newest_of(&mut self, topic: &Topic) -> Result<Option<Reached>, PublishError> {
        self.fault.newest_of(self.publisher, topic).await
    }

    fn vouch(&mut self, through: StreamId) {
        self.publisher.vouch(through);
    }

    fn may_have_delivered(&self, id: StreamId) -> bool {
        self.publisher.may_have_delivered(id)
    }

    fn keeps(&self) -> Duration {
        self.publisher.keeps()
    }

    fn lacks_events(&self) -> bool {
        false
    }

    fn unpublished_above(&self) -> Option<StreamId> {
        self.publisher.unpublished_above()
    }
}
