//! Carries out operators' requests for parked events, between two windows.

use super::failure::Remedy;
use super::leader::staying_alive;
use super::sink::{Batch, Delivery, PublishError, PublishMode, Reached, Sink};
use super::step::{Rules, Step, StepError, load_exceptions, within_timeout};
use super::submit::{SubmitMode, submit};
use crate::event::{StreamId, Topic};
use crate::failpoint;
use crate::log::parked;
use crate::log::{read, release};

/// The most parked events of one release.
const RELEASED_AT_ONCE: u32 = 256;

impl Step {
    /// Carries out an operator's request for one topic's parked events. Returns false if there is no request,
    /// or while a window is open.
    ///
    /// The request names rows. Later events of the topic that only waited behind them flow on.
    ///
    /// # Errors
    /// Fails as [`Step::step`]. Events that the sink refuses again stay parked, with its words, and are no
    /// error.
    pub async fn apply_request<S: Sink>(&mut self, sink: &mut S) -> Result<bool, StepError> {
        if self.position.window.is_some() {
            return Ok(false);
        }
        let Rules { relay, timeout, .. } = self.rules.clone();
        let requested = within_timeout(timeout, parked::next_request(&mut self.writer, &relay)).await?;
        let Some(topic) = requested else { return Ok(false) };
        match self.carry_out(sink, &topic).await {
            // Later events of the topic may be published only now, after everything before them.
            Ok(()) => {
                self.exceptions.unhold(&topic);
            }
            Err(StepError::Publish(PublishError::Poison { reason, .. })) => {
                self.refuse_request(&topic, &reason).await?;
            }
            // A row that could not be read when it was parked cannot be read now.
            Err(StepError::Outbox(error)) if read::is_about_a_row(&error) => {
                self.refuse_request(&topic, &format!("it cannot be read: {error}")).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    async fn refuse_request(&mut self, topic: &Topic, reason: &str) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = &self.rules;
        let refused = parked::refuse_request(&mut self.writer, relay, topic, reason);
        within_timeout(*timeout, refused).await?;
        self.exceptions = load_exceptions(&mut self.writer, &self.rules).await?;
        Ok(())
    }

    /// Discards the topic's parked events with a requested discard, and publishes the others.
    ///
    /// One topic may have requests of both kinds, each for its rows. The discards come first, so that no
    /// release publishes their rows.
    async fn carry_out<S: Sink>(&mut self, sink: &mut S, topic: &Topic) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = self.rules.clone();
        within_timeout(timeout, parked::request_the_rest(&mut self.writer, &relay, topic)).await?;
        failpoint::reach("rest_requested").await;
        self.count_arrived_as_released(sink, topic).await?;
        let Rules { relay, timeout, .. } = &self.rules;
        if !within_timeout(*timeout, parked::discard(&mut self.writer, relay, topic)).await? {
            let reason = "clients may have received some of these events: release them, or discard with \
                          --may-have-arrived";
            return Err(PublishError::Poison { at: 0, reason: reason.to_owned() }.into());
        }
        self.release(sink, topic).await
    }

    /// Marks those parked events as released that the sink holds already: an earlier release published them,
    /// or they were delivered before they were parked. Clients have them, so they cannot be discarded. They
    /// are not published once more, because some of their entries may be gone. A sink that forgets them must
    /// receive them again. If the sink refuses to name its newest event, the request is refused, because the
    /// events may have arrived in a try that broke off.
    async fn count_arrived_as_released<S: Sink>(
        &mut self,
        sink: &mut S,
        topic: &Topic,
    ) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = self.rules.clone();
        let asking = sink.newest_of(topic);
        let newest = match staying_alive(&mut self.writer, self.rules.keepalive, asking).await? {
            // There is no history in the topic's place. If no release has begun, it has taken nothing.
            Err(PublishError::Poison { .. })
                if !within_timeout(timeout, release::has_begun(&mut self.writer, &relay, topic)).await? =>
            {
                None
            }
            Err(PublishError::Retry { failure, reason }) if failure.remedy == Remedy::SetAside => {
                let reason = format!("it is not known which of these events clients have: {reason}");
                return Err(PublishError::Poison { at: 0, reason }.into());
            }
            answer => self.count_refusals(answer)?,
        };
        let Some(Reached { id, event: Some(event), .. }) = newest else { return Ok(()) };
        within_timeout(timeout, release::mark_arrived_released(&mut self.writer, &relay, topic, (id, event)))
            .await
    }

    /// Publishes a topic's parked events in order.
    async fn release<S: Sink>(&mut self, sink: &mut S, topic: &Topic) -> Result<(), StepError> {
        let Rules { relay, timeout, .. } = self.rules.clone();
        loop {
            let limit = self.rules.limit.events.min(RELEASED_AT_ONCE);
            let mut events =
                within_timeout(timeout, parked::of_topic(&mut self.writer, &relay, topic, limit)).await?;
            let Some(epoch) = events.first().map(|(id, _)| id.epoch) else { return Ok(()) };
            // Events of a later epoch make a batch of their own, because a number alone does not tell which
            // of two epochs came first.
            events.retain(|(id, _)| id.epoch == epoch);
            let deliveries: Vec<Delivery<'_>> =
                events.iter().map(|(id, event)| Delivery { id: *id, event }).collect();
            self.release_batch(sink, topic, &deliveries).await?;
        }
    }

    /// Publishes parked events of one topic and one epoch, and writes down which of them have arrived.
    async fn release_batch<S: Sink>(
        &mut self,
        sink: &mut S,
        topic: &Topic,
        deliveries: &[Delivery<'_>],
    ) -> Result<(), StepError> {
        let Rules { relay, timeout, keepalive, .. } = self.rules.clone();
        let through = deliveries[deliveries.len() - 1].id;
        let fresh = release::not_arrived(&mut self.writer, &relay, topic, through);
        let fresh = within_timeout(timeout, fresh).await?;
        let number = self.begin_release(topic, deliveries).await?;
        failpoint::reach("release_written").await;
        let mode = PublishMode::Release;
        let batch = Batch { mode, deliveries, first: number, through: Some(number), lost: None };
        let submit_mode = self.submit_mode();
        let publishing = submit(sink, batch, submit_mode);
        let published = staying_alive(&mut self.writer, keepalive, publishing).await?;
        failpoint::reach("released").await;
        let arrived = match &published {
            Ok(()) => deliveries,
            Err(PublishError::Poison { at, .. }) => &deliveries[..*at],
            Err(_) => &[],
        };
        if let Some(Delivery { id, .. }) = arrived.last() {
            within_timeout(timeout, release::mark_released(&mut self.writer, &relay, topic, *id)).await?;
        }
        if let Err(PublishError::Poison { .. }) = &published {
            // The topic is held from the refused event on: the events before it do not wait any more.
            self.exceptions = load_exceptions(&mut self.writer, &self.rules).await?;
            let mode = PublishMode::RestoreRelease;
            self.republish(sink, mode, arrived.to_vec(), (number, number), None).await?;
            // One by one, a refusal can be a connection that broke in every try.
            if submit_mode == SubmitMode::Together {
                let arrived = arrived.last().map(|last| last.id);
                let refused: Vec<StreamId> =
                    fresh.into_iter().filter(|id| arrived.is_none_or(|last| *id > last)).collect();
                let writing = release::have_not_arrived(&mut self.writer, &relay, &refused);
                within_timeout(timeout, writing).await?;
            }
        }
        Ok(self.count_refusals(published)?)
    }

    /// Takes the next number for the release of these parked events. No window may be open.
    async fn begin_release(
        &mut self,
        topic: &Topic,
        deliveries: &[Delivery<'_>],
    ) -> Result<StreamId, StepError> {
        let Rules { relay, timeout, .. } = &self.rules;
        let number = self.position.stream_id(self.position.next_seq);
        let through = deliveries.last().map_or(number, |last| last.id);
        let begun = release::begin(&mut self.writer, relay, &self.position, topic, through);
        self.position = within_timeout(*timeout, begun).await?;
        Ok(number)
    }
}
