//! `aftercommit api`: serves the upload application's commands and queries.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use aftercommit::auth::{Revocations, Verifier};
use aftercommit::http::{self, Limits, Readiness, Server};
use aftercommit::outbox::{self, Bell};
use aftercommit::postgres::Pool;
use aftercommit::revocations::Watch;
use aftercommit::uploads::{self, ApiState};

use super::{check, preflight};
use crate::config::{Config, validate};
use crate::systemd::Notifier;
use crate::telemetry;
use crate::{lifecycle, open_files};

const ROLE: &str = "aftercommit api";

/// Files besides those of connections: Postgres and logs.
const FILES_BESIDE_CONNECTIONS: u64 = 100;

/// Runs until a signal.
pub(crate) async fn run(config: Config) -> Result<()> {
    let shutdown = lifecycle::shutdown_on_signal()?;
    validate::Role::Api.check(&config)?;
    let (listener, address) = lifecycle::bind(&config.api.listen, "AFTERCOMMIT_API_LISTEN").await?;
    tracing::info!(%address, "api listens");
    let grace = Duration::from_secs(config.shutdown.grace_seconds);
    let serving = serve(&config, listener, shutdown.clone(), Notifier::from_environment());
    Box::pin(lifecycle::within_grace(serving, &shutdown, grace)).await?
}

/// Serves the API on `listener` until `shutdown`.
pub(crate) async fn serve(
    config: &Config,
    listener: TcpListener,
    shutdown: CancellationToken,
    notifier: Notifier,
) -> Result<()> {
    let revocations = Revocations::unread();
    let verifier = Arc::new(Verifier::new(&config.jwt)?.with_revocations(revocations.clone()));
    open_files::raise(Limits::default().connections as u64 + FILES_BESIDE_CONNECTIONS)?;
    preflight::postgres(&config.database, ROLE, &[&outbox::schema::SCHEMA]).await?;
    preflight::apply(&config.database, ROLE, &uploads::schema::SCHEMA).await?;
    let pool = config.database.lazy_pool(ROLE)?;
    let mut registry = telemetry::registry("api");
    pool.register(&mut registry);
    let door = http::Metrics::register(&mut registry);
    let watch = Watch::new(pool.clone(), config.database.clone(), move |list| revocations.replace(list));
    watch.register(&mut registry);
    let application = application(config, &pool, &verifier);
    let operations = http::operations(registry, readiness(pool.clone(), verifier, watch.clone()));
    let server = Server::new(application, operations, Limits::default(), &config.http, door)?;
    let address = listener.local_addr()?;
    watch.read_first().await;
    let stopping = notifier.serving(&shutdown).await;
    // Watches the accept loop. A keepalive that needed a connection would fail when all connections are
    // taken.
    let turns = server.turns();
    tokio::select! {
        () = server.serve(listener, shutdown) => {}
        () = watch.run() => {}
        () = notifier.watch(async || turns.next().await, || format!("serving on {address}")) => {}
    }
    pool.close().await;
    stopping.wait().await;
    Ok(())
}

fn readiness(pool: Pool, verifier: Arc<Verifier>, watch: Watch) -> Readiness {
    Readiness::new(move || {
        let pool = pool.clone();
        let keys = verifier.readiness().into_iter().chain([watch.check()]);
        async move {
            std::iter::once(check("postgres", is_usable(pool)).await)
                .chain(keys)
                .chain(super::traces())
                .collect()
        }
    })
}

/// The routes of the upload application. `dev` serves them for its live page too.
pub(super) fn application(config: &Config, pool: &Pool, verifier: &Arc<Verifier>) -> Router {
    let state = ApiState {
        pool: pool.clone(),
        verifier: verifier.clone(),
        bell: Bell::start_with(config.database.clone(), "aftercommit bell"),
        settings: config.uploads.clone(),
    };
    uploads::router(state, config.api.max_body_bytes)
}

async fn is_usable(pool: Pool) -> Result<()> {
    let mut connection = pool.acquire().await?;
    outbox::schema::SCHEMA.check(&mut connection).await?;
    uploads::schema::SCHEMA.check(&mut connection).await?;
    Ok(())
}
