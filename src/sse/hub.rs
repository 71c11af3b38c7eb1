//! Runs the streams of a process: receives the messages of Redis, starts joins, and ends the streams at
//! shutdown.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tokio_util::sync::CancellationToken;

use super::history::{foreign, join, verify};
use super::metrics::Metrics;
use super::settings::Settings;
use super::shared::{Shared, Work};
use super::ticker;
use super::topic::pending::TopicMessage;
use super::topic::shared_topic::SharedTopic;
use super::topic::state::Next;
use super::wire::frame::{self, Frame};
use super::wire::naming::Naming;
use crate::auth::{Revocations, Revoked};
use crate::redis::envelope::Envelope;
use crate::redis::subscriber::PubSubMessage;
use crate::redis::{self};
use crate::trace;

/// All streams of one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hub(pub(super) Arc<Shared>);

impl Hub {
    /// A hub that reads from one Redis the events of the relay with this name. `naming` says how the events
    /// of a topic are named. Streams are opened once the `revocations` are known. Must be called within a
    /// Tokio runtime: the connection to Redis is begun at once.
    ///
    /// # Errors
    /// The kernel's own, where there is no room for the threads that write the streams.
    pub fn new(
        settings: Settings,
        redis: &redis::Settings,
        naming: fn(&str) -> Naming,
        relay: &str,
        revocations: Revocations,
        metrics: Metrics,
    ) -> io::Result<Self> {
        metrics.connections_limit.set(settings.max_connections.try_into().unwrap_or(i64::MAX));
        metrics.held_bytes_limit.set(settings.max_held_bytes.try_into().unwrap_or(i64::MAX));
        metrics.topics_limit.set(settings.max_topics.try_into().unwrap_or(i64::MAX));
        Ok(Self(Arc::new(Shared::new(settings, redis, naming, relay.to_owned(), revocations, metrics)?)))
    }

    /// Receives the messages of Redis and looks after the streams until `shutdown`; then ends the streams,
    /// spread over the drain time.
    ///
    /// # Panics
    /// If it has been called before.
    pub async fn run(&self, shutdown: CancellationToken) {
        let shared = &self.0;
        let work = shared.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Work { mut inbox, mut joins, bare } = work.expect("a hub is run once");
        let receiving = async {
            while let Some(message) = inbox.next().await {
                shared.receive(message);
            }
        };
        let joining = async {
            while let Some(topic) = joins.recv().await {
                tokio::spawn(join::run(shared.clone(), topic));
            }
        };
        let draining = async {
            shutdown.cancelled().await;
            ticker::drain(shared).await;
        };
        tokio::select! {
            () = receiving => {}
            () = joining => {}
            () = foreign::verify(shared, bare) => {}
            () = ticker::run(shared) => {}
            () = verify::run(shared) => {}
            () = draining => {}
        }
        shared.stop.cancel();
    }

    /// Takes over the list of revoked credentials, and ends the streams that they opened.
    pub fn revoke(&self, revoked: Revoked) {
        self.0.revocations.replace(revoked);
        let ended = self.0.end_revoked(None);
        if ended > 0 {
            tracing::info!(streams = ended, "ended the streams of revoked credentials");
        }
    }

    /// Checks that Redis answers, for readiness.
    ///
    /// # Errors
    /// [`ReadError`](redis::history::ReadError) if Redis cannot be reached or does not answer.
    pub async fn ping(&self) -> Result<(), redis::history::ReadError> {
        self.0.history.ping().await
    }

    /// Checks that topics can be subscribed to, for readiness.
    ///
    /// # Errors
    /// Returns why no connection for subscriptions can be made, if that has lasted for some seconds.
    pub fn subscription(&self) -> Result<&'static str, String> {
        self.0.subscriber.problem().map_or(Ok("topics can be subscribed to"), Err)
    }

    /// Waits until the ticker has come one step further, which happens about twice a second. For the
    /// watchdog.
    pub async fn tick(&self) {
        self.0.ticked.notified().await;
    }

    /// Whether streams are being ended.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Processes one message of the subscriber.
    fn receive(&self, message: PubSubMessage) {
        match message {
            PubSubMessage::Interrupted => {
                let all = self.topics().values().cloned().collect();
                self.interrupted(all);
            }
            PubSubMessage::Moved(topics) => {
                let moved = topics.iter().filter_map(|topic| self.known(topic.as_str())).collect();
                self.interrupted(moved);
            }
            PubSubMessage::Bare { topic, text } => {
                if let Some(topic) = self.known(topic.as_str()) {
                    self.must_verify(topic, text);
                }
            }
            PubSubMessage::Envelope { topic, text } => {
                if let Some(topic) = self.known(topic.as_str()) {
                    self.receive_envelope(&topic, &text);
                }
            }
            PubSubMessage::Foreign { topic, text } => {
                if let Some(topic) = self.known(topic.as_str()) {
                    self.deliver_foreign(&topic, &text);
                }
            }
        }
    }

    fn known(&self, topic: &str) -> Option<Arc<SharedTopic>> {
        self.topics().get(topic).cloned()
    }

    /// Joins topics anew whose messages may have been missed.
    fn interrupted(&self, topics: Vec<Arc<SharedTopic>>) {
        self.metrics.interruptions.inc();
        for topic in topics {
            self.join_anew(&topic);
        }
    }

    fn receive_envelope(&self, topic: &Arc<SharedTopic>, text: &str) {
        match Envelope::parse(text) {
            Ok(envelope) => self.receive_event(topic, &envelope),
            Err(error) => tracing::warn!(
                topic = %topic.topic,
                // Not the error's own text: it quotes the message.
                kind = ?error.classify(),
                at = error.column(),
                "not an envelope on a live channel; ignored"
            ),
        }
    }

    /// Gives a message of another program to its topic.
    pub(super) fn deliver_foreign(&self, topic: &Arc<SharedTopic>, text: &str) {
        self.deliver(topic, TopicMessage::Foreign(self.budget.block(frame::foreign(text))));
    }

    /// Frames an event once, for all clients, and gives it to its topic.
    fn receive_event(&self, topic: &Arc<SharedTopic>, envelope: &Envelope) {
        let (id, event) = (envelope.id, envelope.event);
        let frame = Frame::of_event(id, &envelope.event_type, envelope.payload.get(), topic.naming);
        let frame = self.budget.frame(frame.with_xid(envelope.xid));
        tracing::trace!(%id, %event, topic = %topic.topic, "received an event");
        let _delivering = trace::deliver(envelope.trace, &topic.topic, event);
        let (prev, is_restored) = (envelope.prev, envelope.restored);
        self.deliver(topic, TopicMessage::Event { prev, is_restored, frame });
        if let Some(at) = envelope.at {
            self.metrics.observe_delivery(at);
        }
    }

    fn deliver(&self, topic: &Arc<SharedTopic>, message: TopicMessage) {
        // A message of another program does not show that the topic is at the end of its history.
        let is_of_the_relay = matches!(message, TopicMessage::Event { .. });
        let next = topic.state().receive(message);
        topic.message_came.notify_waiters();
        if is_of_the_relay {
            topic.mark_verified();
        }
        if self.budget.is_over() {
            self.cut_off_slowest();
        }
        if next == Next::Join {
            tracing::info!(topic = %topic.topic, "a hole before an event; reading the history");
            self.must_join(topic);
        }
    }
}
