//! Faults of our own processes: they die, freeze, cannot log, and have a wrong clock.

use std::time::{Duration, Instant};

use crate::harness::{LIMIT, Process, Settings, free_port, http_get};
use crate::kinds::Kind;
use crate::plan::Fault;
use crate::world::World;

/// How far clocks are set at most, in seconds: less than tokens are valid.
const FAR: u64 = 7200;

pub(super) async fn relay(world: &World, fault: &Fault, otherwise: usize) {
    let index = world.leader().await.unwrap_or(otherwise);
    let mut process = world.relays[index].lock().await;
    if fault.kind == Kind::RelayFrozen {
        return freeze(&mut process, fault.lasts).await;
    }
    process.signal_if_it_runs(if fault.kind == Kind::RelayTerminated { "TERM" } else { "KILL" }).await;
    tokio::time::sleep(fault.lasts).await;
    *process = match fault.kind {
        Kind::RelayLogFull | Kind::RelayLogUnread => {
            unheard(world, "relay", world.relay_settings(), fault).await
        }
        _ => world.new_relay().await,
    };
}

pub(super) async fn sse(world: &World, fault: &Fault, index: usize) {
    let outlet = &world.outlets[index];
    if fault.kind == Kind::SseFrozen {
        return freeze(&mut *outlet.process.lock().await, fault.lasts).await;
    }
    outlet
        .process
        .lock()
        .await
        .signal_if_it_runs(if fault.kind == Kind::SseTerminated { "TERM" } else { "KILL" })
        .await;
    tokio::time::sleep(fault.lasts).await;
    let fresh = match fault.kind {
        Kind::SseLogFull | Kind::SseLogUnread => unheard(world, "sse", world.sse_settings(), fault).await,
        _ => Process::start("sse", &world.sse_settings()).await,
    };
    outlet.replace(fresh).await;
}

/// A process that logs much, to where nothing can be written any more. It stays until another fault ends it.
async fn unheard(world: &World, role: &str, settings: Settings, fault: &Fault) -> Process {
    // What it would say if it were refused at its start cannot be heard.
    let _granted = world.rights.lock().await;
    let address = format!("127.0.0.1:{}", free_port());
    let listen = format!("AFTERCOMMIT_{}_LISTEN", role.to_uppercase());
    let settings = settings.set(&listen, address.as_str()).set("AFTERCOMMIT_LOG_LEVEL", "debug");
    if world.verbose {
        eprintln!("{role} at {address}, {}", fault.kind);
    }
    let mut process = if matches!(fault.kind, Kind::RelayLogFull | Kind::SseLogFull) {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
        Process::start_unheard(&[role], &settings, address, full)
    } else {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        world.unread.lock().await.insert(address.clone(), reader);
        Process::start_unheard(&[role], &settings, address, writer)
    };
    // It listens before Postgres and Redis have accepted it, and answers after that.
    let deadline = Instant::now() + LIMIT;
    let url = process.url("/healthz");
    let answers = async || http_get(&url).await.is_ok();
    while tokio::time::timeout(Duration::from_millis(300), answers()).await != Ok(true) {
        let ended = process.ended();
        assert!(ended.is_none() && Instant::now() < deadline, "the {role} does not answer: {ended:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    process
}

async fn freeze(process: &mut Process, lasts: Duration) {
    process.signal_if_it_runs("STOP").await;
    tokio::time::sleep(lasts).await;
    process.signal_if_it_runs("CONT").await;
}

pub(super) async fn clock(world: &World, fault: &Fault) -> bool {
    let Some(clock) = &world.clock else { return false };
    let seconds = i64::try_from(1 + fault.target % FAR).expect("two hours");
    clock.set(if fault.kind == Kind::ClockForward { seconds } else { -seconds });
    tokio::time::sleep(fault.lasts).await;
    clock.set(0);
    true
}
