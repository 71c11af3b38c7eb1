//! Connecting to Postgres: addresses, limits and timeouts in one place.
//!
//! Every connection carries `application_name`, so that `pg_stat_activity` tells the roles apart. It has
//! server-side timeouts, because a statement without one can hang for ever on a half-open connection.
//!
//! Every connection resolves names in `pg_catalog` alone. If others may create objects in a schema of the
//! search path, their operator or function can fit better than `pg_catalog`'s, and would run with the
//! connection's rights. Every connection also sees all rows that a statement asks for, or gets an error: if
//! row level security hid rows, an empty answer would pass for "there are none".
//!
//! Both are start-up options, which a pooler in transaction mode refuses or drops. They are not set later
//! instead, because such a setting would remain in the pooler's session for its next user.
//! [`Settings::connect`] refuses such a pooler. A pool for an application's commands warns once; `alter role
//! ... set search_path = pg_catalog, pg_temp` pins the path there.

mod error;
mod hosts;
#[cfg(feature = "server")]
mod listener;
#[cfg(feature = "server")]
mod pool;
mod schema;
mod tls;

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Once;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;
#[cfg(feature = "server")]
use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, Row};

pub use error::{ConnectError, error_text, is_tls};
#[cfg(feature = "server")]
pub use pool::Pool;
pub use schema::{Schema, SchemaError, State, check_version};
pub use tls::TlsError;

use crate::address::{self, AddressError};
use crate::password_command::{Password, PasswordCommand, PasswordError};
use tls::Tls;

/// The form of an address.
const FORM: &str = "postgres://user:password@host:port/database";
/// How long to wait for a connection, new or from a pool. Shorter than the time-outs of requests.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The query parameters of an address that the driver knows. The driver logs every other one with its value.
const PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// The `[database]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `postgres://user:password@host:port/database`.
    pub url: SecretString,
    /// The address of Postgres itself, for applications whose `url` leads to a pooler; empty: `url`. Everything
    /// of this crate that runs as a process goes there, because it needs sessions of its own.
    pub direct_url: SecretString,
    /// A program that prints the password, instead of one in the address.
    pub password_command: PasswordCommand,
    /// The most connections of a pool.
    pub max_connections: u32,
    /// How long a statement may take, in milliseconds.
    pub statement_timeout_ms: u64,
}

impl Settings {
    /// Checks everything that can be checked without a connection.
    ///
    /// # Errors
    /// Returns [`ConnectError::NoUrl`] if no address is set, [`ConnectError::Url`] if one is malformed,
    /// [`ConnectError::Hosts`] or [`ConnectError::WantsAStandby`] if its several hosts cannot be used,
    /// [`ConnectError::Parameter`] if a parameter means nothing, [`ConnectError::Tls`] if the mode or the
    /// files of TLS cannot be used, and [`ConnectError::TwoPasswords`] if a program gives the password too.
    pub fn check(&self) -> Result<(), ConnectError> {
        self.hosts(&self.url, "")?;
        self.hosts(self.direct(), "").map(|_hosts| ())
    }

    /// Builds the options for one session under the given `application_name`: to the primary, with the newest
    /// password.
    ///
    /// # Errors
    /// Fails as [`Settings::check`], and returns [`ConnectError::Password`] if the program gives no password,
    /// and [`ConnectError::NoPrimary`] if none of several hosts is one.
    pub async fn options(&self, application_name: &str) -> Result<PgConnectOptions, ConnectError> {
        let mut hosts = self.hosts(self.direct(), application_name)?;
        for host in &mut hosts {
            *host = with_password(host.clone(), &self.password_command).await?;
        }
        match hosts.len() {
            1 => Ok(hosts.remove(0)),
            _ => self.primary(&hosts).await,
        }
    }

    async fn primary(&self, hosts: &[PgConnectOptions]) -> Result<PgConnectOptions, ConnectError> {
        let found = hosts::primary(hosts).await;
        if found.as_ref().is_err_and(ConnectError::refuses_login) {
            self.password_command.forget();
        }
        found.map_err(|error| explained(error, self.direct()))
    }

    fn direct(&self) -> &SecretString {
        if self.direct_url.expose_secret().is_empty() { &self.url } else { &self.direct_url }
    }

    /// Builds the options for each host of an address, without the program's password.
    fn hosts(
        &self,
        url: &SecretString,
        application_name: &str,
    ) -> Result<Vec<PgConnectOptions>, ConnectError> {
        let url = url.expose_secret();
        if url.is_empty() {
            return Err(ConnectError::NoUrl);
        }
        address::check(url, &["postgres", "postgresql"], FORM).map_err(ConnectError::Url)?;
        if self.password_command.is_set() && address::holds_a_password(url) {
            return Err(ConnectError::TwoPasswords);
        }
        addresses_of(url)?.iter().map(|url| self.host(url, application_name)).collect()
    }

    /// Builds the options for an address of one host.
    fn host(&self, url: &str, application_name: &str) -> Result<PgConnectOptions, ConnectError> {
        check_parameters(url)?;
        let tls = Tls::of(url)?;
        tls.check()?;
        // The driver's own message may quote the address.
        let malformed = |_: sqlx::Error| ConnectError::Url(AddressError::Form(FORM));
        let options = driver_options(url).map_err(malformed)?;
        Ok(tls
            .apply(options)
            .application_name(application_name)
            .options([
                ("search_path", PINNED.to_owned()),
                ("row_security", "off".to_owned()),
                // The statements are index look-ups, planned without statistics: compiling them takes longer
                // than running them.
                ("jit", "off".to_owned()),
                ("statement_timeout", self.statement_timeout_ms.to_string()),
                // A dead peer is noticed within half a minute, also in the middle of a query.
                ("tcp_keepalives_idle", "10".to_owned()),
                ("tcp_keepalives_interval", "5".to_owned()),
                ("tcp_keepalives_count", "3".to_owned()),
            ])
            .disable_statement_logging())
    }

    /// Opens a single connection, outside any pool.
    ///
    /// # Errors
    /// Returns the errors of [`Settings::options`], [`ConnectError::Timeout`] if the server does not answer in
    /// time, [`ConnectError::Pooled`] if a pooler drops the start-up options, and [`ConnectError::Refused`] if
    /// the server refuses or cannot be reached.
    pub async fn connect(&self, application_name: &str) -> Result<PgConnection, ConnectError> {
        let options = self.options(application_name).await?;
        let address = address_of(&options);
        let connecting = async {
            let mut connection = options.connect().await?;
            let is_pinned = is_pinned(&mut connection).await?;
            if is_pinned {
                never_idle_out(&mut connection).await?;
            }
            Ok((connection, is_pinned))
        };
        match tokio::time::timeout(ACQUIRE_TIMEOUT, connecting).await {
            Ok(Ok((connection, true))) => Ok(connection),
            Ok(Ok((_connection, false))) => Err(ConnectError::Pooled { address }),
            Ok(Err(source)) => {
                if is_refused_login(&source) {
                    self.password_command.forget();
                }
                if source.to_string().contains("startup parameter") {
                    // Postgres itself takes our settings.
                    return Err(ConnectError::Pooled { address });
                }
                Err(explained(ConnectError::refused(address, source), self.direct()))
            }
            Err(_) => Err(ConnectError::Timeout { address, waited_ms: ACQUIRE_TIMEOUT.as_millis() as u64 }),
        }
    }

    /// Opens a connection as an application does: to `url`, with no setting of ours, because a pooler may be
    /// between. Returns `None` if there is no other address.
    ///
    /// # Errors
    /// Fails as [`Settings::options`], and returns [`ConnectError::Refused`] if the server refuses or cannot
    /// be reached.
    pub async fn connect_as_application(&self) -> Result<Option<PgConnection>, ConnectError> {
        if self.direct_url.expose_secret().is_empty() {
            return Ok(None);
        }
        let addresses = addresses_of(self.url.expose_secret())?;
        let malformed = |_: sqlx::Error| ConnectError::Url(AddressError::Form(FORM));
        let url = addresses.first().ok_or(ConnectError::NoUrl)?;
        let options = driver_options(url).map_err(malformed)?.disable_statement_logging();
        let options = Tls::of(url)?.apply(options);
        let options = with_password(options, &self.password_command).await?;
        let address = address_of(&options);
        match tokio::time::timeout(ACQUIRE_TIMEOUT, options.connect()).await {
            Ok(connected) => match connected {
                Ok(connection) => Ok(Some(connection)),
                Err(source) => Err(explained(ConnectError::refused(address, source), &self.url)),
            },
            Err(_) => Err(ConnectError::Timeout { address, waited_ms: ACQUIRE_TIMEOUT.as_millis() as u64 }),
        }
    }

    /// Makes a pool that connects at its first use, so that a process can start while Postgres is away.
    ///
    /// # Errors
    /// Fails as [`Settings::check`].
    #[cfg(feature = "server")]
    pub fn lazy_pool(&self, application_name: &str) -> Result<Pool, ConnectError> {
        let hosts = self.hosts(self.direct(), application_name)?;
        let has_standbys = hosts.len() > 1;
        let pool = PgPoolOptions::new()
            .max_connections(self.max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| Box::pin(checked(connection, has_standbys)))
            .connect_lazy_with(hosts[0].clone());
        Ok(Pool::new(pool, hosts, self.password_command.clone()))
    }
}

/// Reads an address of one host as the driver does.
fn driver_options(url: &str) -> Result<PgConnectOptions, sqlx::Error> {
    PgConnectOptions::from_str(&address::with_literal_plus(&for_the_driver(url)))
}

/// Adds the file and the parameter of the address to an error of TLS.
fn explained(mut error: ConnectError, url: &SecretString) -> ConnectError {
    if let ConnectError::Refused { problem, source, .. } = &mut error
        && let Some(of_tls) = Tls::of(url.expose_secret()).ok().and_then(|tls| tls.problem(source))
    {
        *problem = of_tls;
    }
    error
}

/// Adds the password of the program, if one is set.
async fn with_password(
    options: PgConnectOptions,
    command: &PasswordCommand,
) -> Result<PgConnectOptions, PasswordError> {
    if !command.is_set() {
        return Ok(options);
    }
    let Password { password, user, .. } = command.password().await?;
    let options = options.password(password.expose_secret());
    Ok(match user {
        Some(user) => options.username(&user),
        None => options,
    })
}

/// Whether the server refuses the user or the password.
fn is_refused_login(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("28P01" | "28000"))
}

/// The search path of every connection. No other role can create anything in it.
const PINNED: &str = "pg_catalog, pg_temp";

async fn is_pinned(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    // The simple protocol, because a pooler may not know prepared statements.
    let row = sqlx::raw_sql("select pg_catalog.current_setting('search_path')").fetch_one(connection).await?;
    Ok(row.try_get::<String, _>(0)? == PINNED)
}

/// Refuses a standby, where one of several hosts may be one. Warns about a pooler.
#[cfg(feature = "server")]
async fn checked(connection: &mut PgConnection, has_standbys: bool) -> Result<(), sqlx::Error> {
    if has_standbys
        && sqlx::query_scalar("select pg_catalog.pg_is_in_recovery()").fetch_one(&mut *connection).await?
    {
        return Err(sqlx::Error::Protocol("this host is a standby".to_owned()));
    }
    if is_pinned(connection).await? {
        Ok(())
    } else {
        Err(sqlx::Error::Protocol(
            "a pooler drops the session's settings: set [database] direct_url".to_owned(),
        ))
    }
}

/// Turns off the server's idle time-outs for this session, in and out of transactions, whatever the defaults
/// of the role or the database are. For sessions that wait for something to happen. Never call it through a
/// pooler, where the setting would outlive this use of the session.
///
/// # Errors
/// Returns Postgres's error if the server refuses a statement or the connection breaks.
pub async fn never_idle_out(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    // No version of Postgres has all three settings.
    sqlx::raw_sql(
        "select set_config(s.name, '0', false) from pg_settings s
         where s.name in
           ('idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether a pooler is between: two connections have one server process at the same time, or the process of
/// one connection changes.
///
/// # Errors
/// Returns Postgres's error if the server refuses a statement or the connection breaks.
pub async fn shares_a_session(one: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let before = pid_of(one).await?;
    let mut held = other.begin().await?;
    let shared = pid_of(&mut held).await? == before || pid_of(one).await? != before;
    held.rollback().await?;
    Ok(shared)
}

async fn pid_of(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("select pg_backend_pid()").fetch_one(connection).await
}

/// Returns the address with the parameters that the driver knows. The first call logs the names of the
/// others, without their values.
fn for_the_driver(url: &str) -> Cow<'_, str> {
    static LOGGED: Once = Once::new();
    let is_known = |name: &str| PARAMETERS.contains(&name) || name.starts_with("options[");
    let (known, unknown) = address::with_known_parameters(url, is_known);
    if !unknown.is_empty() {
        LOGGED.call_once(|| {
            let parameters = unknown.join(", ");
            tracing::warn!(%parameters, "ignoring parameters of the database url that are not known");
        });
    }
    known
}

/// Checks the parameters whose values the driver refuses without their name.
fn check_parameters(url: &str) -> Result<(), ConnectError> {
    let wrong = |parameter, expected| Err(ConnectError::Parameter { parameter, expected });
    let has = |name| address::last_parameter(url, &[name]).map(|(_, value)| value);
    if has("port").is_some_and(|port| port.parse::<u16>().is_err()) {
        return wrong("port", "the number of a port");
    }
    if has("hostaddr").is_some_and(|address| address.parse::<std::net::IpAddr>().is_err()) {
        return wrong("hostaddr", "an IP address");
    }
    if has("statement-cache-capacity").is_some_and(|capacity| capacity.parse::<usize>().is_err()) {
        return wrong("statement-cache-capacity", "a number");
    }
    Ok(())
}

/// Returns an address for each host that the address names, without `target_session_attrs`.
fn addresses_of(url: &str) -> Result<Vec<String>, ConnectError> {
    let is_rewritten = names_several_hosts(url) || address::parameter(url, "target_session_attrs").is_some();
    if is_rewritten { hosts::addresses(url) } else { Ok(vec![url.to_owned()]) }
}

/// Whether libpq would try several servers: `postgres://a,b/db`, or `?host=a,b`. The driver would take the
/// comma for a part of the name or the port.
fn names_several_hosts(url: &str) -> bool {
    let behind_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (address, parameters) = behind_scheme.split_once('?').unwrap_or((behind_scheme, ""));
    // A password may contain a comma.
    let hosts =
        address.split('/').next().and_then(|authority| authority.rsplit('@').next()).unwrap_or_default();
    let mut named = parameters.split('&').filter_map(|parameter| parameter.split_once('='));
    hosts.contains(',')
        || named.any(|(name, value)| {
            ["host", "hostaddr", "port"].contains(&name) && (value.contains(',') || value.contains("%2C"))
        })
}

/// Host, port and database: the parts of an address that may be printed.
fn address_of(options: &PgConnectOptions) -> String {
    let host = options.get_socket().map_or(options.get_host().to_owned(), |path| path.display().to_string());
    format!("{host}:{}/{}", options.get_port(), options.get_database().unwrap_or(options.get_username()))
}

#[cfg(test)]
mod tests {
    use super::names_several_hosts;

    #[test]
    fn several_hosts_are_seen_and_a_comma_in_a_password_is_none() {
        for several in ["postgres://a,b/db", "postgres://u:p@a:5432,b:5433/db", "postgres:///db?host=a,b"] {
            assert!(names_several_hosts(several), "{several}");
        }
        for one in ["postgres://u:p,q@a:5432/db", "postgres://a/d,b", "postgres://a/db?options=-c x=1,2"] {
            assert!(!names_several_hosts(one), "{one}");
        }
    }
}
