//! `doctor` tries in Redis what the relay does there: its own publishing script, with the rights of its own
//! user.

use std::process::Output;

use secrecy::ExposeSecret;

use crate::commands::stdout;
use crate::harness::{Settings, System, TestResult, cli, redis_settings_of, start_redis};

/// What doctor says, and its exit code.
async fn doctor(settings: &Settings) -> TestResult<(Option<i32>, String)> {
    let output: Output = cli(settings, &["doctor", "--role", "relay"]).await;
    Ok((output.status.code(), stdout(&output)))
}

#[tokio::test]
async fn each_right_that_the_publishing_script_needs_is_tried_and_nothing_is_left_behind() -> TestResult {
    let redis = start_redis(Vec::new(), None).await;
    let mut connection = redis_settings_of(redis.url().expose_secret()).connect().await?;
    let system = System::with_redis(redis.url().expose_secret()).await;
    let url = format!("redis://relay:secret@127.0.0.1:{}", redis.port());
    let settings = system.settings().clone().set("REDIS_URL", url);
    let printed = cli(system.settings(), &["grants", "--redis", "--relay", "relay"]).await;
    let printed = stdout(&printed);
    let printed = printed.trim_end().strip_prefix("ACL SETUSER relay ").ok_or("no rights of the relay")?;
    let commands =
        ["time", "hmget", "hset", "xrevrange", "xrange", "pttl", "xadd", "set", "expire", "publish"];
    let without = commands.map(|command| format!("-{command}"));
    let nothing = ["", "resetkeys", "resetchannels"].map(str::to_owned);
    for rule in nothing.into_iter().chain(without) {
        let mut user = redis::cmd("ACL");
        user.arg("SETUSER").arg("relay").arg("reset");
        user.arg(">secret")
            .arg(printed.split(' ').collect::<Vec<_>>())
            .arg(rule.split_whitespace().collect::<Vec<_>>());
        user.exec_async(&mut connection).await?;
        let (_, said) = doctor(&settings).await?;
        let of_rights =
            said.lines().find(|line| line.contains("redis permissions")).ok_or("no line")?.to_owned();
        let is_wrong = of_rights.starts_with("WRONG");
        assert_eq!(is_wrong, !rule.is_empty(), "{rule}: {of_rights}");
        let left: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await?;
        assert!(left.is_empty(), "{rule}: {left:?}");
    }
    Ok(())
}
