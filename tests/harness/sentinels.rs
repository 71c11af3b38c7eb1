//! A primary with two replicas, and three sentinels that replace it.

use std::process::Stdio;

use aftercommit::local::RedisServer;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::certificates::Certificates;
use super::front::free_port;
use super::line::start_redis;
use super::{eventually, redis_settings_of};

/// The user of relays, SSE servers, replicas and sentinels, at every server.
const USER: &str = "app";
const PASSWORD: &str = "of-the-servers";
const SENTINEL_PASSWORD: &str = "of-the-sentinels";

/// The servers. All of them end when this is dropped.
#[derive(Debug)]
pub(crate) struct Sentinels {
    /// The first one is the primary at the start.
    pub(crate) servers: Vec<RedisServer>,
    ports: Vec<u16>,
    /// The sentinels' ports for TLS, if they have any.
    tls_ports: Vec<u16>,
    _sentinels: Vec<Child>,
    _directory: TempDir,
}

impl Sentinels {
    pub(crate) async fn start() -> Self {
        Self::with(None).await
    }

    /// Servers and sentinels that speak TLS, also among themselves, and name each other by the host name of
    /// their certificates.
    pub(crate) async fn with_tls(certificates: &Certificates) -> Self {
        Self::with(Some(certificates)).await
    }

    async fn with(tls: Option<&Certificates>) -> Self {
        let mut servers: Vec<RedisServer> = Vec::new();
        let mut primary = None;
        for _ in 0..3 {
            let mut settings = vec![
                ("user", format!("{USER} on >{PASSWORD} ~* &* +@all")),
                ("masteruser", USER.to_owned()),
                ("masterauth", PASSWORD.to_owned()),
                ("repl-diskless-sync-delay", "0".to_owned()),
            ];
            let tls_port = free_port();
            if let Some(certificates) = tls {
                settings.extend(certificates.of_redis(tls_port));
                settings.push(("replica-announce-ip", "localhost".to_owned()));
                settings.push(("replica-announce-port", tls_port.to_string()));
            }
            if let Some((host, port)) = primary {
                settings.push(("replicaof", format!("{host} {port}")));
            }
            servers.push(start_redis(settings, None).await);
            let plain_port = servers[0].port();
            primary.get_or_insert(if tls.is_some() {
                ("localhost", tls_port)
            } else {
                ("127.0.0.1", plain_port)
            });
        }
        let (host, port) = primary.expect("three servers");
        let directory = TempDir::with_prefix("aftercommit-sentinels-").expect("a directory");
        let ports: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let tls_ports: Vec<u16> = tls.iter().flat_map(|_| (0..3).map(|_| free_port())).collect();
        let start = |(at, own): (usize, &u16)| {
            let file = directory.path().join(format!("{own}.conf"));
            let mut configuration = format!(
                "port {own}\nbind 127.0.0.1\ndir {}\nlogfile {own}.log\nrequirepass {SENTINEL_PASSWORD}\n\
                 sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n\
                 sentinel sentinel-pass {SENTINEL_PASSWORD}\n\
                 sentinel monitor main {host} {port} 2\nsentinel auth-user main {USER}\n\
                 sentinel auth-pass main {PASSWORD}\nsentinel down-after-milliseconds main 1000\n\
                 sentinel failover-timeout main 3000\n",
                directory.path().display()
            );
            if let (Some(certificates), Some(tls_port)) = (tls, tls_ports.get(at)) {
                for (name, value) in certificates.of_redis(*tls_port) {
                    configuration.push_str(&format!("{name} {value}\n"));
                }
            }
            std::fs::write(&file, configuration).expect("a file");
            let mut command = Command::new("redis-server");
            command.arg(&file).arg("--sentinel").stdin(Stdio::null());
            command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
            command.spawn().expect("a sentinel")
        };
        let sentinels = ports.iter().enumerate().map(start).collect();
        let started = Self { servers, ports, tls_ports, _sentinels: sentinels, _directory: directory };
        started.wait_until_watched().await;
        started
    }

    /// Each sentinel knows the two others, and both replicas.
    async fn wait_until_watched(&self) {
        for port in &self.ports {
            let url = format!("redis://:{SENTINEL_PASSWORD}@127.0.0.1:{port}");
            eventually("a sentinel knows the others", async || {
                let mut connection = redis_settings_of(&url).connect().await.ok()?;
                let mut command = redis::cmd("SENTINEL");
                let known: std::collections::HashMap<String, String> =
                    command.arg("MASTER").arg("main").query_async(&mut connection).await.ok()?;
                let count = |name: &str| known.get(name).cloned().unwrap_or_default();
                (count("num-other-sentinels") == "2" && count("num-slaves") == "2").then_some(())
            })
            .await;
        }
    }

    /// The address with all sentinels.
    pub(crate) fn url(&self) -> String {
        let hosts: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{USER}:{PASSWORD}@{}/main", hosts.join(","))
    }

    /// The address with all ports of the sentinels for TLS.
    pub(crate) fn tls_url(&self) -> String {
        let hosts: Vec<String> = self.tls_ports.iter().map(|port| format!("localhost:{port}")).collect();
        format!("rediss+sentinel://{USER}:{PASSWORD}@{}/main", hosts.join(","))
    }

    pub(crate) fn password(&self) -> &'static str {
        SENTINEL_PASSWORD
    }

    /// The primary, if there is one that both others follow.
    pub(crate) async fn settled_primary(&self) -> Option<usize> {
        let mut primary = None;
        for at in 0..self.servers.len() {
            let info = self.ask(at, &["INFO", "replication"]).await?;
            let info: String = redis::from_redis_value(info).ok()?;
            if info.contains("role:master") {
                // The old one may not know of the new one yet.
                (primary.is_none() && info.matches("state=online").count() == 2).then_some(())?;
                primary = Some(at);
            }
        }
        primary
    }

    /// Sends a signal to a server.
    pub(crate) async fn signal(&self, at: usize, name: &str) {
        let pid = self.servers[at].pid().expect("a pid").to_string();
        let sent = Command::new("kill").arg(format!("-{name}")).arg(pid).status();
        assert!(sent.await.expect("kill").success(), "{name}");
    }

    /// Asks a sentinel for a failover; it may refuse, while another one is not over.
    pub(crate) async fn fail_over(&self) {
        let url = format!("redis://:{SENTINEL_PASSWORD}@127.0.0.1:{}", self.ports[0]);
        eventually("a sentinel begins a failover", async || {
            let mut connection = redis_settings_of(&url).connect().await.ok()?;
            let mut command = redis::cmd("SENTINEL");
            command.arg("FAILOVER").arg("main").query_async::<String>(&mut connection).await.ok()
        })
        .await;
    }

    /// Runs a command at a server; `None` if that fails.
    pub(crate) async fn ask(&self, at: usize, command: &[&str]) -> Option<redis::Value> {
        let url = format!("redis://{USER}:{PASSWORD}@127.0.0.1:{}", self.servers[at].port());
        let mut connection = redis_settings_of(&url).connect().await.ok()?;
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await.ok()
    }

    /// Waits until another server than this one is the primary, and returns its index.
    pub(crate) async fn wait_for_another_primary_than(&self, before: usize) -> usize {
        eventually("another primary", async || {
            for (at, server) in self.servers.iter().enumerate().filter(|(at, _)| *at != before) {
                let url = format!("redis://{USER}:{PASSWORD}@127.0.0.1:{}", server.port());
                let mut connection = redis_settings_of(&url).connect().await.ok()?;
                let role: Vec<redis::Value> = redis::cmd("ROLE").query_async(&mut connection).await.ok()?;
                if role.first() == Some(&redis::Value::BulkString(b"master".to_vec())) {
                    return Some(at);
                }
            }
            None
        })
        .await
    }
}
