//! What a run found, on one screen.

use std::fmt;
use std::time::Duration;

use crate::arguments::Scenario;
use crate::cost::Cost;
use crate::engine::{Histogram, Outcome};
use crate::writer::Written;

/// A whole run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) scenario: Scenario,
    /// How long each client took to be connected for the first time.
    pub(crate) connected: Histogram,
    /// How long each took to have what it missed, after a storm.
    pub(crate) returns: Histogram,
    pub(crate) written: Written,
    /// From the commit to Redis.
    pub(crate) in_redis: Histogram,
    pub(crate) outcome: Outcome,
    /// What only this kind of run has to say.
    pub(crate) findings: Vec<String>,
    pub(crate) costs: Option<Costs>,
    /// What went wrong besides the accounts.
    pub(crate) faults: Vec<String>,
}

/// What the run cost.
#[derive(Debug)]
pub(crate) struct Costs {
    /// The SSE servers' memory before anybody connected, with all connected, and at the end.
    pub(crate) idle: u64,
    pub(crate) connected: u64,
    pub(crate) end: u64,
    /// CPU time while events were committed: of the SSE servers, the relay, and this program.
    pub(crate) servers: Duration,
    pub(crate) relay: Duration,
    pub(crate) clients: Duration,
}

impl Costs {
    pub(crate) fn new(idle: Cost, begun: [Cost; 3], ended: [Cost; 3]) -> Self {
        let [servers, relay, clients] =
            [0, 1, 2].map(|who: usize| ended[who].cpu.saturating_sub(begun[who].cpu));
        Self { idle: idle.memory, connected: begun[0].memory, end: ended[0].memory, servers, relay, clients }
    }

    /// Memory of the servers for each of these connections.
    pub(crate) fn bytes_a_connection(&self, connections: usize) -> u64 {
        self.connected.saturating_sub(self.idle) / connections as u64
    }
}

impl Report {
    /// CPU time of the servers a delivery.
    pub(crate) fn micros_a_delivery(&self) -> Option<f64> {
        let deliveries = self.outcome.tally.deliveries.max(1) as f64;
        self.costs.as_ref().map(|costs| costs.servers.as_secs_f64() * 1e6 / deliveries)
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.outcome.balance.is_exact()
            && self.outcome.gave_up == 0
            && self.outcome.tally.malformed.is_empty()
            && self.outcome.tally.deliveries > 0
            && self.faults.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario { kind, connections, topics, rate, bytes, .. } = &self.scenario;
        writeln!(f, "\nload {}: {connections} connections, {topics} topics,", kind.name())?;
        writeln!(f, "  {rate} events a second of {bytes} bytes, from commit to client")?;
        let Written { events, took, commits } = &self.written;
        let rate = *events as f64 / took.as_secs_f64().max(0.001);
        writeln!(f, "events    {events} committed in {took:.1?}, {rate:.1} a second")?;
        writeln!(f, "commit    {}", Percentiles(commits))?;
        writeln!(f, "in Redis  {}", Percentiles(&self.in_redis))?;
        let tally = &self.outcome.tally;
        writeln!(f, "latency   {}", Percentiles(&tally.latency))?;
        writeln!(f, "          {} deliveries, {:.0} a second", tally.deliveries, tally.rate())?;
        let balance = &self.outcome.balance;
        writeln!(
            f,
            "accounts  missing {}, twice {}, out of order {}, invented {}, resets {}",
            balance.missing, balance.twice, balance.out_of_order, balance.invented, balance.resets
        )?;
        let seconds = self.connected.max().as_secs_f64().max(0.001);
        let rate = self.connected.count() as f64 / seconds;
        writeln!(f, "connect   {}", Percentiles(&self.connected))?;
        writeln!(f, "          {rate:.0} streams opened a second")?;
        writeln!(
            f,
            "          later: refused {}, lost {}, ended {}, of these turned away {}",
            tally.refused, tally.lost, tally.ended, tally.turned_away
        )?;
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        if let Some(costs) = &self.costs {
            self.write_costs(costs, f)?;
        }
        self.write_faults(f)
    }
}

impl Report {
    fn write_costs(&self, costs: &Costs, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.micros_a_delivery().unwrap_or_default();
        writeln!(f, "CPU       sse {:.1?}: {micros:.1} us a delivery", costs.servers)?;
        writeln!(f, "          relay {:.1?}, this program {:.1?}", costs.relay, costs.clients)?;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let each = costs.bytes_a_connection(self.scenario.connections);
        writeln!(
            f,
            "memory    sse {:.0} MB idle, {:.0} MB connected, {:.0} MB at the end; {each} bytes a connection",
            megabytes(costs.idle),
            megabytes(costs.connected),
            megabytes(costs.end)
        )
    }

    fn write_faults(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (status, count) in &self.outcome.tally.statuses {
            writeln!(f, "WRONG     {count} answers with status {status}: EventSource gives up on it")?;
        }
        for (why, count) in &self.outcome.tally.malformed {
            writeln!(f, "WRONG     {count} responses are malformed: {why}")?;
        }
        for fault in &self.faults {
            writeln!(f, "WRONG     {fault}")?;
        }
        Ok(())
    }
}

/// Percentiles on one line.
pub(crate) struct Percentiles<'a>(pub(crate) &'a Histogram);

impl fmt::Display for Percentiles<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        for (name, part) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)] {
            write!(f, "{name} {:.1} ms, ", ms(self.0.at(part)))?;
        }
        write!(f, "max {:.1} ms", ms(self.0.max()))
    }
}
