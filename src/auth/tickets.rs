//! Tickets: credentials in the URL of a cross-site EventSource, which can send neither a header nor our
//! cookie.
//!
//! A ticket is bound to one user and to at most [`TICKET_TOPICS_MAX`] topics. It opens streams for a short
//! time, any number of times, because a browser retries the same URL. Streams that it opens live as long as
//! the token for which it was issued. Its keys are derived from `jwt.secret`: a ticket never passes for a
//! token, nor a token for a ticket, and all servers accept each other's tickets. It holds a short mark for
//! each topic instead of the name, so that the number of topics bounds its length.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::error::AuthError;
use super::revocations::{Credential, TokenMark};
use super::settings::{NOT_AT_EXPIRY, SECRET_BYTES_MIN, Settings};
use super::user::User;
use super::user_id::UserId;

/// The purposes of the derived keys. Each purpose has a key of its own.
const SIGN_TICKETS: &[u8] = b"aftercommit stream tickets";
const MARK_TOPICS: &[u8] = b"aftercommit stream tickets: topics";

/// The largest number of topics of a ticket, and so of a stream. Both stand in a URL.
pub const TICKET_TOPICS_MAX: usize = 32;

/// The length of a topic's mark in characters: 132 bits.
const MARK_CHARS: usize = 22;

/// The largest size of a ticket's claims in bytes: the user with escaped quotes, three timestamps, the marks of
/// the topics and of the token, and the names of the claims.
const CLAIMS_BYTES_MAX: usize = UserId::BYTES_MAX + 3 * 20 + (TICKET_TOPICS_MAX + 1) * (MARK_CHARS + 3) + 80;

/// The largest size of a ticket in bytes: header, claims and signature in base64, with two dots between them.
pub const TICKET_BYTES_MAX: usize = 36 + 1 + CLAIMS_BYTES_MAX.div_ceil(3) * 4 + 1 + 43;

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: UserId,
    exp: i64,
    /// The time at which the token expires for which the ticket was issued.
    until: i64,
    /// When that token was issued, and its mark: a ticket is revoked with its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iat: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jti: Option<TokenMark>,
    /// Marks of topics that the `subscribe` claim of that token allows.
    subscribe: Vec<String>,
    /// Marks of topics that it does not allow. The application's own rules decide about them.
    topics: Vec<String>,
}

/// The topics that a ticket covers.
#[derive(Clone)]
pub(super) struct TicketTopics {
    marks: Arc<EncodingKey>,
    subscribe: Vec<String>,
    topics: Vec<String>,
}

impl fmt::Debug for TicketTopics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is left out.
        f.debug_struct("TicketTopics").field("count", &(self.subscribe.len() + self.topics.len())).finish()
    }
}

impl TicketTopics {
    /// Whether the ticket covers this topic.
    pub(super) fn covers(&self, topic: &str) -> bool {
        mark_of(topic, &self.marks)
            .is_ok_and(|mark| self.subscribe.contains(&mark) || self.topics.contains(&mark))
    }

    /// Whether the token for which the ticket was issued allows this topic.
    pub(super) fn may_subscribe(&self, topic: &str) -> bool {
        mark_of(topic, &self.marks).is_ok_and(|mark| self.subscribe.contains(&mark))
    }
}

/// The mark of a topic in a ticket: the beginning of its HMAC.
fn mark_of(topic: &str, key: &EncodingKey) -> Result<String, AuthError> {
    let signed = jsonwebtoken::crypto::sign(topic.as_bytes(), key, jsonwebtoken::Algorithm::HS256);
    let mut mark = signed.map_err(AuthError::Signing)?;
    mark.truncate(MARK_CHARS);
    Ok(mark)
}

/// A key for one purpose, derived from the secret.
fn derived(secret: &[u8], purpose: &[u8]) -> Result<String, AuthError> {
    let secret = EncodingKey::from_secret(secret);
    jsonwebtoken::crypto::sign(purpose, &secret, jsonwebtoken::Algorithm::HS256).map_err(AuthError::Signing)
}

/// Issues and checks tickets. Does no I/O.
pub(super) struct Tickets {
    sign: EncodingKey,
    check: DecodingKey,
    marks: Arc<EncodingKey>,
    validation: Validation,
    valid_for: Duration,
}

impl Tickets {
    /// Returns `None` if there is no secret to derive the keys from.
    pub(super) fn new(settings: &Settings) -> Result<Option<Self>, AuthError> {
        let secret = settings.secret.expose_secret().as_bytes();
        match secret.len() {
            0 => return Ok(None),
            bytes if bytes < SECRET_BYTES_MIN => return Err(AuthError::ShortSecret(bytes)),
            _ => {}
        }
        let (signing, marking) = (derived(secret, SIGN_TICKETS)?, derived(secret, MARK_TOPICS)?);
        let mut validation = Validation::new(jsonwebtoken::Algorithm::HS256);
        validation.leeway = 0;
        validation.reject_tokens_expiring_in_less_than = NOT_AT_EXPIRY;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp", "sub"]);
        Ok(Some(Self {
            sign: EncodingKey::from_secret(signing.as_bytes()),
            check: DecodingKey::from_secret(signing.as_bytes()),
            marks: Arc::new(EncodingKey::from_secret(marking.as_bytes())),
            validation,
            valid_for: Duration::from_secs(settings.ticket_seconds),
        }))
    }

    /// A ticket for `topics`, and the time at which it expires: never later than the token of `user`.
    pub(super) fn issue(&self, user: &User, topics: &[&str]) -> Result<(String, DateTime<Utc>), AuthError> {
        let (subscribe, topics): (Vec<&str>, Vec<&str>) =
            topics.iter().partition(|topic| user.may_subscribe(topic));
        let marked = |topics: Vec<&str>| -> Result<Vec<String>, AuthError> {
            topics.into_iter().map(|topic| mark_of(topic, &self.marks)).collect()
        };
        let expires_at = (Utc::now() + self.valid_for).min(user.expires_at);
        let claims = Claims {
            sub: user.id.clone(),
            exp: expires_at.timestamp(),
            until: user.expires_at.timestamp(),
            iat: user.credential.issued_at,
            jti: user.credential.token.clone(),
            subscribe: marked(subscribe)?,
            topics: marked(topics)?,
        };
        let ticket = jsonwebtoken::encode(&Header::default(), &claims, &self.sign);
        Ok((ticket.map_err(AuthError::Signing)?, expires_at))
    }

    /// The user and the topics that a ticket stands for.
    pub(super) fn verify(&self, ticket: &str) -> Result<(User, TicketTopics), AuthError> {
        const REFUSED: AuthError = AuthError::Ticket;
        let claims = jsonwebtoken::decode::<Claims>(ticket, &self.check, &self.validation)
            .map_err(|_| REFUSED)?
            .claims;
        let expires_at = DateTime::from_timestamp(claims.until, 0).ok_or(REFUSED)?;
        let Claims { sub, subscribe, topics, iat, jti, .. } = claims;
        let credential = Credential { issued_at: iat, token: jti };
        let topics = TicketTopics { marks: self.marks.clone(), subscribe, topics };
        Ok((User { id: sub, expires_at, subscribe: Vec::new(), credential }, topics))
    }
}

#[cfg(test)]
#[path = "tickets_tests.rs"]
mod tests;
