//! Whom a token speaks for.

use chrono::{DateTime, Utc};

use super::user_id::UserId;

/// Who makes the request. As an extractor: a handler that takes it is reached with a valid token only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The token's subject.
    pub id: UserId,
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
