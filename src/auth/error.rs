//! Errors of checking tokens and of the configuration for it.

use super::settings::{Algorithm, LEEWAY_SECONDS_MAX, SECRET_BYTES_MIN};
use crate::http::Problem;

/// A token, or the configuration for checking tokens, is refused.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No key was configured.
    #[error(
        "no key for tokens: set AFTERCOMMIT_JWT_SECRET (at least {SECRET_BYTES_MIN} bytes), or [jwt] \
         algorithm with public_key_file or jwks_url"
    )]
    NoKey,
    /// More than one source of keys.
    #[error("[jwt] names more than one source of keys for {0:?}: {1}")]
    Sources(Algorithm, &'static str),
    /// The URL of the issuer's keys is not valid.
    #[error("[jwt] jwks_url must be of the form https://host/path, without user or password")]
    JwksUrl,
    /// The intervals for fetching keys are not valid.
    #[error("[jwt] jwks_refresh_seconds and jwks_cooldown_seconds must be at least 1")]
    JwksPace,
    /// The name of the cookie is not valid.
    #[error("jwt.cookie cannot be the name of a cookie: use A-Z a-z 0-9 . _ - only, or leave it empty")]
    Cookie,
    /// The keys are not available, so the token cannot be checked now.
    #[error("the keys that check tokens cannot be fetched from the issuer at the moment; try again")]
    KeysUnavailable,
    /// The secret is too short.
    #[error(
        "jwt.secret has {0} bytes and needs at least {SECRET_BYTES_MIN}: make one with `openssl rand -hex 32`"
    )]
    ShortSecret(usize),
    /// The key file cannot be read.
    #[error("cannot read [jwt] public_key_file {path}: {source}")]
    KeyFile {
        /// The path of the file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The key file holds no key of this kind.
    #[error("[jwt] public_key_file {path} holds no {algorithm:?} public key in PEM form")]
    Key {
        /// The path of the file.
        path: String,
        /// The algorithm that was configured.
        algorithm: Algorithm,
        /// The cause.
        source: jsonwebtoken::errors::Error,
    },
    /// The leeway is too long.
    #[error(
        "[jwt] leeway_seconds is {0} and may be at most {LEEWAY_SECONDS_MAX}: synchronize the clocks of both \
         machines by NTP"
    )]
    Leeway(u64),
    /// Tokens cannot be issued without the signing key.
    #[error(
        "this command signs tokens with HS256 only: set AFTERCOMMIT_JWT_SECRET and leave [jwt] algorithm at \
         HS256"
    )]
    CannotSign,
    /// The token is not valid.
    #[error("the token is not valid: {0}")]
    Token(&'static str),
    /// The ticket is not valid.
    #[error("the ticket is not valid or has expired: get a new one by POST /api/stream-tickets")]
    Ticket,
    /// An operator has revoked the credential.
    #[error("this token or ticket was revoked by an operator: sign in again to get a new one")]
    Revoked,
    /// An operator has revoked the credentials for a topic.
    #[error("the tokens and tickets for the topic {0} were revoked by an operator: get a new one")]
    RevokedTopic(String),
    /// The list of revocations has not been read yet.
    #[error("the list of revoked tokens cannot be read from the database at the moment; try again")]
    RevocationsUnknown,
    /// Tickets cannot be issued without a secret.
    #[error("this server issues no tickets: set AFTERCOMMIT_JWT_SECRET to the same secret on all servers")]
    NoTickets,
    /// Signing failed.
    #[error("the token cannot be signed: {0}")]
    Signing(#[source] jsonwebtoken::errors::Error),
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        match error {
            // The token may be valid. A page that receives 401 would throw it away.
            AuthError::KeysUnavailable | AuthError::RevocationsUnknown => {
                Self::unavailable(error.to_string())
            }
            _ => Self::unauthorized(error.to_string()),
        }
    }
}
