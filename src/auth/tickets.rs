//! Tickets: what a page puts into the URL of a cross-site EventSource, which can send neither a header nor our cookie.
//!
//! A ticket is bound to one user and to up to [`TICKET_TOPICS_MAX`] topics, and opens streams for a short time, as often as the browser asks: it
//! retries the same URL. The streams that it opens live as long as the token that it was made with. Its key is derived
//! from `jwt.secret`, so that no ticket passes for a token and no token for a ticket, and all servers agree.

use std::time::Duration;

use chrono::{DateTime, Utc};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::settings::Settings;
use super::user::User;
use super::verifier::{AuthError, NOT_AT_EXPIRY, SECRET_BYTES_MIN};

/// What the key is derived for: another purpose would get another key.
const PURPOSE: &[u8] = b"aftercommit stream tickets";

/// The topics that one ticket is good for at most: they stand in a URL, and proxies take about 8 KiB of that.
pub const TICKET_TOPICS_MAX: usize = 32;

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: Uuid,
    exp: i64,
    /// When the token that the ticket was made with expires.
    until: i64,
    /// Topics that the token's patterns allow.
    subscribe: Vec<String>,
    /// Topics that they do not allow: the application's own rules decide.
    topics: Vec<String>,
}

/// Makes and checks tickets. Does no I/O.
pub(super) struct Tickets {
    sign: EncodingKey,
    check: DecodingKey,
    validation: Validation,
    valid_for: Duration,
}

impl Tickets {
    /// `None` where there is no secret to derive the key from.
    pub(super) fn new(settings: &Settings) -> Result<Option<Self>, AuthError> {
        let secret = settings.secret.expose_secret().as_bytes();
        match secret.len() {
            0 => return Ok(None),
            bytes if bytes < SECRET_BYTES_MIN => return Err(AuthError::ShortSecret(bytes)),
            _ => {}
        }
        let algorithm = jsonwebtoken::Algorithm::HS256;
        let derived = jsonwebtoken::crypto::sign(PURPOSE, &EncodingKey::from_secret(secret), algorithm)
            .map_err(AuthError::Signing)?;
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.reject_tokens_expiring_in_less_than = NOT_AT_EXPIRY;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp", "sub"]);
        Ok(Some(Self {
            sign: EncodingKey::from_secret(derived.as_bytes()),
            check: DecodingKey::from_secret(derived.as_bytes()),
            validation,
            valid_for: Duration::from_secs(settings.ticket_seconds),
        }))
    }

    /// A ticket for `topics`, and when it expires: never after the token that it is made with.
    pub(super) fn issue(&self, user: &User, topics: &[&str]) -> Result<(String, DateTime<Utc>), AuthError> {
        let topics = topics.iter().map(|topic| (*topic).to_owned());
        let (subscribe, topics) = topics.partition(|topic| user.may_subscribe(topic));
        let expires_at = (Utc::now() + self.valid_for).min(user.expires_at);
        let claims = Claims {
            sub: user.id,
            exp: expires_at.timestamp(),
            until: user.expires_at.timestamp(),
            subscribe,
            topics,
        };
        let ticket = jsonwebtoken::encode(&Header::default(), &claims, &self.sign);
        Ok((ticket.map_err(AuthError::Signing)?, expires_at))
    }

    /// Who a ticket speaks for, and the topics that it is good for.
    pub(super) fn verify(&self, ticket: &str) -> Result<(User, Vec<String>), AuthError> {
        const REFUSED: AuthError = AuthError::Ticket;
        let claims = jsonwebtoken::decode::<Claims>(ticket, &self.check, &self.validation)
            .map_err(|_| REFUSED)?
            .claims;
        let expires_at = DateTime::from_timestamp(claims.until, 0).ok_or(REFUSED)?;
        let topics = claims.subscribe.iter().cloned().chain(claims.topics).collect();
        Ok((User { id: claims.sub, expires_at, subscribe: claims.subscribe }, topics))
    }
}
