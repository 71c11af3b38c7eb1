//! `aftercommit relay`: delivers the outbox to Redis, in order.

use std::time::Duration;

use anyhow::Result;
use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use aftercommit::console::{self, Console, StreamsProbe};
use aftercommit::http::{self, Check, Limits, OperatorGate, Readiness, Server, no_route};
use aftercommit::log;
use aftercommit::outbox;
use aftercommit::redis::Publisher;
use aftercommit::relay::{self, BacklogStatus, Metrics, Role, State, StateHandle};
use aftercommit::revocations;

use super::preflight;
use crate::config::{Config, validate};
use crate::lifecycle;
use crate::ops::probe;
use crate::systemd::Notifier;
use crate::telemetry;

/// The limit on connections for health, metrics and the operator's page. It is low, so that clients that open
/// many connections leave the relay enough files for Postgres and Redis.
const CONNECTIONS: usize = 256;

/// The time limit for answers in hand when the process ends.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Runs until a signal.
pub(crate) async fn run(config: Config) -> Result<()> {
    let shutdown = lifecycle::shutdown_on_signal()?;
    validate::Role::Relay.check(&config)?;
    if let Some(warning) = validate::console_in_clear(&config) {
        tracing::warn!("{warning}");
    }
    let (listener, address) = lifecycle::bind(&config.relay.listen, "AFTERCOMMIT_RELAY_LISTEN").await?;
    tracing::info!(
        %address,
        relay = %config.relay.name,
        "relay serves health, metrics and the operator's page"
    );
    let grace = Duration::from_secs(config.shutdown.grace_seconds);
    let serving = serve(&config, listener, shutdown.clone(), Notifier::from_environment());
    lifecycle::within_grace(serving, &shutdown, grace).await?
}

/// Delivers until `shutdown`. Serves health, metrics and the operator's page on `listener`.
pub(crate) async fn serve(
    config: &Config,
    listener: TcpListener,
    shutdown: CancellationToken,
    notifier: Notifier,
) -> Result<()> {
    log::rotate::check(
        config.outbox.retention_seconds,
        config.redis.history_ttl_seconds,
        config.outbox.rotation_seconds,
    )?;
    let mut registry = telemetry::registry("relay");
    let door = http::Metrics::register(&mut registry);
    let gate = OperatorGate::new(&config.operator, door.clone())?;
    preflight::postgres(&config.database, "aftercommit relay", &[&outbox::schema::SCHEMA]).await?;
    preflight::redis(&config.redis).await?;
    let metrics = Metrics::register(&mut registry);
    let state = StateHandle::default();
    let console = console(config, &state, gate.clone())?;
    let operations = http::operations(registry, readiness(config, &state));
    let limits = Limits { connections: CONNECTIONS, ..Limits::default() };
    let server = Server::new(application(&console, gate), operations, limits, &config.http, door)?;
    // The relay stops first, so that health is served while it finishes its step.
    let stop_http = CancellationToken::new();
    let http_task = tokio::spawn(server.serve(listener, stop_http.clone()));
    let console_task = tokio::spawn(console.run(stop_http.clone()));
    let stopping = notifier.serving(&shutdown).await;
    tokio::select! {
        () = deliver(config, &metrics, &state, shutdown) => {}
        // In the task of the relay's loop: if the loop is blocked, so are the keepalives.
        () = notifier.watch(async || state.wait_for_progress().await, || sentence(&state.get())) => {}
    }
    stop_http.cancel();
    console_task.await?;
    // All deliveries have ended. A peer that does not read its answer must not make the exit look like a
    // failure.
    match tokio::time::timeout(LAST_ANSWERS, http_task).await {
        Ok(ended) => ended?,
        Err(_elapsed) => tracing::debug!("ended before every answer was taken"),
    }
    stopping.wait().await;
    Ok(())
}

async fn deliver(config: &Config, metrics: &Metrics, state: &StateHandle, shutdown: CancellationToken) {
    let mut publisher = Publisher::new(config.redis.clone(), &config.relay.name, config.relay.chunk_size)
        .with_metrics(metrics.clone())
        .with_state(state.clone());
    let retention = Duration::from_secs(config.outbox.retention_seconds);
    let (settings, database) = (&config.relay, &config.database);
    relay::run(settings, database, retention, &mut publisher, metrics, state, shutdown).await;
}

/// The largest age of the oldest pending event at which the relay is ready.
fn pending_limit(config: &Config) -> Duration {
    Duration::from_secs(config.relay.ready_max_pending_seconds)
}

fn readiness(config: &Config, state: &StateHandle) -> Readiness {
    let (state, limit) = (state.clone(), pending_limit(config));
    Readiness::new(move || {
        std::future::ready(checks(&state.get(), limit).into_iter().chain(super::traces()).collect())
    })
}

fn console(config: &Config, state: &StateHandle, gate: OperatorGate) -> Result<Console> {
    Ok(Console::new(console::Parts {
        relay: config.relay.name.clone(),
        pending_limit: pending_limit(config),
        state: state.clone(),
        gate,
        database: config.database.clone(),
        neighbours: neighbours(config),
        streams: streams(config),
    })?)
}

fn application(console: &Console, gate: OperatorGate) -> Router {
    let revoking = revocations::admin(console.pool())
        .layer(axum::middleware::from_fn_with_state(gate, http::operators_only));
    Router::new().fallback(no_route).merge(console.router()).merge(revoking)
}

/// The state of Redis and of the SSE server, for the operator's page.
fn neighbours(config: &Config) -> Readiness {
    let (redis, sse) = (config.redis.clone(), config.sse.listen.clone());
    Readiness::new(move || {
        let (redis, sse) = (redis.clone(), sse.clone());
        async move {
            let (redis, sse) = tokio::join!(probe::redis(&redis), probe::readiness(&sse));
            vec![redis.check("redis"), sse.check("sse")]
        }
    })
}

/// The streams of the SSE server, for the operator's page.
fn streams(config: &Config) -> StreamsProbe {
    let sse = config.sse.listen.clone();
    StreamsProbe::new(move || {
        let sse = sse.clone();
        async move { probe::streams(&sse).await }
    })
}

/// The relay's state in one sentence, for `systemctl status`.
fn sentence(state: &State) -> String {
    let role = match state.role {
        Role::Leading => "delivering",
        Role::Standby => "standing by: another relay of this name leads",
        Role::Disconnected => "no session with Postgres",
    };
    match &state.error {
        Some(error) => format!("{role}; failing: {error}"),
        None => role.to_owned(),
    }
}

/// Readiness: events are delivered in time, by this process or by another one of the same name, or would be
/// if there were any.
fn checks(state: &State, limit: Duration) -> Vec<Check> {
    let role = match state.role {
        Role::Leading => Ok("leading"),
        Role::Standby => Ok("standing by: another relay of this name leads"),
        Role::Disconnected => Err("no session with Postgres"),
    };
    let mut checks = vec![Check::of("role", role), Check::of("delivery", delivery(state, limit))];
    if state.role == Role::Leading {
        let listener = if state.listening {
            Ok("notifications are heard")
        } else {
            Err("notifications are not heard: events wait for the next poll")
        };
        checks.push(Check::of("listener", listener));
    }
    match &state.backlog {
        Some(backlog) => checks.extend(backlog_checks(backlog, limit)),
        None => checks
            .push(Check::of("pending", Err::<String, _>("the age of the oldest pending event is unknown"))),
    }
    checks
}

fn backlog_checks(backlog: &BacklogStatus, limit: Duration) -> [Check; 4] {
    let leader = if backlog.has_leader {
        Ok("a relay of this name leads")
    } else {
        Err("no relay of this name leads")
    };
    // Everybody can read this answer. The operator and the reason are shown only to users who may read the
    // log.
    let paused = match backlog.paused {
        Some(_) => Err("paused by an operator: `aftercommit status` tells by whom and why"),
        None => Ok("no"),
    };
    let log = backlog.contradiction.as_ref().map_or(Ok("fits the position"), |rows| {
        Err(format!("the log contradicts the position: {rows}; stop the relays and run `aftercommit rebase`"))
    });
    [
        Check::of("leader", leader),
        Check::of("paused", paused),
        Check::of("log", log),
        Check::of("pending", pending(backlog.oldest_pending, limit)),
    ]
}

fn delivery(state: &State, limit: Duration) -> Result<String, String> {
    if let Some(error) = &state.error {
        return Err(error.clone());
    }
    match state.last_success.map(|at| at.elapsed()) {
        Some(ago) if ago > limit => Err(format!("the last step succeeded {} s ago", ago.as_secs())),
        _ => Ok("nothing has failed since the last success".to_owned()),
    }
}

fn pending(oldest: Option<Duration>, limit: Duration) -> Result<String, String> {
    match oldest {
        None => Ok("no event waits".to_owned()),
        Some(age) if age <= limit => {
            Ok(format!("the oldest event has waited for {:.1} s", age.as_secs_f64()))
        }
        Some(age) => Err(format!(
            "the oldest event has waited for {:.0} s; the limit is {} s",
            age.as_secs_f64(),
            limit.as_secs()
        )),
    }
}
