//! What is looked at on this machine: tokens, ports, limits.

use tokio::net::TcpListener;

use aftercommit::auth;

use super::Finding;
use crate::config::Config;

/// File descriptors beside those of streams: Postgres, Redis, health, logs.
const FILES_BESIDE_STREAMS: usize = 1_100;

/// Looks at this machine and the configuration.
pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![jwt(config).await, open_files(config)];
    for (check, listen) in [
        ("port of api", &config.api.listen),
        ("port of sse", &config.sse.listen),
        ("port of relay", &config.relay.listen),
    ] {
        findings.push(port(check, listen).await);
    }
    findings
}

async fn jwt(config: &Config) -> Finding {
    match auth::examine(&config.jwt).await {
        Ok(evidence) if config.jwt.jwks_url.starts_with("http://") => Finding::should(
            "jwt",
            config.jwt.jwks_url.contains("://127.0.0.1") || config.jwt.jwks_url.contains("://localhost"),
            evidence,
            "use https: who can change that answer on its way can sign tokens",
        ),
        Ok(evidence) => Finding::ok("jwt", evidence),
        Err(error) => Finding::wrong("jwt", error, "see [jwt] in the configuration; api and sse need it"),
    }
}

fn open_files(config: &Config) -> Finding {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft: Option<usize> = soft.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let needed = config.sse.max_connections + FILES_BESIDE_STREAMS;
    Finding::should(
        "open files",
        soft.is_none_or(|soft| soft >= needed),
        soft.map_or_else(
            || "no limit is told".to_owned(),
            |soft| format!("{soft} allowed, {needed} for all streams"),
        ),
        "raise the limit of sse (ulimit -n, LimitNOFILE= of systemd), or lower [sse] max_connections",
    )
}

/// Free, or taken by a process of ours.
async fn port(check: &'static str, listen: &str) -> Finding {
    match TcpListener::bind(listen).await {
        Ok(_listener) => Finding::ok(check, format!("{listen} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let answer = crate::ops::probe::readiness(listen).await;
            Finding::should(
                check,
                answer.ok,
                answer.says,
                "see which process listens there, and what its /readyz says",
            )
        }
        Err(error) => {
            Finding::wrong(check, format!("{listen}: {error}"), "set it to an address of this machine")
        }
    }
}
