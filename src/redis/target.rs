//! The address of the `[redis]` section: which servers it names, and how they are reached.
//!
//! Makes no connection.

use std::time::Duration;

use ::redis::io::tcp::{TcpSettings, socket2};
use ::redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use secrecy::ExposeSecret;

use super::connect_error::ConnectError;
use super::endpoint::Endpoint;
use super::keys::is_namespace;
use super::sentinel::{self, Sentinels};
use super::settings::Settings;
use super::tls::{self, TlsSettings};
use crate::address::{self, AddressError};

/// The form of an address.
const FORM: &str = "redis://[user:password@]host:port (several hosts of a cluster with commas), rediss:// for TLS, \
                    unix:///PATH, or redis+sentinel://host,host,host/SERVICE";
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

/// The meaning of the address.
pub(super) enum Target {
    /// One server, or several servers of one cluster. The first one that answers is used.
    Servers(Vec<ConnectionInfo>),
    /// The primary that sentinels name. The address of `info` is that of the first sentinel.
    Sentinels { sentinels: Sentinels, info: Box<ConnectionInfo> },
}

impl Settings {
    /// Checks everything that can be checked without a connection.
    ///
    /// # Errors
    /// Returns [`ConnectError::NoUrl`] if no address is set, [`ConnectError::Url`] if it is malformed,
    /// [`ConnectError::Fragment`] if it has a fragment, [`ConnectError::Parameter`] if it has a parameter
    /// that means nothing, [`ConnectError::DatabaseNumber`] if it names a database other than 0,
    /// [`ConnectError::TwoPasswords`] if a program gives the password too, [`ConnectError::Namespace`] if the
    /// namespace breaks the rules, and [`ConnectError::Certificates`] if the certificates cannot be used.
    pub fn check(&self) -> Result<(), ConnectError> {
        self.target().map(|_target| ())
    }

    /// How the address reaches its servers, in words.
    ///
    /// # Errors
    /// Fails as [`Settings::check`].
    pub fn transport(&self) -> Result<&'static str, ConnectError> {
        let info = match self.target()? {
            Target::Servers(servers) => servers.into_iter().next().ok_or(malformed())?,
            Target::Sentinels { info, .. } => *info,
        };
        Ok(match info.addr() {
            ConnectionAddr::TcpTls { .. } => "by TLS, with the server's certificate checked",
            ConnectionAddr::Unix(_) => "by a unix socket",
            _ => "without TLS",
        })
    }

    /// Host and port of the servers that the address names; `None` if it names sentinels.
    pub(super) fn seeds(&self) -> Result<Option<Vec<Endpoint>>, ConnectError> {
        let Target::Servers(servers) = self.target()? else { return Ok(None) };
        let endpoints = servers.iter().map(|info| match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Some(Endpoint { host: host.clone(), port: *port })
            }
            _ => None,
        });
        Ok(endpoints.collect())
    }

    pub(super) fn target(&self) -> Result<Target, ConnectError> {
        self.check_address()?;
        let url = self.url.expose_secret();
        match address::scheme(url).as_deref() {
            Some("redis+sentinel") => self.target_by_sentinels("redis"),
            Some("rediss+sentinel") => self.target_by_sentinels("rediss"),
            scheme => Ok(Target::Servers(self.servers_at(scheme)?)),
        }
    }

    fn check_address(&self) -> Result<(), ConnectError> {
        let url = self.url.expose_secret();
        if url.is_empty() {
            return Err(ConnectError::NoUrl);
        }
        address::check(url, &SCHEMES, FORM).map_err(ConnectError::Url)?;
        if url.contains('#') {
            return Err(ConnectError::Fragment);
        }
        let known = parameters_of(url);
        let (_, unknown) = address::with_known_parameters(url, |name| known.contains(&name));
        if let Some(name) = unknown.into_iter().next() {
            return Err(ConnectError::Parameter(name));
        }
        if self.password_command.is_set() && address::holds_a_password(url) {
            return Err(ConnectError::TwoPasswords);
        }
        if !is_namespace(&self.namespace) {
            return Err(ConnectError::Namespace(self.namespace.clone()));
        }
        Ok(())
    }

    /// The servers that the address names, one or several.
    fn servers_at(&self, scheme: Option<&str>) -> Result<Vec<ConnectionInfo>, ConnectError> {
        let url = self.url.expose_secret();
        let several = scheme.filter(|_| names_several(url)).and_then(|it| address::each_host(url, it));
        let servers = match several {
            Some((hosts, name)) if name.is_empty() => hosts,
            Some((hosts, name)) => match name.parse() {
                Ok(0) => hosts,
                Ok(number) => return Err(ConnectError::DatabaseNumber(number)),
                Err(_) => return Err(malformed()),
            },
            None => vec![url.to_owned()],
        };
        let servers: Vec<_> = servers.iter().map(|url| self.server_at(url)).collect::<Result<_, _>>()?;
        for info in &servers {
            self.client_to(info.clone())?;
        }
        Ok(servers)
    }

    /// `scheme` is the one of the servers that the sentinels name.
    fn target_by_sentinels(&self, scheme: &str) -> Result<Target, ConnectError> {
        let url = self.url.expose_secret();
        let (hosts, service) = address::each_host(url, scheme).ok_or(malformed())?;
        if service.is_empty() || service.contains('/') {
            return Err(malformed());
        }
        let clients = hosts.iter().map(|host| self.client_to(self.as_sentinel(self.server_at(host)?)));
        let tls = self.tls_settings();
        let sentinels = Sentinels { clients: clients.collect::<Result<_, _>>()?, service, tls };
        let first = hosts.first().ok_or(malformed())?;
        Ok(Target::Sentinels { sentinels, info: Box::new(self.server_at(first)?) })
    }

    /// Reads the address of one server.
    fn server_at(&self, url: &str) -> Result<ConnectionInfo, ConnectError> {
        // The driver's own message may quote the address.
        let info: ConnectionInfo =
            address::with_literal_plus(url).as_ref().into_connection_info().map_err(|_error| malformed())?;
        if info.redis_settings().db() != 0 {
            return Err(ConnectError::DatabaseNumber(info.redis_settings().db()));
        }
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        // Without a password the driver would drop the user. A user that needs none accepts any.
        let login = info.redis_settings().clone();
        let info = match login.username().is_some() && login.password().is_none() {
            true if !self.password_command.is_set() => info.set_redis_settings(login.set_password("")),
            _ => info,
        };
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
        let (user, password) = (&self.sentinel_user, self.sentinel_password.expose_secret());
        let login = match (user.is_empty(), password.is_empty()) {
            (true, true) => RedisConnectionInfo::default(),
            (true, false) => RedisConnectionInfo::default().set_password(password),
            (false, _) => RedisConnectionInfo::default().set_username(user).set_password(password),
        };
        info.set_addr(address).set_redis_settings(login)
    }

    pub(super) fn tls_settings(&self) -> TlsSettings {
        TlsSettings {
            ca_file: self.tls_ca_file.clone(),
            cert_file: self.tls_cert_file.clone(),
            key_file: self.tls_key_file.clone(),
            schemes: tls::schemes_of(self.url.expose_secret()),
        }
    }

    pub(super) fn client_to(&self, info: ConnectionInfo) -> Result<Client, ConnectError> {
        let is_tls = is_tls(info.addr());
        if is_tls {
            tls::choose_cryptography();
        }
        match tls::certificates(&self.tls_settings(), is_tls)? {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        }
        .map_err(|_error| malformed())
    }
}

/// The query parameters that mean something in an address of this kind.
fn parameters_of(url: &str) -> &'static [&'static str] {
    match address::scheme(url).as_deref() {
        Some("unix" | "redis+unix" | "valkey+unix") => &["db", "user", "pass", "protocol"],
        Some("redis+sentinel" | "rediss+sentinel") => &[],
        _ if names_several(url) => &[],
        _ => &["protocol"],
    }
}

/// Whether the address names several hosts. A comma may also stand in a password.
fn names_several(url: &str) -> bool {
    address::hosts(url).contains(',')
}

pub(super) fn malformed() -> ConnectError {
    ConnectError::Url(AddressError::Form(FORM))
}

pub(super) fn is_tls(server: &ConnectionAddr) -> bool {
    matches!(server, ConnectionAddr::TcpTls { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The logins of an address's servers; for sentinels, those at the sentinels.
    fn logins(settings: &Settings) -> Vec<(Option<String>, Option<String>)> {
        let infos: Vec<ConnectionInfo> = match settings.target().expect("a target") {
            Target::Servers(servers) => servers,
            Target::Sentinels { sentinels, .. } => {
                sentinels.clients.iter().map(|client| client.get_connection_info().clone()).collect()
            }
        };
        let login = |info: &ConnectionInfo| {
            let redis = info.redis_settings();
            (redis.username().map(str::to_owned), redis.password().map(str::to_owned))
        };
        infos.iter().map(login).collect()
    }

    fn some(user: &str, password: &str) -> (Option<String>, Option<String>) {
        (Some(user.to_owned()), Some(password.to_owned()))
    }

    #[test]
    fn a_comma_or_a_plus_in_a_password_belongs_to_it() {
        for url in ["redis://app:a,b+c@h/0", "unix:///s?user=app&pass=a,b+c"] {
            assert_eq!(logins(&Settings::at(url)), [some("app", "a,b+c")], "{url}");
        }
        let several = Settings::at("redis://app:a,b@h:1,i:2/0");
        assert_eq!(logins(&several), [some("app", "a,b"), some("app", "a,b")]);
    }

    #[test]
    fn a_user_without_a_password_is_kept() {
        for url in ["redis://np@h", "redis://np:@h", "unix:///s?user=np", "redis://np@h,i"] {
            assert_eq!(logins(&Settings::at(url))[0], some("np", ""), "{url}");
        }
        assert_eq!(logins(&Settings::at("redis://h")), [(None, None)]);
        let mut of_sentinels = Settings::at("redis+sentinel://u:p@h/main");
        assert_eq!(logins(&of_sentinels), [(None, None)]);
        of_sentinels.sentinel_user = "np".to_owned();
        assert_eq!(logins(&of_sentinels), [some("np", "")]);
    }

    #[test]
    fn a_parameter_or_a_database_that_means_nothing_is_named() {
        for (url, expected) in [
            ("redis://h?db=3", "'db'"),
            ("redis://h?insecure=true", "'insecure'"),
            ("redis://h?username=u", "'username'"),
            ("redis://h,i?protocol=3", "'protocol'"),
            ("redis+sentinel://h/main?db=1", "'db'"),
            ("unix:///s?password=p", "'password'"),
            ("redis://h,i/3", "names database 3"),
        ] {
            let error = Settings::at(url).check().expect_err(url).to_string();
            assert!(error.contains(expected), "{url}: {error}");
        }
        for url in ["redis://h?protocol=resp2", "unix:///s?db=0&user=u&pass=p", "redis://h,i/0"] {
            assert!(Settings::at(url).check().is_ok(), "{url}");
        }
    }

    #[test]
    fn a_file_for_tls_is_refused_by_the_scheme_that_asks_for_it() {
        for (url, expected) in [
            ("redis://h", "write rediss:// in REDIS_URL"),
            ("redis+sentinel://h/main", "write rediss+sentinel:// in REDIS_URL"),
            ("unix:///s", "a unix socket speaks no TLS"),
        ] {
            let mut settings = Settings::at(url);
            settings.tls_ca_file = "/ca.pem".to_owned();
            let error = settings.check().expect_err(url).to_string();
            assert!(error.contains(expected), "{url}: {error}");
        }
    }
}
