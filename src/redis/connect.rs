//! Connections to Redis as the `[redis]` section asks for them.

use std::time::Duration;

use ::redis::aio::{MultiplexedConnection, PubSub};
use ::redis::io::tcp::{TcpSettings, socket2};
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, Value,
};
use secrecy::ExposeSecret;
use tokio::time::{Instant, timeout};

use super::error_text::error_text;
use super::keys::is_namespace;
use super::login::Passwords;
use super::sentinel::{self, Address, SentinelError, Sentinels};
use super::settings::{CONNECT_TIMEOUT, Settings};
use super::tls::{self, TlsError};
use crate::address::{self, AddressError};
use crate::password_command::PasswordError;

/// The form of an address.
const FORM: &str = "redis://[user:password@]host:port, rediss:// for TLS, unix:///PATH, or \
                    redis+sentinel://host,host,host/SERVICE";
/// The schemes of addresses, without and with TLS.
const SCHEMES: [&str; 9] = [
    "redis",
    "valkey",
    "unix",
    "redis+unix",
    "valkey+unix",
    "rediss",
    "valkeys",
    "redis+sentinel",
    "rediss+sentinel",
];
/// The port of a server whose address names none.
const REDIS_PORT: u16 = 6379;

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
    /// The password is given twice.
    #[error("the redis url holds a password, and [redis] password_command is set: keep one of them")]
    TwoPasswords,
    /// The program gave no password.
    #[error("[redis] {0}")]
    Password(#[from] PasswordError),
    /// The sentinels name no primary.
    #[error("cannot connect to Redis: {0}")]
    Sentinels(#[from] SentinelError),
    /// The sentinels name a server that is not a primary, or not yet.
    #[error("Redis at {address} is not the primary that the sentinels take it for: a failover is not over")]
    NotPrimary {
        /// Host and port.
        address: String,
    },
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

/// The meaning of the address.
enum Target {
    /// This server.
    Server(ConnectionInfo),
    /// The primary that sentinels name. The address of `info` is that of the first sentinel.
    Sentinels { sentinels: Sentinels, info: ConnectionInfo },
}

/// A connection for commands, and the version of the primary that it leads to.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    pub(super) version: u64,
}

/// A connection for subscriptions.
pub(super) struct Subscribed {
    pub(super) pubsub: PubSub,
    /// As in [`Connected`].
    pub(super) version: u64,
    /// When its password has to be renewed. A connection with subscriptions cannot log in again.
    pub(super) renew_at: Option<Instant>,
}

impl Settings {
    /// Checks everything that can be checked without a connection.
    ///
    /// # Errors
    /// Returns [`ConnectError::NoUrl`] if no address is set, [`ConnectError::Url`] if it is malformed,
    /// [`ConnectError::Fragment`] if it has a fragment, [`ConnectError::DatabaseNumber`] if it names a
    /// database other than 0, [`ConnectError::TwoPasswords`] if a program gives the password too,
    /// [`ConnectError::Namespace`] if the namespace breaks the rules, and [`ConnectError::Certificates`] if
    /// the certificates cannot be used.
    pub fn check(&self) -> Result<(), ConnectError> {
        self.target().map(|_target| ())
    }

    /// Makes one connection for commands.
    ///
    /// # Errors
    /// Fails as [`Settings::check`], and returns [`ConnectError::Password`] if the program gives no password,
    /// [`ConnectError::Sentinels`] if the sentinels name no primary, [`ConnectError::NotPrimary`] if that
    /// server does not know of it, [`ConnectError::Handshake`] if the two sides do not agree on TLS, and
    /// [`ConnectError::Refused`] if the server refuses the connection or cannot be reached in time.
    pub async fn connect(&self) -> Result<MultiplexedConnection, ConnectError> {
        Ok(self.connect_for_long().await?.connection)
    }

    /// The same for a connection that is kept: its user compares the version.
    pub(super) async fn connect_for_long(&self) -> Result<Connected, ConnectError> {
        let (info, version) = self.server().await?;
        let client = self.client_to(info)?;
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.response_timeout()));
        if self.password_command.is_set() {
            // The driver would report the program's failure as its own.
            self.password_command.password().await?;
            let user = client.get_connection_info().redis_settings().username().map(str::to_owned);
            config =
                config.set_credentials_provider(Passwords { command: self.password_command.clone(), user });
        }
        let connected = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = self.heard(&client, connected).await?;
        if version > 0 {
            let role = ::redis::cmd("ROLE").query_async::<Vec<Value>>(&mut connection).await;
            let role = self.heard(&client, role).await?;
            let is_primary = role.first().is_some_and(|role| *role == Value::BulkString(b"master".to_vec()));
            if !is_primary {
                return Err(ConnectError::NotPrimary { address: address_of(&client) });
            }
        }
        Ok(Connected { connection, version })
    }

    /// Makes one connection for subscriptions.
    ///
    /// # Errors
    /// Fails as [`Settings::connect`].
    pub async fn connect_pubsub(&self) -> Result<PubSub, ConnectError> {
        Ok(self.subscribe_for_long().await?.pubsub)
    }

    /// The same for a connection that is kept.
    pub(super) async fn subscribe_for_long(&self) -> Result<Subscribed, ConnectError> {
        let (mut info, version) = self.server().await?;
        let mut renew_at = None;
        if self.password_command.is_set() {
            let password = self.password_command.password().await?;
            let login = Passwords::login(info.redis_settings().username(), &password);
            let redis = info.redis_settings().clone();
            info =
                info.set_redis_settings(redis.set_username(login.username()).set_password(login.password()));
            renew_at = password.renew_at;
        }
        let client = self.client_to(info)?;
        let connecting = timeout(CONNECT_TIMEOUT, client.get_async_pubsub());
        let connected = connecting.await.unwrap_or_else(|_elapsed| Err(timed_out()));
        Ok(Subscribed { pubsub: self.heard(&client, connected).await?, version, renew_at })
    }

    /// Counts the changes of the primary behind sentinels.
    pub(super) fn primary_version(&self) -> u64 {
        self.primary.version()
    }

    /// Returns when the sentinels name another primary than that of this version; never without sentinels.
    pub(super) async fn primary_changed_since(&self, version: u64) {
        self.primary.changed_since(version).await;
    }

    /// Turns the driver's error into one of ours.
    async fn heard<T>(&self, client: &Client, answer: RedisResult<T>) -> Result<T, ConnectError> {
        let source = match answer {
            Ok(answer) => return Ok(answer),
            Err(source) => source,
        };
        if source.kind() == ErrorKind::AuthenticationFailed {
            self.password_command.forget().await;
        }
        let (address, is_tls) = (address_of(client), is_tls(client.get_connection_info().addr()));
        Err(match tls::handshake_problem(&source, self) {
            Some(problem) => ConnectError::Handshake { address, problem },
            None => ConnectError::Refused { address, is_tls, source },
        })
    }

    /// Finds the server, with the version of the primary.
    async fn server(&self) -> Result<(ConnectionInfo, u64), ConnectError> {
        match self.target()? {
            Target::Server(info) => Ok((info, 0)),
            Target::Sentinels { sentinels, info } => {
                let (Address { host, port }, version) = self.primary.find(&sentinels).await?;
                let address = match info.addr() {
                    ConnectionAddr::TcpTls { .. } => {
                        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
                    }
                    _ => ConnectionAddr::Tcp(host, port),
                };
                Ok((info.set_addr(address), version))
            }
        }
    }

    fn target(&self) -> Result<Target, ConnectError> {
        let url = self.url.expose_secret();
        if url.is_empty() {
            return Err(ConnectError::NoUrl);
        }
        address::check(url, &SCHEMES, FORM).map_err(ConnectError::Url)?;
        if url.contains('#') {
            return Err(ConnectError::Fragment);
        }
        if self.password_command.is_set() && address::holds_a_password(url) {
            return Err(ConnectError::TwoPasswords);
        }
        if !is_namespace(&self.namespace) {
            return Err(ConnectError::Namespace(self.namespace.clone()));
        }
        let scheme = match address::scheme(url).as_deref() {
            Some("redis+sentinel") => "redis",
            Some("rediss+sentinel") => "rediss",
            _ => {
                let info = self.server_at(url)?;
                self.client_to(info.clone())?;
                return Ok(Target::Server(info));
            }
        };
        let (hosts, service) = address::each_host(url, scheme).ok_or(malformed())?;
        if service.is_empty() || service.contains('/') || url.contains('?') {
            return Err(malformed());
        }
        let clients = hosts.iter().map(|host| self.client_to(self.as_sentinel(self.server_at(host)?)));
        let sentinels = Sentinels { clients: clients.collect::<Result<_, _>>()?, service };
        let first = hosts.first().ok_or(malformed())?;
        Ok(Target::Sentinels { sentinels, info: self.server_at(first)? })
    }

    /// Reads the address of one server.
    fn server_at(&self, url: &str) -> Result<ConnectionInfo, ConnectError> {
        // The driver's own message may quote the address.
        let info: ConnectionInfo = url.into_connection_info().map_err(|_error| malformed())?;
        if info.redis_settings().db() != 0 {
            return Err(ConnectError::DatabaseNumber(info.redis_settings().db()));
        }
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        // A dead peer is noticed.
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(keepalive)
            .set_user_timeout(Duration::from_secs(20));
        Ok(info.set_tcp_settings(tcp))
    }

    /// A sentinel has a port and users of its own.
    fn as_sentinel(&self, info: ConnectionInfo) -> ConnectionInfo {
        let address = match info.addr().clone() {
            ConnectionAddr::Tcp(host, REDIS_PORT) => ConnectionAddr::Tcp(host, sentinel::PORT),
            ConnectionAddr::TcpTls { host, port: REDIS_PORT, insecure, tls_params } => {
                ConnectionAddr::TcpTls { host, port: sentinel::PORT, insecure, tls_params }
            }
            other => other,
        };
        let mut login = RedisConnectionInfo::default();
        if !self.sentinel_user.is_empty() {
            login = login.set_username(&self.sentinel_user);
        }
        if !self.sentinel_password.expose_secret().is_empty() {
            login = login.set_password(self.sentinel_password.expose_secret());
        }
        info.set_addr(address).set_redis_settings(login)
    }

    fn client_to(&self, info: ConnectionInfo) -> Result<Client, ConnectError> {
        let is_tls = is_tls(info.addr());
        if is_tls {
            tls::choose_cryptography();
        }
        match tls::certificates(self, is_tls)? {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        }
        .map_err(|_error| malformed())
    }
}

fn malformed() -> ConnectError {
    ConnectError::Url(AddressError::Form(FORM))
}

/// Host and port: the parts of an address that may be printed.
fn address_of(client: &Client) -> String {
    client.get_connection_info().addr().to_string()
}

fn is_tls(server: &ConnectionAddr) -> bool {
    matches!(server, ConnectionAddr::TcpTls { .. })
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
