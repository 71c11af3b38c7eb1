//! Commits numbered events at a steady pace, as an application would: append, commit, ring the bell (or not).

use std::sync::Arc;
use std::time::{Duration, Instant};

use aftercommit::event::{EventType, NewEvent};
use aftercommit::outbox::{self, Bell};
use serde_json::value::RawValue;
use sqlx::Connection;
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::arguments::Scenario;
use crate::engine::{EVENT, Histogram, Ledger, Stamp};
use crate::world::World;

/// A writer at work.
#[derive(Debug)]
pub(crate) struct Writer {
    stop: CancellationToken,
    task: JoinHandle<Written>,
}

/// What it has written.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) events: u64,
    pub(crate) took: Duration,
    /// How long Postgres took for each commit alone.
    pub(crate) commits: Histogram,
}

/// Begins to write. A full ledger ends it.
pub(crate) fn begin(world: &World, scenario: &Scenario, ledger: Arc<Ledger>) -> Writer {
    let stop = CancellationToken::new();
    let (rate, bytes, rings) = (scenario.rate, scenario.bytes, scenario.rings);
    let (url, topics) = (world.system.database.url().to_owned(), world.topics.clone());
    let until = stop.clone();
    let task = tokio::spawn(async move {
        let options: PgConnectOptions = url.parse().expect("a URL");
        let bell = Bell::start(options.clone());
        let mut connection = sqlx::PgConnection::connect_with(&options).await.expect("a connection");
        let event_type = EventType::new(EVENT).expect("a type");
        let mut written = Written::default();
        let begun = Instant::now();
        loop {
            // By the clock and not by the last event: a writer that was held up catches up.
            let due = begun + Duration::from_secs_f64(written.events as f64 / rate);
            tokio::select! {
                () = until.cancelled() => break,
                () = tokio::time::sleep_until(due.into()) => {}
            }
            let topic = usize::try_from(written.events).expect("a count") % topics.len();
            let Some(number) = ledger.next(topic) else { break };
            let payload = RawValue::from_string(Stamp { number, topic, bytes }.payload()).expect("JSON");
            let event = NewEvent::new(topics[topic].clone(), event_type.clone(), &payload).expect("an event");
            let mut transaction = connection.begin().await.expect("a transaction");
            outbox::append(&mut transaction, &event).await.expect("an append");
            let sent = Instant::now();
            ledger.is_sent(topic, number, sent);
            transaction.commit().await.expect("a commit");
            written.commits.record(sent.elapsed());
            ledger.is_committed(topic, number);
            if rings {
                bell.ring();
            }
            written.events += 1;
        }
        written.took = begun.elapsed();
        written
    });
    Writer { stop, task }
}

impl Writer {
    /// Ends it after the transaction in hand.
    pub(crate) async fn finish(self) -> Written {
        self.stop.cancel();
        self.task.await.expect("the writer's task")
    }
}
