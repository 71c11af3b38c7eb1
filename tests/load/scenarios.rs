//! The runs: what happens to the clients while events go on being committed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::arguments::{Kind, Scenario};
use crate::arrivals;
use crate::cost::Cost;
use crate::engine::{self, Engine, Histogram, Ledger, Standing};
use crate::report::{Costs, Percentiles, Report};
use crate::world::World;
use crate::writer;

/// Connections under way at once when there is no hurry: few enough for any server's accept queue.
const UNHURRIED: usize = 256;
/// The time limit for the clients to reach an expected state.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long events are committed at most, which the ledger is made for.
const LONGEST: Duration = Duration::from_secs(600);
/// How often it is asked how far the clients are.
const LOOK: Duration = Duration::from_millis(50);

/// A run in progress.
struct Run {
    scenario: Scenario,
    world: World,
    engine: Engine,
    findings: Vec<String>,
    faults: Vec<String>,
    /// How long each client of a storm took to come back.
    returns: Histogram,
}

/// Runs a scenario. An error is why it could not be.
pub(crate) async fn run(scenario: Scenario) -> io::Result<Report> {
    engine::raise_for(scenario.connections)?;
    let world = World::start(&scenario).await;
    let idle = world.cost();
    let events = (scenario.rate * (scenario.length + LONGEST).as_secs_f64()).ceil() as usize;
    let ledger = Arc::new(Ledger::new(scenario.topics, events / scenario.topics + 1));
    let engine = Engine::start(world.plan(&scenario), ledger.clone())?;
    let mut run = Run {
        scenario,
        world,
        engine,
        findings: Vec::new(),
        faults: Vec::new(),
        returns: Histogram::default(),
    };
    run.connect_all().await?;
    let connected = run.engine.returns().await?;
    let arrivals = arrivals::watch(&run.world, ledger.clone()).await;
    let begun = run.costs();
    let writer = writer::begin(&run.world, &run.scenario, ledger);
    sleep(run.scenario.length).await;
    match run.scenario.kind {
        Kind::Fanout | Kind::Drain | Kind::Append | Kind::Floor | Kind::Bench => {}
        Kind::Storm => run.storm().await?,
        Kind::Rolling => run.rolling().await?,
        Kind::Stuck => run.stuck().await?,
    }
    let written = writer.finish().await;
    run.until("every client has every event", |clients| clients.complete == clients.readers).await?;
    let in_redis = arrivals.finish().await;
    let costs = idle.zip(begun.zip(run.costs())).map(|(idle, (begun, ended))| Costs::new(idle, begun, ended));
    let crashed = run.world.crashed();
    if crashed > 0 {
        run.faults.push(format!("{crashed} processes ended by themselves"));
    }
    let Run { scenario, engine, mut findings, faults, returns, .. } = run;
    let outcome = engine.finish().await?;
    if scenario.kind == Kind::Rolling {
        let peak = outcome.tally.peak_of_opened(scenario.connections);
        findings.push(format!("rolling   at most {peak} streams were opened within one second"));
    }
    Ok(Report { scenario, connected, returns, written, in_redis, outcome, findings, costs, faults })
}

impl Run {
    /// Everybody connects, and stands at the beginning of an empty topic.
    async fn connect_all(&mut self) -> io::Result<()> {
        self.engine.connect(UNHURRIED);
        self.until("every client is connected", |clients| clients.returning == 0).await?;
        let everybody = self.scenario.connections as u64;
        // Those who never read cannot tell; the server can.
        let deadline = Instant::now() + TIMEOUT;
        while self.world.metric("aftercommit_sse_connections").await < everybody && Instant::now() < deadline
        {
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// All clients vanish at once and return at once.
    async fn storm(&mut self) -> io::Result<()> {
        let count = ["history_reads_total", "joins_total", "refused_total"]
            .map(|name| format!("aftercommit_sse_{name}"));
        let mut before = [0; 3];
        for (before, name) in before.iter_mut().zip(&count) {
            *before = self.world.metric(name).await;
        }
        self.engine.drop_all();
        sleep(self.scenario.away).await;
        self.engine.connect(usize::MAX);
        self.until("every client has what it missed", |clients| clients.returning == 0).await?;
        let returns = self.engine.returns().await?;
        let mut taken = [0; 3];
        for ((taken, before), name) in taken.iter_mut().zip(before).zip(&count) {
            *taken = self.world.metric(name).await - before;
        }
        let [reads, joins, refused] = taken;
        self.returns = returns.clone();
        self.findings
            .push(format!("storm     from the first connect to caught up: {}", Percentiles(&returns)));
        self.findings.push(format!("          {reads} history reads, {joins} joins, {refused} turned away"));
        // The live stream goes on after the missed events.
        sleep(self.scenario.length).await;
        Ok(())
    }

    /// One server after the other is told to stop, and started again on its port.
    async fn rolling(&mut self) -> io::Result<()> {
        for place in 0..self.scenario.kind.servers() {
            let begun = Instant::now();
            match self.world.restart_server(place).await {
                Ok(took) => self.findings.push(format!(
                    "rolling   server {}: ended {:.1} s after SIGTERM",
                    place + 1,
                    took.as_secs_f64()
                )),
                Err(fault) => self.faults.push(fault),
            }
            self.until("every client is connected again", |clients| clients.placed == clients.readers)
                .await?;
            let back = begun.elapsed().as_secs_f64();
            self.findings.push(format!("          all clients connected {back:.1} s after SIGTERM"));
            sleep(self.scenario.length).await;
        }
        Ok(())
    }

    /// Those who never read are cut off, while events go on for the others.
    async fn stuck(&mut self) -> io::Result<()> {
        let expected = self.scenario.stuck() as u64;
        let everybody = self.scenario.connections as u64;
        let deadline = Instant::now() + TIMEOUT;
        let mut cut_off = 0;
        while cut_off < expected && Instant::now() < deadline {
            sleep(LOOK).await;
            cut_off = everybody.saturating_sub(self.world.metric("aftercommit_sse_connections").await);
        }
        let counted = self.world.metric("aftercommit_sse_slow_closes_total").await;
        self.findings.push(format!("stuck     {cut_off} clients cut off, of {expected} that never read"));
        self.findings.push(format!("          {counted} of them counted as slow closes"));
        if cut_off != expected {
            self.faults.push(format!("{cut_off} clients were cut off, and {expected} should have been"));
        }
        Ok(())
    }

    /// Waits for the clients. What does not come is a fault of the run, which goes on to tell how many miss
    /// what.
    async fn until(&mut self, what: &str, holds: impl Fn(&Standing) -> bool) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            let standing = self.engine.look().await?;
            if holds(&standing) {
                eprintln!("{:>7.2} s: {what}", begun.elapsed().as_secs_f64());
                return Ok(());
            }
            if begun.elapsed() > TIMEOUT {
                self.faults.push(format!("not within {} s: {what}; {standing:?}", TIMEOUT.as_secs()));
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// Of the servers, the relay and this program; `None` if a restart would make them meaningless.
    fn costs(&self) -> Option<[Cost; 3]> {
        if self.scenario.kind == Kind::Rolling {
            return None;
        }
        Some([self.world.cost()?, Cost::of(self.world.relay.pid())?, Cost::of(std::process::id())?])
    }
}
