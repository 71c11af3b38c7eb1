//! A Redis Cluster: three primaries with a replica each.

use std::collections::HashMap;

use aftercommit::event::Topic;
use aftercommit::local::RedisServer;
use redis::aio::MultiplexedConnection;

use super::certificates::Certificates;
use super::front::free_port;
use super::line::start_redis;
use super::{eventually, redis_settings_of};

/// The user of relays, SSE servers and replicas, at every server.
const USER: &str = "app";
const PASSWORD: &str = "of-the-cluster";
/// Primaries; there are as many replicas.
const PRIMARIES: usize = 3;
const SLOTS: usize = 16_384;

/// The servers. All of them end when this is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The primaries at the start, then a replica of each in the same order.
    pub(crate) servers: Vec<RedisServer>,
    /// The ports for TLS of all servers, if they have any.
    tls_ports: Vec<u16>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With more settings for each server.
    pub(crate) async fn with(more: &[(&'static str, &str)]) -> Self {
        Self::of_servers(|_at| more.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()).await
    }

    /// Servers that name each other by the host name of their certificates, and speak TLS among themselves.
    pub(crate) async fn with_tls(certificates: &Certificates) -> Self {
        let tls_ports: Vec<u16> = (0..2 * PRIMARIES).map(|_| free_port()).collect();
        let settings = |at: usize| {
            let mut settings = certificates.of_redis(tls_ports[at]);
            let more = [
                ("tls-cluster", "yes"),
                ("cluster-announce-hostname", "localhost"),
                ("cluster-preferred-endpoint-type", "hostname"),
            ];
            settings.extend(more.map(|(name, value)| (name, value.to_owned())));
            settings
        };
        let cluster = Self::of_servers(settings).await;
        Self { tls_ports, ..cluster }
    }

    async fn of_servers(more: impl Fn(usize) -> Vec<(&'static str, String)>) -> Self {
        let mut servers: Vec<RedisServer> = Vec::new();
        let mut bus_ports = Vec::new();
        for at in 0..2 * PRIMARIES {
            let bus_port = free_port();
            let mut settings = vec![
                ("user", format!("{USER} on >{PASSWORD} ~* &* +@all")),
                ("masteruser", USER.to_owned()),
                ("masterauth", PASSWORD.to_owned()),
                ("repl-diskless-sync-delay", "0".to_owned()),
                ("cluster-enabled", "yes".to_owned()),
                ("cluster-config-file", "nodes.conf".to_owned()),
                ("cluster-port", bus_port.to_string()),
                ("cluster-node-timeout", "1000".to_owned()),
                ("cluster-replica-validity-factor", "0".to_owned()),
            ];
            settings.extend(more(at));
            servers.push(start_redis(settings, None).await);
            bus_ports.push(bus_port);
        }
        let cluster = Self { servers, tls_ports: Vec::new() };
        cluster.join(&bus_ports).await;
        cluster
    }

    async fn join(&self, bus_ports: &[u16]) {
        for at in 0..self.servers.len() {
            self.tell(at, &["SET-CONFIG-EPOCH", &(at + 1).to_string()]).await;
        }
        for (server, bus_port) in self.servers.iter().zip(bus_ports).skip(1) {
            let (port, bus_port) = (server.port().to_string(), bus_port.to_string());
            self.tell(0, &["MEET", "127.0.0.1", &port, &bus_port]).await;
        }
        for at in 0..PRIMARIES {
            let (first, behind) = (at * SLOTS / PRIMARIES, (at + 1) * SLOTS / PRIMARIES);
            self.tell(at, &["ADDSLOTSRANGE", &first.to_string(), &(behind - 1).to_string()]).await;
        }
        let known = format!("cluster_known_nodes:{}", self.servers.len());
        for at in 0..self.servers.len() {
            self.wait_for_info(at, &known).await;
        }
        for at in PRIMARIES..self.servers.len() {
            let id = self.id_of(at - PRIMARIES).await;
            eventually("a replica knows its primary", async || {
                self.asked::<String>(at, &["REPLICATE", &id]).await
            })
            .await;
        }
        for at in 0..self.servers.len() {
            self.wait_for_info(at, "cluster_state:ok").await;
        }
        for at in PRIMARIES..self.servers.len() {
            eventually("a replica follows", async || self.replication_has(at, "link_status:up").await).await;
        }
    }

    /// The address with all servers.
    pub(crate) fn url(&self) -> String {
        let hosts: Vec<String> = self.servers.iter().map(|it| format!("127.0.0.1:{}", it.port())).collect();
        format!("redis://{USER}:{PASSWORD}@{}", hosts.join(","))
    }

    /// The address with all ports for TLS.
    pub(crate) fn tls_url(&self) -> String {
        let hosts: Vec<String> = self.tls_ports.iter().map(|port| format!("localhost:{port}")).collect();
        format!("rediss://{USER}:{PASSWORD}@{}", hosts.join(","))
    }

    /// The address of one server.
    pub(crate) fn url_of(&self, at: usize) -> String {
        format!("redis://{USER}:{PASSWORD}@127.0.0.1:{}", self.servers[at].port())
    }

    pub(crate) async fn connect_to(&self, at: usize) -> Option<MultiplexedConnection> {
        redis_settings_of(&self.url_of(at)).connect().await.ok()
    }

    async fn asked<T: redis::FromRedisValue>(&self, at: usize, command: &[&str]) -> Option<T> {
        let mut connection = self.connect_to(at).await?;
        redis::cmd("CLUSTER").arg(command).query_async(&mut connection).await.ok()
    }

    /// Runs a CLUSTER command, which must succeed.
    pub(crate) async fn tell(&self, at: usize, command: &[&str]) {
        let mut connection = self.connect_to(at).await.expect("a connection");
        let answer: redis::RedisResult<String> =
            redis::cmd("CLUSTER").arg(command).query_async(&mut connection).await;
        answer.unwrap_or_else(|error| panic!("CLUSTER {command:?}: {error}"));
    }

    async fn wait_for_info(&self, at: usize, line: &str) {
        eventually(line, async || {
            let info: String = self.asked(at, &["INFO"]).await?;
            info.lines().any(|it| it.trim() == line).then_some(())
        })
        .await;
    }

    async fn id_of(&self, at: usize) -> String {
        self.asked(at, &["MYID"]).await.expect("an id")
    }

    /// The index of the primary of each slot, as this server knows it.
    async fn owners(&self, asked: usize) -> Option<HashMap<u16, usize>> {
        let ranges: Vec<(u16, u16, (String, u16))> = {
            let raw: Vec<Vec<redis::Value>> = self.asked(asked, &["SLOTS"]).await?;
            let range = |range: &Vec<redis::Value>| {
                let redis::Value::Array(primary) = &range[2] else { return None };
                let number = |value: &redis::Value| redis::from_redis_value_ref::<u16>(value).ok();
                Some((number(&range[0])?, number(&range[1])?, (String::new(), number(&primary[1])?)))
            };
            raw.iter().filter_map(range).collect()
        };
        let index = |port: u16| self.servers.iter().position(|server| server.port() == port);
        let owners =
            ranges.into_iter().filter_map(|(first, last, (_, port))| Some((first, last, index(port)?)));
        Some(owners.flat_map(|(first, last, at)| (first..=last).map(move |slot| (slot, at))).collect())
    }

    /// The index of the server that has a topic, as this one knows it.
    pub(crate) async fn owner_of(&self, topic: &Topic, asked: usize) -> Option<usize> {
        let slot = self.slot_of(topic, asked).await?;
        self.owners(asked).await?.get(&slot).copied()
    }

    async fn slot_of(&self, topic: &Topic, asked: usize) -> Option<u16> {
        self.asked(asked, &["KEYSLOT", topic.as_str()]).await
    }

    /// A topic with this prefix at this server.
    pub(crate) async fn topic_at(&self, prefix: &str, at: usize) -> Topic {
        for n in 0.. {
            let topic = Topic::new(format!("{prefix}{n}")).expect("a topic");
            if self.owner_of(&topic, at).await == Some(at) {
                return topic;
            }
        }
        unreachable!("each server has slots")
    }

    /// A topic with this prefix in this slot.
    pub(crate) async fn topic_in(&self, prefix: &str, slot: u16) -> Topic {
        let mut connection = self.connect_to(0).await.expect("a connection");
        for first in (0..).step_by(1000) {
            let topics: Vec<String> = (first..first + 1000).map(|n| format!("{prefix}{n}")).collect();
            let mut asking = redis::pipe();
            for topic in &topics {
                asking.cmd("CLUSTER").arg("KEYSLOT").arg(topic);
            }
            let slots: Vec<u16> = asking.query_async(&mut connection).await.expect("slots");
            if let Some(at) = slots.iter().position(|of| *of == slot) {
                return Topic::new(&topics[at]).expect("a topic");
            }
        }
        unreachable!("each slot has topics")
    }

    /// Waits until the replica of this server has taken its place, in the view of the other servers.
    pub(crate) async fn wait_for_failover_of(&self, at: usize) -> usize {
        let slot = u16::try_from(at % PRIMARIES * SLOTS / PRIMARIES).expect("a slot");
        eventually("another primary", async || {
            let mut now = None;
            for asked in (0..self.servers.len()).filter(|asked| *asked != at) {
                // A server that is down says nothing.
                if let Some(owner) = self.owners(asked).await.and_then(|owners| owners.get(&slot).copied()) {
                    now = (owner != at && now.is_none_or(|now| now == owner)).then_some(owner);
                    now?;
                }
            }
            now
        })
        .await
    }

    /// Sends a signal to a server.
    pub(crate) async fn signal(&self, at: usize, name: &str) {
        let pid = self.servers[at].pid().expect("a pid").to_string();
        let sent = tokio::process::Command::new("kill").arg(format!("-{name}")).arg(pid).status();
        assert!(sent.await.expect("kill").success(), "{name}");
    }

    /// Has a replica lag behind its primary.
    pub(crate) async fn cut_off(&self, primary: usize, replica: usize) {
        let configured = self.ask_server(replica, &["CONFIG", "SET", "masterauth", "wrong"]).await;
        assert!(configured.is_some(), "the replica takes another password");
        self.ask_server(primary, &["CLIENT", "KILL", "TYPE", "REPLICA"]).await;
        eventually("the replica is cut off", async || {
            self.replication_has(replica, "link_status:down").await
        })
        .await;
    }

    /// Lets a server follow others again.
    pub(crate) async fn let_in(&self, server: usize) {
        let configured = self.ask_server(server, &["CONFIG", "SET", "masterauth", PASSWORD]).await;
        assert!(configured.is_some(), "the server takes its password back");
    }

    /// Whether INFO says this of a server's replication.
    async fn replication_has(&self, at: usize, text: &str) -> Option<()> {
        let mut connection = self.connect_to(at).await?;
        let info: String = redis::cmd("INFO").arg("replication").query_async(&mut connection).await.ok()?;
        info.contains(text).then_some(())
    }

    /// The server that has a topic, if all servers say the same and each primary has a replica that follows.
    pub(crate) async fn settled_owner_of(&self, topic: &Topic) -> Option<usize> {
        let owner = self.owner_of(topic, 0).await?;
        for asked in 0..self.servers.len() {
            if self.owner_of(topic, asked).await? != owner {
                return None;
            }
            let mut connection = self.connect_to(asked).await?;
            let info: String =
                redis::cmd("INFO").arg("replication").query_async(&mut connection).await.ok()?;
            let is_whole = info.contains("master_link_status:up") || info.contains("state=online");
            is_whole.then_some(())?;
        }
        Some(owner)
    }

    /// Waits until all other servers say that another one than this has the topic.
    pub(crate) async fn wait_for_takeover(&self, topic: &Topic, before: usize) {
        eventually("another primary", async || {
            for asked in (0..self.servers.len()).filter(|asked| *asked != before) {
                (self.owner_of(topic, asked).await? != before).then_some(())?;
            }
            Some(())
        })
        .await;
    }

    pub(crate) async fn ask_server(&self, at: usize, command: &[&str]) -> Option<redis::Value> {
        let mut connection = self.connect_to(at).await?;
        redis::cmd(command[0]).arg(&command[1..]).query_async(&mut connection).await.ok()
    }

    /// Moves the slot of a topic with its keys, as `redis-cli --cluster reshard` does.
    pub(crate) async fn move_slot(&self, topic: &Topic, from: usize, to: usize) {
        self.move_keys(topic, from, to).await;
        self.finish_move(topic, from, to).await;
    }

    /// Moves the keys of a topic's slot. The slot stays where it is, as in the middle of `move_slot`.
    pub(crate) async fn move_keys(&self, topic: &Topic, from: usize, to: usize) {
        let slot = self.slot_of(topic, from).await.expect("a slot").to_string();
        let (id_from, id_to) = (self.id_of(from).await, self.id_of(to).await);
        self.tell(to, &["SETSLOT", &slot, "IMPORTING", &id_from]).await;
        self.tell(from, &["SETSLOT", &slot, "MIGRATING", &id_to]).await;
        self.migrate(&slot, from, to).await;
    }

    async fn migrate(&self, slot: &str, from: usize, to: usize) {
        let mut connection = self.connect_to(from).await.expect("a connection");
        loop {
            let keys: Vec<String> = self.asked(from, &["GETKEYSINSLOT", slot, "100"]).await.expect("keys");
            if keys.is_empty() {
                break;
            }
            let mut migrate = redis::cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(self.servers[to].port()).arg("").arg(0).arg(5000);
            migrate.arg("AUTH2").arg(USER).arg(PASSWORD).arg("KEYS").arg(&keys);
            let () = migrate.query_async(&mut connection).await.expect("the keys move");
        }
    }

    /// Moves the keys of a topic's slot back, and leaves the slot where it was.
    pub(crate) async fn call_off_move(&self, topic: &Topic, from: usize, to: usize) {
        let slot = self.slot_of(topic, from).await.expect("a slot").to_string();
        self.tell(from, &["SETSLOT", &slot, "STABLE"]).await;
        self.migrate(&slot, to, from).await;
        self.tell(to, &["SETSLOT", &slot, "STABLE"]).await;
    }

    /// Takes the slot of a topic from all servers, or gives it to one.
    pub(crate) async fn assign(&self, topic: &Topic, to: Option<usize>) {
        let slot = self.slot_of(topic, 0).await.expect("a slot");
        if let Some(at) = to {
            return self.tell(at, &["ADDSLOTS", &slot.to_string()]).await;
        }
        // A server may learn anew of an owner, by a message from before that one gave the slot up.
        eventually("no server has the slot", async || {
            let mut is_free = true;
            for at in 0..self.servers.len() {
                if self.owners(at).await?.contains_key(&slot) {
                    is_free = false;
                    self.ask_server(at, &["CLUSTER", "DELSLOTS", &slot.to_string()]).await;
                }
            }
            is_free.then_some(())
        })
        .await;
    }

    /// Gives the slot of a topic to the server that has its keys by now.
    pub(crate) async fn finish_move(&self, topic: &Topic, from: usize, to: usize) {
        let slot = self.slot_of(topic, from).await.expect("a slot").to_string();
        let id_to = self.id_of(to).await;
        for at in [to, from] {
            self.tell(at, &["SETSLOT", &slot, "NODE", &id_to]).await;
        }
    }
}
