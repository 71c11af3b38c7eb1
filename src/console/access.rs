//! Admits operators: a browser by the cookie of its sign-in, a script by the operators' token.
//!
//! A browser sends a cookie whichever site caused the request. `SameSite=Strict` keeps other sites out, but
//! not other ports of the same host. So a request that changes something must also come from a page of this
//! origin.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Shared;
use crate::http::{Connection, OperatorRefusal, Problem, bearer, is_same_origin};

/// The cookie of a sign-in.
pub(super) const COOKIE: &str = "aftercommit_console";
/// The name in the audit log of an operator who sends only the token.
const NAMELESS: &str = "console";

/// The operator who makes a request, as one of the request's extensions.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// The name in the audit log.
    pub(super) who: String,
    /// The id of the sign-in; `None` if the operator sent the token.
    pub(super) session: Option<String>,
}

/// Middleware: admits requests with a sign-in or with the token. Answers 401 to others, 429 after too many
/// wrong tokens, and 403 if no token is configured or if a page of another origin asks for a change.
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

/// A request is not admitted.
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
    // A sign-in is checked without the gate, so that wrong tokens of other clients cannot delay it.
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

/// The refusal of a request from a page of another origin.
pub(super) fn elsewhere() -> Problem {
    Problem::forbidden("this request came from a page of another origin: open /console and repeat it there")
}

/// The id of the sign-in in the request's cookies.
pub(super) fn session(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(|cookies| cookies.split(';'))
        .find_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
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
    fn the_cookie_is_found_among_others() {
        let sent = headers(&[("cookie", "a=1; aftercommit_console=abc; b=2")]);
        assert_eq!(session(&sent), Some("abc"));
        assert_eq!(session(&headers(&[("cookie", "aftercommit_console2=abc")])), None);
    }
}
