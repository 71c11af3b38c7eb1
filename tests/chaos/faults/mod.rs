//! Makes the faults of a lane one after the other, and repairs each.

mod neighbours;
mod operators;
mod postgres;
mod processes;
mod redis;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use operators::{finish_replays, rebase_if_needed, resume};

use crate::harness::{Flow, Proxy};
use crate::kinds::{Break, Kind, Line};
use crate::ledger::Deed;
use crate::plan::{Fault, Lane};
use crate::world::World;

/// How late a fault may be made.
const LATE: Duration = Duration::from_secs(10);

/// Makes the faults of a lane at their times, and returns those that it made. A lane that is late on a busy
/// machine leaves out what is left at the end of the round, where no other fault meets it.
pub(crate) async fn make(world: Arc<World>, lane: Lane, (begun, length): (Instant, Duration)) -> Vec<Deed> {
    let mut made = Vec::new();
    for fault in lane.faults {
        tokio::time::sleep_until((begun + fault.at).into()).await;
        if begun.elapsed() > length + LATE {
            break;
        }
        let from = Instant::now();
        let was_made = one(&world, &fault).await;
        if world.verbose {
            let (at, took) = ((from - begun).as_secs_f64(), from.elapsed().as_secs_f64());
            let not = if was_made { "" } else { "NOT MADE: " };
            eprintln!(
                "{at:>8.3} s  {not}{} ({}), topic {}, for {took:.3} s",
                fault.kind,
                lane.name,
                world.channel_of(fault.target)
            );
        }
        if was_made {
            let channel = world.channel_of(fault.target);
            made.push(Deed { kind: fault.kind, channel, from, until: Instant::now() });
        }
    }
    made
}

/// Makes a fault and repairs it. False if the system was in no state for it.
async fn one(world: &World, fault: &Fault) -> bool {
    let index = usize::try_from(fault.target % 2).expect("0 or 1");
    match fault.kind {
        Kind::RelayKilled
        | Kind::RelayFrozen
        | Kind::RelayTerminated
        | Kind::RelayLogFull
        | Kind::RelayLogUnread => processes::relay(world, fault, index).await,
        Kind::SseKilled | Kind::SseFrozen | Kind::SseTerminated | Kind::SseLogFull | Kind::SseLogUnread => {
            processes::sse(world, fault, index).await;
        }
        Kind::ClockForward | Kind::ClockBack => return processes::clock(world, fault).await,
        Kind::PostgresKilled
        | Kind::PostgresRestarted
        | Kind::SessionsTerminated
        | Kind::GrantTaken(_)
        | Kind::RowSecurity => postgres::make(world, fault).await,
        Kind::Paused
        | Kind::Replayed
        | Kind::ParkedReleased
        | Kind::ParkedDiscarded
        | Kind::SequenceReset => return operators::make(world, fault).await,
        Kind::StrangerCame | Kind::NeighbourWrote | Kind::PublicForged | Kind::LiveForged => {
            return neighbours::make(world, fault).await;
        }
        Kind::StandbyRead => return postgres::read_standby(world, fault).await,
        Kind::Line(line, how) => way(proxy(world, line, index), how, fault.lasts).await,
        _ => redis::make(world, fault).await,
    }
    true
}

fn proxy(world: &World, line: Line, index: usize) -> &Proxy {
    match line {
        Line::RelayRedis => &world.relay_redis,
        Line::RelayPostgres => &world.postgres.proxy,
        Line::SseRedis => &world.sse_redis,
        Line::ClientSse => &world.outlets[index].proxy,
    }
}

async fn way(proxy: &Proxy, how: Break, lasts: Duration) {
    let flow = match how {
        Break::Cut => return proxy.cut(),
        Break::Stall => Flow::Stall,
        Break::Swallow => Flow::SwallowReplies,
        Break::Refuse => Flow::Refuse,
    };
    proxy.flow(flow);
    if flow == Flow::Refuse {
        proxy.cut();
    }
    tokio::time::sleep(lasts).await;
    proxy.flow(Flow::Pass);
}

async fn kill(pid: u32, signal: &str) {
    let mut command = tokio::process::Command::new("/bin/sh");
    let status = command.args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &pid.to_string()]).status().await;
    assert!(status.expect("a shell").success(), "kill -s {signal}");
}
