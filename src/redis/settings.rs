//! The `[redis]` section.

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use super::keys::Keys;

/// The `[redis]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `redis://[user:password@]host:port`, with TLS `rediss://`, or `unix:///PATH`.
    pub url: SecretString,
    /// A PEM file with the certificates of the CAs that may sign the server's; empty for the machine's CAs.
    pub tls_ca_file: String,
    /// A PEM file with the client's certificate; empty for none.
    pub tls_cert_file: String,
    /// A PEM file with the key of the client's certificate.
    pub tls_key_file: String,
    /// How long to wait for a connection, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long to wait for an answer, in milliseconds.
    pub response_timeout_ms: u64,
    /// Replicas that must have a batch before the relay writes down that it is delivered; 0 asks for none.
    pub min_replicas: u32,
    /// The prefix that keeps the keys and channels of several logs on one Redis apart; empty for none.
    pub namespace: String,
    /// About how many events the history of a topic keeps.
    pub history_max_events: u64,
    /// About how many bytes of payloads the history of a topic keeps.
    pub history_max_bytes: u64,
    /// How long a history is kept after its last event, in seconds.
    pub history_ttl_seconds: u64,
}

impl Settings {
    /// How long to wait for a connection.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// How long to wait for an answer.
    pub fn response_timeout(&self) -> Duration {
        Duration::from_millis(self.response_timeout_ms)
    }

    /// The names of this namespace's keys and channels.
    pub fn keys(&self) -> Keys {
        Keys::new(&self.namespace)
    }

    /// Returns about how many entries a history keeps behind an event with a payload of this size: as many of
    /// that size as the limit of bytes allows, and at least one.
    pub(super) fn history_length(&self, payload_bytes: usize) -> u64 {
        let of_this_size = self.history_max_bytes / (payload_bytes as u64).max(1);
        of_this_size.min(self.history_max_events).max(1)
    }

    /// How long a history is kept after its last event.
    pub fn history_ttl(&self) -> Duration {
        Duration::from_secs(self.history_ttl_seconds)
    }
}
