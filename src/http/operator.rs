//! The operators' gate: admits requests that carry the operators' token. Every server uses this one gate.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::attempts::{Attempt, Attempts};
use super::log_limiter::LogLimiter;
use super::metrics::Metrics;
use super::{Connection, Problem, bearer};

/// The shortest token that is accepted, in bytes. A shorter one could be guessed.
pub const OPERATOR_TOKEN_BYTES_MIN: usize = 16;

/// The `[operator]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorSettings {
    /// The token that operators send. If it is empty, nobody is admitted.
    pub token: SecretString,
}

/// The operators' token is too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "operator.token has {0} bytes and needs at least {OPERATOR_TOKEN_BYTES_MIN}: make one with \
     `openssl rand -hex 32`"
)]
pub struct ShortOperatorToken(usize);

/// Admits operators, and slows down clients that guess their token (see `attempts` for the rule). Cheap to
/// clone; clones share their counts.
#[derive(Debug, Clone)]
pub struct OperatorGate(Arc<Gate>);

#[derive(Debug)]
struct Gate {
    token: SecretString,
    attempts: Attempts,
    metrics: Metrics,
    log: LogLimiter,
}

/// The reason why a request is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorRefusal {
    /// No operators' token is configured.
    NoToken,
    /// The request carries no token.
    Missing,
    /// The token is wrong.
    Wrong,
    /// This address sent too many wrong tokens. Try again after this time.
    TooMany(Duration),
}

impl OperatorGate {
    /// A gate for the configured token.
    ///
    /// # Errors
    /// [`ShortOperatorToken`] if the token is shorter than [`OPERATOR_TOKEN_BYTES_MIN`] and not empty.
    pub fn new(settings: &OperatorSettings, metrics: Metrics) -> Result<Self, ShortOperatorToken> {
        match settings.token.expose_secret().len() {
            bytes @ 1..OPERATOR_TOKEN_BYTES_MIN => Err(ShortOperatorToken(bytes)),
            _ => Ok(Self(Arc::new(Gate {
                token: settings.token.clone(),
                attempts: Attempts::default(),
                metrics,
                log: LogLimiter::default(),
            }))),
        }
    }

    /// Whether a token is configured, without which the gate admits nobody.
    pub fn can_open(&self) -> bool {
        !self.0.token.expose_secret().is_empty()
    }

    /// Admits a client that sends this token, and vouches for its connection. `extensions` are the request's.
    ///
    /// # Errors
    /// [`OperatorRefusal`] if no token is configured or sent, if the token is wrong, or if its address must
    /// wait. A wrong token is counted and logged.
    pub fn admit(&self, token: Option<&str>, extensions: &Extensions) -> Result<(), OperatorRefusal> {
        if !self.can_open() {
            return Err(OperatorRefusal::NoToken);
        }
        let token = token.ok_or(OperatorRefusal::Missing)?;
        let connection = extensions.get::<Connection>();
        // Clients of unknown address share one count.
        let client = connection.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |connection| connection.client);
        let is_right = || is_same(self.0.token.expose_secret().as_bytes(), token.as_bytes());
        let now = Instant::now();
        let refusal = match self.0.attempts.attempt(client, token, now, is_right) {
            Attempt::Right => {
                if let Some(connection) = connection {
                    connection.vouch();
                }
                return Ok(());
            }
            Attempt::Wrong => OperatorRefusal::Wrong,
            Attempt::TooMany(wait) => OperatorRefusal::TooMany(wait),
        };
        self.0.metrics.operator_refused(refusal == OperatorRefusal::Wrong);
        if let Some(times) = self.0.log.count(now) {
            tracing::warn!(%client, times, "a wrong operators' token was sent");
        }
        Err(refusal)
    }
}

impl IntoResponse for OperatorRefusal {
    fn into_response(self) -> Response {
        let problem = match self {
            Self::NoToken => Problem::forbidden(
                "no operators' token is configured: set AFTERCOMMIT_OPERATOR_TOKEN and restart this process",
            ),
            Self::Missing => {
                Problem::unauthorized("send the operators' token: Authorization: Bearer <token>")
            }
            Self::Wrong => Problem::unauthorized("this is not the operators' token"),
            Self::TooMany(wait) => {
                let wait = wait.as_secs() + 1;
                let detail = format!("this address sent too many wrong tokens: try again in {wait} s");
                let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail);
                return ([(header::RETRY_AFTER, HeaderValue::from(wait))], problem).into_response();
            }
        };
        problem.into_response()
    }
}

/// Compares in a time that reveals neither the length of the secret nor where the two differ: each byte that
/// was sent is compared with a byte of the secret.
fn is_same(secret: &[u8], sent: &[u8]) -> bool {
    let of_secret = secret.iter().cycle();
    let differing =
        of_secret.zip(sent).fold(0, |differing, (a, b)| std::hint::black_box(differing | (a ^ b)));
    secret.len() == sent.len() && differing == 0
}

/// Middleware: admits only requests with `Authorization: Bearer <the operators' token>`. Answers 401 without
/// it, 429 after too many wrong tokens, and 403 if no token is configured.
pub async fn operators_only(State(gate): State<OperatorGate>, request: Request, next: Next) -> Response {
    match gate.admit(bearer(request.headers()), request.extensions()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{StatusCode, header};
    use axum::routing::get;
    use axum::{Router, middleware};
    use tower::ServiceExt;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn gate(token: &str) -> Result<OperatorGate, ShortOperatorToken> {
        OperatorGate::new(&OperatorSettings { token: token.to_owned().into() }, Metrics::default())
    }

    #[test]
    fn the_gate_opens_for_its_token_only_and_never_where_there_is_none() {
        let open = gate(TOKEN).expect("a gate");
        let admit = |token| open.admit(Some(token), &Extensions::new());
        assert_eq!(admit(TOKEN), Ok(()));
        for wrong in ["", "0123456789abcdeF", "0123456789abcde", "0123456789abcdef0"] {
            assert_eq!(admit(wrong), Err(OperatorRefusal::Wrong), "{wrong}");
        }
        let none = gate("").expect("a gate");
        assert_eq!(none.admit(Some(""), &Extensions::new()), Err(OperatorRefusal::NoToken));
        assert_eq!(gate("short").err(), Some(ShortOperatorToken(5)));
    }

    #[tokio::test]
    async fn the_token_is_taken_behind_bearer_only() {
        let gate = gate(TOKEN).expect("a gate");
        let router = Router::new()
            .route("/", get(|| async {}))
            .layer(middleware::from_fn_with_state(gate, operators_only));
        let status = async |authorization: String| {
            let request = Request::get("/").header(header::AUTHORIZATION, authorization);
            let request = request.body(Body::empty()).expect("a request");
            router.clone().oneshot(request).await.expect("an answer").status()
        };
        for scheme in ["Bearer", "bearer"] {
            assert_eq!(status(format!("{scheme} {TOKEN}")).await, StatusCode::OK, "{scheme}");
        }
        for scheme in ["Basic", "Digest", "Token", ""] {
            assert_eq!(status(format!("{scheme} {TOKEN}")).await, StatusCode::UNAUTHORIZED, "{scheme}");
        }
        assert_eq!(status(TOKEN.to_owned()).await, StatusCode::UNAUTHORIZED);
    }
}
