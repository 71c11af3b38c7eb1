//! One subscriber connection for a process: it keeps the topics subscribed and passes on what Redis
//! publishes.
//!
//! A topic has two channels. The relay's script publishes an event's envelope on the live channel and its
//! bare payload on the public channel, in that order and with nothing in between. Both channels are
//! subscribed and unsubscribed by one command each, so that a payload never arrives without its envelope.
//!
//! Two tasks serve a connection. The `reader` owns the read half and fills the `inbox`; the `writer` sends
//! SUBSCRIBE, UNSUBSCRIBE and PING. The reader must never wait for the writer or for the consumer of the
//! inbox: Redis drops a subscriber whose output buffer is full.
//!
//! In a cluster there is such a connection to each server (`cluster`, `node`), and each topic is subscribed
//! at the server that has it, where both of its messages are published.

mod cluster;
mod inbox;
mod node;
mod reader;
mod writer;

use std::time::Duration;

use ::redis::aio::PubSub;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use inbox::{Inbox, PubSubMessage};
use inbox::{InboxSender, channel};
pub use writer::SubscribeError;
use writer::{Command, Writer};

use super::connect::Subscribed;
use super::settings::Settings;
use super::slot_map::Layout;
use crate::backoff::Backoff;
use crate::event::Topic;

/// Waits between attempts to connect: from the first, doubling, to the second.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A handle on the subscriber connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Subscriber {
    /// Unbounded, because callers do not wait. While there is no connection, the number of topics in use
    /// bounds the commands that wait.
    commands: mpsc::UnboundedSender<Command>,
}

impl Subscriber {
    /// Starts the task that connects, and reconnects, until `stop` is cancelled. Returns a handle and the
    /// inbox.
    pub fn start(settings: Settings, stop: CancellationToken) -> (Self, Inbox) {
        let (commands, received) = mpsc::unbounded_channel();
        let (sender, inbox) = channel();
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = run(settings, received, sender) => {}
            }
        });
        (Self { commands }, inbox)
    }

    /// Subscribes to a topic and waits for Redis's confirmation. Waits for a connection as long as there is
    /// none.
    ///
    /// # Errors
    /// [`SubscribeError::Lost`] if the connection ends before the confirmation or the subscriber has been
    /// stopped, [`SubscribeError::Refused`] if Redis refuses this topic.
    pub async fn subscribe(&self, topic: Topic) -> Result<(), SubscribeError> {
        let (confirm, confirmed) = oneshot::channel();
        self.commands.send(Command::Subscribe(topic, confirm)).map_err(|_stopped| SubscribeError::Lost)?;
        confirmed.await.map_err(|_stopped| SubscribeError::Lost)?
    }

    /// Unsubscribes from a topic, in order with later subscriptions. Does not wait.
    pub fn unsubscribe(&self, topic: Topic) {
        // A stopped subscriber has no subscriptions.
        let _stopped = self.commands.send(Command::Unsubscribe(topic));
    }
}

/// Runs as the servers are found: one, or a cluster.
async fn run(settings: Settings, commands: mpsc::UnboundedReceiver<Command>, inbox: InboxSender) {
    let mut wait = Backoff::new(RECONNECT.0, RECONNECT.1);
    loop {
        match settings.layout().await {
            Ok(Layout::Cluster(map)) => return cluster::run(settings, map, commands, inbox).await,
            Ok(Layout::Single) => return keep_connected(settings, commands, inbox).await,
            Err(error) => tracing::debug!(%error, "no subscription to Redis yet"),
        }
        tokio::time::sleep(wait.next_wait()).await;
    }
}

/// Connects again and again. Returns when the consumer of the inbox is gone.
async fn keep_connected(
    settings: Settings,
    mut commands: mpsc::UnboundedReceiver<Command>,
    inbox: InboxSender,
) {
    let mut wait = Backoff::new(RECONNECT.0, RECONNECT.1);
    loop {
        match settings.subscribe_for_long().await {
            Ok(Subscribed { pubsub, version, renew_at }) => {
                let since = Instant::now();
                let outdated = outdated(&settings, version, renew_at);
                let reason = serve(&settings, pubsub, &mut commands, &inbox, outdated).await;
                tracing::warn!(%reason, "the subscription to Redis ended; every topic is joined anew");
                // A connection that ends at once, as with a wrong password, is not retried at once.
                if since.elapsed() > RECONNECT.1 {
                    wait.reset();
                }
                if !inbox.interrupted().await {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "no subscription to Redis yet"),
        }
        tokio::time::sleep(wait.next_wait()).await;
    }
}

/// Returns the reason for another connection, when there is one.
async fn outdated(settings: &Settings, version: u64, renew_at: Option<Instant>) -> &'static str {
    let expiring = async {
        match renew_at {
            Some(time) => drop(settings.password_command.replacement(time).await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = settings.primary_changed_since(version) => "another server is the primary",
        () = expiring => "the password has been replaced",
    }
}

/// Serves one connection until its reader or its writer ends, or it is outdated, and returns the reason.
async fn serve(
    settings: &Settings,
    pubsub: PubSub,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    inbox: &InboxSender,
    outdated: impl Future<Output = &'static str>,
) -> String {
    let (sink, stream) = pubsub.split();
    let reading = reader::read(stream, settings.keys(), inbox.clone());
    let mut reader = AbortOnDropHandle::new(tokio::spawn(reading));
    let writer = Writer::new(settings, sink);
    let reason = tokio::select! {
        ended = &mut reader => return ended.unwrap_or_else(|panic| panic.to_string()),
        reason = writer.run(commands) => reason,
        reason = outdated => reason.to_owned(),
    };
    // The caller reports the interruption next: no message of this connection may follow that.
    reader.abort();
    let _aborted = reader.await;
    reason
}
