//! Connections that many callers share: one to each server, made at its first use and made anew after a
//! failure.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redis::RedisError;
use ::redis::aio::MultiplexedConnection;

use super::connect::Connected;
use super::connect_error::ConnectError;
use super::endpoint::Endpoint;
use super::reply_codes;
use super::settings::Settings;
use super::slot_map::{Layout, SlotMap};

/// The connections of one process.
#[derive(Debug)]
pub(super) struct ConnectionCache {
    settings: Settings,
    /// `None` stands for the one server of an address that leads to no cluster.
    links: Mutex<HashMap<Option<Endpoint>, Arc<CachedConnection>>>,
}

/// The connection to one server.
#[derive(Debug, Default)]
struct CachedConnection {
    kept: Mutex<Kept>,
    /// Held by the task that connects. Reading `kept` or dropping it does not need this lock.
    connecting: tokio::sync::Mutex<()>,
    /// The number of attempts to connect.
    attempts: AtomicU64,
}

/// The result of the newest attempt to connect.
#[derive(Debug, Default)]
enum Kept {
    /// There was no attempt yet, or its connection broke.
    #[default]
    Nothing,
    Connection(Attempt),
    Failure {
        attempt: u64,
        error: Arc<ConnectError>,
    },
}

/// A connection, and the attempt that made it.
#[derive(Debug, Clone)]
struct Attempt {
    number: u64,
    connection: MultiplexedConnection,
    /// The version of the primary that it leads to.
    version: u64,
}

/// A connection for one use.
#[derive(Debug)]
pub(super) struct LentConnection<'l> {
    links: &'l ConnectionCache,
    link: Arc<CachedConnection>,
    attempt: u64,
    pub(super) connection: MultiplexedConnection,
}

impl ConnectionCache {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, links: Mutex::default() }
    }

    /// The slots, if this is a cluster.
    pub(super) async fn map(&self) -> Result<Option<Arc<SlotMap>>, Arc<ConnectError>> {
        match self.settings.layout().await? {
            Layout::Cluster(map) => Ok(Some(map)),
            Layout::Single => Ok(None),
        }
    }

    /// Lends a connection to the server that has this key.
    pub(super) async fn to(&self, key: &str) -> Result<LentConnection<'_>, Arc<ConnectError>> {
        let server = match self.map().await? {
            None => None,
            Some(map) => match map.primary_of(key) {
                Some(primary) => Some(primary.clone()),
                None => {
                    self.settings.topology.doubt();
                    return Err(Arc::new(ConnectError::NoSlots(format!("none has the slot of {key}"))));
                }
            },
        };
        self.at(server).await
    }

    /// Lends a connection to this server.
    pub(super) async fn at(&self, server: Option<Endpoint>) -> Result<LentConnection<'_>, Arc<ConnectError>> {
        let link = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            if let (Some(map), false) = (self.settings.topology.map(), links.contains_key(&server)) {
                // Servers that have left the cluster.
                links.retain(|known, _| known.as_ref().is_some_and(|it| map.primaries().contains(it)));
            }
            links.entry(server.clone()).or_default().clone()
        };
        let lent = link.attempt(&self.settings, server.as_ref()).await;
        if lent.is_err() && server.is_some() {
            self.settings.topology.doubt();
        }
        let Attempt { number, connection, .. } = lent?;
        Ok(LentConnection { links: self, link, attempt: number, connection })
    }
}

impl LentConnection<'_> {
    /// Drops the connection after a failure, because a broken connection never recovers; keeps it where Redis
    /// answered with an error.
    pub(super) fn checked<T>(&self, result: Result<T, RedisError>) -> Result<T, RedisError> {
        let Err(error) = &result else { return result };
        if error.code().is_none() {
            self.link.drop_attempt(self.attempt);
        }
        if error.code().is_none_or(reply_codes::is_about_slots) {
            self.links.settings.topology.doubt();
        }
        result
    }
}

impl CachedConnection {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the connection, or makes a new one. A caller that waits while another one connects takes over
    /// that attempt's failure if the attempt began after the call. Otherwise each caller would wait for the
    /// time-outs of all callers before it.
    async fn attempt(
        &self,
        settings: &Settings,
        server: Option<&Endpoint>,
    ) -> Result<Attempt, Arc<ConnectError>> {
        let begun_before = self.attempts.load(Ordering::Relaxed);
        if let Some(known) = self.known(settings, begun_before) {
            return known;
        }
        let _turn = self.connecting.lock().await;
        if let Some(known) = self.known(settings, begun_before) {
            return known;
        }
        let number = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let connecting = match server {
            Some(server) => settings.connect_at(server).await,
            None => settings.connect_for_long().await,
        };
        match connecting {
            Ok(Connected { connection, version }) => {
                let attempt = Attempt { number, connection, version };
                *self.kept() = Kept::Connection(attempt.clone());
                Ok(attempt)
            }
            Err(error) => {
                let error = Arc::new(error);
                *self.kept() = Kept::Failure { attempt: number, error: error.clone() };
                Err(error)
            }
        }
    }

    /// Returns the connection, or the failure of an attempt that is newer than `begun_before`.
    fn known(&self, settings: &Settings, begun_before: u64) -> Option<Result<Attempt, Arc<ConnectError>>> {
        match &*self.kept() {
            Kept::Connection(attempt) if attempt.version == settings.primary_version() => {
                Some(Ok(attempt.clone()))
            }
            Kept::Failure { attempt, error } if *attempt > begun_before => Some(Err(error.clone())),
            Kept::Connection(_) | Kept::Failure { .. } | Kept::Nothing => None,
        }
    }

    /// Drops this attempt's connection, unless another caller has dropped it before and made a new one.
    fn drop_attempt(&self, number: u64) {
        let mut kept = self.kept();
        if matches!(&*kept, Kept::Connection(attempt) if attempt.number == number) {
            *kept = Kept::Nothing;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::super::settings::CONNECT_TIMEOUT;
    use super::*;

    fn links_to(address: std::net::SocketAddr) -> ConnectionCache {
        let mut settings = Settings::at(format!("redis://{address}"));
        settings.response_timeout_ms = 300;
        ConnectionCache::new(settings)
    }

    #[tokio::test]
    async fn callers_that_wait_for_a_redis_that_is_silent_share_its_failure() {
        // The listener accepts connections, and never reads.
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let links = links_to(silent.local_addr().expect("an address"));
        let begun = Instant::now();
        let answers = join_all((0..20).map(|_| links.at(None))).await;
        for answer in answers {
            assert!(answer.is_err(), "{answer:?}");
        }
        // Callers that came during one attempt share its failure or the next one's.
        let took = begun.elapsed();
        assert!(took < CONNECT_TIMEOUT * 20 / 2, "{took:?}");
    }

    #[tokio::test]
    async fn a_caller_whose_connection_broke_is_told_while_another_one_connects() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let links = links_to(silent.local_addr().expect("an address"));
        let link = CachedConnection::default();
        let mut connecting = Box::pin(link.attempt(&links.settings, None));
        assert!(futures_util::poll!(&mut connecting).is_pending(), "it waits for the silent one");
        // It takes no lock that the other attempt holds.
        let dropping = async { link.drop_attempt(1) };
        tokio::time::timeout(Duration::from_millis(50), dropping).await.expect("at once");
        assert!(connecting.await.is_err());
    }
}
