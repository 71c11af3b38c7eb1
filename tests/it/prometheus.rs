//! A real Prometheus that scrapes real processes: a stall fires its alert, and the dashboard's queries work.

use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::commands::commit;
use crate::harness::{
    Process, System, TestResult, cli, eventually, free_port, http_get, items_of, metric_of, str_of,
};
use crate::metrics::{ALERTS, DASHBOARD, metrics_in};

const ALERT: &str = "AftercommitPendingTooOld";

/// A Prometheus with the rules of `ops/`, with short intervals.
struct Prometheus {
    _child: Child,
    _home: TempDir,
    url: String,
}

impl Prometheus {
    async fn scraping(processes: &[&Process]) -> TestResult<Self> {
        let home = TempDir::with_prefix("aftercommit-prometheus-")?;
        let limit = "aftercommit_relay_oldest_pending_seconds) > 30";
        assert!(
            ALERTS.contains(limit) && ALERTS.contains("for: 1m"),
            "the rules are no longer what this changes"
        );
        let rules = ALERTS.replace(limit, &limit.replace("30", "1")).replace("for: 1m", "for: 1s");
        std::fs::write(home.path().join("alerts.yml"), rules)?;
        let targets: Vec<&str> = processes.iter().map(|process| process.address.as_str()).collect();
        let configuration = serde_json::json!({
            "global": {
                "scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"
            },
            "rule_files": ["alerts.yml"],
            "scrape_configs": [{ "job_name": "aftercommit", "static_configs": [{ "targets": targets }] }],
        });
        // JSON is YAML.
        std::fs::write(home.path().join("prometheus.yml"), configuration.to_string())?;
        let address = format!("127.0.0.1:{}", free_port());
        let child = Command::new("prometheus")
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={address}"))
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(home.path().join("log"))?)
            .kill_on_drop(true)
            .spawn()?;
        let prometheus = Self { _child: child, _home: home, url: format!("http://{address}/api/v1") };
        eventually("every process is scraped", async || {
            let told = prometheus.try_ask("query", &[("query", "sum(up)")]).await?;
            (told["result"][0]["value"][1] == targets.len().to_string().as_str()).then_some(())
        })
        .await;
        Ok(prometheus)
    }

    /// The data of an answer that is a success.
    async fn try_ask(&self, path: &str, parameters: &[(&str, &str)]) -> Option<Value> {
        let url =
            reqwest::Url::parse_with_params(&format!("{}/{path}", self.url), parameters).expect("a URL");
        let mut answer: Value = http_get(url).await.ok()?.json().await.ok()?;
        (answer["status"] == "success").then(|| answer["data"].take())
    }

    /// Whether the alert fires; `None` if Prometheus does not answer.
    async fn fires(&self, alert: &str) -> Option<bool> {
        let told = self.try_ask("alerts", &[]).await?;
        let mut alerts = items_of(&told["alerts"]).iter();
        Some(alerts.any(|one| one["state"] == "firing" && one["labels"]["alertname"] == alert))
    }
}

#[tokio::test]
async fn a_stall_fires_its_alert_and_the_dashboards_queries_work() -> TestResult {
    let system = System::new().await;
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let relay = system.start("relay").await;
    let prometheus = Prometheus::scraping(&[&api, &sse, &relay]).await?;
    let paused = cli(system.settings(), &["pause", "--reason", "a test"]).await;
    assert!(paused.status.success(), "{paused:?}");
    eventually("events wait", async || {
        commit(&system, &system.redis.topic("stalled"), "A", 1).await;
        (metric_of(&relay, "aftercommit_relay_backlog").await > 2).then_some(())
    })
    .await;
    eventually("the alert fires", async || prometheus.fires(ALERT).await?.then_some(())).await;

    the_dashboard_works(&prometheus).await?;

    let resumed = cli(system.settings(), &["resume", "--reason", "done"]).await;
    assert!(resumed.status.success(), "{resumed:?}");
    eventually("it is over", async || {
        // The process must be up: a failed scrape ends an alert as well.
        let up = prometheus.try_ask("query", &[("query", "min(up)")]).await?;
        let is_over = up["result"][0]["value"][1] == "1" && !prometheus.fires(ALERT).await?;
        (is_over && metric_of(&relay, "aftercommit_relay_backlog").await == 0).then_some(())
    })
    .await;
    Ok(())
}

/// Prometheus takes each query, and knows each metric that it names.
async fn the_dashboard_works(prometheus: &Prometheus) -> TestResult {
    let known = prometheus.try_ask("metadata", &[]).await.ok_or("no metadata")?;
    let is_known = |name: &str| {
        let of_a_family =
            ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        known.get(name).is_some() || of_a_family.is_some_and(|family| known.get(family).is_some())
    };
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let panels = items_of(&dashboard["panels"]).iter();
    let mut asked = 0;
    for target in panels.filter_map(|panel| panel["targets"].as_array()).flatten() {
        let expression = str_of(&target["expr"]).replace("$__rate_interval", "10s");
        let answer = prometheus.try_ask("query", &[("query", &expression)]).await;
        assert!(answer.is_some(), "Prometheus refuses {expression}");
        for name in metrics_in(&expression) {
            assert!(is_known(&name), "no process serves {name}: {expression}");
        }
        asked += 1;
    }
    assert!(asked > 30, "{asked} queries");
    Ok(())
}
