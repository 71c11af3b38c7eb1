//! A pool of connections that measures how long its users wait for one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgConnectOptions;
use sqlx::{PgPool, Postgres, Transaction};

use super::{ConnectError, hosts, is_refused_login, with_password};
use crate::password_command::PasswordCommand;

/// Upper bounds of waits, in seconds. A free connection takes microseconds, a new one milliseconds, an
/// exhausted pool seconds.
const WAIT_SECONDS: [f64; 12] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0];

/// A connection that takes longer than this may be tried at a host that is not the primary any more.
const ASK_AFTER: Duration = Duration::from_millis(200);

/// The connections of a process's commands. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: PgPool,
    /// The hosts of the address, of which one is the primary.
    hosts: Arc<[PgConnectOptions]>,
    password_command: PasswordCommand,
    waits: Histogram,
    failures: Counter,
}

impl Pool {
    pub(super) fn new(
        inner: PgPool,
        hosts: Vec<PgConnectOptions>,
        password_command: PasswordCommand,
    ) -> Self {
        Self {
            inner,
            hosts: hosts.into(),
            password_command,
            waits: Histogram::new(WAIT_SECONDS),
            failures: Counter::default(),
        }
    }

    /// Registers the pool's metrics. Call it once in a process.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "aftercommit_pool_acquire_seconds",
            "How long commands waited for a connection",
            self.waits.clone(),
        );
        registry.register(
            "aftercommit_pool_acquire_failures",
            "Commands that got no connection in time, or none at all",
            self.failures.clone(),
        );
        registry.register_collector(Box::new(Sizes(self.inner.clone())));
    }

    /// Takes a connection, which returns to the pool when it is dropped.
    ///
    /// # Errors
    /// Returns [`sqlx::Error::PoolTimedOut`] if no connection came free in time, or the driver's error if
    /// Postgres refuses or cannot be reached.
    pub async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let asked = Instant::now();
        let acquired = self.taking(Box::pin(self.inner.acquire())).await;
        self.waits.observe(asked.elapsed().as_secs_f64());
        if acquired.is_err() {
            self.failures.inc();
        }
        acquired
    }

    /// Begins a transaction on a connection of its own. It is rolled back when it is dropped without a
    /// commit.
    ///
    /// # Errors
    /// Fails as [`Self::acquire`], and if Postgres refuses to begin a transaction.
    pub async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let asked = Instant::now();
        let begun = self.taking(Box::pin(self.inner.begin())).await;
        self.waits.observe(asked.elapsed().as_secs_f64());
        if begun.is_err() {
            self.failures.inc();
        }
        begun
    }

    /// Takes a connection. New ones go to the primary and log in with the newest password; open ones need none,
    /// because Postgres asks for it at the login only.
    async fn taking<T>(
        &self,
        taking: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        if self.password_command.is_set() {
            let options = (*self.inner.connect_options()).clone();
            self.inner
                .set_connect_options(with_password(options, &self.password_command).await.map_err(refused)?);
        }
        let taken = tokio::select! {
            taken = taking => taken,
            never = self.follow_the_primary() => match never {},
        };
        if taken.as_ref().is_err_and(is_refused_login) {
            self.password_command.forget();
        }
        taken
    }

    /// Leads the pool's next tries to the primary. The pool itself tries the same host again and again.
    async fn follow_the_primary(&self) -> std::convert::Infallible {
        if self.hosts.len() == 1 {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(ASK_AFTER).await;
            match self.primary().await {
                Ok(options) => self.inner.set_connect_options(options),
                Err(error) => tracing::debug!(%error, "no primary yet"),
            }
        }
    }

    async fn primary(&self) -> Result<PgConnectOptions, ConnectError> {
        let mut hosts = Vec::with_capacity(self.hosts.len());
        for host in self.hosts.iter() {
            hosts.push(with_password(host.clone(), &self.password_command).await?);
        }
        let found = hosts::primary(&hosts).await;
        if found.as_ref().is_err_and(ConnectError::refuses_login) {
            self.password_command.forget();
        }
        found
    }

    /// Closes the pool: waits for the connections in use, and hands out none any more.
    pub async fn close(&self) {
        self.inner.close().await;
    }
}

fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Configuration(error.into())
}

/// The pool's own numbers, read at each scrape.
#[derive(Debug)]
struct Sizes(PgPool);

impl Collector for Sizes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (size, idle) = (self.0.size(), self.0.num_idle());
        let numbers = [
            ("aftercommit_pool_connections", "Open connections to Postgres", u64::from(size)),
            ("aftercommit_pool_idle", "Open connections that are idle", idle as u64),
            (
                "aftercommit_pool_max",
                "Connections that the pool opens at most",
                u64::from(self.0.options().get_max_connections()),
            ),
        ];
        for (name, help, number) in numbers {
            let gauge = ConstGauge::new(number);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
