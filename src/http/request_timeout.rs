//! How long a request may take, its body included.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Problem;

/// The middleware: 503 for a request whose answer has not begun after `limit`, also where its body does not
/// arrive. The handler is dropped, and with it a transaction, which is rolled back. Not for streams: they
/// begin at once.
pub async fn request_timeout(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => Problem::unavailable(
            "the request took too long: send its whole body at once, and try again after a while",
        )
        .into_response(),
    }
}
