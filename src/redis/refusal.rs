//! An error of a command: its class, and whether the server itself sent it.

use ::redis::{ErrorKind, RedisError};

use super::error_text::{error_text, reply};
use super::reply_codes;
use crate::relay::PublishError;
use crate::relay::failure::{self, Failure};

/// A classified error of the client or the server.
pub(super) struct Refusal {
    pub(super) failure: Failure,
    pub(super) text: String,
    /// Whether the server sent the error, so that the connection works.
    pub(super) is_reply: bool,
}

impl Refusal {
    pub(super) fn of(error: &RedisError) -> Self {
        let text = error_text(error);
        match error.code() {
            Some(code) => {
                let reply = reply(code, error.detail());
                Self { failure: reply_codes::classify(&reply), text, is_reply: true }
            }
            // The client replaces the server's own words by this kind.
            None if error.kind() == ErrorKind::AuthenticationFailed => {
                Self { failure: reply_codes::classify("WRONGPASS"), text, is_reply: false }
            }
            None if error.is_timeout() => Self { failure: failure::TIMEOUT, text, is_reply: false },
            None => Self { failure: failure::CONNECTION, text, is_reply: false },
        }
    }

    pub(super) fn retry(self) -> PublishError {
        PublishError::retry(self.failure, format!("Redis: {}", self.text))
    }
}
