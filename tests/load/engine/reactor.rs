//! The loop: one thread, one epoll, no task and no timer for a connection. Ten thousand clients cost what
//! their bytes cost.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::account::Balance;
use super::client::Client;
use super::connection::{Connection, End};
use super::ledger::Ledger;
use super::tally::Tally;
use super::{Command, Outcome, Plan, Standing};

/// The token of the waker; clients have theirs from 0.
pub(super) const WAKER: Token = Token(usize::MAX);
/// Connections that are begun before the others are looked after again.
const BEGUN_TOGETHER: usize = 64;
/// Clients that share a source address: a second one each may be in the kernel's TIME_WAIT.
const CLIENTS_OF_ADDRESS: usize = 5000;
const BUFFER: usize = 64 * 1024;

/// What the loop does after a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Go,
    End,
}

/// All clients and what they wait for.
pub(super) struct Reactor {
    poll: Poll,
    plan: Plan,
    ledger: Arc<Ledger>,
    clients: Vec<Client>,
    tally: Tally,
    /// Who connects as soon as there is room among those who are being answered.
    queue: VecDeque<usize>,
    opening: usize,
    at_once: usize,
    /// Who connects at a later time.
    waiting: BinaryHeap<Reverse<(Instant, usize)>>,
    buffer: Box<[u8]>,
}

impl Reactor {
    pub(super) fn new(poll: Poll, plan: Plan, ledger: Arc<Ledger>) -> Self {
        let clients = (0..plan.clients)
            // Those who never read come first, and are spread over the topics like the others.
            .map(|n| Client::new(n % ledger.topics(), n % plan.addresses.len(), n >= plan.stuck))
            .collect();
        Self {
            poll,
            plan,
            ledger,
            clients,
            tally: Tally::new(),
            queue: VecDeque::new(),
            opening: 0,
            at_once: usize::MAX,
            waiting: BinaryHeap::new(),
            buffer: vec![0; BUFFER].into(),
        }
    }

    /// Runs until it is told to finish, or nobody is left to tell it anything.
    pub(super) fn run(mut self, commands: &Receiver<Command>) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            self.begin_connections();
            match self.poll.poll(&mut events, self.time_left()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            let mut is_told = false;
            for event in &events {
                if event.token() == WAKER {
                    is_told = true;
                } else {
                    self.is_ready(event.token().0, event.is_read_closed() || event.is_error());
                }
            }
            if is_told && self.obey_all(commands) == Next::End {
                return Ok(());
            }
        }
    }

    fn obey_all(&mut self, commands: &Receiver<Command>) -> Next {
        loop {
            match commands.try_recv() {
                Ok(command) => {
                    if self.obey(command) == Next::End {
                        return Next::End;
                    }
                }
                Err(TryRecvError::Empty) => return Next::Go,
                // Nobody is left to tell anything.
                Err(TryRecvError::Disconnected) => return Next::End,
            }
        }
    }

    fn obey(&mut self, command: Command) -> Next {
        match command {
            Command::Connect { at_once } => self.connect_all(at_once),
            Command::Drop => self.drop_all(),
            // Who asked may have given up.
            Command::Look(told) => drop(told.send(self.standing())),
            Command::Returns(told) => drop(told.send(self.tally.returns.clone())),
            Command::Finish(told) => {
                drop(told.send(self.outcome()));
                return Next::End;
            }
        }
        Next::Go
    }

    fn connect_all(&mut self, at_once: usize) {
        self.at_once = at_once;
        self.tally.return_begins(Instant::now());
        for (n, client) in self.clients.iter_mut().enumerate() {
            if client.connection.is_none() && !client.gave_up {
                client.returns_at = client.reads.then(|| self.ledger.committed(client.topic));
                self.queue.push_back(n);
            }
        }
    }

    /// Closes every socket, without a word.
    fn drop_all(&mut self) {
        for client in &mut self.clients {
            drop(client.disconnect());
        }
        self.queue.clear();
        self.waiting.clear();
        self.opening = 0;
    }

    fn begin_connections(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, client))) = self.waiting.peek()
            && *at <= now
        {
            self.queue.push_back(*client);
            self.waiting.pop();
        }
        for _ in 0..BEGUN_TOGETHER {
            if self.opening >= self.at_once {
                return;
            }
            let Some(client) = self.queue.pop_front() else { return };
            self.begin(client);
        }
    }

    /// How long there is nothing to do but to wait for the sockets.
    fn time_left(&self) -> Option<Duration> {
        if !self.queue.is_empty() && self.opening < self.at_once {
            return Some(Duration::ZERO);
        }
        let Reverse((at, _)) = self.waiting.peek()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    fn begin(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let to = self.plan.addresses[client.address];
        let request = self.plan.request(client.topic, client.last_event_id());
        let begun =
            Connection::begin(to, source_of(number), request, client.reads).and_then(|mut connection| {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(connection.socket(), Token(number), interest)?;
                Ok(connection)
            });
        match begun {
            Ok(connection) => {
                client.connection = Some(connection);
                client.is_opening = true;
                self.opening += 1;
            }
            Err(end) => self.is_over(number, end),
        }
    }

    /// Something has happened on a client's socket.
    fn is_ready(&mut self, number: usize, is_closing: bool) {
        let client = &mut self.clients[number];
        let Some(mut connection) = client.connection.take() else { return };
        let mut done = connection.send();
        if done.is_ok() && client.reads {
            let (ledger, tally) = (&self.ledger, &mut self.tally);
            done = connection.read(&mut self.buffer, is_closing, |field, now| {
                client.take(field, now, ledger, tally);
            });
        }
        if client.is_opening && (connection.is_open() || !client.reads) {
            client.is_opening = false;
            client.refusals = 0;
            self.opening -= 1;
            self.tally.is_opened(Instant::now());
        }
        client.connection = Some(connection);
        if let Err(end) = done {
            self.is_over(number, end);
        }
    }

    /// A connection has ended: the client comes back as EventSource does.
    fn is_over(&mut self, number: usize, end: End) {
        let client = &mut self.clients[number];
        let was_placed = client.is_placed;
        self.opening -= usize::from(client.is_opening);
        drop(client.disconnect());
        if !client.reads {
            return; // Cut off, as it should be; one that never reads does not notice.
        }
        match end {
            End::Refused => {
                // As a balancer does: where nobody listens, another server takes the connection at once.
                client.address = (client.address + 1) % self.plan.addresses.len();
                self.tally.refused += 1;
                client.refusals += 1;
                if client.refusals < self.plan.addresses.len() {
                    self.queue.push_front(number);
                    return;
                }
                client.refusals = 0;
            }
            End::Over => {
                self.tally.ended += 1;
                self.tally.turned_away += u64::from(!was_placed);
            }
            End::Lost => self.tally.lost += 1,
            End::Malformed(why) => *self.tally.malformed.entry(why).or_default() += 1,
            End::Status(status) => {
                *self.tally.statuses.entry(status).or_default() += 1;
                client.gave_up = true;
                return;
            }
        }
        self.waiting.push(Reverse((Instant::now() + client.retry, number)));
    }

    fn standing(&self) -> Standing {
        let mut standing = Standing::default();
        for client in self.clients.iter().filter(|client| client.reads) {
            standing.readers += 1;
            standing.placed += usize::from(client.is_placed);
            standing.returning += usize::from(client.returns_at.is_some());
            let is_complete = client.account.highest() >= self.ledger.committed(client.topic);
            standing.complete += usize::from(is_complete);
        }
        standing
    }

    fn outcome(&self) -> Outcome {
        let mut balance = Balance { invented: self.tally.invented, ..Balance::default() };
        for client in self.clients.iter().filter(|client| client.reads) {
            balance.add(&client.account, self.ledger.committed(client.topic));
        }
        let gave_up = self.clients.iter().filter(|client| client.gave_up).count();
        Outcome { balance, gave_up, tally: self.tally.clone() }
    }
}

/// The address that a client connects from: one alone has too few ports for all, and each run has its own
/// ones. The ports of the run before are taken for a minute yet, and looking for a free one among thousands
/// of those took milliseconds.
fn source_of(client: usize) -> Option<IpAddr> {
    let [.., high, low] = std::process::id().to_be_bytes();
    let place = u8::try_from(client / CLIENTS_OF_ADDRESS).unwrap_or(u8::MAX).min(250);
    // Only Linux has the whole of 127.0.0.0/8 without being told.
    cfg!(target_os = "linux").then(|| Ipv4Addr::new(127, high, low, 2 + place).into())
}
