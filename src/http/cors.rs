//! Which other sites' pages may call: CORS for a list of origins.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What a page may send along: what a stream is asked with by clients that use `fetch` (they set `Cache-Control` as
/// EventSource does), by libraries that mark their requests, and by those that trace them.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "accept, authorization, baggage, cache-control, content-type, last-event-id, pragma, sentry-trace, traceparent, \
     tracestate, x-requested-with",
);
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
/// How long a browser may go by a preflight's answer, in seconds.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("600");

/// Origins that are let in, exactly as browsers write them: scheme, host, and the port where it is not the usual one.
#[derive(Debug, Clone)]
pub struct Origins(Arc<[String]>);

impl Origins {
    /// Lets these in, with cookies. There is no wildcard: with cookies browsers take none, and a list is read by people.
    pub fn new(origins: &[String]) -> Self {
        Self(origins.iter().filter(|origin| !origin.is_empty()).cloned().collect())
    }

    fn allowed<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        self.0.iter().any(|allowed| allowed == text).then_some(origin)
    }
}

/// The middleware: answers preflights, and tells browsers which origins may read an answer.
pub async fn cors(State(origins): State<Origins>, request: Request, next: Next) -> Response {
    let allowed = origins.allowed(request.headers()).cloned();
    let is_preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match (is_preflight, &allowed) {
        (true, Some(_)) => {
            let mut response = StatusCode::NO_CONTENT.into_response();
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
            response
        }
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    // The answer differs by origin, also where it lets none in.
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    response
}
