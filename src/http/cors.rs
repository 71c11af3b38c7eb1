//! CORS for a list of origins: which other sites' pages may call this server.

use std::net::Ipv6Addr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Request headers that a page may send. They cover clients that open a stream with `fetch` (they set
/// `Cache-Control` as EventSource does), clients that ask again for what they have (`If-None-Match`),
/// libraries that mark their requests, and libraries that trace them.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "accept, authorization, baggage, cache-control, content-type, if-none-match, last-event-id, pragma, \
     sentry-trace, traceparent, tracestate, x-requested-with",
);
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
/// How long a browser may cache the answer to a preflight, in seconds.
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("600");

/// The end of an origin of any port.
const ANY_PORT: &str = ":*";

/// Allowed origins, exactly as browsers write them: scheme, host, and the port unless it is the scheme's
/// default.
#[derive(Debug, Clone)]
pub struct Origins(Arc<[String]>);

/// A text that is not an origin as browsers write it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "sse.cors_origins contains '{0}', which no browser sends or which stands for any site: write each origin \
     as browsers do, such as https://app.example or http://localhost:3000 (no *, no null, no path, lower \
     case, no usual port)"
)]
pub struct OriginError(String);

impl Origins {
    /// Pages at any port of this machine. For development: elsewhere a local program could not be trusted.
    pub const LOOPBACK: [&str; 2] = ["http://localhost:*", "http://127.0.0.1:*"];

    /// Allows these origins, with credentials. There is no wildcard but [`Self::LOOPBACK`]: browsers do not
    /// accept one together with credentials, and a list of names is easy to review.
    ///
    /// # Errors
    /// [`OriginError`] for the first text that can match no page, or pages of any site (sandboxed frames and
    /// local files of every site send `null`).
    pub fn new(origins: &[String]) -> Result<Self, OriginError> {
        let is_valid = |origin: &&String| is_origin(origin) || Self::LOOPBACK.contains(&origin.as_str());
        match origins.iter().find(|origin| !is_valid(origin)) {
            // The user and the password of an address are not shown.
            Some(other) if other.contains('@') => Err(OriginError(crate::address::shown(other))),
            Some(other) => Err(OriginError(other.clone())),
            None => Ok(Self(origins.iter().cloned().collect())),
        }
    }

    fn allowed<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?;
        self.0.iter().any(|allowed| allowed == text || is_of_any_port(allowed, text)).then_some(origin)
    }
}

/// Whether `allowed` is a host with any port, and `origin` is of that host.
fn is_of_any_port(allowed: &str, origin: &str) -> bool {
    let Some(host) = allowed.strip_suffix(ANY_PORT) else { return false };
    origin == host || (origin.starts_with(&format!("{host}:")) && is_origin(origin))
}

/// Whether a browser would write an origin in this form (RFC 6454, 6.2): scheme and host in lower case, no
/// default port.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
            !host.is_empty() && host.bytes().all(is_letter)
        }
    };
    let usual = [("http", 80), ("https", 443)];
    let is_port = |port: &str| {
        port.parse::<u16>()
            .is_ok_and(|number| number.to_string() == port && !usual.contains(&(scheme, number)))
    };
    is_scheme && is_host && port.is_none_or(is_port)
}

/// Middleware: answers preflights, and tells browsers which origins may read an answer.
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
    // The answer depends on the origin, also for an origin that is not allowed.
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_that_no_browser_sends_or_that_anybody_sends_is_refused() {
        for good in [
            "https://app.example",
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
            "https://[fd00::1]",
            "capacitor://localhost",
            "chrome-extension://abcdefghijklmnop",
            "https://xn--bcher-kva.example",
        ] {
            assert!(Origins::new(&[good.to_owned()]).is_ok(), "{good}");
        }
        for bad in [
            "",
            "*",
            "null",
            "app.example",
            "https://",
            "https://*.example",
            "https://app.example/",
            "https://app.example/path",
            "https://App.example",
            "https://app.example:443",
            "http://app.example:80",
            "http://app.example:08080",
            "https://user@app.example",
            "https://bücher.example",
            " https://app.example",
            "https://app.example,https://b.example",
        ] {
            let origins = ["https://first.example".to_owned(), bad.to_owned()];
            assert!(Origins::new(&origins).is_err(), "{bad}");
        }
        assert!(Origins::new(&[]).is_ok());
    }

    #[test]
    fn pages_at_any_port_of_this_machine_may_be_allowed_and_none_of_another() {
        let origins = Origins::new(&Origins::LOOPBACK.map(str::to_owned)).expect("origins");
        let allows = |origin: &'static str| {
            let headers = [(header::ORIGIN, HeaderValue::from_static(origin))].into_iter().collect();
            origins.allowed(&headers).is_some()
        };
        for own in ["http://localhost:3000", "http://localhost", "http://127.0.0.1:5173"] {
            assert!(allows(own), "{own}");
        }
        for other in [
            "http://localhost.example:3000",
            "http://localhost:3000.example",
            "http://localhost:x",
            "https://localhost:3000",
            "http://127.0.0.1.example",
            "http://127.0.0.2:3000",
            "null",
        ] {
            assert!(!allows(other), "{other}");
        }
        assert!(Origins::new(&["http://app.example:*".to_owned()]).is_err());
    }
}
