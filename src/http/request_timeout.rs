//! A limit on the time that a request may take, its body included.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Problem;

/// How long a request may take, its body included. Shorter than the 60 s that most proxies wait.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Middleware: answers 503 if the answer has not begun after `limit`, for example because the request's body
/// does not arrive. It drops the handler, which rolls back its transaction. Streams may take longer, because
/// their answer begins at once.
pub async fn request_timeout(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => Problem::unavailable(
            "the request took too long: send its whole body at once, and try again after a while",
        )
        .into_response(),
    }
}
