//! The campaign: random faults in all parts. At the end, the events that Postgres committed are compared with
//! those in Redis and with those that each client received. All numbers must be 0.
//!
//! `make chaos SEED=1 MINUTES=5`; a short form is part of `make test`. The same seed makes the same plan of
//! faults; their effect depends on timing.

#[path = "../harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the plumbing of all tests; this one needs part of it")]
mod harness;

mod arguments;
mod clients;
mod clock;
mod faults;
mod judge;
mod kinds;
mod ledger;
mod neighbour;
mod orders;
mod pages;
mod payload;
mod plan;
mod random;
mod repairs;
mod report;
mod resets;
mod roles;
mod targets;
mod truth;
mod world;
mod writers;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arguments::Arguments;
use plan::Plan;
use repairs::Repairs;
use report::Report;
use tokio_util::sync::CancellationToken;
use truth::Truth;
use world::World;

/// The time limit for all events to arrive after the last fault.
const SETTLING: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("error: {wrong}");
            return ExitCode::from(2);
        }
    };
    if arguments.list {
        println!("chaos: test");
        return ExitCode::SUCCESS;
    }
    if arguments.skip {
        return ExitCode::SUCCESS;
    }
    let plan = Plan::new(arguments.seed, arguments.length);
    if arguments.plan {
        print!("{plan}");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let is_clean = runtime.block_on(async {
        let Arguments { seed, length, verbose, .. } = arguments;
        if let Some(target) = arguments.target {
            let report = targets::run(target, seed, length, verbose).await;
            println!("{report}");
            return report.is_clean();
        }
        let report = campaign(&arguments, plan).await;
        println!("{report}");
        report.is_clean()
    });
    // In the format of the usual test runner.
    let (passed, failed) = (u8::from(is_clean), u8::from(!is_clean));
    let verdict = if is_clean { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn campaign(arguments: &Arguments, plan: Plan) -> Report {
    let world = Arc::new(World::start(arguments.seed, arguments.verbose).await);
    let clients = clients::begin(&world, arguments.seed);
    let pages = pages::begin(&world, arguments.seed);
    let writers = writers::begin(&world, arguments.seed);
    let neighbours_end = CancellationToken::new();
    let neighbour = world.neighbour.write(neighbours_end.clone());
    let supervisors_end = CancellationToken::new();
    let supervisor = {
        let (world, until) = (world.clone(), supervisors_end.clone());
        tokio::spawn(async move { world.supervise(until).await })
    };
    let repairs = Repairs::watch(world.clone(), supervisors_end.clone());
    let begun = Instant::now();
    let lanes: Vec<_> = plan
        .0
        .into_iter()
        .map(|lane| {
            tokio::spawn(faults::make(world.clone(), lane, (begun, arguments.length), arguments.verbose))
        })
        .collect();
    let mut deeds = Vec::new();
    for lane in lanes {
        deeds.extend(lane.await.expect("a lane of faults"));
    }
    let (commits, keys) = writers.finish().await;
    neighbours_end.cancel();
    neighbour.await.expect("a writer");
    faults::resume(&world).await;
    world.finish_prepared().await;
    faults::rebase_if_needed(&world).await;
    faults::finish_replays(&world).await;
    writers::close(&world, keys).await;
    let complete = truth::wait_until_complete(&world, &clients, SETTLING).await;
    supervisors_end.cancel();
    supervisor.await.expect("a supervisor");
    let repairs = repairs.await.expect("a watch");
    let truth = Truth::read(&world).await;
    let seen = clients.stop();
    let causeless = resets::without_cause(&seen, &deeds, &repairs);
    if arguments.verbose {
        for reset in &causeless {
            let at = (reset.at - begun).as_secs_f64();
            eprintln!("{at:>8.3} s  a reset without a cause: {}, topic {}", reset.reason, reset.channel);
        }
    }
    let report = Report {
        seed: arguments.seed,
        length: arguments.length,
        events: truth.events(),
        copies: truth.copies(),
        discarded: truth.discarded(),
        requests: world.ledger.requests().len(),
        missing: truth::missing(&world, &commits).await,
        complete,
        crashed: world.crashed().await,
        log: judge::of_log(&truth, arguments.seed),
        redis: judge::of_redis(&truth, &world.ledger),
        clients: judge::of_clients(&truth, &world.ledger, &seen),
        pages: pages.stop(&truth),
        causeless: resets::by_reason(&causeless),
        misdirected: orders::misdirected(&world).await,
        listeners: seen.len(),
        connections: seen.iter().map(|client| client.connections).sum(),
        delays: report::Delays::of(&commits, &truth, arguments.seed, &seen),
        made: report::Faults::of(&deeds),
        dead_tuples: world.dead_tuples().await,
    };
    if !report.is_clean() {
        world.print_logs();
    }
    report
}
