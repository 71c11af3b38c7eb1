//! Gives each request a span, and its handler the position in the trace.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, MatchedPath, Request};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;

use crate::event::{TRACE_PARENT, TraceParent};
use crate::trace;

/// The position of the request in a recorded trace. Events that the request appends carry it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestTrace(pub Option<TraceParent>);

impl<S: Sync> FromRequestParts<S> for RequestTrace {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or_default())
    }
}

/// Middleware: gives each request a span, as part of the trace that its `traceparent` names.
pub async fn traced(mut request: Request, next: Next) -> Response {
    if !trace::is_on() {
        return next.run(request).await;
    }
    let parent = request.headers().get(TRACE_PARENT).and_then(|value| value.to_str().ok()?.parse().ok());
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let mut span = trace::request(parent, request.method().as_str(), route);
    request.extensions_mut().insert(RequestTrace(span.place()));
    let response = next.run(request).await;
    span.answered(response.status().as_u16());
    response
}
