//! The `[jwt]` section.

use secrecy::SecretString;
use serde::Deserialize;

/// The shortest HS256 secret that is accepted, in bytes: the length of the hash (RFC 7518, 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// The longest token that is read, in bytes. Issuers stay far below it: browsers keep no cookie of more than
/// 4 KiB.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// The largest leeway. A larger difference cannot come from clocks.
pub(super) const LEEWAY_SECONDS_MAX: u64 = 3600;

/// A token is refused in the second in which it expires: a stream opened then would end at once (RFC 7519,
/// 4.1.4).
pub(super) const NOT_AT_EXPIRY: u64 = 1;

/// The `[jwt]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The secret that signs and checks HS256 tokens.
    pub secret: SecretString,
    /// A PEM file with the public key for tokens of the other algorithms; empty for none.
    pub public_key_file: String,
    /// The URL of the issuer's list of public keys (a JWKS, RFC 7517); empty for none.
    pub jwks_url: String,
    /// The interval between two fetches of that list, in seconds.
    pub jwks_refresh_seconds: u64,
    /// The shortest time between two fetches, in seconds, also when tokens with unknown keys arrive.
    pub jwks_cooldown_seconds: u64,
    /// The only algorithm that tokens may use.
    pub algorithm: Algorithm,
    /// The issuer that tokens must name; empty for any.
    pub issuer: String,
    /// The audience that tokens must name; empty for any.
    pub audience: String,
    /// The largest difference between the clocks of this machine and the issuer, in seconds.
    pub leeway_seconds: u64,
    /// The name of a cookie in which streams accept a token too; empty for none.
    pub cookie: String,
    /// The time for which a ticket opens streams, in seconds.
    pub ticket_seconds: u64,
}

/// The algorithm of a token's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256. The same secret signs and checks.
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
