//! The floor under a fan-out: a process that only accepts, and writes each event to one socket after the
//! other by `write(2)`. No server can deliver for less on this machine. The clients are those of any other
//! run.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::arguments::Scenario;
use crate::beside::{self, Server};
use crate::engine::EVENT;
use crate::report::Report;

/// The argument that makes this program the bare server.
pub(crate) const BARE_SERVER: &str = "bare-server";

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
}

impl Server for BareServer {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn path(&self) -> &'static str {
        "/"
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn places_by_events(&self) -> bool {
        false
    }

    fn publish(&mut self, payload: &str) -> io::Result<()> {
        self.events.write_all(format!("{payload}\n").as_bytes())
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
    beside::run(scenario, BareServer::start()?).await
}
