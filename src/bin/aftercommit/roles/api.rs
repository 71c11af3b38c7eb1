//! `aftercommit api`: the upload application's commands and queries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use aftercommit::auth::Verifier;
use aftercommit::http::{self, Limits, Readiness};
use aftercommit::outbox::{self, Bell};
use aftercommit::postgres::Pool;
use aftercommit::uploads::{self, ApiState};

use super::{check, preflight};
use crate::config::{Config, validate};
use crate::systemd::Notifier;
use crate::telemetry;
use crate::{lifecycle, open_files};

const ROLE: &str = "aftercommit api";

/// Files beside those of connections: Postgres, logs.
const FILES_BESIDE_CONNECTIONS: u64 = 100;

/// Runs until a signal.
pub(crate) async fn run(config: Config) -> Result<()> {
    let shutdown = lifecycle::shutdown_on_signal()?;
    validate::Role::Api.check(&config)?;
    let (listener, address) = lifecycle::bind(&config.api.listen, "AFTERCOMMIT_API_LISTEN").await?;
    tracing::info!(%address, "api listens");
    let grace = Duration::from_secs(config.shutdown.grace_seconds);
    let serving = serve(&config, listener, shutdown.clone(), Notifier::from_environment());
    lifecycle::within_grace(serving, &shutdown, grace).await?
}

/// Serves the API on `listener` until `shutdown`.
pub(crate) async fn serve(
    config: &Config,
    listener: TcpListener,
    shutdown: CancellationToken,
    notifier: Notifier,
) -> Result<()> {
    let verifier = Arc::new(Verifier::new(&config.jwt)?);
    open_files::raise(Limits::default().connections as u64 + FILES_BESIDE_CONNECTIONS)?;
    preflight::postgres(&config.database, ROLE, &[&outbox::schema::SCHEMA]).await?;
    preflight::apply(&config.database, ROLE, &uploads::schema::SCHEMA).await?;
    let pool = config.database.lazy_pool(ROLE)?;
    let mut registry = telemetry::registry("api");
    pool.register(&mut registry);
    let state = ApiState {
        pool: pool.clone(),
        verifier: verifier.clone(),
        bell: Bell::start(config.database.options("aftercommit bell")?),
        settings: config.uploads.clone(),
    };
    let timeout = Duration::from_millis(config.api.request_timeout_ms);
    let asked = pool.clone();
    let readiness = Readiness::new(move || {
        let pool = asked.clone();
        let keys = verifier.readiness();
        async move {
            std::iter::once(check("postgres", is_usable(pool)).await)
                .chain(keys)
                .chain(super::traces())
                .collect()
        }
    });
    let router = uploads::router(state, config.api.max_body_bytes, timeout)
        .merge(http::operations(registry, readiness));
    let address = listener.local_addr()?;
    let stopping = notifier.serving(&shutdown).await;
    let answering = async || {
        loop {
            tokio::time::sleep(notifier.interval()).await;
            if is_answered(address).await {
                return;
            }
        }
    };
    tokio::select! {
        () = http::serve(listener, router, Limits::default(), shutdown) => {}
        () = notifier.watch(answering, || format!("serving on {address}")) => {}
    }
    pool.close().await;
    stopping.told().await;
    Ok(())
}

async fn is_usable(pool: Pool) -> Result<()> {
    let mut connection = pool.acquire().await?;
    outbox::schema::SCHEMA.check(&mut connection).await?;
    uploads::schema::SCHEMA.check(&mut connection).await?;
    Ok(())
}

/// Whether this process still takes connections and answers: it asks itself, as somebody from outside would.
async fn is_answered(address: SocketAddr) -> bool {
    let asking = async {
        let mut connection = TcpStream::connect(address).await?;
        connection.write_all(b"GET /healthz HTTP/1.1\r\nhost: self\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        connection.take(1024).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    match tokio::time::timeout(super::CHECK_LIMIT, asking).await {
        Ok(Ok(is_answered)) => is_answered,
        Ok(Err(error)) => {
            tracing::warn!(%error, "this process does not answer itself");
            false
        }
        Err(_elapsed) => false,
    }
}
