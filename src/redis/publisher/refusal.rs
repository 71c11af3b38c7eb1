//! A refusal of the client or the server, classified.

use ::redis::{ErrorKind, RedisError};

use crate::redis::connect_error::ConnectError;
use crate::redis::error_text::{error_text, reply};
use crate::redis::reply_codes;
use crate::relay::PublishError;
use crate::relay::failure::{self, Remedy};

/// A classified error of the client or the server.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) failure: failure::Failure,
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

    /// Whether the connection still works: not after a time-out, not after it broke, and not if its server is
    /// no longer the primary.
    pub(super) fn keeps_connection(&self) -> bool {
        self.is_reply && self.failure.remedy == Remedy::SetAside
    }

    pub(super) fn retry(self) -> PublishError {
        PublishError::retry(self.failure, format!("Redis: {}", self.text))
    }
}

/// The failure to connect, as an error of publishing.
pub(super) fn of_connecting(error: &ConnectError) -> PublishError {
    let failure = match error {
        // A changed password is the server's answer to a login, and not a broken connection.
        ConnectError::Refused { source, .. } | ConnectError::Undecided(source) => Refusal::of(source).failure,
        _ => failure::CONNECTION,
    };
    PublishError::retry(failure, error.to_string())
}
