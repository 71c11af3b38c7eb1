//! The plumbing of the tests: servers, databases, processes and clients. Everything here is real.

mod browser;
mod certificates;
mod cluster;
mod database;
mod feed;
mod front;
mod host;
mod http;
pub(crate) mod keys;
mod line;
mod listener;
mod page;
mod process;
mod proxy;
mod redis;
mod result;
mod sentinels;
mod servers;
mod sse;
mod standby;
mod story;
mod supervisor;
mod values;

pub(crate) use browser::{Browser, SeenEvent, origin_with_a_page};
pub(crate) use certificates::Certificates;
pub(crate) use cluster::Cluster;
pub(crate) use database::{Database, database, database_on, empty_database};
pub(crate) use feed::{Feed, NOTIFICATIONS, numbers};
pub(crate) use front::{Front, Kind as FrontKind, free_port, trusting};
pub(crate) use host::Host;
pub(crate) use http::{http, http_builder, http_get};
pub(crate) use line::{Line, OwnPostgres, Wiring, metric_of, start_redis, try_metric_of, wait_until_leading};
pub(crate) use listener::Listener;
pub(crate) use process::{Process, Running, Settings, cli, on_terminal};
pub(crate) use proxy::{Flow, Proxy};
pub(crate) use redis::{Redis, redis, settings_of as redis_settings_of, shared_url};
pub(crate) use result::{TestError, TestResult};
pub(crate) use sentinels::Sentinels;
pub(crate) use servers::start_postgres;
pub(crate) use sse::{Client, Event, Parser, refusal_of};
pub(crate) use standby::Standby;
pub(crate) use story::{Session, System};
pub(crate) use values::{items_of, new_event, str_of};

use std::time::Duration;

/// The longest wait before a test fails, long enough for a busy machine. A test of a promised time measures
/// it. Shorter where tests are expected to fail (scripts/mutants).
pub(crate) const LIMIT: Duration =
    Duration::from_secs(if option_env!("TEST_LIMIT_SHORT").is_some() { 20 } else { 60 });

/// Polls `look` until it returns a value; panics with `what` after [`LIMIT`].
///
/// For states that nobody signals. If there is a signal, wait for the signal.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {} s: {what}", LIMIT.as_secs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
