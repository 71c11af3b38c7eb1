//! The `[jwt]` section.

use secrecy::SecretString;
use serde::Deserialize;

/// The shortest HS256 secret that is taken, in bytes: the length of the hash (RFC 7518, 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// The longest token that is read, in bytes. Issuers stay far below: browsers keep no cookie of more than 4 KiB.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// The longest leeway: more than that is no difference of clocks.
pub(super) const LEEWAY_SECONDS_MAX: u64 = 3600;

/// A token is not taken in the second in which it expires, as a stream opened then would end at once (RFC 7519, 4.1.4).
pub(super) const NOT_AT_EXPIRY: u64 = 1;

/// The `[jwt]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The secret of HS256 tokens.
    pub secret: SecretString,
    /// A PEM file with the public key of the other algorithms' tokens; empty for none.
    pub public_key_file: String,
    /// Where the issuer lists its public keys (a JWKS, RFC 7517); empty for none.
    pub jwks_url: String,
    /// How often that list is fetched, in seconds.
    pub jwks_refresh_seconds: u64,
    /// How long after a fetch no other one is made, whatever arrives, in seconds.
    pub jwks_cooldown_seconds: u64,
    /// The one algorithm that tokens may use.
    pub algorithm: Algorithm,
    /// The issuer that tokens must name; empty for any.
    pub issuer: String,
    /// The audience that tokens must name; empty for any.
    pub audience: String,
    /// How far the clocks of this machine and the issuer may differ, in seconds.
    pub leeway_seconds: u64,
    /// The cookie in which streams take a token too; empty for none.
    pub cookie: String,
    /// How long a ticket opens streams, in seconds.
    pub ticket_seconds: u64,
}

/// How tokens are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256: one secret signs and checks.
    HS256,
    /// RSA with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl From<Algorithm> for jsonwebtoken::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::HS256 => Self::HS256,
            Algorithm::RS256 => Self::RS256,
            Algorithm::ES256 => Self::ES256,
            Algorithm::EdDSA => Self::EdDSA,
        }
    }
}
