//! Reads a token claim by claim, so that a refusal can name the claim that is wrong. Never quotes a token.

use std::sync::Arc;

use jsonwebtoken::errors::{Error, ErrorKind};
use serde_json::{Map, Value};

use super::error::AuthError;
use super::revocations::{Credential, TokenMark};
use super::user_id::UserId;

/// The refusal of a token of more than [`TOKEN_BYTES_MAX`](super::TOKEN_BYTES_MAX) bytes.
pub(super) const TOKEN_REFUSED_SIZE: &str =
    "it has more than 8192 bytes; leave out claims, or name topics by their beginnings in 'subscribe'";

const NO_EXP: &str =
    "a required claim is missing, or is not a number: 'exp', in seconds since 1970, when the token expires";
const NO_SUB: &str = "a required claim is missing, or is not a text: 'sub', the user's id";
const NO_ISS: &str =
    "a required claim is missing, or is not a text: 'iss', because this server sets [jwt] issuer";
const NO_AUD: &str = "a required claim is missing, or is neither a text nor a list of texts: 'aud', because \
                      this server sets [jwt] audience";
const WRONG_NBF: &str =
    "the claim 'nbf' (the time from which the token is valid) is not a number of seconds since 1970";
const WRONG_SUB: &str =
    "the claim 'sub' (the user's id) must have 1 to 255 characters, none of them a control character";
const WRONG_SUBSCRIBE: &str =
    "the claim 'subscribe' must be a list of topics, or of their beginnings followed by *";
const WRONG_ALGORITHM: &str =
    "its algorithm ('alg') is not the configured one; sign it with [jwt] algorithm of this server";
const NO_HEADER: &str =
    "its header cannot be read; it needs 'alg', and that must be the [jwt] algorithm of this server";
const MALFORMED: &str = "it is malformed; send the three parts of a JWT as they were issued";

/// The claims of a token whose signature fits.
#[derive(Debug, serde::Deserialize)]
#[serde(transparent)]
pub(super) struct Claims(Map<String, Value>);

impl Claims {
    /// The user that the token stands for.
    pub(super) fn user(&self) -> Result<UserId, AuthError> {
        let text = self.0.get("sub").and_then(Value::as_str).ok_or(AuthError::Token(NO_SUB))?;
        UserId::new(Arc::<str>::from(text)).map_err(|_| AuthError::Token(WRONG_SUB))
    }

    /// The time of expiry, in seconds since 1970. Some issuers write fractions of a second (RFC 7519, 2:
    /// `NumericDate`). They are rounded here as the check of the expiry rounds them.
    pub(super) fn expiry(&self) -> Result<i64, AuthError> {
        let number = self.0.get("exp").filter(|exp| exp.is_number()).ok_or(AuthError::Token(NO_EXP))?;
        #[expect(clippy::cast_possible_truncation, reason = "what is out of range is refused as such a date")]
        let rounded = number.as_f64().map(|seconds| seconds.round() as i64);
        number.as_i64().or(rounded).ok_or(AuthError::Token(NO_EXP))
    }

    /// When the token was issued and which one it is, as far as it says. Not required: a token without `iat`
    /// counts as older than every revocation, and one without `jti` cannot be revoked alone.
    pub(super) fn credential(&self) -> Result<Credential, AuthError> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "what is out of range is the first or last second"
        )]
        let seconds = |iat: &Value| iat.as_i64().or(iat.as_f64().map(|iat| iat.floor() as i64));
        let token = self.0.get("jti").and_then(Value::as_str).map(TokenMark::of).transpose()?;
        Ok(Credential { issued_at: self.0.get("iat").and_then(seconds), token })
    }

    /// The topics that the token allows; none without the claim. The list is no longer than the token, which
    /// is bounded.
    pub(super) fn subscribe(&self) -> Result<Vec<String>, AuthError> {
        let listed = match self.0.get("subscribe") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(listed)) => listed,
            Some(_) => return Err(AuthError::Token(WRONG_SUBSCRIBE)),
        };
        let texts = listed.iter().map(|pattern| pattern.as_str().map(str::to_owned));
        texts.collect::<Option<_>>().ok_or(AuthError::Token(WRONG_SUBSCRIBE))
    }
}

/// The reason why `token` is refused, in words that name the claim.
pub(super) fn refused(error: &Error, token: &str) -> AuthError {
    AuthError::Token(match error.kind() {
        ErrorKind::ExpiredSignature => "it has expired ('exp'); get a new one",
        ErrorKind::ImmatureSignature => {
            "it is not valid yet ('nbf'); compare the clocks of its issuer and this server"
        }
        ErrorKind::InvalidSignature => {
            "its signature does not fit; sign it with the key that [jwt] of this server names"
        }
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => WRONG_ALGORITHM,
        ErrorKind::InvalidIssuer => "its issuer is another one; 'iss' must be [jwt] issuer of this server",
        ErrorKind::InvalidAudience => {
            "its audience is another one; 'aud' must name [jwt] audience of this server"
        }
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            wrong(claim).unwrap_or(MALFORMED)
        }
        // A claim whose value the check of the claims cannot parse.
        ErrorKind::Json(_) => unreadable(token),
        _ => MALFORMED,
    })
}

/// The refusal of a claim that is missing or of a wrong type.
fn wrong(claim: &str) -> Option<&'static str> {
    match claim {
        "exp" => Some(NO_EXP),
        "nbf" => Some(WRONG_NBF),
        "sub" => Some(NO_SUB),
        "iss" => Some(NO_ISS),
        "aud" => Some(NO_AUD),
        _ => None,
    }
}

/// Names the part of a token that cannot be read: its header, its claims as a whole, or one of them.
fn unreadable(token: &str) -> &'static str {
    if jsonwebtoken::decode_header(token).is_err() {
        return NO_HEADER;
    }
    // The signature does not matter here: no claim is trusted, and the answer contains only a claim's name.
    let Ok(decoded) = jsonwebtoken::dangerous::insecure_decode::<Claims>(token) else {
        return "its claims cannot be read; they are a JSON object with at least 'sub' and 'exp'";
    };
    let claims = decoded.claims.0;
    let is_texts = |value: &Value| match value {
        Value::Array(listed) => listed.iter().all(Value::is_string),
        value => value.is_string(),
    };
    let fits = |claim: &str| match (claim, claims.get(claim)) {
        ("exp" | "nbf", Some(value)) => value.is_number(),
        ("iss" | "aud", Some(value)) => is_texts(value),
        (_, Some(value)) => value.is_string(),
        (_, None) => true,
    };
    let unfit = ["sub", "exp", "nbf", "iss", "aud"].into_iter().find(|claim| !fits(claim));
    unfit.and_then(wrong).unwrap_or(MALFORMED)
}
