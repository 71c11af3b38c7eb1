//! Tickets: what a page puts into the URL of a cross-site EventSource, which can send neither a header nor our cookie.
//!
//! A ticket is bound to one user and to up to [`TICKET_TOPICS_MAX`] topics, and opens streams for a short time, as often as
//! the browser asks: it retries the same URL. The streams that it opens live as long as the token that it was made with.
//! Its keys are derived from `jwt.secret`, so that no ticket passes for a token and no token for a ticket, and all servers
//! agree. It holds a short mark for each topic and not its name, so that the length of a ticket is bounded by their number.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::error::AuthError;
use super::settings::{NOT_AT_EXPIRY, SECRET_BYTES_MIN, Settings};
use super::user::User;
use super::user_id::UserId;

/// What the keys are derived for: another purpose gets another key.
const SIGN_TICKETS: &[u8] = b"aftercommit stream tickets";
const MARK_TOPICS: &[u8] = b"aftercommit stream tickets: topics";

/// Topics that one ticket is good for at most, and so topics of one stream: they stand in a URL.
pub const TICKET_TOPICS_MAX: usize = 32;

/// Characters of a topic's mark: 132 bits.
const MARK_CHARS: usize = 22;

/// Bytes of a ticket's claims at most: the user, whose quotes are escaped, two times, the marks, and the names of all these.
const CLAIMS_BYTES_MAX: usize = UserId::BYTES_MAX + 2 * 20 + TICKET_TOPICS_MAX * (MARK_CHARS + 3) + 64;

/// Bytes of a ticket at most: header, claims and signature in base64 with two dots between them.
pub const TICKET_BYTES_MAX: usize = 36 + 1 + CLAIMS_BYTES_MAX.div_ceil(3) * 4 + 1 + 43;

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: UserId,
    exp: i64,
    /// When the token that the ticket was made with expires.
    until: i64,
    /// Marks of topics that the token's patterns allow.
    subscribe: Vec<String>,
    /// Marks of topics that they do not allow: the application's own rules decide.
    topics: Vec<String>,
}

/// The topics that a ticket is good for.
#[derive(Clone)]
pub(super) struct TicketTopics {
    marks: Arc<EncodingKey>,
    subscribe: Vec<String>,
    topics: Vec<String>,
}

impl fmt::Debug for TicketTopics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.debug_struct("TicketTopics").field("count", &(self.subscribe.len() + self.topics.len())).finish()
    }
}

impl TicketTopics {
    /// Whether the ticket is for this topic.
    pub(super) fn covers(&self, topic: &str) -> bool {
        mark_of(topic, &self.marks)
            .is_ok_and(|mark| self.subscribe.contains(&mark) || self.topics.contains(&mark))
    }

    /// Whether the token that it was made with allows this topic.
    pub(super) fn may_subscribe(&self, topic: &str) -> bool {
        mark_of(topic, &self.marks).is_ok_and(|mark| self.subscribe.contains(&mark))
    }
}

/// What stands for a topic in a ticket: the beginning of its HMAC.
fn mark_of(topic: &str, key: &EncodingKey) -> Result<String, AuthError> {
    let signed = jsonwebtoken::crypto::sign(topic.as_bytes(), key, jsonwebtoken::Algorithm::HS256);
    let mut mark = signed.map_err(AuthError::Signing)?;
    mark.truncate(MARK_CHARS);
    Ok(mark)
}

/// A key for one purpose.
fn derived(secret: &[u8], purpose: &[u8]) -> Result<String, AuthError> {
    let secret = EncodingKey::from_secret(secret);
    jsonwebtoken::crypto::sign(purpose, &secret, jsonwebtoken::Algorithm::HS256).map_err(AuthError::Signing)
}

/// Makes and checks tickets. Does no I/O.
pub(super) struct Tickets {
    sign: EncodingKey,
    check: DecodingKey,
    marks: Arc<EncodingKey>,
    validation: Validation,
    valid_for: Duration,
}

impl Tickets {
    /// `None` where there is no secret to derive the keys from.
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

    /// A ticket for `topics`, and when it expires: never after the token that it is made with.
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
            subscribe: marked(subscribe)?,
            topics: marked(topics)?,
        };
        let ticket = jsonwebtoken::encode(&Header::default(), &claims, &self.sign);
        Ok((ticket.map_err(AuthError::Signing)?, expires_at))
    }

    /// Who a ticket speaks for, and the topics that it is good for.
    pub(super) fn verify(&self, ticket: &str) -> Result<(User, TicketTopics), AuthError> {
        const REFUSED: AuthError = AuthError::Ticket;
        let claims = jsonwebtoken::decode::<Claims>(ticket, &self.check, &self.validation)
            .map_err(|_| REFUSED)?
            .claims;
        let expires_at = DateTime::from_timestamp(claims.until, 0).ok_or(REFUSED)?;
        let Claims { sub, subscribe, topics, .. } = claims;
        let topics = TicketTopics { marks: self.marks.clone(), subscribe, topics };
        Ok((User { id: sub, expires_at, subscribe: Vec::new() }, topics))
    }
}

#[cfg(test)]
#[path = "tickets_tests.rs"]
mod tests;
