//! Why a token, or the configuration that checks it, is refused.

use super::settings::{Algorithm, LEEWAY_SECONDS_MAX, SECRET_BYTES_MIN};
use crate::http::Problem;

/// Why a token, or the configuration that checks it, is refused.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No key was configured.
    #[error(
        "no key for tokens: set AFTERCOMMIT_JWT_SECRET (at least {SECRET_BYTES_MIN} bytes), or [jwt] algorithm with public_key_file or jwks_url"
    )]
    NoKey,
    /// More than one source of keys.
    #[error("[jwt] names more than one source of keys for {0:?}: {1}")]
    Sources(Algorithm, &'static str),
    /// The address of the issuer's keys is not one.
    #[error("[jwt] jwks_url must be of the form https://host/path, without user or password")]
    JwksUrl,
    /// The pace of fetching is none.
    #[error("[jwt] jwks_refresh_seconds and jwks_cooldown_seconds must be at least 1")]
    JwksPace,
    /// The name of the cookie cannot be one.
    #[error("jwt.cookie cannot be the name of a cookie: use A-Z a-z 0-9 . _ - only, or leave it empty")]
    Cookie,
    /// Whether the token is valid cannot be told now.
    #[error("the keys of tokens cannot be fetched from their issuer at the moment; try again")]
    KeysUnavailable,
    /// The secret is too short to be one.
    #[error(
        "jwt.secret has {0} bytes and needs at least {SECRET_BYTES_MIN}: make one with `openssl rand -hex 32`"
    )]
    ShortSecret(usize),
    /// The key file cannot be read.
    #[error("cannot read [jwt] public_key_file {path}: {source}")]
    KeyFile {
        /// Its path.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The key file holds no key of this kind.
    #[error("[jwt] public_key_file {path} holds no {algorithm:?} public key in PEM form")]
    Key {
        /// Its path.
        path: String,
        /// The algorithm that was configured.
        algorithm: Algorithm,
        /// The cause.
        source: jsonwebtoken::errors::Error,
    },
    /// The leeway is too long.
    #[error(
        "[jwt] leeway_seconds is {0}, and {LEEWAY_SECONDS_MAX} is the most: set the clocks of both machines by NTP"
    )]
    Leeway(u64),
    /// Tokens cannot be issued without the signing key.
    #[error(
        "tokens for trying out are signed with HS256: set AFTERCOMMIT_JWT_SECRET and leave [jwt] algorithm at HS256"
    )]
    CannotSign,
    /// The token is not valid.
    #[error("the token is not valid: {0}")]
    Token(&'static str),
    /// The ticket is not valid.
    #[error("the ticket is not valid or has expired: get another one by POST /api/stream-tickets")]
    Ticket,
    /// Tickets cannot be made without a secret.
    #[error("this server makes no tickets: set AFTERCOMMIT_JWT_SECRET, the same for all servers")]
    NoTickets,
    /// Signing failed.
    #[error("the token cannot be signed: {0}")]
    Signing(#[source] jsonwebtoken::errors::Error),
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        match error {
            // The token may be good: a page that is told 401 would throw it away.
            AuthError::KeysUnavailable => Self::unavailable(error.to_string()),
            _ => Self::unauthorized(error.to_string()),
        }
    }
}
