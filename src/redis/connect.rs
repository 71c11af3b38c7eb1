//! Connections to Redis as the `[redis]` section asks for them.

use std::time::Duration;

use ::redis::aio::{MultiplexedConnection, PubSub};
use ::redis::io::tcp::{TcpSettings, socket2};
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError,
};
use secrecy::ExposeSecret;
use tokio::time::timeout;

use super::error_text::error_text;
use super::keys::is_namespace;
use super::settings::Settings;
use super::tls::{self, TlsError};
use crate::address::{self, AddressError};

/// The form of an address.
const FORM: &str = "redis://[user:password@]host:port, rediss:// for TLS, or unix:///PATH";
/// The schemes of addresses, without and with TLS.
const SCHEMES: [&str; 7] = ["redis", "valkey", "unix", "redis+unix", "valkey+unix", "rediss", "valkeys"];

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
    /// The address has a fragment, which would switch the check of certificates off.
    #[error(
        "the redis url has a '#', and means nothing by it: certificates are always checked. For a private CA \
         set [redis] tls_ca_file; in a password write # as %23"
    )]
    Fragment,
    /// The certificates cannot be used.
    #[error(transparent)]
    Certificates(#[from] TlsError),
    /// The TLS handshake failed for a reason that does not go away by itself.
    #[error("cannot connect to Redis at {address} by TLS: {problem}")]
    Handshake {
        /// Host and port.
        address: String,
        /// The problem, and the setting that mends it.
        problem: String,
    },
    /// The server refused the connection, or could not be reached.
    #[error("cannot connect to Redis at {address}: {}", refusal(.source, .is_tls))]
    Refused {
        /// Host and port, without user or password.
        address: String,
        /// Whether the address asks for TLS.
        is_tls: bool,
        /// The cause.
        source: RedisError,
    },
}

/// Returns the error's text. Adds advice if Redis itself did not answer.
fn refusal(error: &RedisError, is_tls: &bool) -> String {
    let text = error_text(error);
    let is_away = error.is_io_error() || error.is_timeout() || error.is_connection_dropped();
    match is_tls {
        _ if !is_away => text,
        true => format!("{text} (is it running, does it speak TLS at this port, and is REDIS_URL right?)"),
        false => format!("{text} (is it running, does it want TLS (rediss://), and is REDIS_URL right?)"),
    }
}

impl Settings {
    /// Checks everything that can be checked without a connection.
    ///
    /// # Errors
    /// Returns [`ConnectError::NoUrl`] if no address is set, [`ConnectError::Url`] if it is malformed,
    /// [`ConnectError::Fragment`] if it has a fragment, [`ConnectError::DatabaseNumber`] if it names a
    /// database other than 0, [`ConnectError::Namespace`] if the namespace breaks the rules, and
    /// [`ConnectError::Certificates`] if the certificates cannot be used.
    pub fn check(&self) -> Result<(), ConnectError> {
        self.client().map(|_client| ())
    }

    /// Makes one connection for commands.
    ///
    /// # Errors
    /// Fails as [`Settings::check`], and returns [`ConnectError::Handshake`] if the two sides do not agree on
    /// TLS, and [`ConnectError::Refused`] if the server refuses the connection or cannot be reached in time.
    pub async fn connect(&self) -> Result<MultiplexedConnection, ConnectError> {
        let client = self.client()?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout()))
            .set_response_timeout(Some(self.response_timeout()));
        let connected = client.get_multiplexed_async_connection_with_config(&config).await;
        connected.map_err(|source| self.refused(&client, source))
    }

    /// Makes one connection for subscriptions.
    ///
    /// # Errors
    /// Fails as [`Settings::connect`].
    pub async fn connect_pubsub(&self) -> Result<PubSub, ConnectError> {
        let client = self.client()?;
        let connecting = timeout(self.connect_timeout(), client.get_async_pubsub());
        let connected = connecting.await.unwrap_or_else(|_elapsed| Err(timed_out()));
        connected.map_err(|source| self.refused(&client, source))
    }

    fn refused(&self, client: &Client, source: RedisError) -> ConnectError {
        // The parts of an address that may be printed.
        let server = client.get_connection_info().addr();
        let (address, is_tls) = (server.to_string(), is_tls(server));
        match tls::handshake_problem(&source, self) {
            Some(problem) => ConnectError::Handshake { address, problem },
            None => ConnectError::Refused { address, is_tls, source },
        }
    }

    /// Makes a client for the address, with time-outs at the TCP level, so that a dead peer is noticed.
    fn client(&self) -> Result<Client, ConnectError> {
        let url = self.url.expose_secret();
        if url.is_empty() {
            return Err(ConnectError::NoUrl);
        }
        address::check(url, &SCHEMES, FORM).map_err(ConnectError::Url)?;
        if url.contains('#') {
            return Err(ConnectError::Fragment);
        }
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
        let is_tls = is_tls(info.addr());
        let info = info.set_tcp_settings(tcp);
        if is_tls {
            tls::choose_cryptography();
        }
        match tls::certificates(self, is_tls)? {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        }
        .map_err(malformed)
    }
}

fn is_tls(server: &ConnectionAddr) -> bool {
    matches!(server, ConnectionAddr::TcpTls { .. })
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
