//! Readers at random moments under random writers: the state of a page, and the events of its stream, equal
//! the truth.
//!
//! The state of a topic is a number in a row; each event is that number after its transaction. So a page
//! whose state is 7 has to get 8, 9, 10, …: a missing event is a gap, and an event that the state holds is a
//! repeat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aftercommit::event::Topic;
use aftercommit::outbox;
use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::append_door::execute;
use crate::harness::{Client, NOTIFICATIONS, Process, System, TestResult, new_event};

const TOPICS: usize = 8;
/// Events that a page reads before it leaves.
const EVENTS: usize = 3;
/// Pages that are open at the same time.
const PAGES_AT_ONCE: u64 = 40;

/// What is wrong with the pages: none of these may be there.
#[derive(Debug, Default)]
struct Wrong(BTreeMap<&'static str, u64>);

impl Wrong {
    fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}

/// A stage: topics whose state is a number, and the processes that bring their events to pages.
struct Stage {
    system: System,
    _relay: Process,
    servers: [Process; 2],
    users: Vec<Uuid>,
}

impl Stage {
    async fn new() -> Self {
        let system = System::new().await;
        let relay = system.start("relay").await;
        let servers = [system.start("sse").await, system.start("sse").await];
        let users: Vec<Uuid> = (0..TOPICS).map(|_| Uuid::new_v4()).collect();
        let mut admin = system.database.connect().await;
        execute(&mut admin, "create table counter (topic text primary key, n bigint not null)").await;
        for user in &users {
            execute(&mut admin, &format!("insert into counter values ('{}', 0)", name_of(*user))).await;
        }
        Self { system, _relay: relay, servers, users }
    }

    /// Writes until then, each time to one or two topics; sometimes rolls back, sometimes waits before the
    /// commit.
    async fn write(&self, writer: u64, until: &CancellationToken) -> TestResult {
        let mut connection = self.connect().await?;
        let mut step = writer;
        while !until.is_cancelled() {
            step = step.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (first, random) = ((step >> 33) as usize, step >> 45);
            let mut chosen = vec![first % TOPICS];
            if random % 4 == 0 {
                chosen.push((first / TOPICS) % TOPICS);
                chosen.sort_unstable();
                chosen.dedup();
            }
            let mut tx = connection.begin().await?;
            for at in chosen {
                let topic = name_of(self.users[at]);
                let n: i64 = sqlx::query_scalar("update counter set n = n + 1 where topic = $1 returning n")
                    .bind(&topic)
                    .fetch_one(&mut *tx)
                    .await?;
                outbox::append(&mut tx, &new_event(&Topic::new(topic)?, "N", &n)).await?;
            }
            // How long a transaction is open is part of the load.
            tokio::time::sleep(Duration::from_millis(random % 8 * 3)).await;
            if random % 8 == 1 { tx.rollback().await? } else { tx.commit().await? }
        }
        Ok(())
    }

    async fn connect(&self) -> TestResult<PgConnection> {
        Ok(PgConnection::connect(self.system.database.url()).await?)
    }

    /// Reads the state, opens the stream, and compares. Counts what is wrong.
    async fn page(&self, number: u64, connection: &mut PgConnection, wrong: &mut Wrong) -> TestResult {
        let user = self.users[number as usize % TOPICS];
        let (n, token): (i64, String) =
            sqlx::query_as("select n, outbox.resume_token() from counter where topic = $1")
                .bind(name_of(user))
                .fetch_one(&mut *connection)
                .await?;
        // Some pages are slow.
        tokio::time::sleep(Duration::from_millis(number % 5 * 10)).await;
        let url = self.servers[number as usize / TOPICS % 2].url(&format!("{NOTIFICATIONS}?resume={token}"));
        let client = Client::begin(url, &self.system.token(user), None);
        let events = client.wait_for_events(EVENTS).await;
        for (event, expected) in events.iter().zip(n + 1..) {
            match event.data.parse::<i64>() {
                Ok(told) if told == expected => {}
                Ok(told) if told < expected => wrong.count("repeated"),
                Ok(_) => wrong.count("missing"),
                Err(_) => wrong.count("reset"),
            }
        }
        Ok(())
    }
}

fn name_of(user: Uuid) -> String {
    format!("user-notifications:{user}")
}

async fn play(pages: u64) -> TestResult {
    let stage = Arc::new(Stage::new().await);
    let until = CancellationToken::new();
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let (stage, until) = (stage.clone(), until.clone());
            tokio::spawn(async move { stage.write(writer + 1, &until).await })
        })
        .collect();
    let next = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = (0..PAGES_AT_ONCE)
        .map(|_| {
            let (stage, next) = (stage.clone(), next.clone());
            tokio::spawn(async move {
                let (mut connection, mut wrong) = (stage.connect().await?, Wrong::default());
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= pages {
                        return TestResult::Ok(wrong);
                    }
                    stage.page(number, &mut connection, &mut wrong).await?;
                }
            })
        })
        .collect();
    let mut all = Wrong::default();
    for reader in readers {
        for (what, count) in reader.await??.0 {
            *all.0.entry(what).or_default() += count;
        }
    }
    until.cancel();
    for writer in writers {
        writer.await??;
    }
    println!("{pages} pages: wrong {:?}", all.0);
    assert!(all.0.is_empty(), "of {pages} pages, wrong: {:?}", all.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pages_state_and_its_events_are_the_truth_at_any_moment() -> TestResult {
    play(800).await
}

/// The same with ten thousand: some minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: run it by name"]
async fn ten_thousand_pages_are_never_wrong() -> TestResult {
    play(10_000).await
}
