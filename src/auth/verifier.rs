//! Checks a token's signature and claims.

use std::time::Duration;

use chrono::{DateTime, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use secrecy::ExposeSecret;
use serde::Serialize;

use super::claims::{self, TOKEN_REFUSED_SIZE};
use super::error::AuthError;
use super::jwks::{Fetcher, Jwks};
use super::revocations::Revocations;
use super::settings::{
    Algorithm, LEEWAY_SECONDS_MAX, NOT_AT_EXPIRY, SECRET_BYTES_MIN, Settings, TOKEN_BYTES_MAX,
};
use super::tickets::{TicketTopics, Tickets};
use super::user::User;
use super::user_id::UserId;
use crate::address;
use crate::http::Check;

/// The claims of a token that is issued here.
#[derive(Debug, Serialize)]
struct Claims {
    sub: UserId,
    exp: i64,
    iat: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subscribe: Vec<String>,
}

/// The keys that check signatures.
enum Keys {
    Fixed(DecodingKey),
    OfIssuer(Jwks),
}

/// Checks tokens as the configuration says. Never waits, except for an unknown key if [`Settings::jwks_url`]
/// is set.
pub struct Verifier {
    keys: Keys,
    validation: Validation,
    cookie: String,
    tickets: Option<Tickets>,
    revocations: Revocations,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The keys are left out.
        f.debug_struct("Verifier").field("validation", &self.validation).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Reads the keys. If [`Settings::jwks_url`] is set, starts to fetch them, which needs a Tokio runtime.
    ///
    /// # Errors
    /// The first mistake in the configuration. An issuer that is away is not an error.
    pub fn new(settings: &Settings) -> Result<Self, AuthError> {
        let mut validation = Validation::new(settings.algorithm.into());
        validation.leeway = settings.leeway_seconds;
        validation.reject_tokens_expiring_in_less_than = NOT_AT_EXPIRY;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "sub"]);
        if !settings.issuer.is_empty() {
            validation.set_issuer(&[&settings.issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        if settings.audience.is_empty() {
            validation.validate_aud = false;
        } else {
            validation.set_audience(&[&settings.audience]);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        check_simple(settings)?;
        let keys = match source_of(settings)? {
            Source::Fixed(key) => Keys::Fixed(key),
            Source::Issuer(fetcher) => Keys::OfIssuer(Jwks::start(fetcher, settings)),
        };
        let (cookie, tickets) = (settings.cookie.clone(), Tickets::new(settings)?);
        Ok(Self { keys, validation, cookie, tickets, revocations: Revocations::default() })
    }

    /// The same, which refuses what is on this list.
    #[must_use]
    pub fn with_revocations(self, revocations: Revocations) -> Self {
        Self { revocations, ..self }
    }

    /// The user that a token stands for.
    ///
    /// # Errors
    /// [`AuthError::Token`] if the token is not valid; the error does not quote it.
    /// [`AuthError::Revoked`] if an operator has revoked it. [`AuthError::KeysUnavailable`] if the issuer's keys
    /// cannot be fetched, [`AuthError::RevocationsUnknown`] if the revocations have not been read yet.
    pub async fn verify(&self, token: &str) -> Result<User, AuthError> {
        let user = self.authenticate(token).await?;
        self.revocations.check_user(&user.id, &user.credential)?;
        Ok(user)
    }

    async fn authenticate(&self, token: &str) -> Result<User, AuthError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(AuthError::Token(TOKEN_REFUSED_SIZE));
        }
        let jwks = match &self.keys {
            Keys::Fixed(key) => return self.check(token, key),
            Keys::OfIssuer(jwks) => jwks,
        };
        let header = jsonwebtoken::decode_header(token).map_err(|error| claims::refused(&error, token))?;
        // Checked before the key is looked up: a token that cannot be valid must not cause a fetch.
        if !self.validation.algorithms.contains(&header.alg) {
            return Err(claims::refused(&ErrorKind::InvalidAlgorithm.into(), token));
        }
        jwks.with_key(header.kid.as_deref(), |key| self.check(token, key)).await
    }

    /// Whether the issuer's keys are available. `None` if keys are not fetched.
    pub fn readiness(&self) -> Option<Check> {
        match &self.keys {
            Keys::Fixed(_) => None,
            Keys::OfIssuer(jwks) => Some(Check::of("jwt", jwks.standing())),
        }
    }

    fn check(&self, token: &str, key: &DecodingKey) -> Result<User, AuthError> {
        let decoded = jsonwebtoken::decode::<claims::Claims>(token, key, &self.validation);
        let claims = decoded.map_err(|error| claims::refused(&error, token))?.claims;
        let until = claims.expiry()?.saturating_add_unsigned(self.validation.leeway);
        let expires_at = DateTime::from_timestamp(until, 0)
            .ok_or(AuthError::Token("its expiry ('exp') is out of range"))?;
        let (id, subscribe, credential) = (claims.user()?, claims.subscribe()?, claims.credential()?);
        Ok(User { id, expires_at, subscribe, credential })
    }

    /// A ticket with which `user` can open streams of `topics`, and the time at which it expires. The caller
    /// ensures that there are at most [`TICKET_TOPICS_MAX`](super::TICKET_TOPICS_MAX) topics; then the ticket
    /// has at most [`TICKET_BYTES_MAX`](super::TICKET_BYTES_MAX) bytes.
    ///
    /// # Errors
    /// [`AuthError::NoTickets`] if the configuration has no secret, [`AuthError::Signing`] if signing fails.
    pub fn issue_ticket(&self, user: &User, topics: &[&str]) -> Result<(String, DateTime<Utc>), AuthError> {
        self.tickets.as_ref().ok_or(AuthError::NoTickets)?.issue(user, topics)
    }

    /// The user and the topics that a ticket stands for.
    pub(super) fn verify_ticket(&self, ticket: &str) -> Result<(User, TicketTopics), AuthError> {
        let (user, topics) = self.tickets.as_ref().ok_or(AuthError::NoTickets)?.verify(ticket)?;
        self.revocations.check_user(&user.id, &user.credential)?;
        Ok((user, topics))
    }

    /// What operators have revoked.
    pub(super) fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The name of the cookie that holds a token; empty for none.
    pub(super) fn cookie(&self) -> &str {
        &self.cookie
    }
}

/// Issues a token for `user` that [`Verifier`] accepts for the time `valid_for`.
///
/// # Errors
/// [`AuthError::CannotSign`] if the algorithm is not HS256 or there is no secret, [`AuthError::ShortSecret`]
/// if the secret is too short, [`AuthError::Signing`] if signing fails.
pub fn issue(settings: &Settings, user: impl Into<UserId>, valid_for: Duration) -> Result<String, AuthError> {
    issue_with(settings, user, valid_for, &[])
}

/// Issues a token as [`issue`] does, which also allows the topics of the patterns in `subscribe`.
///
/// # Errors
/// The errors of [`issue`].
pub fn issue_with(
    settings: &Settings,
    user: impl Into<UserId>,
    valid_for: Duration,
    subscribe: &[String],
) -> Result<String, AuthError> {
    if settings.algorithm != Algorithm::HS256 || settings.secret.expose_secret().is_empty() {
        return Err(AuthError::CannotSign);
    }
    let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let now = Utc::now().timestamp();
    let claims = Claims {
        sub: user.into(),
        exp: now.saturating_add_unsigned(valid_for.as_secs()),
        iat: now,
        iss: named(&settings.issuer),
        aud: named(&settings.audience),
        subscribe: subscribe.to_vec(),
    };
    let key = EncodingKey::from_secret(secret_of(settings)?);
    jsonwebtoken::encode(&Header::new(settings.algorithm.into()), &claims, &key).map_err(AuthError::Signing)
}

fn secret_of(settings: &Settings) -> Result<&[u8], AuthError> {
    let secret = settings.secret.expose_secret().as_bytes();
    match secret.len() {
        0 => Err(AuthError::NoKey),
        bytes if bytes < SECRET_BYTES_MIN => Err(AuthError::ShortSecret(bytes)),
        _ => Ok(secret),
    }
}

/// Describes the keys of these settings for a person. Fetches the issuer's keys once, if they are to be
/// fetched.
///
/// # Errors
/// The reason why tokens cannot be checked, in a sentence without any secret.
pub async fn examine(settings: &Settings) -> Result<String, String> {
    let text_of = |error: AuthError| error.to_string();
    Verifier::new(settings).map_err(text_of)?;
    let algorithm = settings.algorithm;
    if !settings.jwks_url.is_empty() {
        let url = address::shown(&settings.jwks_url);
        let begun = std::time::Instant::now();
        let fetched = Fetcher::new(settings).map_err(text_of)?.fetch().await;
        let keys = fetched.map_err(|error| format!("[jwt] jwks_url {url}: {error}"))?;
        let (found, others, took) = (keys.len(), keys.left_out, begun.elapsed().as_millis());
        return Ok(format!(
            "keys for {algorithm:?}: {found} (others: {others}) at {url}, fetched in {took} ms"
        ));
    }
    if algorithm == Algorithm::HS256 {
        return Ok("tokens can be verified: HS256 by jwt.secret".to_owned());
    }
    let path = &settings.public_key_file;
    let written = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let age = written.and_then(|at| at.elapsed().ok()).map_or(0, |age| age.as_secs() / 86_400);
    Ok(format!("tokens can be verified: {algorithm:?} by {path}, written {age} days ago"))
}

/// All errors for which [`Verifier::new`] would refuse these settings. Fetches nothing.
pub fn problems(settings: &Settings) -> Vec<AuthError> {
    let mut problems: Vec<AuthError> = check_simple(settings).err().into_iter().collect();
    match source_of(settings) {
        Err(error) => problems.push(error),
        // The secret of tickets. The secret of tokens has been checked above.
        Ok(_) => problems.extend(Tickets::new(settings).err()),
    }
    problems
}

/// Checks the settings that can be checked on their own.
fn check_simple(settings: &Settings) -> Result<(), AuthError> {
    if settings.leeway_seconds > LEEWAY_SECONDS_MAX {
        return Err(AuthError::Leeway(settings.leeway_seconds));
    }
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !settings.cookie.bytes().all(is_allowed) {
        return Err(AuthError::Cookie);
    }
    Ok(())
}

/// The source of keys.
enum Source {
    Fixed(DecodingKey),
    Issuer(Fetcher),
}

/// The one source of keys that the settings name.
fn source_of(settings: &Settings) -> Result<Source, AuthError> {
    let algorithm = settings.algorithm;
    match (algorithm, settings.public_key_file.is_empty(), settings.jwks_url.is_empty()) {
        (Algorithm::HS256, true, true) => Ok(Source::Fixed(DecodingKey::from_secret(secret_of(settings)?))),
        (Algorithm::HS256, ..) => Err(AuthError::Sources(
            algorithm,
            "HS256 is checked with the secret; for public_key_file or jwks_url set algorithm to RS256, ES256 \
             or EdDSA",
        )),
        (_, true, true) => Err(AuthError::NoKey),
        (_, false, false) => Err(AuthError::Sources(
            algorithm,
            "keep either public_key_file or jwks_url, and remove the other",
        )),
        (_, false, true) => Ok(Source::Fixed(key_of_file(settings)?)),
        (_, true, false) => Ok(Source::Issuer(Fetcher::new(settings)?)),
    }
}

fn key_of_file(settings: &Settings) -> Result<DecodingKey, AuthError> {
    let path = &settings.public_key_file;
    let pem = std::fs::read(path).map_err(|source| AuthError::KeyFile { path: path.clone(), source })?;
    match settings.algorithm {
        Algorithm::RS256 => DecodingKey::from_rsa_pem(&pem),
        Algorithm::ES256 => DecodingKey::from_ec_pem(&pem),
        Algorithm::EdDSA | Algorithm::HS256 => DecodingKey::from_ed_pem(&pem),
    }
    .map_err(|source| AuthError::Key { path: path.clone(), algorithm: settings.algorithm, source })
}

#[cfg(test)]
#[path = "verifier_tests.rs"]
mod tests;
