//! The `[redis]` section, and connections with its settings.

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::{TcpSettings, socket2};
use ::redis::{AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, RedisError};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::error_text::error_text;
use super::keys::{Keys, is_namespace};
use crate::address::{self, AddressError};

/// The form of an address.
const FORM: &str = "redis://[user:password@]host:port";
/// Schemes that the driver knows, without TLS.
const SCHEMES: [&str; 5] = ["redis", "valkey", "unix", "redis+unix", "valkey+unix"];
/// Schemes that ask for TLS.
const TLS_SCHEMES: [&str; 2] = ["rediss", "valkeys"];

/// How long to wait for a connection. A Redis that is there accepts within milliseconds, also across regions.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The `[redis]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `redis://[user:password@]host:port`.
    pub url: SecretString,
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

/// Why a connection to Redis could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address was given.
    #[error("no Redis was named: set REDIS_URL, or url in the [redis] section")]
    NoUrl,
    /// The address is malformed.
    #[error("the redis url {0}")]
    Url(AddressError),
    /// The address names a database other than 0.
    #[error(
        "the redis url names database {0}: pub/sub ignores database numbers, so they keep nothing apart. \
         Take the number away, and set [redis] namespace where several logs share one Redis"
    )]
    DatabaseNumber(i64),
    /// The namespace breaks the rules for names.
    #[error("[redis] namespace '{0}' is not a namespace: use at most 60 characters of A-Z a-z 0-9 . _ -")]
    Namespace(String),
    /// The server refused the connection, or could not be reached.
    #[error("cannot connect to Redis at {address}: {}", refusal(.source))]
    Refused {
        /// Host and port, without user or password.
        address: String,
        /// The cause.
        source: RedisError,
    },
}

/// Returns the error's text. Adds advice if Redis itself did not answer.
fn refusal(error: &RedisError) -> String {
    let is_away = error.is_io_error() || error.is_timeout() || error.is_connection_dropped();
    let advice = if is_away { " (is it running, and is REDIS_URL right?)" } else { "" };
    format!("{}{advice}", error_text(error))
}

impl Settings {
    /// Makes a client for the address, with time-outs at the TCP level, so that a dead peer is noticed.
    ///
    /// # Errors
    /// Returns [`ConnectError::NoUrl`] if no address is set, [`ConnectError::Url`] if it is malformed or asks
    /// for TLS, [`ConnectError::DatabaseNumber`] if it names a database other than 0, and
    /// [`ConnectError::Namespace`] if the namespace breaks the rules.
    pub fn client(&self) -> Result<Client, ConnectError> {
        let url = self.url.expose_secret();
        if url.is_empty() {
            return Err(ConnectError::NoUrl);
        }
        if address::check(url, &TLS_SCHEMES, FORM).is_ok() {
            return Err(ConnectError::Url(AddressError::Tls));
        }
        address::check(url, &SCHEMES, FORM).map_err(ConnectError::Url)?;
        // The driver's own message may quote the address.
        let malformed = |_: RedisError| ConnectError::Url(AddressError::Form(FORM));
        let info: ConnectionInfo = url.into_connection_info().map_err(malformed)?;
        if info.redis_settings().db() != 0 {
            return Err(ConnectError::DatabaseNumber(info.redis_settings().db()));
        }
        if !is_namespace(&self.namespace) {
            return Err(ConnectError::Namespace(self.namespace.clone()));
        }
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(keepalive)
            .set_user_timeout(Duration::from_secs(20));
        Client::open(info.set_tcp_settings(tcp)).map_err(malformed)
    }

    /// Makes one connection for commands.
    ///
    /// # Errors
    /// Fails as [`Settings::client`], and returns [`ConnectError::Refused`] if the server refuses the
    /// connection or cannot be reached in time.
    pub async fn connect(&self) -> Result<MultiplexedConnection, ConnectError> {
        let client = self.client()?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.response_timeout()));
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|source| ConnectError::Refused { address: address_of(&client), source })
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

/// Host and port: the parts of an address that may be printed.
fn address_of(client: &Client) -> String {
    client.get_connection_info().addr().to_string()
}
