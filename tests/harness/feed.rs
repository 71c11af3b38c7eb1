//! A user whose notifications are numbers, and the relay that brings them to Redis.

use std::time::Duration;

use aftercommit::event::{EventType, NewEvent, Topic};
use aftercommit::outbox;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::sse::{Client, Event};
use super::{Process, System, free_port, new_event};

/// The path of a user's own stream.
pub(crate) const NOTIFICATIONS: &str = "/api/upload/sessions/notifications/stream";

/// A user's stream of numbers.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) system: System,
    pub(crate) relay: Process,
    pub(crate) user: Uuid,
}

impl Feed {
    pub(crate) async fn new() -> Self {
        Self::with(System::new().await).await
    }

    pub(crate) async fn with(system: System) -> Self {
        Self::of(system, Uuid::new_v4()).await
    }

    /// The stream of this user.
    pub(crate) async fn of(system: System, user: Uuid) -> Self {
        let relay = system.start("relay").await;
        Self { system, relay, user }
    }

    pub(crate) fn topic(&self) -> Topic {
        Topic::new(format!("user-notifications:{}", self.user)).expect("a topic")
    }

    pub(crate) fn token(&self) -> String {
        self.system.token(self.user)
    }

    /// Starts a server at a reserved address, which no other process gets while the server is down.
    pub(crate) async fn sse(&self) -> Process {
        self.sse_at(&format!("127.0.0.1:{}", free_port())).await
    }

    /// Starts a server at the address of an earlier one.
    pub(crate) async fn sse_at(&self, address: &str) -> Process {
        let settings = self.system.settings().clone().set("AFTERCOMMIT_SSE_LISTEN", address);
        Process::start("sse", &settings).await
    }

    /// Kills a server and starts another one at its address.
    pub(crate) async fn replaced(&self, sse: Process) -> Process {
        let address = sse.address.clone();
        sse.kill().await;
        self.sse_at(&address).await
    }

    /// Opens the stream at this server.
    pub(crate) async fn client(&self, sse: &Process) -> Client {
        Client::open(&sse.url(NOTIFICATIONS), &self.token()).await
    }

    /// Commits an event for each number, in one transaction.
    pub(crate) async fn commit(&self, numbers: impl IntoIterator<Item = u64>) {
        let events: Vec<NewEvent> = numbers.into_iter().map(|n| number_of(&self.topic(), &n)).collect();
        let mut connection = self.system.database.connect().await;
        outbox::append_all(&mut connection, &events).await.expect("an append");
    }

    /// Commits 0, 1, 2, … one by one until told to stop; returns how many.
    pub(crate) fn keep_committing(&self, until: CancellationToken) -> JoinHandle<u64> {
        let (url, topic) = (self.system.database.url().to_owned(), self.topic());
        tokio::spawn(async move {
            let mut connection = PgConnection::connect(&url).await.expect("a connection");
            let mut count = 0;
            while !until.is_cancelled() {
                outbox::append(&mut connection, &number_of(&topic, &count)).await.expect("an append");
                count += 1;
                // The pace of the load.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            count
        })
    }
}

fn number_of(topic: &Topic, n: &u64) -> NewEvent {
    new_event(topic, "N", n)
}

/// The numbers that a client has got.
pub(crate) fn numbers(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.data.parse().unwrap_or_else(|_| panic!("{event:?}"))).collect()
}
