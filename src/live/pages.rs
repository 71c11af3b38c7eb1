//! The files of `assets`, compiled in: no build step, no library, nothing from another server.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

use super::{Line, Shared};
use crate::http::{Path, Problem, guard_page};

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
/// The files with their names and types. The look of the operator's page is this page's too.
const ASSETS: [(&str, &str, &str); 10] = [
    ("style.css", "text/css; charset=utf-8", include_str!("../console/assets/style.css")),
    ("live.css", "text/css; charset=utf-8", include_str!("assets/live.css")),
    ("icon.svg", "image/svg+xml", include_str!("../console/assets/icon.svg")),
    ("dom.js", JAVASCRIPT, include_str!("../console/assets/dom.js")),
    ("main.js", JAVASCRIPT, include_str!("assets/main.js")),
    ("server.js", JAVASCRIPT, include_str!("assets/server.js")),
    ("upload.js", JAVASCRIPT, include_str!("assets/upload.js")),
    ("client.js", JAVASCRIPT, include_str!("assets/client.js")),
    ("proof.js", JAVASCRIPT, include_str!("assets/proof.js")),
    ("own.js", JAVASCRIPT, include_str!("assets/own.js")),
];

/// Adds the headers of a page to an answer. The page calls the SSE server by its lines.
pub(super) async fn guard(State(shared): State<Arc<Shared>>, mut response: Response) -> Response {
    let lines = shared.clients.iter().chain([&shared.own]).map(Line::origin);
    guard_page(&mut response, &lines.collect::<Vec<_>>().join(" "));
    response
}

/// `GET /`: the page. It holds no secret, so it needs no key.
pub(super) async fn page() -> Html<&'static str> {
    Html(include_str!("assets/live.html"))
}

/// `GET /live/assets/{name}`.
pub(super) async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => {
            let headers = [(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "no-cache")];
            (headers, *text).into_response()
        }
        None => Problem::not_found("there is no such file").into_response(),
    }
}
