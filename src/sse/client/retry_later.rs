//! Requests for streams of which nobody can tell now whether they are allowed.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::open::refused;
use crate::http::Problem;
use crate::sse::hub::Hub;
use crate::sse::wire::refusal::Refusal;

/// The middleware of streams: where a request ends with 503, the client is told to come back later, as it is where there is
/// no room. EventSource would take the status for the end, and whoever was to decide (Postgres, the issuer of the tokens)
/// is away for a while only. Verdicts, such as 401 and 404, stay what they are.
pub async fn retry_later(State(hub): State<Hub>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match response.status() {
        StatusCode::SERVICE_UNAVAILABLE => refused(&hub.0, Refusal::Unavailable),
        _ => response,
    }
}

/// The answer to requests that come when all connections are taken: streams are told to come back later, as where there is
/// no room for one more stream.
pub fn refuse_when_full(hub: Hub) -> Router {
    Router::new().fallback(full).with_state(hub)
}

async fn full(State(hub): State<Hub>, method: Method) -> Response {
    if method == Method::GET {
        return refused(&hub.0, Refusal::Full);
    }
    Problem::unavailable("this process has as many connections as it may have: try again after a while")
        .into_response()
}
