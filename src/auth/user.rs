//! The extractor: a handler that takes a [`User`] is reached with a valid token only.

use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::request::Parts;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::Verifier;
use crate::http::{Problem, bearer};

/// Who makes the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The token's subject.
    pub id: Uuid,
    /// From when on the token is not taken any more: its `exp` and the leeway after it. A stream that it opened ends then,
    /// and not before: else a token within its leeway would open streams that end at once, again and again.
    pub expires_at: DateTime<Utc>,
    /// Topics that the token allows to listen to beyond the application's own rules: names, or beginnings of names
    /// followed by `*`.
    pub subscribe: Vec<String>,
}

impl User {
    /// Whether the token's `subscribe` claim allows this topic.
    pub fn may_subscribe(&self, topic: &str) -> bool {
        self.subscribe.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => topic.starts_with(beginning),
            None => topic == pattern,
        })
    }
}

impl<S> FromRequestParts<S> for User
where
    Arc<Verifier>: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let verifier = Arc::<Verifier>::from_ref(state);
        let token = bearer(&parts.headers).ok_or_else(|| {
            Problem::unauthorized("send a token: the header Authorization: Bearer <token> is missing")
        })?;
        Ok(verifier.verify(token).await?)
    }
}
