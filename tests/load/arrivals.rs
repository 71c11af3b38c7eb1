//! When events reach Redis, as a plain subscriber of the topics' public channels sees it: the part of a
//! latency that is before every SSE server.

use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::engine::{Histogram, Ledger, Stamp};
use crate::harness::keys;
use crate::world::World;

/// A subscriber at work.
#[derive(Debug)]
pub(crate) struct Arrivals {
    stop: CancellationToken,
    task: JoinHandle<Histogram>,
}

/// Begins to listen.
pub(crate) async fn watch(world: &World, ledger: Arc<Ledger>) -> Arrivals {
    let client = redis::Client::open(world.redis_url()).expect("a URL");
    let mut messages = client.get_async_pubsub().await.expect("a connection");
    let channels: Vec<String> = world.topics.iter().map(keys::public).collect();
    messages.subscribe(&channels).await.expect("a subscription");
    let stop = CancellationToken::new();
    let until = stop.clone();
    let task = tokio::spawn(async move {
        let mut ages = Histogram::default();
        let mut messages = messages.into_on_message();
        while let Some(Some(message)) = until.run_until_cancelled(messages.next()).await {
            let stamp = Stamp::read(message.get_payload_bytes());
            let age = stamp.and_then(|stamp| ledger.age(stamp.topic, stamp.number, Instant::now()));
            if let Some(age) = age {
                ages.record(age);
            }
        }
        ages
    });
    Arrivals { stop, task }
}

impl Arrivals {
    /// From the commit to Redis, of all events so far.
    pub(crate) async fn finish(self) -> Histogram {
        self.stop.cancel();
        self.task.await.expect("the subscriber's task")
    }
}
