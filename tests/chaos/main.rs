//! The campaign: random faults in all parts, in rounds. At the end of each, the events that Postgres committed
//! are compared with those in Redis and with those that each client received. All numbers must be 0.
//!
//! `make chaos SEED=1 MINUTES=5`; a short form is part of `make test`. The same seed makes the same plan of
//! faults; their effect depends on timing.

#[path = "../harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the plumbing of all tests; this one needs part of it")]
mod harness;

mod arguments;
mod campaign;
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

use arguments::Arguments;
use campaign::Campaign;
use plan::Plan;

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
        let report = Campaign::start(seed, verbose).await.run(&plan, length).await;
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
