//! Asks Redis and another process for their health, within a second.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use aftercommit::console::Streams;
use aftercommit::http::Check;
use aftercommit::pluralize::pluralize;

use super::output;

/// The time limit of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest part of an answer that is read, in bytes.
const ANSWER_BYTES: u64 = 64 * 1024;

/// The health of a server.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    /// Whether the server is healthy.
    pub(crate) ok: bool,
    /// Whether the server answers but reports a problem, such as no room for more clients.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) warns: bool,
    /// The state of the server, in words.
    pub(crate) says: String,
}

impl Answer {
    fn good(says: String) -> Self {
        Self { ok: true, warns: false, says }
    }

    /// The answer as a check.
    pub(crate) fn check(self, name: &'static str) -> Check {
        let check = Check::of(name, if self.ok { Ok(self.says) } else { Err(self.says) });
        if self.warns { check.with_warning() } else { check }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.ok { "ok" } else { "DOWN" }, self.says)
    }
}

/// Asks Redis for its state.
pub(crate) async fn redis(settings: &aftercommit::redis::Settings) -> Answer {
    let answer = answered(async {
        if let Some(primaries) = settings.connect_to_primaries().await? {
            return cluster(primaries);
        }
        let mut connection = settings.connect().await?;
        let info: String =
            redis::cmd("INFO").query_async(&mut connection).await.context("INFO is refused")?;
        let of = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or("?").trim().to_owned()
        };
        Ok(format!(
            "Redis {}, {}, {} used, {}, {}",
            of("redis_version"),
            of("role"),
            of("used_memory_human"),
            pluralize(of("connected_clients").parse().unwrap_or(0), "client"),
            of("maxmemory_policy")
        ))
    });
    match answer.await {
        Ok(says) => Answer::good(says),
        Err(says) => Answer { ok: false, warns: false, says },
    }
}

/// A cluster is healthy if each of its primaries can be reached.
fn cluster(primaries: Vec<aftercommit::redis::Primary>) -> Result<String> {
    let count = primaries.len();
    for primary in primaries {
        primary.connection?;
    }
    Ok(format!("Redis Cluster of {}", pluralize(count as u64, "primary server")))
}

/// Asks a process's `/readyz`.
pub(crate) async fn readiness(listen: &str) -> Answer {
    let answer = answered(async {
        let (is_good, body) = get(listen, "/readyz").await?;
        if !is_good {
            bail!("not ready at {listen}: {}", reasons(&body, |check| check["ok"] == false))
        }
        Ok((listen.to_owned(), reasons(&body, |check| check["warning"] == true)))
    });
    let answer = answer.await;
    match answer {
        Ok((listen, warnings)) if warnings.is_empty() => Answer::good(format!("ready at {listen}")),
        Ok((listen, warnings)) => {
            Answer { warns: true, ..Answer::good(format!("ready at {listen}, but {warnings}")) }
        }
        Err(says) => Answer { ok: false, warns: false, says },
    }
}

/// Asks an SSE server's `/metrics` for its streams.
pub(crate) async fn streams(listen: &str) -> Option<Streams> {
    let (is_good, body) = answered(get(listen, "/metrics")).await.ok()?;
    if is_good { Streams::of_metrics(&body) } else { None }
}

/// Whether the answer is 200, and its body.
async fn get(listen: &str, path: &str) -> Result<(bool, String)> {
    let mut stream =
        TcpStream::connect(listen).await.with_context(|| format!("nothing answers at {listen}"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("that is not an HTTP answer")?;
    Ok((head.starts_with("HTTP/1.1 200"), body.to_owned()))
}

/// The reasons of the checks that `wanted` selects.
fn reasons(body: &str, wanted: impl Fn(&serde_json::Value) -> bool) -> String {
    let parsed: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let checks = parsed["checks"].as_array().into_iter().flatten().filter(|check| wanted(check));
    checks.filter_map(|check| check["reason"].as_str()).collect::<Vec<_>>().join("; ")
}

/// The answer, or in words why there was none in time.
async fn answered<T>(asking: impl Future<Output = Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
        Ok(answered) => answered.map_err(|error| output::error_text(&error)),
        Err(_elapsed) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
    }
}
