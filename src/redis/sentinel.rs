//! The primary behind sentinels: which server it is, and when another one takes its place.
//!
//! All sentinels are asked, and the server that most of them name is the primary: a sentinel that is cut off
//! from the others may still name the old one. While a connection is in use, the sentinels are asked again
//! each second. An old primary that is cut off from them goes on taking writes, and will lose them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use ::redis::{AsyncConnectionConfig, Client, RedisError};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::endpoint::Endpoint;
use super::error_text::{is_refused_login, plain_text};
use super::tls::{self, TlsSettings};

/// How long a sentinel may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How often the sentinels are asked again.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// The port of a sentinel whose address names none.
pub(super) const PORT: u16 = 26379;

/// The sentinels of one service.
#[derive(Debug, Clone)]
pub(super) struct Sentinels {
    pub(super) clients: Vec<Client>,
    /// The name under which they watch the primary.
    pub(super) service: String,
    pub(super) tls: TlsSettings,
}

/// Why a sentinel does not answer.
#[derive(Debug)]
enum Problem {
    /// It cannot be reached, or does not answer as a sentinel does.
    Silent(String),
    Login(String),
    Handshake(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Silent(text) | Self::Login(text) | Self::Handshake(text)) = self;
        f.write_str(text)
    }
}

/// The answer of one sentinel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentinelAnswer {
    /// Its host and port.
    pub sentinel: String,
    /// Host and port of the primary that it names, or why it names none.
    pub primary: Result<String, String>,
}

/// Why the sentinels name no primary.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SentinelError {
    /// None of them answered.
    #[error("no sentinel answers ({0}): check that they run, and the hosts and the scheme in REDIS_URL")]
    Silent(String),
    /// None of them names a primary, and one refuses the login.
    #[error("a sentinel refuses the login ({0}): check [redis] sentinel_user and sentinel_password")]
    Login(String),
    /// None of them names a primary, and TLS to one fails for a reason that does not go away by itself.
    #[error("cannot connect to a sentinel by TLS ({0})")]
    Handshake(String),
    /// None of them knows the service.
    #[error("no sentinel knows a primary called '{0}': check the name behind the hosts")]
    Unknown(String),
}

impl Sentinels {
    /// Returns the server that most sentinels name, as soon as no other one can have more.
    async fn primary(&self) -> Result<Endpoint, SentinelError> {
        let mut asked: FuturesUnordered<_> = self.clients.iter().map(|client| self.ask(client)).collect();
        let mut named: HashMap<Endpoint, usize> = HashMap::new();
        let (mut problems, mut knows) = (Vec::new(), true);
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(Some(address)) => {
                    let votes = named.entry(address.clone()).or_default();
                    *votes += 1;
                    if *votes * 2 > self.clients.len() {
                        return Ok(address);
                    }
                }
                Ok(None) => knows = false,
                Err(problem) => problems.push(problem),
            }
        }
        let most = named.into_iter().max_by_key(|(_, votes)| *votes);
        most.map(|(address, _)| address).ok_or_else(|| match knows {
            true => SentinelError::of(problems),
            false => SentinelError::Unknown(self.service.clone()),
        })
    }

    /// Asks each of them.
    pub(super) async fn answers(&self) -> Vec<SentinelAnswer> {
        let asked = self.clients.iter().map(async |client| SentinelAnswer {
            sentinel: client.get_connection_info().addr().to_string(),
            primary: match self.ask(client).await {
                Ok(Some(primary)) => Ok(primary.to_string()),
                Ok(None) => Err(SentinelError::Unknown(self.service.clone()).to_string()),
                Err(problem) => Err(problem.to_string()),
            },
        });
        join_all(asked).await
    }

    async fn ask(&self, client: &Client) -> Result<Option<Endpoint>, Problem> {
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_LIMIT))
            .set_response_timeout(Some(ANSWER_LIMIT));
        let asking = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&limits).await?;
            let mut command = ::redis::cmd("SENTINEL");
            command.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.service);
            command.query_async::<Option<(String, u16)>>(&mut connection).await
        };
        let at = client.get_connection_info().addr();
        match timeout(ANSWER_LIMIT, asking).await {
            Ok(Ok(answer)) => Ok(answer.map(|(host, port)| Endpoint { host, port })),
            Ok(Err(error)) => Err(match tls::handshake_problem(&error, &self.tls) {
                Some(problem) => Problem::Handshake(format!("{at}: {problem}")),
                None if is_refused_login(&error) => Problem::Login(format!("{at}: {}", plain_text(&error))),
                None => Problem::Silent(format!("{at}: {}", plain_text(&error))),
            }),
            Err(_elapsed) => Err(Problem::Silent(format!("{at}: {}", plain_text(&timed_out())))),
        }
    }
}

impl SentinelError {
    /// The error to report if every sentinel has a problem. A problem that waiting does not solve comes
    /// first, because the sentinels that are merely away would have it too.
    fn of(problems: Vec<Problem>) -> Self {
        let mut told = Self::Silent(String::new());
        for problem in problems {
            match problem {
                Problem::Silent(text) if matches!(told, Self::Silent(_)) => told = Self::Silent(text),
                Problem::Silent(_) => {}
                Problem::Login(text) => told = Self::Login(text),
                Problem::Handshake(text) => told = Self::Handshake(text),
            }
        }
        told
    }
}

fn timed_out() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

/// The newest primary that the sentinels named, shared by all connections with the same settings.
#[derive(Debug, Clone, Default)]
pub(super) struct Primary(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    newest: watch::Sender<Newest>,
    /// Set when the task that keeps asking has begun.
    is_followed: OnceLock<()>,
}

#[derive(Debug, Clone, Default)]
struct Newest {
    address: Option<Endpoint>,
    /// Counts the changes.
    version: u64,
}

impl Default for Shared {
    fn default() -> Self {
        Self { newest: watch::Sender::new(Newest::default()), is_followed: OnceLock::new() }
    }
}

impl Shared {
    async fn ask(&self, sentinels: &Sentinels) -> Result<(Endpoint, u64), SentinelError> {
        let address = sentinels.primary().await?;
        self.newest.send_if_modified(|newest| {
            let is_new = newest.address.as_ref() != Some(&address);
            if is_new {
                if let Some(before) = &newest.address {
                    tracing::warn!(%before, now = %address, "the sentinels name another primary");
                }
                newest.address = Some(address.clone());
                newest.version += 1;
            }
            is_new
        });
        Ok((address, self.newest.borrow().version))
    }
}

impl Primary {
    /// Asks for the primary, and keeps asking from now on. Returns it with the version under which it is
    /// known.
    pub(super) async fn find(&self, sentinels: &Sentinels) -> Result<(Endpoint, u64), SentinelError> {
        self.0.is_followed.get_or_init(|| {
            tokio::spawn(follow(Arc::downgrade(&self.0), sentinels.clone()));
        });
        self.0.ask(sentinels).await
    }

    /// Counts the changes of the primary; 0 without sentinels.
    pub(super) fn version(&self) -> u64 {
        self.0.newest.borrow().version
    }

    /// Returns when the primary is not that of this version any more; never without sentinels.
    pub(super) async fn changed_since(&self, version: u64) {
        let mut newest = self.0.newest.subscribe();
        // The sender lives as long as this.
        let _changed = newest.wait_for(|newest| newest.version != version).await;
    }
}

/// Keeps asking as long as somebody holds the settings.
async fn follow(shared: Weak<Shared>, sentinels: Sentinels) {
    loop {
        sleep(ASK_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = shared.ask(&sentinels).await {
            tracing::debug!(%error, "the primary stays as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_that_waiting_does_not_mend_is_told_before_silence() {
        let silent = || Problem::Silent("a:1: no answer".to_owned());
        let refused = || Problem::Login("b:1: WRONGPASS".to_owned());
        for problems in [vec![silent(), refused()], vec![refused(), silent()]] {
            assert!(matches!(SentinelError::of(problems), SentinelError::Login(_)));
        }
        assert!(
            matches!(SentinelError::of(vec![silent()]), SentinelError::Silent(text) if text.contains("a:1"))
        );
    }
}
