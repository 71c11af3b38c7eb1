//! Metrics: each process serves the metrics that docs/metrics.md lists, with the meaning given there. Alerts
//! and dashboard use no others.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Process, System, TestResult, eventually, http_get, items_of, str_of};
use crate::operators::wait_until_green;

/// The metrics of one process: types by name, and the samples.
struct Served {
    types: BTreeMap<String, String>,
    samples: Vec<(String, f64)>,
}

impl Served {
    async fn by(process: &Process) -> Self {
        let response = http_get(process.url("/metrics")).await.expect("an answer");
        let text = response.text().await.expect("a text");
        let mut types = BTreeMap::new();
        let mut samples = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                let suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                types.insert(format!("{name}{suffix}"), kind.to_owned());
            } else if !line.starts_with('#') {
                let (name, number) = line.rsplit_once(' ').expect("a sample");
                samples.push((name.to_owned(), number.parse().expect("a number")));
            }
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
        Self { types, samples }
    }

    /// The sample of this name and these labels.
    fn of(&self, name: &str) -> f64 {
        let found = self.samples.iter().find(|(sample, _)| sample == name);
        found.unwrap_or_else(|| panic!("no {name}: {:#?}", self.samples)).1
    }
}

/// The rows of the table in docs/metrics.md: (name, type, processes).
fn documented() -> Vec<(String, String, Vec<String>)> {
    let text = include_str!("../../docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{row}");
        assert!(!cells[3].is_empty(), "{row}");
        let processes = cells[2].split(", ").map(str::to_owned).collect();
        (cells[0].trim_matches('`').to_owned(), cells[1].to_owned(), processes)
    })
    .collect()
}

#[tokio::test]
async fn each_process_serves_what_the_documentation_lists_and_no_more() {
    let system = System::new().await;
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let relay = system.start("relay").await;
    let user = Uuid::new_v4();
    let session = system.session(&api, user, 5).await;
    let client = session.listen(&sse).await;
    session.settle_all(Some(2)).await;
    client.wait_for_events(6).await;

    for (role, process) in [("api", &api), ("sse", &sse), ("relay", &relay)] {
        let served = Served::by(process).await;
        let documented: BTreeSet<(String, String)> = documented()
            .into_iter()
            .filter(|(.., processes)| processes.iter().any(|process| process == role))
            .map(|(name, kind, _)| (name, kind))
            .collect();
        let types: BTreeSet<(String, String)> = served.types.clone().into_iter().collect();
        let missing: Vec<_> = documented.difference(&types).collect();
        let unknown: Vec<_> = types.difference(&documented).collect();
        assert!(missing.is_empty(), "{role} does not serve {missing:?}");
        assert!(unknown.is_empty(), "docs/metrics.md does not list {unknown:?} of {role}");
        assert!(served.samples.iter().all(|(_, number)| number.is_finite() && *number >= 0.0));
        assert!(served.of("process_resident_memory_bytes") > 1e6);
        assert!(served.of("process_open_fds") > 5.0);
        assert!(served.of("process_open_fds") < served.of("process_max_fds"));
        assert!(served.of("process_threads") >= 2.0);
        let age = chrono::Utc::now().timestamp() as f64 - served.of("process_start_time_seconds");
        assert!((-2.0..600.0).contains(&age), "{age}");
        let version = env!("CARGO_PKG_VERSION");
        assert!(
            (served.of(&format!("aftercommit_build_info{{version=\"{version}\",role=\"{role}\"}}")) - 1.0)
                .abs()
                < 0.1
        );
    }
}

#[tokio::test]
async fn what_a_run_does_is_counted_and_measured_once_for_each_event() {
    let system = System::new().await;
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let relay = system.start("relay").await;
    // A green relay leads and listens: it receives notifications from here on.
    wait_until_green(&relay).await;
    let session = system.session(&api, Uuid::new_v4(), 5).await;
    let clients = [session.listen(&sse).await, session.listen(&sse).await];
    session.settle_all(None).await;
    for client in &clients {
        client.wait_for_events(6).await;
    }
    // Five photos, the session, and the user's notification that nobody listens to.
    let served = eventually("seven events are counted", async || {
        let served = Served::by(&relay).await;
        (served.of("aftercommit_relay_published_total") >= 7.0).then_some(served)
    })
    .await;
    let count = |name: &str| served.of(name) as u64;
    assert_eq!(count("aftercommit_relay_published_total"), 7);
    assert_eq!(count("aftercommit_relay_commit_to_publish_seconds_count"), 7);
    assert!(served.of("aftercommit_relay_commit_to_publish_seconds_sum") > 0.0);
    assert!(served.of("aftercommit_relay_commit_to_publish_seconds_sum") < 7.0 * 20.0);
    let steps = count("aftercommit_relay_steps_total");
    assert!((1..=7).contains(&steps), "{steps}");
    assert_eq!(count("aftercommit_relay_step_seconds_count"), steps);
    assert_eq!(count("aftercommit_relay_step_events_sum"), 7);
    assert!(count("aftercommit_relay_publish_seconds_count") >= steps);
    // One SSE server subscribes to both channels of the session, however many clients it has.
    assert_eq!(count("aftercommit_relay_receivers_total{channel=\"live\"}"), 6);
    assert_eq!(count("aftercommit_relay_receivers_total{channel=\"public\"}"), 6);
    assert!(count("aftercommit_relay_wake_ups_total{kind=\"notify\"}") >= 1);
    assert!(count("aftercommit_relay_wake_ups_total{kind=\"reconnect\"}") >= 1);
    let looked =
        chrono::Utc::now().timestamp() as f64 - served.of("aftercommit_relay_last_look_timestamp_seconds");
    assert!((-2.0..60.0).contains(&looked), "{looked}");
    assert_eq!(count("aftercommit_relay_leads_taken_total"), 1);
    assert_eq!((count("aftercommit_relay_leading"), count("aftercommit_relay_listening")), (1, 1));

    // Counted once all clients have received it.
    let served = eventually("six events are counted", async || {
        let served = Served::by(&sse).await;
        (served.of("aftercommit_sse_commit_to_client_seconds_count") >= 6.0).then_some(served)
    })
    .await;
    assert_eq!(served.of("aftercommit_sse_delivered_total") as u64, 12);
    assert_eq!(served.of("aftercommit_sse_commit_to_client_seconds_count") as u64, 6);
    assert_eq!(served.of("aftercommit_sse_connections") as u64, 2);
    assert_eq!(served.of("aftercommit_sse_connections_limit") as u64, 10_000);
    let served = Served::by(&api).await;
    assert!(served.of("aftercommit_pool_acquire_seconds_count") >= 6.0);
    assert!(served.of("aftercommit_pool_connections") >= 1.0);
}

/// The words of an expression that are names of metrics.
pub(crate) fn metrics_in(expression: &str) -> BTreeSet<String> {
    expression
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("aftercommit_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

fn assert_documented(asked: &BTreeSet<String>) {
    let names: BTreeSet<String> = documented()
        .into_iter()
        .flat_map(|(name, kind, _)| match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")).to_vec(),
            _ => vec![name],
        })
        .collect();
    let unknown: Vec<_> = asked.difference(&names).collect();
    assert!(unknown.is_empty(), "docs/metrics.md lists no {unknown:?}");
}

pub(crate) const ALERTS: &str = include_str!("../../ops/prometheus/alerts.yml");
pub(crate) const DASHBOARD: &str = include_str!("../../ops/grafana/aftercommit.json");
const RUNBOOK: &str = include_str!("../../docs/runbook.md");

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() -> TestResult {
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let panels = items_of(&dashboard["panels"]);
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let asked: Vec<_> = targets.map(|target| metrics_in(str_of(&target["expr"]))).collect();
    assert!(asked.iter().all(|names| !names.is_empty()));
    assert_documented(&asked.into_iter().flatten().collect());
    Ok(())
}

#[test]
fn alerts_ask_for_metrics_that_there_are_and_lead_into_the_runbook() {
    let expressions = ALERTS.lines().filter(|line| !line.trim_start().starts_with("description:"));
    let asked: BTreeSet<String> = expressions.flat_map(metrics_in).collect();
    assert!(asked.len() > 15, "{asked:?}");
    assert_documented(&asked);
    let anchors = [
        "redis-down",
        "poison-event",
        "stuck-rotation",
        "restored-backup",
        "wrong-password",
        "sse-overload",
        "postgres-failover",
        "redis-failover",
        "a-server-of-the-redis-cluster-is-away",
        "first-look",
    ];
    let count = |what: &str| ALERTS.matches(what).count();
    assert_eq!(count("- alert: "), count("runbook_url: docs/runbook.md#"));
    let linked: BTreeSet<&str> =
        ALERTS.lines().filter_map(|line| Some(line.split_once("docs/runbook.md#")?.1)).collect();
    assert_eq!(linked, anchors.into_iter().collect());
    // A link of an alert opens where its scenario begins.
    let headings: BTreeSet<String> = RUNBOOK
        .lines()
        .filter_map(|line| Some(line.strip_prefix("## ")?.to_lowercase().replace(' ', "-")))
        .collect();
    for anchor in anchors {
        assert!(headings.contains(anchor), "docs/runbook.md has no heading for #{anchor}: {headings:?}");
    }
    // The runbook names each alert, so that a search for the name finds the scenario.
    for line in ALERTS.lines() {
        let Some(alert) = line.trim().strip_prefix("- alert: ") else { continue };
        assert!(RUNBOOK.contains(&format!("`{alert}`")), "docs/runbook.md does not name {alert}");
    }
}

#[test]
fn prometheus_takes_the_alerts_and_they_fire_when_they_should() -> TestResult {
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/ops/prometheus/alerts.yml");
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/ops/prometheus/alerts_test.yml");
    for arguments in [["check", "rules", rules], ["test", "rules", tests]] {
        let ran = std::process::Command::new("promtool").args(arguments).output();
        let output = ran.map_err(|error| format!("promtool, which make test installs: {error}"))?;
        let said = [&output.stdout[..], &output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
    // Each alert is tried, by name or among those that fire together.
    let tried = std::fs::read_to_string(tests)?;
    for alert in ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let fires = tried.contains(&format!("{{alertname=\"{alert}\"}}"))
            || tried.contains(&format!("        alertname: {alert}\n        exp_alerts:\n"));
        assert!(fires, "no test makes {alert} fire");
    }
    Ok(())
}
