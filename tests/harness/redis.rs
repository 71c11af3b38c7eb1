//! A namespace for each test in the shared Redis, or a Redis of its own.

use redis::aio::MultiplexedConnection;

use aftercommit::event::Topic;
use aftercommit::redis::Settings;
use aftercommit::redis::keys::Keys;

use super::servers::servers;

/// A test's part of the shared Redis: a namespace, and a relay and topics whose names begin with it.
#[derive(Debug)]
pub(crate) struct Redis {
    prefix: String,
}

/// A fresh namespace.
pub(crate) async fn redis() -> Redis {
    Redis { prefix: format!("t{}", uuid::Uuid::new_v4().simple()) }
}

/// Settings for a Redis at this address.
pub(crate) fn settings_of(url: &str) -> Settings {
    Settings {
        url: url.to_owned().into(),
        response_timeout_ms: 5000,
        min_replicas: 0,
        namespace: String::new(),
        history_max_events: 10_000,
        history_max_bytes: 16 * 1024 * 1024,
        history_ttl_seconds: 86_400,
    }
}

impl Redis {
    pub(crate) fn relay_name(&self) -> String {
        self.prefix.clone()
    }

    pub(crate) fn topic(&self, name: &str) -> Topic {
        Topic::new(format!("{}:{name}", self.prefix)).expect("a topic")
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings { namespace: self.prefix.clone(), ..settings_of(&servers().redis_url) }
    }

    /// The names of the test's namespace.
    pub(crate) fn keys(&self) -> Keys {
        Keys::new(&self.prefix)
    }

    pub(crate) fn client(&self) -> redis::Client {
        self.settings().client().expect("a client")
    }

    pub(crate) async fn connect(&self) -> MultiplexedConnection {
        self.settings().connect().await.expect("a connection")
    }
}

/// The shared Redis's address.
pub(crate) fn shared_url() -> &'static str {
    &servers().redis_url
}
