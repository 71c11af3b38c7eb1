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

mod inbox;
mod reader;
mod writer;

use std::time::Duration;

use ::redis::aio::{PubSubSink, PubSubStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use inbox::{Inbox, PubSubMessage};
use inbox::{InboxSender, channel};
pub use writer::SubscribeError;
use writer::{Command, Writer};

use super::settings::{CONNECT_TIMEOUT, Settings};
use crate::event::Topic;

/// Waits between attempts to connect: from the first, doubling, to the second.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A handle on the subscriber connection. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Subscriber {
    /// Unbounded, because callers do not wait: the topics in use bound what is asked for while there is no
    /// connection.
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
                () = keep_connected(settings, received, sender) => {}
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

/// Connects again and again. Returns when the consumer of the inbox is gone.
async fn keep_connected(
    settings: Settings,
    mut commands: mpsc::UnboundedReceiver<Command>,
    inbox: InboxSender,
) {
    let mut wait = RECONNECT.0;
    loop {
        match connect(&settings).await {
            Ok((sink, stream)) => {
                let since = Instant::now();
                let reason = serve(&settings, sink, stream, &mut commands, &inbox).await;
                tracing::warn!(%reason, "the subscription to Redis ended; every topic is joined anew");
                // A connection that ends at once, as with a wrong password, is not retried at once.
                if since.elapsed() > RECONNECT.1 {
                    wait = RECONNECT.0;
                }
                if !inbox.interrupted().await {
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "no subscription to Redis yet"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RECONNECT.1);
    }
}

async fn connect(settings: &Settings) -> Result<(PubSubSink, PubSubStream), String> {
    let client = settings.client().map_err(|error| error.to_string())?;
    match timeout(CONNECT_TIMEOUT, client.get_async_pubsub()).await {
        Ok(Ok(pubsub)) => Ok(pubsub.split()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err("Redis did not answer in time".to_owned()),
    }
}

/// Serves one connection until its reader or its writer ends, and returns the reason.
async fn serve(
    settings: &Settings,
    sink: PubSubSink,
    stream: PubSubStream,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    inbox: &InboxSender,
) -> String {
    let reading = reader::read(stream, settings.keys(), inbox.clone());
    let mut reader = AbortOnDropHandle::new(tokio::spawn(reading));
    let writer = Writer::new(settings, sink);
    let reason = tokio::select! {
        ended = &mut reader => return ended.unwrap_or_else(|panic| panic.to_string()),
        reason = writer.run(commands) => reason,
    };
    // The caller reports the interruption next: no message of this connection may follow that.
    reader.abort();
    let _aborted = reader.await;
    reason
}
