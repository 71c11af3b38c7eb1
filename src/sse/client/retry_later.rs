//! Requests for streams that cannot be answered now: the client is told to reconnect later.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::open::refused;
use crate::http::Problem;
use crate::sse::hub::Hub;
use crate::sse::wire::refusal::Refusal;

/// The middleware of streams: turns a 503 into a stream that tells the client to reconnect later, as a full
/// server does. EventSource would give up on the 503, although Postgres or the issuer of the tokens is only
/// away for a while. Other statuses, such as 401 and 404, are left as they are.
pub async fn retry_later(State(hub): State<Hub>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match response.status() {
        StatusCode::SERVICE_UNAVAILABLE => refused(&hub.0, Refusal::Unavailable),
        _ => response,
    }
}

/// The answer to requests that come when all connections are taken: clients of streams are told to reconnect
/// later, as where there is no room for one more stream.
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
