//! `aftercommit relay`: delivers the outbox to Redis, in order.

use std::time::Duration;

use anyhow::Result;
use axum::Router;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use aftercommit::http::{self, Check, Limits, Readiness, no_route};
use aftercommit::outbox;
use aftercommit::redis::Publisher;
use aftercommit::relay::{self, Metrics, Role, StateHandle};

use super::preflight;
use crate::config::Config;
use crate::lifecycle;

/// Runs until a signal.
pub(crate) async fn run(config: Config) -> Result<()> {
    let shutdown = lifecycle::shutdown_on_signal()?;
    let (listener, address) = lifecycle::bind(&config.relay.listen, "AFTERCOMMIT_RELAY_LISTEN").await?;
    tracing::info!(%address, relay = %config.relay.name, "relay serves health and metrics");
    let grace = Duration::from_secs(config.shutdown.grace_seconds);
    lifecycle::within_grace(serve(&config, listener, shutdown.clone()), &shutdown, grace).await?
}

/// Delivers until `shutdown`; health and metrics are served on `listener`.
pub(crate) async fn serve(config: &Config, listener: TcpListener, shutdown: CancellationToken) -> Result<()> {
    preflight::postgres(&config.database, "aftercommit relay", &[&outbox::schema::SCHEMA]).await?;
    preflight::redis(&config.redis).await?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let state = StateHandle::default();
    let asked = state.clone();
    let readiness = Readiness::new(move || std::future::ready(checks(&asked)));
    let router = Router::new().fallback(no_route).merge(http::operations(registry, readiness));
    let mut publisher = Publisher::new(config.redis.clone(), &config.relay.name, config.relay.chunk_size);
    let retention = Duration::from_secs(config.outbox.retention_seconds);
    // The relay first: while it finishes its step, health is still told.
    let told = CancellationToken::new();
    let telling = tokio::spawn(http::serve(listener, router, Limits::default(), told.clone()));
    relay::run(&config.relay, &config.database, retention, &mut publisher, &metrics, &state, shutdown).await;
    told.cancel();
    telling.await?;
    Ok(())
}

fn checks(state: &StateHandle) -> Vec<Check> {
    let state = state.get();
    let leading = match state.role {
        Role::Leading => Ok("leading"),
        Role::Standby => Ok("standing by: another relay of this name leads"),
        Role::Disconnected => Err("no session with Postgres"),
    };
    let delivering = match state.error {
        None => Ok("nothing has failed since the last success".to_owned()),
        Some(error) => Err(error),
    };
    vec![Check::of("role", leading), Check::of("delivery", delivering)]
}
