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
mod standing;
mod writer;

use std::time::Duration;

use ::redis::aio::PubSub;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use inbox::{Inbox, PubSubMessage};
use inbox::{InboxSender, channel};
use standing::Standing;
pub use writer::SubscribeError;
use writer::{Command, Writer};

use super::connect::Subscribed;
use super::settings::Settings;
use super::slot_map::Layout;
use crate::backoff::Backoff;
use crate::event::Topic;

/// Waits between attempts to connect: from the first, doubling, to the second.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The name under which failures are reported if Redis is no cluster.
const SERVER: &str = "Redis";

/// A handle on the subscriber connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Subscriber {
    /// Unbounded, because callers do not wait. While there is no connection, the number of topics in use
    /// bounds the commands that wait.
    commands: mpsc::UnboundedSender<Command>,
    standing: Standing,
}

impl Subscriber {
    /// Starts the task that connects, and reconnects, until `stop` is cancelled. Returns a handle and the
    /// inbox.
    pub fn start(settings: Settings, stop: CancellationToken) -> (Self, Inbox) {
        let (commands, received) = mpsc::unbounded_channel();
        let (sender, inbox) = channel();
        let standing = Standing::default();
        let running = run(settings, received, sender, standing.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = running => {}
            }
        });
        (Self { commands, standing }, inbox)
    }

    /// Why topics get no events, if no connection for them can be made for some seconds.
    pub fn problem(&self) -> Option<String> {
        self.standing.problem()
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

/// Finds out whether the address leads to one server or to a cluster, and serves it.
async fn run(
    settings: Settings,
    commands: mpsc::UnboundedReceiver<Command>,
    inbox: InboxSender,
    standing: Standing,
) {
    let mut wait = Backoff::new(RECONNECT.0, RECONNECT.1);
    loop {
        match settings.layout().await {
            Ok(layout) => {
                standing.connected(SERVER);
                return match layout {
                    Layout::Cluster(map) => cluster::run(settings, map, commands, inbox, standing).await,
                    Layout::Single => keep_connected(settings, commands, inbox, standing).await,
                };
            }
            Err(error) => standing.failed(SERVER, error.to_string()),
        }
        tokio::time::sleep(wait.next_wait()).await;
    }
}

/// Connects again and again. Returns when the consumer of the inbox is gone.
async fn keep_connected(
    settings: Settings,
    mut commands: mpsc::UnboundedReceiver<Command>,
    inbox: InboxSender,
    standing: Standing,
) {
    let mut wait = Backoff::new(RECONNECT.0, RECONNECT.1);
    let mut successor = None;
    loop {
        let connected = match successor.take() {
            Some(connected) => Ok(connected),
            None => settings.subscribe_for_long().await,
        };
        match connected {
            Ok(Subscribed { pubsub, version, renew_at }) => {
                standing.connected(SERVER);
                let since = Instant::now();
                let succeeding = successor_of(&settings, version, renew_at);
                let ended = serve(&settings, pubsub, &mut commands, &inbox, succeeding).await;
                tracing::warn!(reason = %ended.reason, "the subscription to Redis ended; every topic is joined anew");
                successor = ended.successor;
                // A connection that ends at once, as with a wrong password, is not retried at once.
                if since.elapsed() > RECONNECT.1 {
                    wait.reset();
                }
                if !inbox.interrupted().await {
                    return;
                }
            }
            Err(error) => standing.failed(SERVER, error.to_string()),
        }
        if successor.is_none() {
            tokio::time::sleep(wait.next_wait()).await;
        }
    }
}

/// Returns the connection that takes this one's place, and why, when there is one. The old connection serves
/// until then: a server that does not know the new password yet must not silence the topics.
async fn successor_of(
    settings: &Settings,
    version: u64,
    renew_at: Option<Instant>,
) -> (&'static str, Subscribed) {
    let expiring = async {
        match renew_at {
            Some(time) => drop(settings.password_command.replacement(time).await),
            None => std::future::pending().await,
        }
    };
    let reason = tokio::select! {
        () = settings.primary_changed_since(version) => "another server is the primary",
        () = expiring => "the password has been replaced",
    };
    let (mut wait, mut told) = (Backoff::new(RECONNECT.0, RECONNECT.1), String::new());
    loop {
        match settings.subscribe_for_long().await {
            Ok(successor) => return (reason, successor),
            Err(error) => {
                let error = error.to_string();
                if error != told {
                    tracing::warn!(%reason, %error, "the old subscription stays: no other can be made");
                    told = error;
                }
            }
        }
        tokio::time::sleep(wait.next_wait()).await;
    }
}

/// Why a connection ended, and the one that takes its place, if it was made before that.
struct Ended {
    reason: String,
    successor: Option<Subscribed>,
}

/// Serves one connection until its reader or its writer ends, or another one takes its place.
async fn serve(
    settings: &Settings,
    pubsub: PubSub,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    inbox: &InboxSender,
    succeeding: impl Future<Output = (&'static str, Subscribed)>,
) -> Ended {
    let (sink, stream) = pubsub.split();
    let reading = reader::read(stream, settings.keys(), inbox.clone());
    let mut reader = AbortOnDropHandle::new(tokio::spawn(reading));
    let writer = Writer::new(settings, sink);
    let ended = tokio::select! {
        ended = &mut reader => {
            let reason = ended.unwrap_or_else(|panic| panic.to_string());
            return Ended { reason, successor: None };
        }
        reason = writer.run(commands) => Ended { reason, successor: None },
        (reason, successor) = succeeding => Ended { reason: reason.to_owned(), successor: Some(successor) },
    };
    // The caller reports the interruption next: no message of this connection may follow that.
    reader.abort();
    let _aborted = reader.await;
    ended
}
