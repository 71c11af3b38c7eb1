//! Who may see and steer: requests that carry the operators' token.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{Problem, bearer};

/// The shortest token that is taken, in bytes: one that is shorter can be guessed.
pub const OPERATOR_TOKEN_BYTES_MIN: usize = 16;

/// The `[operator]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorSettings {
    /// What operators send; empty for none, and then nobody is let in.
    pub token: SecretString,
}

/// The operators' token is too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "operator.token has {0} bytes and needs at least {OPERATOR_TOKEN_BYTES_MIN}: make one with `openssl rand -hex 32`"
)]
pub struct ShortOperatorToken(usize);

/// Lets operators in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OperatorGate(Arc<SecretString>);

impl OperatorGate {
    /// A gate that opens for the configured token.
    ///
    /// # Errors
    /// [`ShortOperatorToken`].
    pub fn new(settings: &OperatorSettings) -> Result<Self, ShortOperatorToken> {
        match settings.token.expose_secret().len() {
            bytes @ 1..OPERATOR_TOKEN_BYTES_MIN => Err(ShortOperatorToken(bytes)),
            _ => Ok(Self(Arc::new(settings.token.clone()))),
        }
    }

    /// Whether there is a token with which it opens.
    pub fn can_open(&self) -> bool {
        !self.0.expose_secret().is_empty()
    }

    /// Whether it opens for this token.
    pub fn opens_for(&self, token: &str) -> bool {
        self.can_open() && is_same(self.0.expose_secret().as_bytes(), token.as_bytes())
    }
}

/// Compares in a time that tells nothing of where two secrets differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let differing = one.iter().zip(other).fold(0, |differing, (a, b)| differing | (a ^ b));
    one.len() == other.len() && differing == 0
}

/// The middleware: 401 for whoever does not send `Authorization: Bearer <the operators' token>`.
pub async fn operators_only(State(gate): State<OperatorGate>, request: Request, next: Next) -> Response {
    if !gate.can_open() {
        let detail = "nobody is let in here: set AFTERCOMMIT_OPERATOR_TOKEN and start this process again";
        return Problem::forbidden(detail).into_response();
    }
    if bearer(request.headers()).is_some_and(|token| gate.opens_for(token)) {
        next.run(request).await
    } else {
        Problem::unauthorized("send the operators' token: Authorization: Bearer <token>").into_response()
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
        OperatorGate::new(&OperatorSettings { token: token.to_owned().into() })
    }

    #[test]
    fn the_gate_opens_for_its_token_only_and_never_where_there_is_none() {
        let open = gate(TOKEN).expect("a gate");
        assert!(open.opens_for(TOKEN));
        for wrong in ["", "0123456789abcdeF", "0123456789abcde", "0123456789abcdef0"] {
            assert!(!open.opens_for(wrong), "{wrong}");
        }
        assert!(!gate("").expect("a gate").opens_for(""));
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
