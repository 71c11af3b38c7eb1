//! Checking a token's signature and claims.

use std::time::Duration;

use chrono::{DateTime, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use secrecy::ExposeSecret;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use super::jwks::{Fetcher, Jwks};
use super::settings::{Algorithm, Settings};
use super::tickets::Tickets;
use super::user::User;
use crate::address;
use crate::http::{Check, Problem};

/// The shortest HS256 secret that is taken, in bytes: the length of the hash (RFC 7518, 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// The longest leeway: more than that is no difference of clocks.
const LEEWAY_SECONDS_MAX: u64 = 3600;

/// A token is not taken in the second in which it expires, as a stream opened then would end at once (RFC 7519, 4.1.4).
pub(super) const NOT_AT_EXPIRY: u64 = 1;

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

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    #[serde(deserialize_with = "whole_seconds")]
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    subscribe: Vec<String>,
}

/// Some issuers write fractions of a second (RFC 7519, 2: `NumericDate`); the check of the expiry rounds as this does.
fn whole_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    #[expect(clippy::cast_possible_truncation, reason = "what is out of range is refused as such a date")]
    let rounded = number.as_f64().map(|seconds| seconds.round() as i64);
    number.as_i64().or(rounded).ok_or_else(|| serde::de::Error::custom("not a date"))
}

/// What signatures are checked with.
enum Keys {
    Fixed(DecodingKey),
    OfIssuer(Jwks),
}

/// Checks tokens as the configuration says. Waits for nothing, except with [`Settings::jwks_url`] for a key that is new.
pub struct Verifier {
    keys: Keys,
    validation: Validation,
    cookie: String,
    tickets: Option<Tickets>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the keys.
        f.debug_struct("Verifier").field("validation", &self.validation).finish_non_exhaustive()
    }
}

impl Verifier {
    /// Reads the keys, or begins to fetch them, for which it needs a runtime.
    ///
    /// # Errors
    /// What is wrong with the configuration. That the issuer is away is none.
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
        Ok(Self { keys, validation, cookie: settings.cookie.clone(), tickets: Tickets::new(settings)? })
    }

    /// Who a token speaks for.
    ///
    /// # Errors
    /// [`AuthError::Token`], without a word of the token itself, and [`AuthError::KeysUnavailable`].
    pub async fn verify(&self, token: &str) -> Result<User, AuthError> {
        let jwks = match &self.keys {
            Keys::Fixed(key) => return self.check(token, key),
            Keys::OfIssuer(jwks) => jwks,
        };
        let header = jsonwebtoken::decode_header(token).map_err(refused)?;
        // Before its key is looked for: what cannot be valid has nothing fetched.
        if !self.validation.algorithms.contains(&header.alg) {
            return Err(refused(ErrorKind::InvalidAlgorithm.into()));
        }
        jwks.with_key(header.kid.as_deref(), |key| self.check(token, key)).await
    }

    /// Whether keys are there, where they are fetched.
    pub fn readiness(&self) -> Option<Check> {
        match &self.keys {
            Keys::Fixed(_) => None,
            Keys::OfIssuer(jwks) => Some(Check::of("jwt", jwks.standing())),
        }
    }

    fn check(&self, token: &str, key: &DecodingKey) -> Result<User, AuthError> {
        let claims = jsonwebtoken::decode::<Claims>(token, key, &self.validation).map_err(refused)?.claims;
        let id = Uuid::try_parse(&claims.sub)
            .map_err(|_| AuthError::Token("its subject is not a UUID; 'sub' must be the user's id"))?;
        let until = claims.exp.saturating_add_unsigned(self.validation.leeway);
        let expires_at =
            DateTime::from_timestamp(until, 0).ok_or(AuthError::Token("its expiry is out of range"))?;
        Ok(User { id, expires_at, subscribe: claims.subscribe })
    }

    /// A ticket with which `user` can open streams of `topics`, and when it expires. The caller has made sure that there
    /// are at most [`TICKET_TOPICS_MAX`](super::TICKET_TOPICS_MAX).
    ///
    /// # Errors
    /// [`AuthError::NoTickets`], [`AuthError::Signing`].
    pub fn issue_ticket(&self, user: &User, topics: &[&str]) -> Result<(String, DateTime<Utc>), AuthError> {
        self.tickets.as_ref().ok_or(AuthError::NoTickets)?.issue(user, topics)
    }

    /// Who a ticket speaks for, and the topics that it is good for.
    pub(super) fn verify_ticket(&self, ticket: &str) -> Result<(User, Vec<String>), AuthError> {
        self.tickets.as_ref().ok_or(AuthError::NoTickets)?.verify(ticket)
    }

    /// The name of the cookie that holds a token; empty for none.
    pub(super) fn cookie(&self) -> &str {
        &self.cookie
    }
}

/// Makes a token for `user` that [`Verifier`] takes for so long.
///
/// # Errors
/// [`AuthError::CannotSign`] where the configuration has no secret, [`AuthError::Signing`].
pub fn issue(settings: &Settings, user: Uuid, valid_for: Duration) -> Result<String, AuthError> {
    issue_with(settings, user, valid_for, &[])
}

/// Makes a token as [`issue`] does, which also allows to listen to the topics of these patterns.
///
/// # Errors
/// As [`issue`].
pub fn issue_with(
    settings: &Settings,
    user: Uuid,
    valid_for: Duration,
    subscribe: &[String],
) -> Result<String, AuthError> {
    if settings.algorithm != Algorithm::HS256 || settings.secret.expose_secret().is_empty() {
        return Err(AuthError::CannotSign);
    }
    let named = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let claims = Claims {
        sub: user.to_string(),
        exp: Utc::now().timestamp().saturating_add_unsigned(valid_for.as_secs()),
        iss: named(&settings.issuer),
        aud: named(&settings.audience).map(serde_json::Value::String),
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

/// What can be said about the keys of these settings, fetched once where they are to be fetched: for a person.
///
/// # Errors
/// Why tokens cannot be checked, in a sentence without any secret.
pub async fn examine(settings: &Settings) -> Result<String, String> {
    let told = |error: AuthError| error.to_string();
    Verifier::new(settings).map_err(told)?;
    let algorithm = settings.algorithm;
    if !settings.jwks_url.is_empty() {
        let url = address::shown(&settings.jwks_url);
        let begun = std::time::Instant::now();
        let fetched = Fetcher::new(settings).map_err(told)?.fetch().await;
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

/// Everything for which [`Verifier::new`] would refuse these settings. Fetches nothing.
pub fn problems(settings: &Settings) -> Vec<AuthError> {
    let mut problems: Vec<AuthError> = check_simple(settings).err().into_iter().collect();
    match source_of(settings) {
        Err(error) => problems.push(error),
        // The secret of tickets. That of tokens has been looked at.
        Ok(_) => problems.extend(Tickets::new(settings).err()),
    }
    problems
}

/// What can be told from a setting alone.
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

/// Where keys come from.
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
            "HS256 is checked with the secret; for public_key_file or jwks_url set algorithm to RS256, ES256 or EdDSA",
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

fn refused(error: jsonwebtoken::errors::Error) -> AuthError {
    AuthError::Token(reason(error.kind()))
}

fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "it has expired; get a new one",
        ErrorKind::ImmatureSignature => {
            "it is not valid yet ('nbf'); compare the clocks of its issuer and this server"
        }
        ErrorKind::InvalidSignature => {
            "its signature does not fit; sign it with the key that [jwt] of this server names"
        }
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => {
            "its algorithm is not the configured one; sign it with [jwt] algorithm of this server"
        }
        ErrorKind::InvalidIssuer => "its issuer is another one; 'iss' must be [jwt] issuer of this server",
        ErrorKind::InvalidAudience => {
            "its audience is another one; 'aud' must name [jwt] audience of this server"
        }
        ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
            "iss" => "a required claim is missing: 'iss', as this server has a [jwt] issuer",
            "aud" => "a required claim is missing: 'aud', as this server has a [jwt] audience",
            _ => "a required claim is missing: it needs 'sub' and 'exp'",
        },
        ErrorKind::Json(_) => {
            "its header or its claims cannot be read; it needs 'sub', a UUID, and 'exp', in seconds since 1970"
        }
        _ => "it is malformed; send the three parts of a JWT as they were issued",
    }
}

#[cfg(test)]
#[path = "verifier_tests.rs"]
mod tests;
