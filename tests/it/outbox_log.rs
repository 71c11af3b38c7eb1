//! The log under every interleaving that a generator can think of, against a real Postgres.
//!
//! Writers begin, take xids, append, set and roll back savepoints, commit, roll back and prepare; two relays
//! race, and die between any two effects; slots are emptied under them; the sink forgets what it was given;
//! operators pause and resume. At the end every committed event has been delivered under one number, nothing
//! else has, no number was given to two events, each topic is in order, and nothing that was committed during
//! a pause came before its end.
//!
//! The reading rule avoids a trap (see `outbox.window_rows` in the first migration). Two tests here break the
//! rule on purpose and demand that the same campaign notices: a check that cannot fail would prove nothing.

mod moves;
mod sink;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use uuid::Uuid;

use aftercommit::event::Topic;
use aftercommit::local::PostgresServer;
use aftercommit::log;
use aftercommit::log::{read, rotate};
use aftercommit::outbox;
use aftercommit::relay::{OnPoison, Outcome, PublishError, Rules, Step, StepError};

use self::moves::{Move, moves};
use self::sink::{Arrived, Fate, GatedSink};
use crate::harness::{Database, TestResult, database_on, new_event, start_postgres};

const WRITERS: usize = 4;
const TOPICS: usize = 3;
const RELAYS: usize = 2;
const RELAY: &str = "property";
const TIMEOUT: Duration = Duration::from_secs(20);

/// A relay: idle, or with a step under way.
enum RelayProcess {
    Dead,
    Resting(Box<Step>),
    Publishing { gate: oneshot::Sender<Fate>, step: JoinHandle<(Box<Step>, Result<Outcome, StepError>)> },
}

#[derive(Default)]
struct Writer {
    connection: Option<PgConnection>,
    in_transaction: bool,
    savepoint_at: Option<usize>,
    appended: Vec<(Uuid, usize)>,
    holds: HashSet<usize>,
}

struct World<'a> {
    database: &'a Database,
    admin: PgConnection,
    writers: Vec<Writer>,
    prepared: Vec<(String, Vec<Uuid>, HashSet<usize>)>,
    relays: Vec<RelayProcess>,
    arrived: Arc<Mutex<Arrived>>,
    at_the_gate: mpsc::UnboundedReceiver<oneshot::Sender<Fate>>,
    knock: mpsc::UnboundedSender<oneshot::Sender<Fate>>,
    committed: HashSet<Uuid>,
    transactions: usize,
    rotated: bool,
    paused: bool,
}

impl<'a> World<'a> {
    async fn new(database: &'a Database) -> World<'a> {
        let mut admin = database.connect().await;
        sqlx::raw_sql(
            "delete from outbox.event; delete from outbox.checkpoint; delete from outbox.relay;
             drop table if exists test_slot; create table test_slot as select 0::smallint as slot;
             create or replace function outbox.slot_at(at timestamptz) returns smallint language sql stable
             as 'select ((slot + case when at > now() then 1 else 0 end) % 8)::smallint
                 from public.test_slot'",
        )
        .execute(&mut admin)
        .await
        .expect("a clean log");
        let (knock, at_the_gate) = mpsc::unbounded_channel();
        World {
            database,
            admin,
            writers: (0..WRITERS).map(|_| Writer::default()).collect(),
            prepared: Vec::new(),
            relays: (0..RELAYS).map(|_| RelayProcess::Dead).collect(),
            arrived: Arc::default(),
            at_the_gate,
            knock,
            committed: HashSet::new(),
            transactions: 0,
            rotated: false,
            paused: false,
        }
    }

    async fn make(&mut self, step: &Move) {
        match *step {
            Move::TakeXid { writer } => {
                self.begin(writer).await;
                self.sql(writer, "select pg_current_xact_id()").await;
            }
            Move::Append { writer, topic } => self.append(writer, topic).await,
            Move::Savepoint { writer } => {
                self.begin(writer).await;
                self.sql(writer, "savepoint s").await;
                self.writers[writer].savepoint_at = Some(self.writers[writer].appended.len());
            }
            Move::RollbackToSavepoint { writer } => {
                if let Some(kept) = self.writers[writer].savepoint_at {
                    self.sql(writer, "rollback to savepoint s").await;
                    self.writers[writer].appended.truncate(kept);
                }
            }
            Move::Commit { writer } => self.end(writer, true).await,
            Move::Rollback { writer } => self.end(writer, false).await,
            Move::Prepare { writer } => self.prepare(writer).await,
            Move::FinishPrepared { commit } => self.finish_prepared(commit).await,
            Move::StartStep { relay } => {
                self.start_step(relay).await;
            }
            Move::FinishStep { relay } => self.finish_step(relay, Fate::Arrive).await,
            Move::KillStep { relay, published } => self.finish_step(relay, Fate::Die { published }).await,
            Move::NextSlot => {
                self.admin("update test_slot set slot = (slot + 1) % 8").await;
            }
            // As the retention guarantees: events that the sink lacks are still in the log.
            Move::Rotate if !self.arrived.lock().expect("not poisoned").is_repaired() => {}
            Move::Rotate => {
                let rotation = rotate::rotate(&mut self.admin, Duration::ZERO).await.expect("rotation");
                self.rotated |= rotation.emptied.iter().any(|table| table.starts_with("event"));
            }
            Move::Pause => self.pause().await,
            Move::Resume => self.resume().await,
            // Events that have left the log cannot be restored.
            Move::Forget { .. } if self.rotated => {}
            Move::Forget { numbers } => {
                let mut arrived = self.arrived.lock().expect("not poisoned");
                let highest = arrived.by_number.keys().next_back().map_or(0, |id| id.seq);
                arrived.forget(highest.saturating_sub(numbers));
            }
        }
    }

    async fn pause(&mut self) {
        let pause =
            "insert into outbox.pause (relay, who, reason) select name, 'a test', '' from outbox.relay
                     on conflict do nothing";
        let done = sqlx::raw_sql(pause).execute(&mut self.admin).await.expect("a pause");
        self.paused |= done.rows_affected() > 0;
    }

    async fn resume(&mut self) {
        self.arrived.lock().expect("not poisoned").held.clear();
        self.admin("delete from outbox.pause").await;
        self.paused = false;
    }

    /// Events that are committed during a pause wait for its end.
    fn commit(&mut self, events: Vec<Uuid>) {
        if self.paused {
            self.arrived.lock().expect("not poisoned").held.extend(&events);
        }
        self.committed.extend(events);
    }

    async fn admin(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.admin).await.expect(sql);
    }

    async fn sql(&mut self, writer: usize, sql: &str) {
        let connection = self.writers[writer].connection.as_mut().expect("a connection");
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.expect(sql);
    }

    async fn begin(&mut self, writer: usize) {
        if self.writers[writer].connection.is_none() {
            self.writers[writer].connection = Some(self.database.connect().await);
        }
        if !self.writers[writer].in_transaction {
            self.sql(writer, "begin").await;
            self.writers[writer].in_transaction = true;
        }
    }

    /// A topic's writers follow each other, as the contract asks: whoever holds it keeps the others out.
    async fn append(&mut self, writer: usize, topic: usize) {
        let held_elsewhere =
            self.writers.iter().enumerate().any(|(w, other)| w != writer && other.holds.contains(&topic))
                || self.prepared.iter().any(|(_, _, holds)| holds.contains(&topic));
        if held_elsewhere {
            return;
        }
        self.begin(writer).await;
        let name = Topic::new(format!("topic:{topic}")).expect("a topic");
        let event = new_event(&name, "T", &topic);
        let this = &mut self.writers[writer];
        let connection = this.connection.as_mut().expect("a connection");
        outbox::append(connection, &event).await.expect("an append");
        this.holds.insert(topic);
        this.appended.push((event.event_id(), topic));
    }

    async fn end(&mut self, writer: usize, commit: bool) {
        if !self.writers[writer].in_transaction {
            return;
        }
        self.sql(writer, if commit { "commit" } else { "rollback" }).await;
        let ended = self.take_transaction(writer);
        if commit {
            self.commit(ended.0);
        }
    }

    fn take_transaction(&mut self, writer: usize) -> (Vec<Uuid>, HashSet<usize>) {
        let this = &mut self.writers[writer];
        this.in_transaction = false;
        this.savepoint_at = None;
        let events = std::mem::take(&mut this.appended).into_iter().map(|(event, _)| event).collect();
        (events, std::mem::take(&mut this.holds))
    }

    async fn prepare(&mut self, writer: usize) {
        if !self.writers[writer].in_transaction {
            return;
        }
        self.transactions += 1;
        let name = format!("{}-{}", self.database.name(), self.transactions);
        self.sql(writer, &format!("prepare transaction '{name}'")).await;
        let (events, holds) = self.take_transaction(writer);
        self.prepared.push((name, events, holds));
    }

    async fn finish_prepared(&mut self, commit: bool) {
        let Some((name, events, _)) = (!self.prepared.is_empty()).then(|| self.prepared.remove(0)) else {
            return;
        };
        self.admin(&format!("{} prepared '{name}'", if commit { "commit" } else { "rollback" })).await;
        if commit {
            self.commit(events);
        }
    }

    /// Starts a step; true if it ended at once because there was nothing to do.
    async fn start_step(&mut self, relay: usize) -> bool {
        let mut step = match std::mem::replace(&mut self.relays[relay], RelayProcess::Dead) {
            RelayProcess::Resting(step) => step,
            RelayProcess::Dead => Box::new(self.new_relay().await),
            busy @ RelayProcess::Publishing { .. } => {
                self.relays[relay] = busy;
                return false;
            }
        };
        let mut sink = self.sink();
        let mut step = tokio::spawn(async move {
            let outcome = step.step(&mut sink).await;
            (step, outcome)
        });
        // Either it wants to publish, or there was nothing to do.
        tokio::select! {
            gate = self.at_the_gate.recv() => {
                let gate = gate.expect("the sink is there");
                self.relays[relay] = RelayProcess::Publishing { gate, step };
                false
            }
            done = &mut step => {
                let done = done.expect("the step does not panic");
                let idle = matches!(done.1, Ok(Outcome::Idle));
                self.rest(relay, done).await;
                idle
            }
        }
    }

    fn sink(&self) -> GatedSink {
        GatedSink { arrived: self.arrived.clone(), at_the_gate: self.knock.clone() }
    }

    async fn new_relay(&self) -> Step {
        let mut writer = self.database.connect().await;
        let mut reader = self.database.connect().await;
        read::prepare_session(&mut writer).await.expect("a session");
        read::prepare_session(&mut reader).await.expect("a session");
        // Small limits, so that windows have several chunks and are left open between steps.
        let limit = read::Limit { events: 2, bytes: 1_000_000 };
        let rules = Rules {
            relay: RELAY.to_owned(),
            limit,
            on_poison: OnPoison::Halt,
            timeout: TIMEOUT,
            keepalive: TIMEOUT,
        };
        Step::begin(rules, writer, reader).await.expect("a position")
    }

    async fn finish_step(&mut self, relay: usize, fate: Fate) {
        let publishing = std::mem::replace(&mut self.relays[relay], RelayProcess::Dead);
        let RelayProcess::Publishing { gate, step } = publishing else {
            self.relays[relay] = publishing;
            return;
        };
        let dies = matches!(fate, Fate::Die { .. });
        gate.send(fate).expect("the sink waits");
        let done = step.await.expect("the step does not panic");
        // A killed process takes everything that it knew with it.
        if !dies {
            self.rest(relay, done).await;
        }
    }

    async fn rest(&mut self, relay: usize, (mut step, outcome): (Box<Step>, Result<Outcome, StepError>)) {
        match outcome {
            Ok(_) => {}
            Err(StepError::Outbox(log::Error::Fenced { .. })) => {
                step.reload().await.expect("the newest position")
            }
            Err(StepError::Publish(PublishError::Forgot { .. })) => {
                step.reconcile(&mut self.sink()).await.expect("a repair");
            }
            Err(error) => panic!("a step failed: {error}"),
        }
        self.relays[relay] = RelayProcess::Resting(step);
    }

    /// Ends all transactions and steps, lets a fresh relay deliver the rest, and compares.
    async fn settle(mut self) -> Result<(), String> {
        self.resume().await;
        for relay in 0..RELAYS {
            self.finish_step(relay, Fate::Arrive).await;
        }
        for writer in 0..WRITERS {
            self.end(writer, writer % 2 == 0).await;
        }
        while !self.prepared.is_empty() {
            self.finish_prepared(self.prepared.len().is_multiple_of(2)).await;
        }
        let mut last = self.new_relay().await;
        last.reconcile(&mut self.sink()).await.map_err(|error| error.to_string())?;
        self.relays[0] = RelayProcess::Resting(Box::new(last));
        while !self.start_step(0).await {
            self.finish_step(0, Fate::Arrive).await;
        }
        self.verdict()
    }

    fn verdict(&self) -> Result<(), String> {
        let arrived = self.arrived.lock().expect("not poisoned");
        let mut violations = arrived.violations.clone();
        let mut times: HashMap<Uuid, usize> = HashMap::new();
        for (event, _) in arrived.by_number.values() {
            *times.entry(*event).or_default() += 1;
        }
        let lost = self.committed.iter().filter(|e| !times.contains_key(e)).count();
        let invented = times.keys().filter(|e| !self.committed.contains(e)).count();
        let repeated = times.values().filter(|times| **times > 1).count();
        // Event ids are UUIDs of version 7, made in the order of the appends by this one process.
        let mut reordered = 0;
        let mut last: HashMap<&Topic, Uuid> = HashMap::new();
        for (event, topic) in arrived.by_number.values() {
            if last.insert(topic, *event).is_some_and(|before| before > *event) {
                reordered += 1;
            }
        }
        if lost + invented + repeated + reordered > 0 {
            violations.push(format!(
                "of {} committed events: lost {lost}, invented {invented}, repeated {repeated}, reordered \
                 {reordered}",
                self.committed.len()
            ));
        }
        if violations.is_empty() { Ok(()) } else { Err(violations.join("; ")) }
    }
}

/// Runs the campaign on a database and returns the first violation, with the moves that lead to it. Shrinks
/// them in at most `max_shrink_iters` tries.
fn campaign(database: &Database, cases: u32, max_shrink_iters: u32) -> Result<(), String> {
    let runtime = tokio::runtime::Handle::current();
    let config = Config { cases, max_shrink_iters, failure_persistence: None, ..Config::default() };
    // A fixed seed: a red run is red again.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let result = runner.run(&moves(), |moves| {
        let verdict = runtime.block_on(async {
            let mut world = World::new(database).await;
            for step in &moves {
                world.make(step).await;
            }
            world.settle().await
        });
        verdict.map_err(TestCaseError::fail)
    });
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Fail(reason, moves)) => Err(format!("{reason} after {moves:?}")),
        Err(TestError::Abort(reason)) => panic!("the campaign could not run: {reason}"),
    }
}

/// A Postgres of the campaign's own. On a shared one the transactions of other tests take numbers as well, so
/// the same moves would find another thing, or nothing.
async fn server() -> PostgresServer {
    let alone = [("autovacuum", "off"), ("max_prepared_transactions", "20")];
    start_postgres(alone.map(|(name, value)| (name, value.to_owned())).into()).await
}

async fn in_a_thread_of_its_own(
    database: Database,
    cases: u32,
    max_shrink_iters: u32,
) -> TestResult<Result<(), String>> {
    Ok(tokio::task::spawn_blocking(move || campaign(&database, cases, max_shrink_iters)).await?)
}

/// Replaces a part of the reading rule in this test's own database.
async fn break_the_rule(database: &Database, part: &str, with: &str) -> TestResult {
    let mut connection = database.connect().await;
    let rule: String = sqlx::query_scalar("select pg_get_functiondef('outbox.window_rows'::regproc)")
        .fetch_one(&mut connection)
        .await?;
    assert!(rule.contains(part), "the rule reads otherwise now: {rule}");
    sqlx::raw_sql(AssertSqlSafe(rule.replace(part, with))).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_writers_and_relays_do_every_committed_event_is_delivered_once_and_in_order() -> TestResult {
    let server = server().await;
    let database = database_on(&server).await;
    if let Err(violation) = in_a_thread_of_its_own(database, 60, 30).await? {
        panic!("{violation}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_horizon_the_same_campaign_finds_lost_events() -> TestResult {
    let server = server().await;
    let database = database_on(&server).await;
    break_the_rule(&database, "$2::text::bigint - 1", "pg_snapshot_xmax($1)::text::bigint - 1").await?;
    let violation = in_a_thread_of_its_own(database, 400, 0).await?.expect_err("the trap must be found");
    eprintln!("without the horizon: {violation}");
    assert!(violation.contains("lost"), "{violation}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_transactions_that_were_running_the_same_campaign_finds_lost_events() -> TestResult {
    let server = server().await;
    let database = database_on(&server).await;
    break_the_rule(&database, "select pg_snapshot_xip($1) as xid", "select pg_snapshot_xip('3:3:') as xid")
        .await?;
    let violation = in_a_thread_of_its_own(database, 400, 0).await?.expect_err("the loss must be found");
    assert!(violation.contains("lost"), "{violation}");
    Ok(())
}
