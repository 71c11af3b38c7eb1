//! The `[redis]` section.

use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;

use super::keys::Keys;
use super::sentinel::Primary;
use super::slot_map::Topology;
use crate::password_command::PasswordCommand;

/// How long to wait for a connection. A Redis that is there accepts within milliseconds, also across regions.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The `[redis]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `redis://[user:password@]host:port`, with TLS `rediss://`; several hosts with commas for a cluster;
    /// `unix:///PATH`; or
    /// `redis+sentinel://[user:password@]host,host,host/SERVICE`, with TLS `rediss+sentinel://`.
    pub url: SecretString,
    /// A program that prints the password, instead of one in the address.
    pub password_command: PasswordCommand,
    /// The user at the sentinels; empty for their default one.
    pub sentinel_user: String,
    /// The password at the sentinels; empty for none.
    pub sentinel_password: SecretString,
    /// A PEM file with the certificates of the CAs that may sign the server's; empty for the machine's CAs.
    pub tls_ca_file: String,
    /// A PEM file with the client's certificate; empty for none.
    pub tls_cert_file: String,
    /// A PEM file with the key of the client's certificate.
    pub tls_key_file: String,
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
    /// The primary that the sentinels name. Clones of these settings share it.
    #[serde(skip)]
    pub(super) primary: Primary,
    /// The servers of a cluster. Clones of these settings share it.
    #[serde(skip)]
    pub(super) topology: Topology,
}

impl Settings {
    /// Settings for the Redis at this address, with a history that keeps 10,000 events or 16 MiB for a day.
    pub fn at(url: impl Into<SecretString>) -> Self {
        Self {
            url: url.into(),
            password_command: PasswordCommand::default(),
            sentinel_user: String::new(),
            sentinel_password: SecretString::default(),
            tls_ca_file: String::new(),
            tls_cert_file: String::new(),
            tls_key_file: String::new(),
            response_timeout_ms: 5000,
            min_replicas: 0,
            namespace: String::new(),
            history_max_events: 10_000,
            history_max_bytes: 16 * 1024 * 1024,
            history_ttl_seconds: 86_400,
            primary: Primary::default(),
            topology: Topology::default(),
        }
    }

    /// How long to wait for an answer.
    pub fn response_timeout(&self) -> Duration {
        Duration::from_millis(self.response_timeout_ms)
    }

    /// The names of this namespace's keys and channels.
    pub fn keys(&self) -> Keys {
        Keys::new(&self.namespace)
    }

    /// Returns about how many entries a history keeps once it has an event with a payload of this size: as
    /// many of that size as the limit of bytes allows, and at least one.
    pub(super) fn history_length(&self, payload_bytes: usize) -> u64 {
        let of_this_size = self.history_max_bytes / (payload_bytes as u64).max(1);
        of_this_size.min(self.history_max_events).max(1)
    }

    /// How long a history is kept after its last event.
    pub fn history_ttl(&self) -> Duration {
        Duration::from_secs(self.history_ttl_seconds)
    }

    /// How long a history is kept at least after its last event: less than [`Self::history_ttl`], because the
    /// TTL is not set again for each event.
    pub fn history_kept(&self) -> Duration {
        history_kept(self.history_ttl())
    }
}

/// How long a history with this TTL is kept at least after its last event: see [`Settings::history_kept`].
pub fn history_kept(ttl: Duration) -> Duration {
    ttl - renewed_after(ttl)
}

/// The age at which the relay sets the TTL of a history again. So most events need no EXPIRE.
pub(super) fn renewed_after(ttl: Duration) -> Duration {
    ttl / 20
}
