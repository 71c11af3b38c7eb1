//! Very many EventSources in one thread, each with an exact account of what it was given.
//!
//! Knows nothing of the tests around it: it takes addresses, topics and a token, and a ledger that says when
//! each event was committed.

mod account;
mod client;
mod connection;
mod event_stream;
mod histogram;
mod ledger;
mod open_files;
mod reactor;
mod response;
mod tally;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use mio::{Poll, Waker};
use tokio::sync::oneshot;

pub(crate) use account::Balance;
pub(crate) use client::{EVENT, Stamp};
pub(crate) use histogram::Histogram;
pub(crate) use ledger::Ledger;
pub(crate) use open_files::raise_for;
pub(crate) use tally::Tally;

use reactor::{Reactor, WAKER};

/// Who connects where.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) clients: usize,
    /// So many of them never read.
    pub(crate) stuck: usize,
    /// The servers; a client that one refuses goes to the next.
    pub(crate) addresses: Vec<SocketAddr>,
    /// The path of each topic's stream. Clients are spread over them evenly.
    pub(crate) paths: Vec<String>,
    pub(crate) token: String,
}

impl Plan {
    fn request(&self, topic: usize, last_event_id: &[u8]) -> Vec<u8> {
        let mut request = format!(
            "GET {} HTTP/1.1\r\nHost: load\r\nAccept: text/event-stream\r\nAuthorization: Bearer {}\r\n",
            self.paths[topic], self.token
        )
        .into_bytes();
        if !last_event_id.is_empty() {
            request.extend_from_slice(b"Last-Event-ID: ");
            request.extend_from_slice(last_event_id);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        request
    }
}

/// Where the clients that read stand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Standing {
    pub(crate) readers: usize,
    /// With an open stream that has told its place.
    pub(crate) placed: usize,
    /// Told to connect, and not yet where they should be.
    pub(crate) returning: usize,
    /// With every event committed so far.
    pub(crate) complete: usize,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) balance: Balance,
    /// Clients that got an answer on which EventSource gives up.
    pub(crate) gave_up: usize,
    pub(crate) tally: Tally,
}

enum Command {
    Connect { at_once: usize },
    Drop,
    Look(oneshot::Sender<Standing>),
    Returns(oneshot::Sender<Histogram>),
    Finish(oneshot::Sender<Outcome>),
}

/// The clients, in a thread of their own. They end when this is dropped.
pub(crate) struct Engine {
    commands: mpsc::Sender<Command>,
    waker: Waker,
    thread: JoinHandle<io::Result<()>>,
}

impl Engine {
    /// Starts the thread; no client connects yet.
    ///
    /// # Errors
    /// The system gives no epoll.
    pub(crate) fn start(plan: Plan, ledger: Arc<Ledger>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (commands, wanted) = mpsc::channel();
        let reactor = Reactor::new(poll, plan, ledger);
        let thread = std::thread::Builder::new().name("clients".to_owned());
        let thread = thread.spawn(move || reactor.run(&wanted))?;
        Ok(Self { commands, waker, thread })
    }

    /// Has every client connect that is not connected, so many at once. Each continues where it was.
    pub(crate) fn connect(&self, at_once: usize) {
        self.tell(Command::Connect { at_once });
    }

    /// Closes every client's socket. They stay away until they are told to connect.
    pub(crate) fn drop_all(&self) {
        self.tell(Command::Drop);
    }

    /// Says where the clients stand.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) async fn look(&self) -> io::Result<Standing> {
        let (told, standing) = oneshot::channel();
        self.tell(Command::Look(told));
        standing.await.map_err(io::Error::other)
    }

    /// Says how long each client took to be where it should be, since all were last told to connect.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) async fn returns(&self) -> io::Result<Histogram> {
        let (told, returns) = oneshot::channel();
        self.tell(Command::Returns(told));
        returns.await.map_err(io::Error::other)
    }

    /// Ends all clients and settles their accounts.
    ///
    /// # Errors
    /// The thread had ended before.
    pub(crate) async fn finish(self) -> io::Result<Outcome> {
        let (told, outcome) = oneshot::channel();
        self.tell(Command::Finish(told));
        let outcome = outcome.await.map_err(io::Error::other)?;
        self.thread.join().map_err(|_| io::Error::other("the clients' thread panicked"))??;
        Ok(outcome)
    }

    fn tell(&self, command: Command) {
        // A thread that has ended is noticed by who waits for its answer.
        let _unheard = self.commands.send(command);
        let _not_woken = self.waker.wake();
    }
}
