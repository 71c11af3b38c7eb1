//! Admits the page itself and no other. Other web pages that the reader has open can reach this port too:
//! directly, or under a name that they make resolve to this machine (DNS rebinding).
//!
//! - Under any other host than its own the server answers nothing, so a rebound name reads nothing.
//! - Everything secret, and every switch, needs the key. It is in the page's address, after `#`; a browser
//!   never adds it by itself, as it would a cookie.
//! - A switch must also come from a page of this origin.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};

use super::Shared;
use crate::http::{OperatorRefusal, Problem, bearer, is_same_origin};

/// Middleware: refuses requests under another host (421). A browser that opens the page as `localhost` is
/// sent to its address, and takes the key along.
pub(super) async fn own_host_only(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let own = shared.parts.address;
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if host == Some(own.to_string().as_str()) {
        return next.run(request).await;
    }
    let is_local_name = host.is_some_and(|host| host == format!("localhost:{}", own.port()));
    if is_local_name && request.method() == Method::GET && request.uri().path() == "/" {
        return Redirect::temporary(&format!("http://{own}/")).into_response();
    }
    let detail = format!("this page has one address: http://{own}");
    Problem::new(StatusCode::MISDIRECTED_REQUEST, detail).into_response()
}

/// Middleware: refuses requests without the key (401, or 429 after too many wrong ones), and changes that a
/// page of another origin asks for (403).
pub(super) async fn page_only(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    if let Err(refusal) = shared.parts.gate.admit(bearer(request.headers()), request.extensions()) {
        return match refusal {
            OperatorRefusal::TooMany(_) => refusal.into_response(),
            _ => Problem::unauthorized("open the address that `aftercommit dev` has printed, with its key")
                .into_response(),
        };
    }
    if request.method() != Method::GET && !is_same_origin(request.headers()) {
        return Problem::forbidden("this request came from a page of another origin").into_response();
    }
    next.run(request).await
}
