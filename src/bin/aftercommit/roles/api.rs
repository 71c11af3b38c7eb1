//! `aftercommit api`: the upload application's commands and queries.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use aftercommit::auth::Verifier;
use aftercommit::http::{self, Limits, Readiness};
use aftercommit::outbox::{self, Bell};
use aftercommit::postgres::Pool;
use aftercommit::uploads::{self, ApiState};

use super::{check, preflight};
use crate::config::Config;
use crate::lifecycle;
use crate::telemetry;

const ROLE: &str = "aftercommit api";

/// Runs until a signal.
pub(crate) async fn run(config: Config) -> Result<()> {
    let shutdown = lifecycle::shutdown_on_signal()?;
    let (listener, address) = lifecycle::bind(&config.api.listen, "AFTERCOMMIT_API_LISTEN").await?;
    tracing::info!(%address, "api listens");
    let grace = Duration::from_secs(config.shutdown.grace_seconds);
    lifecycle::within_grace(serve(&config, listener, shutdown.clone()), &shutdown, grace).await?
}

/// Serves the API on `listener` until `shutdown`.
pub(crate) async fn serve(config: &Config, listener: TcpListener, shutdown: CancellationToken) -> Result<()> {
    let schemas = [&outbox::schema::SCHEMA, &uploads::schema::SCHEMA];
    let verifier = Arc::new(Verifier::new(&config.jwt)?);
    preflight::postgres(&config.database, ROLE, &schemas).await?;
    let pool = config.database.lazy_pool(ROLE)?;
    let mut registry = telemetry::registry("api");
    pool.register(&mut registry);
    let state = ApiState {
        pool: pool.clone(),
        verifier,
        bell: Bell::start(config.database.options("aftercommit bell")?),
        settings: config.uploads.clone(),
    };
    let timeout = Duration::from_millis(config.api.request_timeout_ms);
    let asked = pool.clone();
    let readiness = Readiness::new(move || {
        let pool = asked.clone();
        async move { vec![check("postgres", is_usable(pool)).await] }
    });
    let router = uploads::router(state, config.api.max_body_bytes, timeout)
        .merge(http::operations(registry, readiness));
    http::serve(listener, router, Limits::default(), shutdown).await;
    pool.close().await;
    Ok(())
}

async fn is_usable(pool: Pool) -> Result<()> {
    let mut connection = pool.acquire().await?;
    outbox::schema::SCHEMA.check(&mut connection).await?;
    uploads::schema::SCHEMA.check(&mut connection).await?;
    Ok(())
}
