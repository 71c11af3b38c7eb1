//! The whole path in rows, each beside its floor in the same run: `make bench`. A row says how far it is from
//! its goal. Accounts are exact: a run in which an event is missing, repeated or out of order is no result.

mod picture;
mod row;

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::append;
use crate::arguments::{Kind, Scenario};
use crate::drain;
use crate::engine::Histogram;
use crate::floor;
use crate::nchan;
use crate::report::Report;
use crate::scenarios;
use row::{Against, Goal, Row, Table};

/// Where the numbers and the pictures go.
const DIRECTORY: &str = "target/bench";
/// One part of a run: long enough for a p99 of one event in a hundred.
const LENGTH: Duration = Duration::from_secs(15);

/// Runs all rows `times` times. Returns what to print, and whether all accounts were exact.
pub(crate) async fn run(times: usize) -> io::Result<(String, bool)> {
    let mut table = Table::default();
    let mut faults = Vec::new();
    for time in 1..=times {
        eprintln!("bench: run {time} of {times}");
        table.add(drains(&mut faults).await);
        table.add(appends().await);
        table.add(latencies(&mut faults).await?);
        table.add(fan_out(&mut faults).await?);
        table.add(idle(&mut faults).await?);
        table.add(resume(&mut faults).await?);
    }
    write(&table, Path::new(DIRECTORY))?;
    let wrong: String = faults.iter().map(|fault| format!("WRONG     {fault}\n")).collect();
    Ok((format!("{table}{wrong}the numbers and pictures are in {DIRECTORY}"), faults.is_empty()))
}

/// Writes the numbers and the pictures.
fn write(table: &Table, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let numbers = json!({ "processors": num_cpus(), "rows": table.to_json() });
    std::fs::write(directory.join("bench.json"), format!("{numbers:#}\n"))?;
    for (name, against) in [("ratios.svg", Against::Floor), ("latency.svg", Against::Above)] {
        std::fs::write(directory.join(name), picture::of(table, against))?;
    }
    Ok(())
}

fn num_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A backlog into one Redis, beside a script without a single check.
async fn drains(faults: &mut Vec<String>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (topics, is_held) in [(1, false), (1000, false), (1000, true)] {
        let scenario = Scenario { topics, is_held, ..Scenario::new(Kind::Drain) };
        let (floor, drained) = drain::beside_floor(&scenario).await;
        if drained.arrived != drained.events {
            faults.push(format!("drain: {} of {} events arrived", drained.arrived, drained.events));
        }
        let held = if is_held { ", held" } else { "" };
        let of = |name: &str| format!("{name}, {topics} topics{held}").replace("1 topics", "1 topic");
        rows.push(
            Row::new(of("drain"), "events/s", drained.rate(), Against::Floor)
                .floor(floor.rate(drained.events))
                .goal(Goal::AtLeast(0.9)),
        );
        rows.push(
            Row::new(of("relay CPU"), "us an event", drained.relay_micros(), Against::Nothing)
                .goal(Goal::AtMost(4.0)),
        );
    }
    rows
}

/// `outbox.append`, beside rows of a plain table.
async fn appends() -> Vec<Row> {
    let measured = append::measure(Scenario::new(Kind::Append).bytes).await;
    let mut rows: Vec<Row> = measured
        .commits
        .iter()
        .map(|(writers, plain, append)| {
            let name = format!("append, {writers} writers").replace("1 writers", "1 writer");
            Row::new(name, "commits/s", *append, Against::Floor).floor(*plain).goal(Goal::AtLeast(0.95))
        })
        .collect();
    let (plain, together) = measured.together;
    let name = format!("append_all of {}", append::TOGETHER);
    rows.push(Row::new(name, "us an event", together, Against::Floor).floor(plain).goal(Goal::AtMost(3.0)));
    rows
}

/// From commit to one client, beside the commit alone.
async fn latencies(faults: &mut Vec<String>) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, rate, rings, goals) in [
        ("20/s without a bell", 20.0, false, [4.0, 15.0]),
        ("1,000/s without a bell", 1000.0, false, [4.0, 15.0]),
        ("1,000/s with a bell", 1000.0, true, [2.0, 10.0]),
    ] {
        let fanout = Scenario::new(Kind::Fanout);
        let scenario = Scenario { connections: 1, rate, rings, length: LENGTH, ..fanout };
        let report = checked(scenarios::run(scenario).await?, name, faults);
        for ((part, percentile), goal) in [("p50", 0.5), ("p99", 0.99)].into_iter().zip(goals) {
            let [latency, commit] = [&report.outcome.tally.latency, &report.written.commits]
                .map(|histogram| histogram.at(percentile).as_secs_f64() * 1e3);
            rows.push(
                Row::new(format!("latency {part}, {name}"), "ms", latency, Against::Above)
                    .floor(commit)
                    .goal(Goal::AtMost(goal)),
            );
        }
    }
    Ok(rows)
}

/// 1,000 clients of one topic, beside a bare loop of `write(2)`, and nchan where it is installed.
async fn fan_out(faults: &mut Vec<String>) -> io::Result<Vec<Row>> {
    let of = |kind| Scenario { rate: 60.0, length: LENGTH, ..Scenario::new(kind) };
    let bare = checked(floor::run(of(Kind::Floor)).await?, "the bare loop", faults);
    let ours = checked(scenarios::run(of(Kind::Fanout)).await?, "fan-out", faults);
    let mut rows = Vec::new();
    if let (Some(bare), Some(ours)) = (bare.micros_a_delivery(), ours.micros_a_delivery()) {
        rows.push(
            Row::new("fan-out CPU".to_owned(), "us a delivery", ours, Against::Floor)
                .floor(bare)
                .goal(Goal::AtMost(1.1)),
        );
    }
    for (part, percentile) in [("p50", 0.5), ("p99", 0.99)] {
        let at = |histogram: &Histogram| histogram.at(percentile).as_secs_f64() * 1e3;
        let [all, bare] = [&ours, &bare].map(|report| at(&report.outcome.tally.latency));
        // The bare loop has no commit, no relay and no Redis before it.
        let before = at(&ours.in_redis);
        rows.push(Row::new(format!("commit to Redis {part}"), "ms", before, Against::Nothing));
        rows.push(
            Row::new(format!("fan-out {part}, from Redis on"), "ms", (all - before).max(0.0), Against::Floor)
                .floor(bare)
                .goal(Goal::AtMost(1.2)),
        );
    }
    if let Some(nchan) = nchan::run(of(Kind::Floor)).await? {
        rows.extend(of_nchan(&checked(nchan, "nchan", faults), &bare));
    }
    Ok(rows)
}

/// The same of nchan. Its events come without a commit and without Redis.
fn of_nchan(nchan: &Report, bare: &Report) -> Vec<Row> {
    let mut rows = Vec::new();
    if let (Some(bare), Some(nchan)) = (bare.micros_a_delivery(), nchan.micros_a_delivery()) {
        rows.push(Row::new("nchan: CPU".to_owned(), "us a delivery", nchan, Against::Floor).floor(bare));
    }
    for (part, percentile) in [("p50", 0.5), ("p99", 0.99)] {
        let [nchan, bare] =
            [nchan, bare].map(|report| report.outcome.tally.latency.at(percentile).as_secs_f64() * 1e3);
        rows.push(Row::new(format!("nchan: {part}"), "ms", nchan, Against::Floor).floor(bare));
    }
    rows
}

/// The memory of a stream that gets nothing.
async fn idle(faults: &mut Vec<String>) -> io::Result<Vec<Row>> {
    let length = Duration::from_secs(1);
    let scenario = Scenario { connections: 10_000, rate: 1.0, length, ..Scenario::new(Kind::Fanout) };
    let report = checked(scenarios::run(scenario).await?, "idle", faults);
    let bytes = report.costs.as_ref().map(|costs| costs.bytes_a_connection(10_000) as f64);
    let row = |bytes| Row::new("an idle stream".to_owned(), "bytes", bytes, Against::Nothing);
    Ok(bytes.map(|bytes| row(bytes).goal(Goal::AtMost(2048.0))).into_iter().collect())
}

/// 1,000 clients come back at once and are given what they missed, beside the same clients' first connect,
/// when there was nothing to give.
async fn resume(faults: &mut Vec<String>) -> io::Result<Vec<Row>> {
    let length = Duration::from_secs(3);
    let scenario = Scenario { connections: 1000, rate: 100.0, length, ..Scenario::new(Kind::Storm) };
    let report = checked(scenarios::run(scenario).await?, "resume", faults);
    let first = report.connected.max().as_secs_f64() * 1e3;
    let back = report.returns.max().as_secs_f64() * 1e3;
    Ok(vec![Row::new("resume, all of 1,000 clients".to_owned(), "ms", back, Against::Floor).floor(first)])
}

/// Notes what was wrong in a run.
fn checked(report: Report, name: &str, faults: &mut Vec<String>) -> Report {
    if !report.is_clean() {
        faults.push(format!("{name}: {report}"));
    }
    report
}
