//! Connections to Redis as the `[redis]` section asks for them.

use ::redis::aio::{MultiplexedConnection, PubSub};
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, ProtocolVersion, PushInfo,
    RedisError, RedisResult, Value,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::connect_error::ConnectError;
use super::endpoint::Endpoint;
use super::login::Passwords;
use super::sentinel::SentinelAnswer;
use super::settings::{CONNECT_TIMEOUT, Settings};
use super::target::{Target, is_tls, malformed};
use super::tls;

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

    /// As [`Settings::connect`], for a connection that is kept. Its user compares the version with
    /// [`Settings::primary_version`] to notice a new primary.
    pub(super) async fn connect_for_long(&self) -> Result<Connected, ConnectError> {
        let (servers, version) = self.servers().await?;
        let mut failure = ConnectError::NoUrl;
        for info in servers {
            match self.connect_to(info, version, None).await {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Connects to this server of a cluster, with the user and the certificates of the address.
    pub(super) async fn connect_at(&self, endpoint: &Endpoint) -> Result<Connected, ConnectError> {
        self.connect_to(self.info_at(endpoint).await?, 0, None).await
    }

    /// The same for a connection that is used for subscriptions too: it speaks RESP3, and messages that the
    /// server sends on its own go to `pushes`.
    pub(super) async fn subscribe_at(
        &self,
        endpoint: &Endpoint,
        pushes: mpsc::UnboundedSender<PushInfo>,
    ) -> Result<Connected, ConnectError> {
        let info = self.info_at(endpoint).await?;
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        self.connect_to(info.set_redis_settings(redis), 0, Some(pushes)).await
    }

    async fn info_at(&self, endpoint: &Endpoint) -> Result<ConnectionInfo, ConnectError> {
        let (servers, _version) = self.servers().await?;
        let seed = servers.into_iter().next().ok_or(malformed())?;
        Ok(at(seed, endpoint.clone()))
    }

    async fn connect_to(
        &self,
        info: ConnectionInfo,
        version: u64,
        pushes: Option<mpsc::UnboundedSender<PushInfo>>,
    ) -> Result<Connected, ConnectError> {
        let client = self.client_to(info)?;
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.response_timeout()));
        if let Some(pushes) = pushes {
            config = config.set_push_sender(pushes);
        }
        if self.password_command.is_set() {
            // The driver would report the program's failure as its own.
            self.password_command.password().await?;
            let user = client.get_connection_info().redis_settings().username().map(str::to_owned);
            config =
                config.set_credentials_provider(Passwords { command: self.password_command.clone(), user });
        }
        let connected = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = self.to_connect_error(&client, connected)?;
        if version > 0 {
            let role = ::redis::cmd("ROLE").query_async::<Vec<Value>>(&mut connection).await;
            let role = self.to_connect_error(&client, role)?;
            let is_primary = role.first().is_some_and(|role| *role == Value::BulkString(b"master".to_vec()));
            if !is_primary {
                return Err(ConnectError::NotPrimary { address: address_of(&client) });
            }
        }
        Ok(Connected { connection, version })
    }

    /// Makes one connection for subscriptions, which is kept.
    pub(super) async fn subscribe_for_long(&self) -> Result<Subscribed, ConnectError> {
        let (servers, version) = self.servers().await?;
        let mut info = servers.into_iter().next().ok_or(malformed())?;
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
        Ok(Subscribed { pubsub: self.to_connect_error(&client, connected)?, version, renew_at })
    }

    /// Asks each sentinel for the primary. Returns `None` if the address names no sentinels.
    ///
    /// # Errors
    /// Fails as [`Settings::check`]. A sentinel's own failure is its answer.
    pub async fn ask_sentinels(&self) -> Result<Option<Vec<SentinelAnswer>>, ConnectError> {
        match self.target()? {
            Target::Servers(_) => Ok(None),
            Target::Sentinels { sentinels, .. } => Ok(Some(sentinels.answers().await)),
        }
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
    fn to_connect_error<T>(&self, client: &Client, answer: RedisResult<T>) -> Result<T, ConnectError> {
        let source = match answer {
            Ok(answer) => return Ok(answer),
            Err(source) => source,
        };
        if source.kind() == ErrorKind::AuthenticationFailed {
            self.password_command.forget();
        }
        let (address, is_tls) = (address_of(client), is_tls(client.get_connection_info().addr()));
        let settings = self.tls_settings();
        Err(match tls::handshake_problem(&source, &settings) {
            Some(problem) => ConnectError::Handshake { address, problem },
            None => ConnectError::Refused { address, advice: settings.advice_on_silence(is_tls), source },
        })
    }

    /// Finds the servers that may be connected to, with the version of the primary.
    async fn servers(&self) -> Result<(Vec<ConnectionInfo>, u64), ConnectError> {
        match self.target()? {
            Target::Servers(servers) => Ok((servers, 0)),
            Target::Sentinels { sentinels, info } => {
                let (endpoint, version) = self.primary.find(&sentinels).await?;
                Ok((vec![at(*info, endpoint)], version))
            }
        }
    }
}

/// The same address with another host and port.
fn at(info: ConnectionInfo, Endpoint { host, port }: Endpoint) -> ConnectionInfo {
    let address = match info.addr() {
        ConnectionAddr::TcpTls { .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    info.set_addr(address)
}

/// Host and port: the parts of an address that may be printed.
fn address_of(client: &Client) -> String {
    client.get_connection_info().addr().to_string()
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}
