//! The `[jwt]` section.

use secrecy::SecretString;
use serde::Deserialize;

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
