//! A plain Redis subscriber of a topic's public channel.

use std::time::Duration;

use aftercommit::event::Topic;
use futures_util::StreamExt;
use redis::aio::PubSub;

use super::LIMIT;

/// How long silence must last to count as silence.
const SILENCE: Duration = Duration::from_millis(300);

/// A subscriber of one topic's channel.
pub(crate) struct Listener(PubSub);

impl Listener {
    pub(crate) async fn to(client: &redis::Client, topic: &Topic) -> Self {
        Self::on(client, &super::keys::public(topic)).await
    }

    pub(crate) async fn on(client: &redis::Client, channel: &str) -> Self {
        let mut pubsub = client.get_async_pubsub().await.expect("a connection for the subscription");
        pubsub.subscribe(channel).await.expect("a subscription");
        Self(pubsub)
    }

    /// Waits for `count` messages, and asserts that no more follow. Returns the payloads.
    pub(crate) async fn wait_for_exactly(&mut self, count: usize) -> Vec<String> {
        let mut messages = self.0.on_message();
        let mut heard = Vec::new();
        while heard.len() < count {
            let message = tokio::time::timeout(LIMIT, messages.next()).await;
            let message = message.unwrap_or_else(|_| panic!("{} of {count} messages came", heard.len()));
            heard.push(message.expect("a message").get_payload::<String>().expect("a text"));
        }
        let more = tokio::time::timeout(SILENCE, messages.next()).await;
        assert!(more.is_err(), "{count} messages and then one more: {more:?}");
        heard
    }
}
