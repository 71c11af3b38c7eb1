//! The primary among several hosts: `postgres://user@a:5432,b:5432/database?target_session_attrs=read-write`.
//!
//! Everything here writes, or must see its own writes, so only a primary will do. The first host of the address
//! that is one is taken, as libpq does.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};

use super::error::{ConnectError, error_text, is_tls};
use super::{address_of, is_refused_login};

/// How long one host may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The values of `target_session_attrs` that a primary fulfils.
const OF_A_PRIMARY: [&str; 3] = ["any", "read-write", "primary"];

/// Takes an address of several hosts apart: an address for each host, without `target_session_attrs`.
///
/// # Errors
/// Returns [`ConnectError::Hosts`] if the hosts do not stand before the database's name, and
/// [`ConnectError::WantsAStandby`] if the address asks for one.
pub(super) fn addresses(url: &str) -> Result<Vec<String>, ConnectError> {
    let (before, behind) = url.split_once("://").ok_or(ConnectError::Hosts)?;
    let (address, query) = behind.split_once('?').unwrap_or((behind, ""));
    let mut kept = Vec::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("target_session_attrs", wanted)) if OF_A_PRIMARY.contains(&wanted) => {}
            Some(("target_session_attrs", _)) => return Err(ConnectError::WantsAStandby),
            Some(("host" | "hostaddr" | "port", value)) if value.contains(',') || value.contains("%2C") => {
                return Err(ConnectError::Hosts);
            }
            _ => kept.push(parameter),
        }
    }
    let (authority, database) = address.split_once('/').unwrap_or((address, ""));
    let (userinfo, hosts) = match authority.rsplit_once('@') {
        Some((userinfo, hosts)) => (format!("{userinfo}@"), hosts),
        None => (String::new(), authority),
    };
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    Ok(hosts.split(',').map(|host| format!("{before}://{userinfo}{host}/{database}{query}")).collect())
}

/// Returns the first of these that is a primary.
///
/// # Errors
/// Returns [`ConnectError::Refused`] if every host refuses the login or fails at TLS, and otherwise
/// [`ConnectError::NoPrimary`] with the answer of each host if none is a primary.
pub(super) async fn primary(hosts: &[PgConnectOptions]) -> Result<PgConnectOptions, ConnectError> {
    let mut answers = Vec::new();
    for host in hosts {
        match ask(host).await {
            Ok(()) => return Ok(host.clone()),
            Err(answer) => answers.push((address_of(host), answer)),
        }
    }
    let refuses_login = answers.iter().any(|(_, answer)| answer.refuses_login());
    if answers.iter().all(|(_, answer)| answer.refuses_login() || answer.is_of_tls())
        && let Some((address, Answer::Failed(source))) = answers.pop()
    {
        return Err(ConnectError::refused(address, source));
    }
    let told: Vec<String> = answers.iter().map(|(address, answer)| format!("{address}: {answer}")).collect();
    Err(ConnectError::NoPrimary { answers: told.join("; "), refuses_login })
}

/// Why a host is not taken.
#[derive(Debug, thiserror::Error)]
enum Answer {
    #[error("a standby")]
    Standby,
    #[error("no answer within {} s", ANSWER_LIMIT.as_secs())]
    None,
    #[error("{}", error_text(.0))]
    Failed(#[from] sqlx::Error),
}

impl Answer {
    fn refuses_login(&self) -> bool {
        matches!(self, Self::Failed(error) if is_refused_login(error))
    }

    fn is_of_tls(&self) -> bool {
        matches!(self, Self::Failed(error) if is_tls(error))
    }
}

async fn ask(options: &PgConnectOptions) -> Result<(), Answer> {
    let asking = async {
        let mut connection = options.connect().await?;
        let is_standby: bool =
            sqlx::query_scalar("select pg_catalog.pg_is_in_recovery()").fetch_one(&mut connection).await?;
        // The answer counts, whatever becomes of the goodbye.
        let _closed = connection.close().await;
        Ok::<_, sqlx::Error>(is_standby)
    };
    match tokio::time::timeout(ANSWER_LIMIT, asking).await {
        Ok(Ok(false)) => Ok(()),
        Ok(Ok(true)) => Err(Answer::Standby),
        Ok(Err(error)) => Err(error.into()),
        Err(_elapsed) => Err(Answer::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_several_hosts_is_taken_apart() {
        let of = |url: &str| addresses(url).map_err(|error| error.to_string());
        let two = ["postgres://u:p,q@a:1/d?sslmode=require", "postgres://u:p,q@b:2/d?sslmode=require"];
        let url = "postgres://u:p,q@a:1,b:2/d?target_session_attrs=read-write&sslmode=require";
        assert_eq!(of(url).expect("two"), two);
        assert_eq!(of("postgres://a,b/d").expect("two"), ["postgres://a/d", "postgres://b/d"]);
        assert_eq!(of("postgres://a/d?target_session_attrs=primary").expect("one"), ["postgres://a/d"]);
        assert!(of("postgres://a,b/d?target_session_attrs=standby").is_err());
        assert!(of("postgres:///d?host=a,b").is_err());
    }
}
