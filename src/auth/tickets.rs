//! Tickets: what a page puts into the URL of a cross-site EventSource, which can send neither a header nor our cookie.
//!
//! A ticket is bound to one user and one topic and opens streams for a short time, as often as the browser asks: it
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
use super::verifier::{AuthError, SECRET_BYTES_MIN};

/// What the key is derived for: another purpose would get another key.
const PURPOSE: &[u8] = b"aftercommit stream tickets";

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: Uuid,
    exp: i64,
    /// When the token that the ticket was made with expires.
    until: i64,
    topic: String,
    /// Whether that token's patterns allow the topic.
    subscribe: bool,
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
        if secret.len() < SECRET_BYTES_MIN {
            return Ok(None);
        }
        let algorithm = jsonwebtoken::Algorithm::HS256;
        let derived = jsonwebtoken::crypto::sign(PURPOSE, &EncodingKey::from_secret(secret), algorithm)
            .map_err(AuthError::Signing)?;
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp", "sub"]);
        Ok(Some(Self {
            sign: EncodingKey::from_secret(derived.as_bytes()),
            check: DecodingKey::from_secret(derived.as_bytes()),
            validation,
            valid_for: Duration::from_secs(settings.ticket_seconds),
        }))
    }

    /// A ticket for `topic`, and when it expires: never after the token that it is made with.
    pub(super) fn issue(&self, user: &User, topic: &str) -> Result<(String, DateTime<Utc>), AuthError> {
        let expires_at = (Utc::now() + self.valid_for).min(user.expires_at);
        let claims = Claims {
            sub: user.id,
            exp: expires_at.timestamp(),
            until: user.expires_at.timestamp(),
            topic: topic.to_owned(),
            subscribe: user.may_subscribe(topic),
        };
        let ticket = jsonwebtoken::encode(&Header::default(), &claims, &self.sign);
        Ok((ticket.map_err(AuthError::Signing)?, expires_at))
    }

    /// Who a ticket speaks for, and the one topic that it is good for.
    pub(super) fn verify(&self, ticket: &str) -> Result<(User, String), AuthError> {
        const REFUSED: AuthError = AuthError::Ticket;
        let claims = jsonwebtoken::decode::<Claims>(ticket, &self.check, &self.validation)
            .map_err(|_| REFUSED)?
            .claims;
        let expires_at = DateTime::from_timestamp(claims.until, 0).ok_or(REFUSED)?;
        let subscribe = if claims.subscribe { vec![claims.topic.clone()] } else { Vec::new() };
        Ok((User { id: claims.sub, expires_at, subscribe }, claims.topic))
    }
}
