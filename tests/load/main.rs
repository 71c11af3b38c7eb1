//! The load client: very many real connections on a real server, each with an exact account of what it was
//! given, and percentiles from commit to client.
//!
//! `make load` runs all scenarios on the release build; docs/load.md says how to read what they print.
//! Without arguments a short storm is run, as a part of `make test`.

#[path = "../harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the plumbing of all tests; this one needs part of it")]
mod harness;

mod append;
mod arguments;
mod arrivals;
mod bench;
mod beside;
mod cost;
mod drain;
mod engine;
mod floor;
mod nchan;
mod publish_floor;
mod report;
mod scenarios;
mod world;
mod writer;

use std::process::ExitCode;

use arguments::{Kind, Wanted};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(floor::BARE_SERVER) {
        return floor::serve().map_or_else(
            |error| {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            },
            |()| ExitCode::SUCCESS,
        );
    }
    let scenario = match Wanted::read(std::env::args().skip(1)) {
        Ok(Wanted::Run(scenario)) => scenario,
        Ok(Wanted::List) => {
            println!("load: test");
            return ExitCode::SUCCESS;
        }
        Ok(Wanted::Nothing) => return ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("error: {wrong}");
            return ExitCode::from(2);
        }
    };
    // One thread besides the clients': the processors are the server's.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let ran = match scenario.kind {
        Kind::Drain => Ok(runtime.block_on(drain::run(&scenario))),
        Kind::Append => Ok((runtime.block_on(append::run(scenario.bytes)), true)),
        Kind::Bench => runtime.block_on(bench::run(scenario.times)),
        Kind::Floor => {
            runtime.block_on(floor::run(scenario)).map(|report| (report.to_string(), report.is_clean()))
        }
        _ => runtime.block_on(scenarios::run(scenario)).map(|report| (report.to_string(), report.is_clean())),
    };
    let is_clean = match ran {
        Ok((report, is_clean)) => {
            println!("{report}");
            is_clean
        }
        Err(error) => {
            eprintln!("error: {error}");
            false
        }
    };
    // In the words of the other test programs, for who reads the end of a log.
    let (passed, failed) = (u8::from(is_clean), u8::from(!is_clean));
    let verdict = if is_clean { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
