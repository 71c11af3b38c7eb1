//! Who is let in: a cookie from the sign-in, for browsers, or the operators' token, for scripts.
//!
//! A browser sends a cookie along whoever has made it ask. `SameSite=Strict` keeps other sites out, but not other ports of
//! the same host: so what changes something must also come from a page of this very origin.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Shared;
use crate::http::{Connection, OperatorRefusal, Problem, bearer};

/// The cookie of a sign-in.
pub(super) const COOKIE: &str = "aftercommit_console";
/// The name in the audit of whoever comes with the token alone.
const NAMELESS: &str = "console";

/// The operator who makes a request. Among the request's extensions.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// For the audit.
    pub(super) who: String,
    /// The sign-in, if it is one.
    pub(super) session: Option<String>,
}

/// The middleware: 401 for whoever is not signed in and does not send the token; 403 for a change that another origin's
/// page asks for.
pub(super) async fn operators_only(
    State(shared): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Response {
    match identify(&shared, &request) {
        Ok(identity) => {
            request.extensions_mut().insert(identity);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Why somebody is not let in.
enum Refusal {
    Problem(Problem),
    Gate(OperatorRefusal),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(problem) => problem.into_response(),
            Self::Gate(refusal) => refusal.into_response(),
        }
    }
}

fn identify(shared: &Shared, request: &Request) -> Result<Identity, Refusal> {
    let headers = request.headers();
    let gate = &shared.parts.gate;
    if let Some(token) = bearer(headers).filter(|_| gate.can_open()) {
        gate.admit(Some(token), request.extensions()).map_err(Refusal::Gate)?;
        return Ok(Identity { who: NAMELESS.to_owned(), session: None });
    }
    if !gate.can_open() {
        return Err(Refusal::Gate(OperatorRefusal::NoToken));
    }
    // A sign-in is never held up by what others guess.
    let session = session(headers);
    let who = session.and_then(|id| shared.sessions.who(id, Instant::now()));
    let Some(who) = who else {
        let detail = "sign in at /console, or send the operators' token: Authorization: Bearer <token>";
        return Err(Problem::unauthorized(detail).into());
    };
    if request.method() != Method::GET && !is_same_origin(headers) {
        return Err(elsewhere().into());
    }
    if let Some(connection) = request.extensions().get::<Connection>() {
        connection.vouch();
    }
    Ok(Identity { who, session: session.map(str::to_owned) })
}

/// The refusal of what another origin's page asks for.
pub(super) fn elsewhere() -> Problem {
    Problem::forbidden("this was asked for by a page of another origin: open /console itself and do it there")
}

/// Whether a browser says that a page of this origin asks, or that its user does so by hand. One that sends neither of the
/// two headers is none: all browsers send `Origin` with a POST.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    if let Some(site) = text(headers, "sec-fetch-site") {
        return site == "same-origin";
    }
    let origin = text(headers, header::ORIGIN.as_str()).and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(_scheme, host)| text(headers, header::HOST.as_str()) == Some(host))
}

/// The id of the sign-in that a browser sends along.
pub(super) fn session(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|cookies| cookies.split(';'))
        .find_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn only_a_page_of_this_very_origin_counts_as_one() {
        let host = ("host", "relay:8082");
        for (sent, expected) in [
            (&[host, ("sec-fetch-site", "same-origin")][..], true),
            (&[host, ("sec-fetch-site", "same-site"), ("origin", "http://relay:8082")], false),
            (&[host, ("sec-fetch-site", "cross-site")], false),
            (&[host, ("sec-fetch-site", "none")], false),
            (&[host, ("origin", "http://relay:8082")], true),
            (&[host, ("origin", "http://relay:9000")], false),
            (&[host, ("origin", "null")], false),
            (&[host], false),
        ] {
            assert_eq!(is_same_origin(&headers(sent)), expected, "{sent:?}");
        }
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let sent = headers(&[("cookie", "a=1; aftercommit_console=abc; b=2")]);
        assert_eq!(session(&sent), Some("abc"));
        assert_eq!(session(&headers(&[("cookie", "aftercommit_console2=abc")])), None);
    }
}
