//! A relay and two SSE servers on a Redis Cluster, with a topic at each of its primaries, under load.

use std::time::Duration;

use redis::AsyncCommands;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use aftercommit::event::Topic;
use aftercommit::outbox;

use crate::harness::{
    Client, Cluster, Event, Process, System, TestResult, eventually, metric_of, new_event, numbers,
};

/// A topic at each primary, with a client of its own at each of two SSE servers.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) system: System,
    pub(crate) relay: Process,
    pub(crate) sse: Vec<Process>,
    pub(crate) topics: Vec<Topic>,
    pub(crate) token: String,
}

impl Stage {
    pub(crate) async fn new(cluster: Cluster) -> Self {
        let url = cluster.url();
        Self::with(cluster, System::with_redis(&url).await, &url).await
    }

    /// The SSE servers reach Redis by an address of their own.
    pub(crate) async fn with(cluster: Cluster, mut system: System, sse_url: &str) -> Self {
        let prefix = system.redis.topic("").to_string();
        let mut topics = Vec::new();
        for at in 0..3 {
            topics.push(cluster.topic_at(&prefix, at).await);
        }
        let relay = system.start("relay").await;
        system.set_again("REDIS_URL", sse_url);
        let sse = vec![system.start("sse").await, system.start("sse").await];
        for sse in &sse {
            let is_ready = async || {
                let answer = system.http().get(sse.url("/readyz")).send().await.ok()?;
                answer.status().is_success().then_some(())
            };
            eventually("an SSE server is ready", is_ready).await;
        }
        let token = system.token_with(Uuid::new_v4(), Duration::from_secs(3600), &[&format!("{prefix}*")]);
        Self { cluster, system, relay, sse, topics, token }
    }

    /// A client of each topic at each server, topic by topic.
    pub(crate) async fn clients(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        for topic in &self.topics {
            for sse in &self.sse {
                clients.push(Client::open(&sse.url(&format!("/streams/{topic}")), &self.token).await);
            }
        }
        clients
    }

    /// Has events committed to each topic from now on, and waits until its clients receive them.
    pub(crate) async fn load(&self) -> Load {
        let (clients, stop) = (self.clients().await, CancellationToken::new());
        let committing = keep_committing(&self.system, &self.topics, stop.clone());
        for client in &clients {
            client.wait_for_events(50).await;
        }
        Load { clients, stop, committing }
    }

    /// Ends the load: every client has everything. Returns how many events each topic has.
    pub(crate) async fn end(&self, load: &mut Load) -> TestResult<u64> {
        load.stop.cancel();
        let committed = (&mut load.committing).await?;
        self.assert_all_have(&load.clients, committed).await?;
        Ok(committed)
    }

    /// The number of entries in a topic's history at this server.
    pub(crate) async fn length_at(&self, server: usize, topic: &Topic) -> TestResult<u64> {
        let mut connection = self.cluster.connect_to(server).await.ok_or("no connection")?;
        Ok(connection.xlen(self.system.redis.keys().history(topic)).await?)
    }

    /// Waits until a server is left behind.
    pub(crate) async fn wait_until_one_is_behind(&self) {
        eventually("a server is left behind", async || {
            let behind = metric_of(&self.relay, "aftercommit_relay_redis_servers_behind").await;
            (behind > 0).then_some(())
        })
        .await;
    }

    /// Waits until each of these clients has received `more` further events.
    pub(crate) async fn wait_for_more(&self, clients: &[Client], more: usize) {
        for (at, client) in clients.iter().enumerate() {
            let reached = client.so_far().len();
            let waiting =
                tokio::time::timeout(Duration::from_secs(40), client.wait_for_events(reached + more));
            let logs = || format!("{}\n{}", self.relay.log(), self.sse[at % 2].log());
            assert!(waiting.await.is_ok(), "{}\nclient {at} waits", logs());
        }
    }

    /// Every client has every number once and in order, and was not reset.
    pub(crate) async fn assert_all_have(&self, clients: &[Client], committed: u64) -> TestResult {
        for (at, client) in clients.iter().enumerate() {
            let all = usize::try_from(committed)?;
            let waiting = tokio::time::timeout(Duration::from_secs(40), client.wait_for_events(all)).await;
            let log = format!("{}\n{}", self.relay.log(), self.sse[at % 2].log());
            let Ok(events) = waiting else {
                panic!("{log}\nclient {at} has {} of {all}", client.so_far().len());
            };
            let resets: Vec<&Event> = events.iter().filter(|event| event.event == "reset").collect();
            assert!(resets.is_empty(), "{log}\nclient {at}: {resets:?}");
            let got = numbers(&events);
            let wrong = (0..).zip(&got).find(|(expected, number)| expected != *number);
            assert!(wrong.is_none(), "{log}\nclient {at}: {wrong:?}, {} events", got.len());
        }
        Ok(())
    }
}

/// Commits under way, with a client of each topic at each server.
pub(crate) struct Load {
    pub(crate) clients: Vec<Client>,
    pub(crate) stop: CancellationToken,
    pub(crate) committing: JoinHandle<u64>,
}

/// Commits 0, 1, 2, … to each topic until told to stop; returns how many.
pub(crate) fn keep_committing(
    system: &System,
    topics: &[Topic],
    until: CancellationToken,
) -> JoinHandle<u64> {
    let (database, topics) = (system.database.url().to_owned(), topics.to_vec());
    tokio::spawn(async move {
        use sqlx::Connection;
        let mut connection = sqlx::PgConnection::connect(&database).await.expect("a connection");
        let mut count = 0;
        while !until.is_cancelled() {
            for topic in &topics {
                let event = new_event(topic, "N", &count);
                outbox::append(&mut connection, &event).await.expect("an append");
            }
            count += 1;
            // The pace of the load.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        count
    })
}
