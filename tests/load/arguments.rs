//! What is asked for. `cargo test` hands the same arguments to every test program, so those of the usual test
//! runner are passed over; without any a short storm is run, as a part of the whole test suite.

use std::time::Duration;

/// What happens to the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// They stay connected.
    Fanout,
    /// All are dropped at once, and come back at once.
    Storm,
    /// One server after the other is restarted.
    Rolling,
    /// One in a hundred never reads.
    Stuck,
    /// There are none: a backlog is delivered into one Redis, and into a cluster.
    Drain,
    /// There are none: events are appended, beside rows of a plain table.
    Append,
    /// They stay connected to a server that does only what no server can leave out.
    Floor,
    /// All rows of the bench, each beside its floor.
    Bench,
}

/// A run.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) kind: Kind,
    pub(crate) connections: usize,
    pub(crate) topics: usize,
    /// Events a second, over all topics.
    pub(crate) rate: f64,
    /// How long events are committed before anything happens to the clients; of a fan-out the whole of it.
    pub(crate) length: Duration,
    /// Bytes of a payload.
    pub(crate) bytes: usize,
    /// Whether writers ring the bell after a commit.
    pub(crate) rings: bool,
    /// Whether a transaction that has appended stays open while a backlog is delivered.
    pub(crate) is_held: bool,
    /// How long the clients of a storm stay away.
    pub(crate) away: Duration,
    /// Streams that a server takes.
    pub(crate) room: usize,
    /// How often the rows of a bench are measured.
    pub(crate) times: usize,
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Wanted {
    Run(Scenario),
    /// Say what tests there are.
    List,
    /// Somebody asked for other tests.
    Nothing,
}

/// The scenarios by name, with what each is by default.
const NAMES: [(&str, Kind); 8] = [
    ("fanout", Kind::Fanout),
    ("storm", Kind::Storm),
    ("rolling", Kind::Rolling),
    ("stuck", Kind::Stuck),
    ("drain", Kind::Drain),
    ("append", Kind::Append),
    ("floor", Kind::Floor),
    ("bench", Kind::Bench),
];

/// The default of `sse.max_connections`.
const ROOM: usize = 10_000;

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// How many servers it takes.
    pub(crate) fn servers(self) -> usize {
        if self == Self::Rolling { 2 } else { 1 }
    }
}

impl Scenario {
    pub(crate) fn new(kind: Kind) -> Self {
        let (connections, topics, rate, seconds, bytes) = match kind {
            Kind::Fanout | Kind::Floor => (1000, 1, 100.0, 60, 200),
            Kind::Storm => (10_000, 1, 10.0, 5, 200),
            Kind::Rolling => (5000, 20, 20.0, 5, 200),
            Kind::Stuck => (1000, 1, 100.0, 60, 1000),
            // The backlog is `rate` times `length`.
            Kind::Drain => (0, 1000, 20_000.0, 10, 200),
            Kind::Append | Kind::Bench => (0, 1, 1.0, 1, 200),
        };
        let (length, away) = (Duration::from_secs(seconds), Duration::from_secs(2));
        let (rings, is_held, room, times) = (true, false, ROOM, 1);
        Self { kind, connections, topics, rate, length, bytes, rings, is_held, away, room, times }
    }

    /// The short form: small and quick, also in a debug build.
    fn smoke() -> Self {
        let (length, away) = (Duration::from_secs(1), Duration::from_millis(500));
        Self { connections: 200, topics: 4, rate: 40.0, length, away, ..Self::new(Kind::Storm) }
    }

    /// How many clients never read.
    pub(crate) fn stuck(&self) -> usize {
        if self.kind == Kind::Stuck { (self.connections / 100).max(1) } else { 0 }
    }
}

impl Wanted {
    /// Reads arguments; an error is what is wrong with them.
    pub(crate) fn read(mut given: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut scenario, mut is_named, mut filters) = (Scenario::smoke(), false, Vec::new());
        while let Some(argument) = given.next() {
            let seconds = |text: Option<String>| {
                let seconds = number(&argument, text)?;
                Duration::try_from_secs_f64(seconds).map_err(|_| format!("{argument}: not a length of time"))
            };
            match argument.as_str() {
                "--connections" => scenario.connections = positive(&argument, given.next())?,
                "--topics" => scenario.topics = positive(&argument, given.next())?,
                "--rate" => scenario.rate = number(&argument, given.next())?,
                "--seconds" => scenario.length = seconds(given.next())?,
                "--away" => scenario.away = seconds(given.next())?,
                "--bytes" => scenario.bytes = positive(&argument, given.next())?,
                "--times" => scenario.times = positive(&argument, given.next())?,
                "--room" => scenario.room = positive(&argument, given.next())?,
                "--no-bell" => scenario.rings = false,
                "--held" => scenario.is_held = true,
                "--list" => return Ok(Self::List),
                "--test-threads" | "--format" | "--color" | "--skip" | "--logfile" => drop(given.next()),
                flag if flag.starts_with('-') => {}
                name => match NAMES.iter().find(|(known, _)| *known == name) {
                    Some((_, kind)) if !is_named => (scenario, is_named) = (Scenario::new(*kind), true),
                    _ => filters.push(name.to_owned()),
                },
            }
        }
        if !scenario.rate.is_finite() || scenario.rate <= 0.0 {
            return Err("--rate wants a number of events a second above 0".to_owned());
        }
        let is_for_others = !filters.is_empty() && !filters.iter().any(|f| "load".contains(f.as_str()));
        Ok(if is_for_others && !is_named { Self::Nothing } else { Self::Run(scenario) })
    }
}

fn number<T: std::str::FromStr>(name: &str, value: Option<String>) -> Result<T, String> {
    let value = value.ok_or(format!("{name} wants a number behind it"))?;
    value.parse().map_err(|_| format!("{name} {value}: not a number"))
}

fn positive(name: &str, value: Option<String>) -> Result<usize, String> {
    match number(name, value)? {
        0 => Err(format!("{name} wants a number above 0")),
        number => Ok(number),
    }
}
