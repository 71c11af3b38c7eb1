//! The campaign: everything breaks at random, and at the end what Postgres committed is compared with what Redis holds and
//! with what each client received. All numbers have to be 0.
//!
//! `make chaos SEED=1 MINUTES=5`; a short form of it is part of `make test`. The same seed makes the same plan of faults;
//! what they hit is in the hands of the machine's scheduler.

#[path = "../harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the plumbing of all tests; this one needs part of it")]
mod harness;

mod arguments;
mod clients;
mod faults;
mod plan;
mod random;
mod report;
mod truth;
mod world;
mod writers;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arguments::Arguments;
use plan::Plan;
use report::Report;
use world::World;

/// How long everything may take to arrive when nothing is broken any more.
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
    let report = runtime.block_on(campaign(&arguments, plan));
    println!("{report}");
    let is_clean = report.is_clean();
    // In the words of the other test programs, for who reads the end of a log.
    let (passed, failed) = (u8::from(is_clean), u8::from(!is_clean));
    let verdict = if is_clean { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn campaign(arguments: &Arguments, plan: Plan) -> Report {
    let world = Arc::new(World::start().await);
    let clients = clients::begin(&world, arguments.seed);
    let writers = writers::begin(&world, arguments.seed);
    let begun = Instant::now();
    let lanes: Vec<_> = plan
        .0
        .into_iter()
        .map(|lane| tokio::spawn(faults::make(world.clone(), lane, begun, arguments.verbose)))
        .collect();
    let mut made = report::Faults::default();
    for lane in lanes {
        made.add(lane.await.expect("a lane of faults"));
    }
    let commits = writers.finish().await;
    world.finish_prepared().await;
    let complete = truth::wait_until_complete(&world, &clients, SETTLING).await;
    let truth = truth::Truth::read(&world).await;
    let seen = clients.stop();
    let report = Report {
        seed: arguments.seed,
        length: arguments.length,
        made,
        events: truth.events(),
        missing: truth.missing(&commits),
        complete,
        crashed: world.crashed().await,
        redis: truth.compare_redis(),
        clients: truth.compare_clients(&seen),
        listeners: seen.len(),
        connections: seen.iter().map(|client| client.connections).sum(),
        delays: report::Delays::of(&commits, &seen),
        dead_tuples: world.dead_tuples().await,
    };
    if !report.is_clean() {
        world.print_logs();
    }
    report
}
