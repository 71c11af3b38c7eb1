//! The operators' view of a process's streams. Does not check who asks: the caller mounts it behind the
//! operators' gate.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::http::{Problem, Query};
use crate::sse::hub::Hub;

/// Streams in one answer: by default, and at most.
const TOP_DEFAULT: usize = 20;
const TOP_MAX: usize = 1000;

/// `GET /admin/connections?top=20`: the slowest streams, slowest first.
pub fn admin(hub: Hub) -> Router {
    Router::new().route("/admin/connections", get(connections)).with_state(hub)
}

async fn connections(
    State(hub): State<Hub>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    // The last one counts, as in a stream's query.
    let top = pairs.iter().rfind(|(name, _)| name == "top").map(|(_, value)| value.parse::<usize>());
    let top = top.transpose().map_err(|_| Problem::bad_request("top must be a number of streams"))?;
    let top = top.unwrap_or(TOP_DEFAULT).min(TOP_MAX);
    let answer = axum::Json(hub.0.open_streams.slowest(top));
    Ok(([(header::CACHE_CONTROL, "no-store")], answer).into_response())
}
