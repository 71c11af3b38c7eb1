//! The floor under a fan-out: a process that only accepts, and writes each event to one socket after the
//! other by `write(2)`. No server can deliver for less on this machine. The clients are those of any other
//! run.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::arguments::Scenario;
use crate::cost::Cost;
use crate::engine::{self, EVENT, Engine, Ledger, Plan, Stamp, Standing};
use crate::report::{Costs, Report};
use crate::writer::Written;

/// The argument that makes this program the bare server.
pub(crate) const BARE_SERVER: &str = "bare-server";

/// Connections under way at once.
const UNHURRIED: usize = 256;
/// The time limit for the clients to reach an expected state.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is asked how far the clients are.
const LOOK: Duration = Duration::from_millis(50);

/// The bare server: prints its address, then writes each line of its standard input to every client as an
/// event.
pub(crate) fn serve() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let clients: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let accepted = clients.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            match client.and_then(greet) {
                Ok(client) => accepted.lock().unwrap_or_else(PoisonError::into_inner).push(client),
                Err(error) => eprintln!("a client is lost: {error}"),
            }
        }
    });
    for (number, line) in (1..).zip(io::stdin().lines()) {
        let event = format!("id: 1-{number}\nevent: {EVENT}\ndata: {}\n\n", line?);
        for mut client in clients.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            client.write_all(event.as_bytes())?;
        }
    }
    Ok(())
}

/// Reads the head of a request, and answers it with the beginning of a stream.
fn greet(mut client: TcpStream) -> io::Result<TcpStream> {
    client.set_nodelay(true)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut bytes = [0; 4096];
        match client.read(&mut bytes)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => head.extend_from_slice(&bytes[..read]),
        }
    }
    client
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nretry: 1000\nid: 1-0\n\n")?;
    Ok(client)
}

/// A bare server in a process of its own, which ends with this.
struct BareServer {
    child: Child,
    events: ChildStdin,
    address: SocketAddr,
}

impl BareServer {
    fn start() -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg(BARE_SERVER).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (events, output) = (child.stdin.take(), child.stdout.take());
        let (events, output) = events.zip(output).ok_or_else(|| io::Error::other("no pipes"))?;
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address)?;
        Ok(Self { child, events, address: address.trim().parse().map_err(io::Error::other)? })
    }

    /// Of the server, nobody, and this program.
    fn costs(&self) -> Option<[Cost; 3]> {
        Some([Cost::of(self.child.id())?, Cost::default(), Cost::of(std::process::id())?])
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Runs the floor under a fan-out.
pub(crate) async fn run(scenario: Scenario) -> io::Result<Report> {
    engine::raise_for(scenario.connections)?;
    let mut server = BareServer::start()?;
    let idle = server.costs();
    let events = (scenario.rate * scenario.length.as_secs_f64()).ceil() as usize;
    let ledger = Arc::new(Ledger::new(1, events));
    let plan = Plan {
        clients: scenario.connections,
        stuck: 0,
        addresses: vec![server.address],
        paths: vec!["/".to_owned()],
        token: "none".to_owned(),
    };
    let engine = Engine::start(plan, ledger.clone())?;
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
    let (findings, returns) = Default::default();
    Ok(Report { scenario, connected, returns, written, outcome, findings, costs, faults })
}

/// Gives the server an event whenever one is due, until the ledger is full.
async fn write(server: &mut BareServer, scenario: &Scenario, ledger: &Ledger) -> io::Result<Written> {
    let (begun, mut written) = (Instant::now(), Written::default());
    while let Some(number) = ledger.next(0) {
        let due = begun + Duration::from_secs_f64(written.events as f64 / scenario.rate);
        tokio::time::sleep_until(due.into()).await;
        let line = Stamp { number, topic: 0, bytes: scenario.bytes }.payload() + "\n";
        let sent = Instant::now();
        ledger.is_sent(0, number, sent);
        server.events.write_all(line.as_bytes())?;
        written.commits.record(sent.elapsed());
        ledger.is_committed(0, number);
        written.events += 1;
    }
    written.took = begun.elapsed();
    Ok(written)
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
