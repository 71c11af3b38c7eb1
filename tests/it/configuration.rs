//! The configuration as the real binary reads it: which variables it takes, how it reports errors, and that
//! no secret appears.

use std::fs;

use crate::commands::{assert_fails, commit, stderr, stdout};
use crate::harness::{Process, Settings, System, TestResult, cli, eventually, http_get};
use crate::operators::wait_until_green;

/// A part of every secret in these tests.
const SECRET: &str = "tell-nobody";
const USER: &str = "00000000-0000-4000-8000-000000000001";

/// The command's exit code and outputs. Asserts that they contain no secret.
async fn told(settings: &Settings, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = cli(settings, arguments).await;
    let (out, err) = (stdout(&output), stderr(&output));
    assert!(!out.contains("nobody") && !err.contains("nobody"), "{arguments:?}: {out}{err}");
    (output.status.code(), out, err)
}

/// The same of several commands at once.
async fn all_told(settings: &Settings, commands: &[&[&str]]) {
    futures_util::future::join_all(commands.iter().map(|arguments| told(settings, arguments))).await;
}

#[tokio::test]
async fn a_variable_that_is_no_text_matters_only_if_it_is_ours_and_is_then_named_without_its_value() {
    let system = System::new().await;
    let odd = |name: &str| format!("export {name}=$(printf 'postgres://u:tell\\377nobody@h/d')");
    let settings = system.settings().clone().before(&odd("SOMEBODY_ELSES"));
    for arguments in [&["config", "check"][..], &["config", "show"], &["status"], &["token", "--user", USER]]
    {
        assert_eq!(told(&settings, arguments).await.0, Some(0), "{arguments:?}");
    }
    wait_until_green(&Process::start("relay", &settings).await).await;
    for name in ["DATABASE_URL", "REDIS_URL", "AFTERCOMMIT_JWT_SECRET", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
        let settings = system.settings().clone().before(&odd(name));
        for arguments in [&["config", "check"][..], &["config", "show"], &["status"], &["relay"]] {
            let (code, _, said) = told(&settings, arguments).await;
            assert_eq!(code, Some(1), "{arguments:?}: {said}");
            assert!(said.contains(&format!("{name} is not UTF-8")), "{arguments:?}: {said}");
        }
    }
}

/// Every variable that a kubelet sets for services of these names.
fn service_links(mut settings: Settings, services: &[&str]) -> Settings {
    for service in services {
        for (end, value) in [
            ("SERVICE_HOST", "10.96.7.7"),
            ("SERVICE_PORT", "8081"),
            ("SERVICE_PORT_HTTP", "8081"),
            ("PORT", "tcp://10.96.7.7:8081"),
            ("PORT_8081_TCP", "tcp://10.96.7.7:8081"),
            ("PORT_8081_TCP_PROTO", "tcp"),
            ("PORT_8081_TCP_PORT", "8081"),
            ("PORT_8081_TCP_ADDR", "10.96.7.7"),
        ] {
            settings = settings.set(&format!("{service}_{end}"), value);
        }
    }
    settings
}

#[tokio::test]
async fn service_links_of_kubernetes_stop_nothing_and_a_misspelt_setting_still_does() {
    let services = ["AFTERCOMMIT", "AFTERCOMMIT_SSE", "AFTERCOMMIT_RELAY", "AFTERCOMMIT_MY_API_2"];
    let system = System::new().await;
    let linked = service_links(system.settings().clone(), &services);
    assert_eq!(told(&linked, &["config", "check"]).await.0, Some(0));
    for role in ["api", "relay", "sse"] {
        wait_until_green(&Process::start(role, &linked).await).await;
    }
    for (name, value) in [
        ("AFTERCOMMIT_SSE_PORT", "8081"),
        ("AFTERCOMMIT_SSE_PORTS", "tcp://10.96.7.7:8081"),
        ("AFTERCOMMIT_SSE_SERVICE_HOST", "sse.example"),
        ("AFTERCOMMIT_SSE_LISTNE", "127.0.0.1:8081"),
    ] {
        assert_fails(&linked.clone().set(name, value), &["config", "check"], 1, name).await;
    }
}

#[tokio::test]
async fn no_command_and_no_driver_tells_an_address_with_its_secrets() {
    let system = System::new().await.set("AFTERCOMMIT_LOG_LEVEL", "trace");
    let url = format!("{}?sslpassword={SECRET}&unheard_of={SECRET}", system.database.url());
    let settings = system.settings().clone().set("DATABASE_URL", url);
    let (_, shown, _) = told(&settings, &["config", "show"]).await;
    assert!(shown.contains("sslpassword=***"), "{shown}");
    let (code, _, said) = told(&settings, &["status"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("sslpassword, unheard_of"), "named without their values: {said}");
    told(&settings, &["doctor"]).await;
    let relay = Process::start("relay", &settings).await;
    wait_until_green(&relay).await;
    assert!(!relay.log().contains(SECRET), "{}", relay.log());

    let nowhere = "127.0.0.1:1/d";
    for url in [
        format!("postgres://{nowhere}?user=u&password={SECRET}"),
        format!("postgres://u:{SECRET}@{nowhere}"),
        format!("postgres://{nowhere}?user=u&pass%77ord={SECRET}"),
        format!("postgres://u:12/{SECRET}@{nowhere}"),
        format!("postgres://u:12?{SECRET}@{nowhere}"),
        format!("postgres://u:12#{SECRET}@{nowhere}"),
        format!("mysql://u:{SECRET}@{nowhere}"),
        format!("host=127.0.0.1 password={SECRET}"),
        SECRET.to_owned(),
    ] {
        let settings = system.settings().clone().set("DATABASE_URL", url);
        all_told(&settings, &[&["status"], &["doctor"], &["config", "check"], &["config", "show"]]).await;
    }
    for url in [
        format!("redis://:{SECRET}@127.0.0.1:1"),
        format!("redis://{SECRET}@127.0.0.1:1"),
        format!("redis://127.0.0.1:1/{SECRET}"),
        format!("redis://127.0.0.1:1/?password={SECRET}"),
        format!("rediss://:{SECRET}@127.0.0.1:1"),
        format!("http://:{SECRET}@127.0.0.1:1"),
        SECRET.to_owned(),
    ] {
        // The checks of a Postgres that answers take their time.
        let settings = system.settings().clone().set("REDIS_URL", url);
        let settings = settings.set("DATABASE_URL", format!("postgres://{nowhere}"));
        all_told(&settings, &[&["doctor"], &["config", "check"], &["config", "show"]]).await;
    }
    let keys = format!("http://127.0.0.1:1/keys?token={SECRET}");
    let settings = system.settings().clone().set("AFTERCOMMIT_JWT_ALGORITHM", "ES256");
    let settings = settings.set("DATABASE_URL", format!("postgres://{nowhere}"));
    told(&settings.set("AFTERCOMMIT_JWT_JWKS_URL", keys), &["doctor"]).await;
    let collector = format!("http://u:{SECRET}@127.0.0.1:1");
    let settings = system.settings().clone().set("OTEL_EXPORTER_OTLP_ENDPOINT", collector);
    assert!(told(&settings, &["relay"]).await.2.contains("OTEL_EXPORTER_OTLP_HEADERS"));
}

#[tokio::test]
async fn a_check_names_every_problem_by_its_setting_and_so_does_the_role() {
    let system = System::new().await;
    let wrong = [
        ("sse", "AFTERCOMMIT_JWT_SECRET", "short", "jwt.secret"),
        ("sse", "AFTERCOMMIT_SSE_CORS_ORIGINS", "*", "sse.cors_origins"),
        ("api", "AFTERCOMMIT_API_LISTEN", "8081", "api.listen"),
        ("sse", "AFTERCOMMIT_SSE_LISTEN", "127.0.0.1", "sse.listen"),
        ("relay", "AFTERCOMMIT_RELAY_LISTEN", "127.0.0.1:http", "relay.listen"),
        ("relay", "AFTERCOMMIT_OPERATOR_TOKEN", "short", "operator.token"),
        ("api", "DATABASE_URL", "mysql://x", "database.url"),
        ("relay", "REDIS_URL", "http://x", "redis.url"),
        ("relay", "AFTERCOMMIT_RELAY_NAME", "", "relay.name"),
        ("relay", "AFTERCOMMIT_OUTBOX_RETENTION_SECONDS", "60", "outbox.retention_seconds"),
    ];
    assert_eq!(told(system.settings(), &["config", "check"]).await.0, Some(0));
    let mut all = system.settings().clone();
    for (role, name, value, setting) in wrong {
        let settings = system.settings().clone().set(name, value);
        assert_fails(&settings, &["config", "check"], 1, setting).await;
        assert_fails(&settings, &[role], 1, setting).await;
        all = all.set(name, value);
    }
    let (code, _, said) = told(&all, &["config", "check"]).await;
    assert_eq!(code, Some(1));
    for (.., setting) in wrong {
        assert!(said.contains(setting), "{setting}: {said}");
    }
    // Numbers and unknown names, all of them, before anything is built of them.
    let settings = system.settings().clone().set("AFTERCOMMIT_SSE_HEARTBEAT_SECONDS", "0");
    let settings = settings.set("AFTERCOMMIT_RELAY_BATCH_SIZE", "0").set("AFTERCOMMIT_NOPE_X", "1");
    let (code, _, said) = told(&settings, &["config", "check"]).await;
    assert_eq!(code, Some(1));
    for setting in ["sse.heartbeat_seconds", "relay.batch_size", "AFTERCOMMIT_NOPE_X"] {
        assert!(said.contains(setting), "{setting}: {said}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named_with_the_place_and_nothing_that_stands_there() -> TestResult {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("mine.toml");
    let path = file.to_str().ok_or("no path")?;
    let none = Settings::default();
    let text = |text: &str| text.replace("SECRET", SECRET).into_bytes();
    for (text, said) in [
        (text("[jwt]\nsecret = \"SECRET\n"), "line 2, column"),
        (text("[jwt]\nsecret = SECRET\n"), "line 2, column"),
        (text("[jwt]\nsecret = 'SECRET'\nsecret = 'SECRET'\n"), "line 3, column"),
        (text("[jwt]\nsecret = 'SECRET' SECRET\n"), "line 2, column"),
        (text("[jwt]\nsecret = ['SECRET']\n"), "secret in [jwt] must be of type string"),
        (text("[database]\nurl = '''\nSECRET\n"), "line"),
        ([&text("[jwt]\nsecret = 'SECRET")[..], b"\xff'\n"].concat(), "not UTF-8 (line 2)"),
        (vec![b'#'; 1024 * 1024 + 1], "has more than"),
    ] {
        fs::write(&file, &text)?;
        for arguments in [&["config", "check"][..], &["config", "show"], &["status"]] {
            let (code, _, err) = told(&none, &[&["--config", path], arguments].concat()).await;
            assert_eq!(code, Some(1), "{err}");
            assert!(err.contains(path) && err.contains(said), "{said}: {err}");
        }
    }
    let directory = dir.path().to_str().ok_or("no path")?;
    assert_fails(&none, &["--config", directory, "config", "check"], 1, "is a directory").await;
    assert_fails(&none, &["--config", "/nowhere.toml", "config", "check"], 1, "/nowhere.toml cannot").await;
    Ok(())
}

#[tokio::test]
async fn an_empty_variable_of_others_is_ignored_and_an_empty_one_of_ours_is_an_error() -> TestResult {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("mine.toml");
    fs::write(&file, "[database]\nurl = \"postgres://h/d\"\n")?;
    let path = file.to_str().ok_or("no path")?;
    let settings = Settings::default().set("DATABASE_URL", "").set("AFTERCOMMIT_SSE_CORS_ORIGINS", "");
    let (code, shown, said) = told(&settings, &["--config", path, "config", "show"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(shown.contains("postgres://h/d") && shown.contains("cors_origins = []"), "{shown}");
    let settings = settings.set("AFTERCOMMIT_SSE_MAX_CONNECTIONS", "");
    assert_fails(&settings, &["config", "check"], 1, "AFTERCOMMIT_SSE_MAX_CONNECTIONS is empty").await;
    Ok(())
}

#[tokio::test]
async fn an_operators_page_in_clear_on_an_address_of_others_is_warned_of() {
    let system = System::new().await.set("AFTERCOMMIT_OPERATOR_TOKEN", "0123456789abcdef");
    let (code, _, said) = told(system.settings(), &["config", "check"]).await;
    assert!(code == Some(0) && !said.contains("plain HTTP"), "{said}");
    // An address for documentation, which no machine has.
    let settings = system.settings().clone().set("AFTERCOMMIT_RELAY_LISTEN", "192.0.2.1:8082");
    let (code, _, said) = told(&settings, &["config", "check"]).await;
    assert!(code == Some(0) && said.contains("plain HTTP"), "{said}");
    let (_, _, said) = told(&settings, &["relay"]).await;
    assert!(said.contains("plain HTTP"), "{said}");
}

/// Anybody may ask for readiness.
#[tokio::test]
async fn readiness_tells_nobody_who_paused_a_relay_and_why() {
    let system = System::new().await;
    let relay = system.start("relay").await;
    wait_until_green(&relay).await;
    commit(&system, &system.redis.topic("paused"), "A", 1).await;
    let settings = system.settings().clone().set("USER", "mallory").set("SUDO_USER", "mallory");
    assert_eq!(cli(&settings, &["pause", "--reason", "a merger"]).await.status.code(), Some(0));
    let text = eventually("it is paused", async || {
        let text = http_get(relay.url("/readyz")).await.ok()?.text().await.ok()?;
        text.contains("\"name\":\"paused\",\"ok\":false").then_some(text)
    })
    .await;
    assert!(!text.contains("mallory") && !text.contains("merger"), "{text}");
    let status = stdout(&cli(system.settings(), &["status"]).await);
    assert!(status.contains("mallory") && status.contains("merger"), "{status}");
}
