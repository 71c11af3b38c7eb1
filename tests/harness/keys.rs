//! The Redis keys of a test's topics. Each test has its own namespace, the prefix of its topics.

use aftercommit::event::Topic;
use aftercommit::redis::keys::Keys;

fn keys_of(topic: &Topic) -> Keys {
    let namespace = topic.as_str().split(':').next().unwrap_or_default();
    assert!(namespace.len() == 33, "{topic} is no topic of a test's own: ask system.redis.keys()");
    Keys::new(namespace)
}

/// The history of a topic that [`super::Redis::topic`] has named.
pub(crate) fn history(topic: &Topic) -> String {
    keys_of(topic).history(topic)
}

/// The key that outlives it.
pub(crate) fn begun(topic: &Topic) -> String {
    keys_of(topic).begun(topic)
}

/// Its live channel.
pub(crate) fn live(topic: &Topic) -> String {
    keys_of(topic).live(topic)
}

/// Its public channel.
pub(crate) fn public(topic: &Topic) -> String {
    keys_of(topic).public(topic)
}

/// The top of the relay of a test.
pub(crate) fn top(relay: &str) -> String {
    Keys::new(relay).top(relay)
}
