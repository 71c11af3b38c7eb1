//! A run: rounds of faults, each followed by a standstill and a comparison. The first round whose comparison is
//! not clean is the last one: the logs are still those of its faults.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clients::{self, Clients};
use crate::ledger::Deed;
use crate::pages::{self, PageNumbers, Pages};
use crate::plan::{Lane, Plan};
use crate::repairs::Repairs;
use crate::report::{self, Report};
use crate::truth::{self, Truth};
use crate::world::World;
use crate::writers::{self, Writers};
use crate::{faults, judge, orders, resets};

/// The time limit for all events to arrive after the last fault of a round.
const SETTLING: Duration = Duration::from_secs(60);

/// The system under test with everything that works on it.
pub(crate) struct Campaign {
    world: Arc<World>,
    clients: Clients,
    pages: Pages,
    writers: Writers,
    neighbour: JoinHandle<()>,
    supervisors: Vec<JoinHandle<()>>,
    repairs: Repairs,
    ends: CancellationToken,
}

/// The faults of one round and the comparison after them.
struct Round {
    begun: Instant,
    deeds: Vec<Deed>,
    is_complete: bool,
}

impl Campaign {
    pub(crate) async fn start(seed: u64, verbose: bool) -> Self {
        let world = Arc::new(World::start(seed, verbose).await);
        let (ends, repairs) = (CancellationToken::new(), Repairs::default());
        let supervisor = {
            let (world, until) = (world.clone(), ends.clone());
            tokio::spawn(async move { world.supervise(until).await })
        };
        Self {
            clients: clients::begin(&world, seed),
            pages: pages::begin(&world, seed),
            writers: writers::begin(&world, seed),
            neighbour: world.neighbour.write(ends.clone()),
            supervisors: vec![supervisor, repairs.watch(world.clone(), ends.clone())],
            repairs,
            ends,
            world,
        }
    }

    /// Makes the faults of the plan. The report is of the last round that was made; its faults and its pages
    /// are of all.
    pub(crate) async fn run(self, plan: &Plan, length: Duration) -> Report {
        let (lasts, rounds) = plan.rounds(length);
        let (count, mut deeds, mut pages) = (rounds.len(), Vec::new(), PageNumbers::default());
        for (number, lanes) in (1..).zip(rounds) {
            let begun = Instant::now();
            let made = self.make(lanes, begun, lasts).await;
            // Writers wait until it is dropped.
            let standstill = self.world.transactions.write().await;
            let round = Round { begun, deeds: made, is_complete: self.settle().await };
            deeds.extend(round.deeds.iter().cloned());
            let mut report = self.compare(&round, &mut pages).await;
            report.rounds = (number, count);
            report.made = report::Faults::of(&deeds);
            if number < count && report.is_clean() {
                continue;
            }
            self.writers.stop();
            drop(standstill);
            report.length = length;
            return self.end(report).await;
        }
        unreachable!("a plan has a round");
    }

    /// Makes the faults of one round, all lanes at a time.
    async fn make(&self, lanes: Vec<Lane>, begun: Instant, lasts: Duration) -> Vec<Deed> {
        let lanes: Vec<_> = lanes
            .into_iter()
            .map(|lane| tokio::spawn(faults::make(self.world.clone(), lane, (begun, lasts))))
            .collect();
        let mut deeds = Vec::new();
        for lane in lanes {
            deeds.extend(lane.await.expect("a lane of faults"));
        }
        deeds
    }

    /// Ends what operators have begun, and waits until every event has arrived. False if that takes too long.
    async fn settle(&self) -> bool {
        faults::resume(&self.world).await;
        self.world.finish_prepared().await;
        faults::rebase_if_needed(&self.world).await;
        faults::finish_replays(&self.world).await;
        self.writers.mark_the_end(&self.world).await;
        truth::wait_until_complete(&self.world, &self.clients, SETTLING).await
    }

    async fn compare(&self, round: &Round, pages: &mut PageNumbers) -> Report {
        let (world, seed) = (&self.world, self.world.seed);
        let (truth, commits) = (Truth::read(world).await, self.writers.commits());
        let seen = self.clients.seen();
        let causeless = resets::without_cause(&seen, round.begun, &round.deeds, &self.repairs);
        if world.verbose {
            for reset in &causeless {
                let at = (reset.at - round.begun).as_secs_f64();
                eprintln!("{at:>8.3} s  a reset without a cause: {}, topic {}", reset.reason, reset.channel);
            }
        }
        self.pages.judge(&truth, pages);
        Report {
            seed,
            length: Duration::ZERO,
            rounds: (0, 0),
            made: report::Faults::default(),
            events: truth.events(),
            copies: truth.copies(),
            discarded: truth.discarded(),
            requests: world.ledger.requests().len(),
            missing: truth::missing(world, &commits).await,
            complete: round.is_complete,
            crashed: world.crashed().await,
            log: judge::of_log(&truth, seed),
            redis: judge::of_redis(&truth, &world.ledger),
            clients: judge::of_clients(&truth, &world.ledger, &seen),
            pages: pages.clone(),
            causeless: resets::by_reason(&causeless),
            misdirected: orders::misdirected(world).await,
            listeners: seen.len(),
            connections: seen.iter().map(|client| client.connections).sum(),
            delays: report::Delays::of(&commits, &truth, seed, &seen),
            dead_tuples: world.dead_tuples().await,
        }
    }

    /// Ends all work. Returns the report, and prints the logs with one that is not clean.
    async fn end(self, report: Report) -> Report {
        self.ends.cancel();
        self.neighbour.await.expect("a writer");
        for supervisor in self.supervisors {
            supervisor.await.expect("a supervisor");
        }
        self.writers.finish().await;
        self.pages.stop();
        self.clients.stop();
        if !report.is_clean() {
            self.world.print_logs();
        }
        report
    }
}
