//! Asking Redis and another process whether they are well, within a second.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use aftercommit::counted::counted;
use aftercommit::http::Check;

use super::output;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much of an answer is read.
const ANSWER_BYTES: u64 = 64 * 1024;

/// What was answered.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    /// Whether all is well.
    pub(super) ok: bool,
    /// In words.
    pub(super) says: String,
}

impl Answer {
    /// The answer as a check.
    pub(crate) fn check(self, name: &'static str) -> Check {
        Check::of(name, if self.ok { Ok(self.says) } else { Err(self.says) })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.ok { "ok" } else { "DOWN" }, self.says)
    }
}

/// Asks Redis.
pub(crate) async fn redis(settings: &aftercommit::redis::Settings) -> Answer {
    answered(async {
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
            counted(of("connected_clients").parse().unwrap_or(0), "client"),
            of("maxmemory_policy")
        ))
    })
    .await
}

/// Asks a process's `/readyz`.
pub(crate) async fn readiness(listen: &str) -> Answer {
    answered(async {
        let mut stream =
            TcpStream::connect(listen).await.with_context(|| format!("nothing answers at {listen}"))?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("that is not an HTTP answer")?;
        if head.starts_with("HTTP/1.1 200") {
            return Ok(format!("ready at {listen}"));
        }
        bail!("not ready at {listen}: {}", reasons(body))
    })
    .await
}

/// The reasons of the checks that do not hold.
fn reasons(body: &str) -> String {
    let parsed: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let checks = parsed["checks"].as_array().into_iter().flatten().filter(|check| check["ok"] == false);
    checks.filter_map(|check| check["reason"].as_str()).collect::<Vec<_>>().join("; ")
}

async fn answered(asking: impl Future<Output = Result<String>>) -> Answer {
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(says)) => Answer { ok: true, says },
        Ok(Err(error)) => Answer { ok: false, says: output::told(&error) },
        Err(_elapsed) => Answer { ok: false, says: format!("no answer within {} s", PATIENCE.as_secs()) },
    }
}
