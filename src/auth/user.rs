//! The user that a token stands for.

use chrono::{DateTime, Utc};

use super::revocations::Credential;
use super::user_id::UserId;

/// The user who makes the request. As an extractor, it admits a request only with a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The token's subject.
    pub id: UserId,
    /// The time from which the token is refused: its `exp` and the leeway after it. A stream that the token
    /// opened ends then, and not earlier: otherwise a token within its leeway would open streams that end at
    /// once, again and again.
    pub expires_at: DateTime<Utc>,
    /// Topics that the token allows beyond the application's own rules: names, or beginnings of names
    /// followed by `*`.
    pub subscribe: Vec<String>,
    /// Which of the user's tokens it is, for operators who revoke some of them.
    pub credential: Credential,
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
