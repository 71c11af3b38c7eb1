//! A fan-out of another server, with the clients and the account of any other run.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arguments::Scenario;
use crate::cost::Cost;
use crate::engine::{self, Engine, Ledger, Plan, Stamp, Standing};
use crate::report::{Costs, Report};
use crate::writer::Written;

/// Connections under way at once.
const UNHURRIED: usize = 256;
/// The time limit for the clients to reach an expected state.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is asked how far the clients are.
const LOOK: Duration = Duration::from_millis(50);

/// A server of one event stream.
pub(crate) trait Server {
    fn address(&self) -> SocketAddr;
    /// The path of the stream.
    fn path(&self) -> &'static str;
    /// The process that serves.
    fn pid(&self) -> u32;
    /// Whether a client has a place in the stream only once it has an event. The server gives a client that
    /// connects the events before it, then.
    fn places_by_events(&self) -> bool;
    /// Gives it an event of the type [`engine::EVENT`].
    fn publish(&mut self, payload: &str) -> io::Result<()>;

    /// Of the server, nobody, and this program.
    fn costs(&self) -> Option<[Cost; 3]> {
        Some([Cost::of(self.pid())?, Cost::default(), Cost::of(std::process::id())?])
    }
}

/// Publishes at the scenario's rate while its clients read. Where clients have their place by an event,
/// there is one before they connect, which is not measured.
pub(crate) async fn run(scenario: Scenario, mut server: impl Server) -> io::Result<Report> {
    engine::raise_for(scenario.connections)?;
    let idle = server.costs();
    let events = (scenario.rate * scenario.length.as_secs_f64()).ceil() as usize;
    let events = events + usize::from(server.places_by_events());
    let ledger = Arc::new(Ledger::new(1, events));
    let plan = Plan {
        clients: scenario.connections,
        stuck: 0,
        addresses: vec![server.address()],
        paths: vec![server.path().to_owned()],
        token: "none".to_owned(),
    };
    let engine = Engine::start(plan, ledger.clone())?;
    if let Some(first) = ledger.next(0).filter(|_| server.places_by_events()) {
        publish(&mut server, &scenario, &ledger, first)?;
    }
    engine.connect(UNHURRIED);
    let mut faults = Vec::new();
    faults.extend(until(&engine, "every client is connected", |clients| clients.returning == 0).await?);
    let connected = engine.returns().await?;
    let begun = server.costs();
    let written = write(&mut server, &scenario, &ledger).await?;
    faults.extend(
        until(&engine, "every client has every event", |clients| clients.complete == clients.readers).await?,
    );
    let costs = idle.zip(begun.zip(server.costs()));
    let costs = costs.map(|([idle, ..], (begun, ended))| Costs::new(idle, begun, ended));
    let outcome = engine.finish().await?;
    let (findings, returns, in_redis) = Default::default();
    Ok(Report { scenario, connected, returns, written, in_redis, outcome, findings, costs, faults })
}

/// Gives the server an event whenever one is due, until the ledger is full.
async fn write(server: &mut impl Server, scenario: &Scenario, ledger: &Ledger) -> io::Result<Written> {
    let (begun, mut written) = (Instant::now(), Written::default());
    while let Some(number) = ledger.next(0) {
        let due = begun + Duration::from_secs_f64(written.events as f64 / scenario.rate);
        tokio::time::sleep_until(due.into()).await;
        written.commits.record(publish(server, scenario, ledger, number)?);
        written.events += 1;
    }
    written.took = begun.elapsed();
    Ok(written)
}

/// Gives the server one event. Returns how long it took to take it.
fn publish(
    server: &mut impl Server,
    scenario: &Scenario,
    ledger: &Ledger,
    number: u32,
) -> io::Result<Duration> {
    let payload = Stamp { number, topic: 0, bytes: scenario.bytes }.payload();
    let sent = Instant::now();
    ledger.is_sent(0, number, sent);
    server.publish(&payload)?;
    ledger.is_committed(0, number);
    Ok(sent.elapsed())
}

/// Waits for the clients; returns the fault if they do not come so far.
async fn until(engine: &Engine, what: &str, holds: impl Fn(&Standing) -> bool) -> io::Result<Option<String>> {
    let begun = Instant::now();
    loop {
        let standing = engine.look().await?;
        if holds(&standing) {
            return Ok(None);
        }
        if begun.elapsed() > TIMEOUT {
            return Ok(Some(format!("not within {} s: {what}; {standing:?}", TIMEOUT.as_secs())));
        }
        tokio::time::sleep(LOOK).await;
    }
}
