//! `aftercommit sse`: serves event streams to browsers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use aftercommit::auth::{Revocations, Verifier};
use aftercommit::http::{self, Check, Limits, OperatorGate, Origins, Readiness, Server};
use aftercommit::pluralize::pluralize;
use aftercommit::postgres::Pool;
use aftercommit::revocations::{self, Watch};
use aftercommit::sse::{self, Hub, Metrics};
use aftercommit::{durable_streams, streams, uploads};

use super::{check, preflight};
use crate::config::{Config, validate};
use crate::systemd::Notifier;
use crate::{lifecycle, open_files, telemetry};

const ROLE: &str = "aftercommit sse";

/// Connections besides streams: health, metrics, and clients that are told to come back later.
const CONNECTIONS_BEYOND_STREAMS: usize = 1000;

/// Runs until a signal.
pub(crate) async fn run(config: Config) -> Result<()> {
    let shutdown = lifecycle::shutdown_on_signal()?;
    validate::Role::Sse.check(&config)?;
    let (listener, address) = lifecycle::bind(&config.sse.listen, "AFTERCOMMIT_SSE_LISTEN").await?;
    tracing::info!(%address, "sse listens");
    let grace = config.sse.drain() + Duration::from_secs(config.shutdown.grace_seconds);
    let serving = serve(&config, listener, shutdown.clone(), Notifier::from_environment());
    Box::pin(lifecycle::within_grace(serving, &shutdown, grace)).await?
}

/// Serves streams on `listener` until `shutdown`, and then until all of them have ended.
pub(crate) async fn serve(
    config: &Config,
    listener: TcpListener,
    shutdown: CancellationToken,
    notifier: Notifier,
) -> Result<()> {
    open_files::raise(open_files::of_streams(config))?;
    let mut registry = telemetry::registry("sse");
    let door = http::Metrics::register(&mut registry);
    let gate = OperatorGate::new(&config.operator, door.clone())?;
    let parts = Parts::new(config, &mut registry)?;
    // No schema is checked: streams of plain topics need none, and those of uploads report a missing one.
    preflight::postgres(&config.database, ROLE, &[]).await?;
    preflight::redis(&config.redis).await?;
    let operations = http::operations(registry, parts.readiness(config.sse.max_connections));
    let application = parts.application(config, gate)?;
    let server = Server::new(application, operations, limits(config), &config.http, door)?;
    let Parts { hub, watch, pool, metrics, .. } = parts;
    let when_full = sse::refuse_when_full(hub.clone()).merge(durable_streams::refuse_when_full());
    let serving = server.when_full(when_full).serve(listener, shutdown.clone());
    watch.read_first().await;
    let stopping = notifier.serving(&shutdown).await;
    let both = async { tokio::join!(hub.run(shutdown), serving) };
    let status = || {
        let streams = pluralize(metrics.connections.get().cast_unsigned(), "stream");
        format!("{streams} of {}", pluralize(metrics.topics.get().cast_unsigned(), "topic"))
    };
    tokio::select! {
        _both_ended = both => {}
        () = watch.run() => {}
        () = notifier.watch(async || hub.tick().await, status) => {}
    }
    pool.close().await;
    stopping.wait().await;
    Ok(())
}

/// The parts of the process that its routes and its checks share.
struct Parts {
    hub: Hub,
    verifier: Arc<Verifier>,
    watch: Watch,
    pool: Pool,
    metrics: Metrics,
}

impl Parts {
    fn new(config: &Config, registry: &mut Registry) -> Result<Self> {
        let revocations = Revocations::unread();
        let verifier = Arc::new(Verifier::new(&config.jwt)?.with_revocations(revocations.clone()));
        let pool = config.database.lazy_pool(ROLE)?;
        pool.register(registry);
        let metrics = Metrics::register(registry);
        let (settings, relay) = (config.sse.clone(), &config.relay.name);
        let hub = Hub::new(settings, &config.redis, uploads::naming, relay, revocations, metrics.clone())
            .context("cannot start the threads that write streams")?;
        let revoking = hub.clone();
        let watch = Watch::new(pool.clone(), config.database.clone(), move |list| revoking.revoke(list));
        watch.register(registry);
        Ok(Self { hub, verifier, watch, pool, metrics })
    }

    fn readiness(&self, room: usize) -> Readiness {
        let Self { hub, verifier, watch, metrics, .. } = self;
        let (hub, verifier, watch, metrics) = (hub.clone(), verifier.clone(), watch.clone(), metrics.clone());
        Readiness::new(move || {
            let (hub, revocations) = (hub.clone(), watch.check());
            let keys = verifier.readiness();
            let connections = connections(metrics.connections.get(), room);
            async move {
                let subscription = Check::of("subscription", hub.subscription());
                let redis = check("redis", hub.ping()).await;
                let own = [redis, subscription, draining(&hub), connections, revocations];
                own.into_iter().chain(keys).chain(super::traces()).collect()
            }
        })
    }

    fn application(&self, config: &Config, gate: OperatorGate) -> Result<Router> {
        let Self { hub, verifier, pool, .. } = self;
        let origins = Origins::new(&config.sse.cors_origins)?;
        let of_any_topic = streams::StreamsState::new(hub.clone(), verifier.clone());
        let of_readers = durable_streams::DurableStreamsState::new(hub.clone(), verifier.clone());
        let of_uploads = uploads::StreamsState::new(hub.clone(), verifier.clone(), pool.clone());
        let for_operators = sse::admin(hub.clone())
            .merge(revocations::admin(pool.clone()))
            .layer(axum::middleware::from_fn_with_state(gate, http::operators_only));
        Ok(uploads::streams_router(of_uploads)
            .merge(streams::router(of_any_topic))
            .merge(durable_streams::router(of_readers))
            .layer(axum::middleware::from_fn_with_state(origins, http::cors))
            .merge(for_operators))
    }
}

fn limits(config: &Config) -> Limits {
    Limits {
        connections: config.sse.max_connections + CONNECTIONS_BEYOND_STREAMS,
        head_bytes: streams::HEAD_BYTES_MAX,
        ..Limits::default()
    }
}

/// The number of streams. A full server stays ready: it serves the clients that it has, and tells others to
/// come back later. If all servers were unready, a load balancer would refuse those others for good.
fn connections(open: i64, room: usize) -> Check {
    let open = usize::try_from(open).unwrap_or(0);
    let of = format!("{open} of {}", pluralize(room as u64, "stream"));
    if open < room {
        return Check::of("connections", Ok::<_, String>(of));
    }
    let full = format!("it is FULL, {of}: new clients are told to come back later");
    Check::of("connections", Ok::<_, String>(full)).with_warning()
}

fn draining(hub: &Hub) -> Check {
    let result = if hub.is_draining() { Err("streams are being ended") } else { Ok("taking streams") };
    Check::of("streams", result)
}
