//! `aftercommit dev`: what it says, and what it writes for other programs.

use std::collections::BTreeMap;

use tokio::process::Command;

use crate::commands::stdout;
use crate::harness::{Running, Settings, TestResult, cli, eventually, http, http_get};

#[tokio::test]
async fn dev_is_up_when_the_relay_is_ready_and_its_file_serves_every_command() -> TestResult {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("env");
    let any_port = Settings::default()
        .set("HOME", std::env::var("HOME").unwrap_or_default())
        .set("AFTERCOMMIT_API_LISTEN", "127.0.0.1:0")
        .set("AFTERCOMMIT_SSE_LISTEN", "127.0.0.1:0")
        .set("AFTERCOMMIT_RELAY_LISTEN", "127.0.0.1:0");
    let path = file.to_str().ok_or("no path")?;
    let _dev = Running::start(&any_port, &["dev", "--ephemeral", "--env-file", path]);
    let written = eventually("dev is up", async || std::fs::read_to_string(&file).ok()).await;
    let variables: BTreeMap<&str, &str> = written.lines().filter_map(|line| line.split_once('=')).collect();

    // The first look, without a wait.
    let ready = http_get(format!("{}/readyz", variables["RELAY_URL"])).await?;
    assert_eq!(ready.status(), 200, "{}", ready.text().await?);
    let settings = variables.iter().fold(Settings::default(), |all, (name, value)| all.set(name, *value));
    let status = stdout(&cli(&settings, &["status"]).await);
    assert!(status.starts_with("relay main: delivering\n"), "{status}");
    assert!(status.contains("\nsse    ok: ready at 127.0.0.1:"), "{status}");

    let mut redis_cli = Command::new("redis-cli");
    let pong = redis_cli.args(["-u", variables["REDIS_URL"], "ping"]).output().await?;
    assert_eq!(stdout(&pong), "PONG\n", "{pong:?}");

    let stream = format!("{}/streams/order:42", variables["SSE_URL"]);
    let client = http();
    for (origin, is_allowed) in
        [("http://localhost:5173", true), ("http://127.0.0.1:8000", true), ("https://app.example", false)]
    {
        let answer = client.get(&stream).header("origin", origin).send().await?;
        let allowed = answer.headers().get("access-control-allow-origin");
        assert_eq!(allowed.is_some_and(|allowed| allowed == origin), is_allowed, "{origin}: {allowed:?}");
    }
    Ok(())
}
