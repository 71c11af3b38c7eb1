//! `/healthz`, `/readyz` and `/metrics`, the same in every process.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use serde::Serialize;

use super::Problem;

/// A condition for a process to be ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The name of the condition.
    pub name: &'static str,
    /// Whether the condition holds.
    pub ok: bool,
    /// Whether the condition holds but may soon cause trouble: a full server still serves the clients that it
    /// has.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub warning: bool,
    /// The reason, for a person to read.
    pub reason: String,
}

impl Check {
    /// A check with this result.
    pub fn of(name: &'static str, result: Result<impl Into<String>, impl Into<String>>) -> Self {
        match result {
            Ok(reason) => Self { name, ok: true, warning: false, reason: reason.into() },
            Err(reason) => Self { name, ok: false, warning: false, reason: reason.into() },
        }
    }

    /// The same check as a warning, which leaves the process ready.
    pub fn with_warning(self) -> Self {
        Self { warning: true, ..self }
    }
}

/// Runs all checks.
type Look = dyn Fn() -> Pin<Box<dyn Future<Output = Vec<Check>> + Send>> + Send + Sync;

/// The checks that decide whether a process is ready.
#[derive(Clone)]
pub struct Readiness(Arc<Look>);

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Readiness")
    }
}

impl Readiness {
    /// A process is ready if every check that `look` returns holds. `look` runs at every request and must
    /// limit its own waiting.
    pub fn new<F>(look: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Vec<Check>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(look())))
    }

    /// Runs the checks now.
    pub async fn look(&self) -> Vec<Check> {
        self.0().await
    }
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    checks: Vec<Check>,
}

/// Routes of `/healthz`, `/readyz` and `/metrics`.
pub fn operations(registry: Registry, readiness: Readiness) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready).with_state(readiness))
        .route("/metrics", get(metrics).with_state(Arc::new(registry)))
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let checks = readiness.look().await;
    let ready = checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = (status, axum::Json(Ready { ready, checks })).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &registry) {
        return Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the metrics cannot be written: {error}"),
        )
        .into_response();
    }
    const OPEN_METRICS: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}
