//! A Redis behind sentinels: relays and SSE servers follow a failover, and nothing is lost or repeated.

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::commands::{assert_fails, stderr, stdout, untold};
use crate::harness::{Certificates, Feed, Sentinels, Settings, System, TestResult, cli, numbers, str_of};

async fn system_of(sentinels: &Sentinels) -> System {
    System::with_redis(&sentinels.url())
        .await
        .set("AFTERCOMMIT_REDIS_SENTINEL_PASSWORD", sentinels.password())
        .set("AFTERCOMMIT_REDIS_RESPONSE_TIMEOUT_MS", "700")
}

async fn signal(pid: u32, name: &str) -> TestResult {
    let sent = tokio::process::Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(sent.await?.success(), "{name}");
    Ok(())
}

/// Commits events all the time while the primary is struck twice. The second time it comes back, as a server
/// that believes for a moment that it is the primary.
#[tokio::test]
async fn a_client_gets_every_event_once_over_failovers() -> TestResult {
    let sentinels = Sentinels::start().await;
    let feed = Feed::with(system_of(&sentinels).await).await;
    let sse = feed.sse().await;
    let client = feed.client(&sse).await;
    let stop = CancellationToken::new();
    let committing = feed.keep_committing(stop.clone());
    client.wait_for_events(50).await;

    let first = sentinels.servers[0].pid().ok_or("no pid")?;
    signal(first, "STOP").await?;
    let second = sentinels.wait_for_another_primary_than(0).await;
    let reached = client.so_far().len();
    client.wait_for_events(reached + 50).await;
    signal(first, "CONT").await?;
    let reached = client.so_far().len();
    client.wait_for_events(reached + 50).await;

    signal(sentinels.servers[second].pid().ok_or("no pid")?, "KILL").await?;
    sentinels.wait_for_another_primary_than(second).await;
    let reached = client.so_far().len();
    client.wait_for_events(reached + 50).await;
    stop.cancel();
    let committed = committing.await?;
    let events = client.wait_for_events(usize::try_from(committed)?).await;
    assert_eq!(numbers(&events), (0..committed).collect::<Vec<_>>(), "{}", feed.relay.log());
    assert!(events.iter().all(|event| event.event != "reset"), "nothing was reset");
    Ok(())
}

/// Sentinels and servers name each other by the host name of their certificates.
#[tokio::test]
async fn sentinels_and_their_servers_are_reached_by_tls_also_over_a_failover() -> TestResult {
    let certificates = Certificates::new();
    let sentinels = Sentinels::with_tls(&certificates).await;
    assert_mistakes_with_tls_are_told(&sentinels, &certificates).await;
    let system = System::with_redis(&sentinels.tls_url()).await;
    let system = system
        .set("AFTERCOMMIT_REDIS_SENTINEL_PASSWORD", sentinels.password())
        .set("AFTERCOMMIT_REDIS_TLS_CA_FILE", &certificates.text("ca.pem"));
    let (verdict, evidence) = doctor_on_sentinels(system.settings()).await?;
    assert!(
        verdict == "ok" && evidence.starts_with("3 name the primary localhost:"),
        "{verdict}: {evidence}"
    );
    let found = stdout(&cli(system.settings(), &["doctor", "--role", "sse"]).await);
    assert!(found.contains("by TLS, with the server's certificate checked"), "{found}");
    let feed = Feed::with(system).await;
    let sse = feed.sse().await;
    let client = feed.client(&sse).await;
    feed.commit(0..10).await;
    client.wait_for_events(10).await;
    sentinels.signal(0, "KILL").await;
    sentinels.wait_for_another_primary_than(0).await;
    feed.commit(10..20).await;
    assert_eq!(numbers(&client.wait_for_events(20).await), (0..20).collect::<Vec<_>>());
    Ok(())
}

/// The doctor's verdict on the sentinels, and its evidence.
async fn doctor_on_sentinels(settings: &Settings) -> TestResult<(String, String)> {
    let found = cli(settings, &["doctor", "--role", "sse", "--output", "json"]).await;
    let findings: Vec<Value> = serde_json::from_slice(&found.stdout)?;
    let finding = findings.iter().find(|finding| finding["check"] == "redis sentinels");
    let finding = finding.ok_or("nothing of the sentinels")?;
    Ok((str_of(&finding["verdict"]).to_owned(), str_of(&finding["evidence"]).to_owned()))
}

/// A relay ends, as waiting mends none of them.
async fn assert_mistakes_with_tls_are_told(sentinels: &Sentinels, certificates: &Certificates) {
    let other = Certificates::new();
    let url = sentinels.tls_url();
    let system = System::with_redis(&url).await;
    let settings = system.settings().clone().set("AFTERCOMMIT_REDIS_SENTINEL_PASSWORD", sentinels.password());
    let mut failures = Vec::new();
    for (url, ca, sentence) in [
        (&url, String::new(), "set [redis] tls_ca_file to the certificate of the CA that did"),
        (&url, other.text("ca.pem"), "ca.pem did not sign the server's certificate"),
        (&url.replace("localhost", "127.0.0.1"), certificates.text("ca.pem"), "write a name in REDIS_URL"),
        (&sentinels.url(), certificates.text("ca.pem"), "write rediss+sentinel:// in REDIS_URL"),
    ] {
        let settings = settings.clone().set("REDIS_URL", url).set("AFTERCOMMIT_REDIS_TLS_CA_FILE", ca);
        failures.extend(untold(&settings, sentence).await);
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test]
async fn each_mistake_with_sentinels_is_one_sentence() -> TestResult {
    let sentinels = Sentinels::start().await;
    let system = system_of(&sentinels).await;
    assert_eq!(doctor_on_sentinels(system.settings()).await?.0, "ok");
    // One that is away stops nothing yet.
    let with_another = sentinels.url().replace("/main", ",127.0.0.1:1/main");
    let settings = system.settings().clone().set("REDIS_URL", with_another);
    let (verdict, evidence) = doctor_on_sentinels(&settings).await?;
    assert!(verdict == "warning" && evidence.contains("127.0.0.1:1: "), "{verdict}: {evidence}");
    for (name, value, sentence) in [
        (
            "REDIS_URL",
            sentinels.url().replace("/main", "/other"),
            "no sentinel knows a primary called 'other'",
        ),
        ("AFTERCOMMIT_REDIS_SENTINEL_PASSWORD", "wrong".to_owned(), "sentinel_user and sentinel_password"),
        ("REDIS_URL", "redis+sentinel://127.0.0.1:1/main".to_owned(), "no sentinel answers"),
        ("REDIS_URL", "redis+sentinel://127.0.0.1:1".to_owned(), "redis+sentinel://host,host,host/SERVICE"),
    ] {
        let settings = system.settings().clone().set(name, value);
        let found = stdout(&cli(&settings, &["doctor", "--role", "sse", "--output", "json"]).await);
        assert!(found.contains(sentence), "{sentence}: {found}");
    }
    // Its own setting, and no other one; waiting does not mend it.
    let settings = system.settings().clone().set("AFTERCOMMIT_REDIS_SENTINEL_PASSWORD", "wrong");
    let failure = untold(&settings, "check [redis] sentinel_user and sentinel_password").await;
    assert!(failure.is_none(), "{failure:#?}");
    let said = stderr(&cli(&settings, &["relay"]).await);
    assert!(!said.contains("REDIS_URL"), "{said}");
    let settings = system.settings().clone().set("REDIS_URL", "redis+sentinel://127.0.0.1:1");
    assert_fails(&settings, &["relay"], 1, "is not of the form").await;
    Ok(())
}
