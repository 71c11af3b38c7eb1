//! Checks of this machine: tokens, ports, limits.

use tokio::net::TcpListener;

use aftercommit::auth;

use super::{Finding, RoleArg, Scope};
use crate::config::Config;
use crate::open_files;

/// Checks this machine and the configuration.
pub(super) async fn examine(config: &Config, scope: Scope) -> Vec<Finding> {
    let mut findings = Vec::new();
    if scope.checks_tokens() {
        findings.push(jwt(config).await);
    }
    if scope.subscribes() {
        findings.push(open_files(config));
    }
    for (check, listen, roles) in [
        ("port of api", &config.api.listen, [RoleArg::Api, RoleArg::Operator]),
        ("port of sse", &config.sse.listen, [RoleArg::Sse, RoleArg::Operator]),
        ("port of relay", &config.relay.listen, [RoleArg::Relay, RoleArg::Operator]),
    ] {
        if scope.is_any_of(&roles) {
            findings.push(port(check, listen).await);
        }
    }
    findings
}

async fn jwt(config: &Config) -> Finding {
    match auth::examine(&config.jwt).await {
        Ok(evidence) if config.jwt.jwks_url.starts_with("http://") => Finding::should(
            "jwt",
            config.jwt.jwks_url.contains("://127.0.0.1") || config.jwt.jwks_url.contains("://localhost"),
            evidence,
            "use https: an attacker who can change that answer in transit can sign tokens",
        ),
        Ok(evidence) => Finding::ok("jwt", evidence),
        Err(error) => Finding::wrong("jwt", error, "see [jwt] in the configuration; api and sse need it"),
    }
}

fn open_files(config: &Config) -> Finding {
    let (allowed, needed) = (open_files::allowed(), open_files::of_streams(config));
    Finding::should(
        "open files",
        allowed.is_none_or(|allowed| allowed >= needed),
        allowed.map_or_else(
            || "no limit".to_owned(),
            |allowed| format!("{allowed} allowed, {needed} for all streams"),
        ),
        "raise the limit of sse (ulimit -Hn, LimitNOFILE= of systemd), or lower [sse] max_connections",
    )
}

/// Checks that an address is free, or taken by a healthy process of ours.
async fn port(check: &'static str, listen: &str) -> Finding {
    match TcpListener::bind(listen).await {
        Ok(_listener) => Finding::ok(check, format!("{listen} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let answer = crate::ops::probe::readiness(listen).await;
            Finding::should(
                check,
                answer.ok && !answer.warns,
                answer.says,
                "find the process that listens there and see its /readyz; raise a limit, or start another \
                 process",
            )
        }
        Err(error) => {
            Finding::wrong(check, format!("{listen}: {error}"), "set it to an address of this machine")
        }
    }
}
