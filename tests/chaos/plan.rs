//! The plan of faults: made up front from the seed, so that the same seed makes the same faults at the same times.
//!
//! Lanes run beside each other, so that faults of different lanes overlap; within a lane one follows the other, so that
//! no fault mends what another one has broken. Each lane deals its faults from a shuffled deck: every one comes up.

use std::fmt;
use std::time::Duration;

use crate::random::Random;

/// A connection that passes a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Line {
    RelayRedis,
    RelayPostgres,
    SseRedis,
    ClientSse,
}

/// What can be done to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Break {
    Cut,
    Stall,
    /// The server's replies are dropped.
    Swallow,
    Refuse,
}

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    RelayKilled,
    RelayFrozen,
    RelayTerminated,
    SseKilled,
    SseFrozen,
    SseTerminated,
    RedisKilled,
    /// Killed, and started without its data.
    RedisLostItsData,
    RedisFlushed,
    RedisFrozen,
    RedisFull,
    RedisReadOnly,
    ScriptForgotten,
    SubscribersCutOff,
    HistoryOfWrongType,
    ChannelForbidden,
    KeyForbidden,
    PostgresKilled,
    PostgresRestarted,
    SessionsTerminated,
    Line(Line, Break),
}

/// One fault of the plan.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    pub(crate) kind: Kind,
    /// How long it lasts.
    pub(crate) lasts: Duration,
    /// Which one of several it hits, where that is not for the moment to decide.
    pub(crate) target: u64,
}

/// Faults that follow each other.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    pub(crate) faults: Vec<Fault>,
}

/// All faults of a run.
#[derive(Debug)]
pub(crate) struct Plan(pub(crate) Vec<Lane>);

/// What a lane deals from: its name, its kinds (more often the more often they stand here), and the pauses between them,
/// in milliseconds.
type Deck = (&'static str, &'static [Kind], (u64, u64));

const DECKS: [Deck; 6] = [
    (
        "relay",
        &[Kind::RelayKilled, Kind::RelayFrozen, Kind::RelayFrozen, Kind::RelayTerminated, Kind::RelayKilled],
        (500, 3000),
    ),
    ("sse", &[Kind::SseKilled, Kind::SseFrozen, Kind::SseTerminated, Kind::SseKilled], (1000, 4000)),
    (
        "redis",
        &[
            Kind::RedisKilled,
            Kind::RedisLostItsData,
            Kind::RedisFlushed,
            Kind::RedisFrozen,
            Kind::RedisFull,
            Kind::RedisReadOnly,
            Kind::ScriptForgotten,
            Kind::SubscribersCutOff,
            Kind::HistoryOfWrongType,
            Kind::ChannelForbidden,
            Kind::KeyForbidden,
        ],
        (200, 2000),
    ),
    (
        "postgres",
        &[Kind::PostgresKilled, Kind::PostgresRestarted, Kind::SessionsTerminated, Kind::SessionsTerminated],
        (2500, 6500),
    ),
    (
        "lines of the relays",
        &[
            Kind::Line(Line::RelayRedis, Break::Cut),
            Kind::Line(Line::RelayRedis, Break::Stall),
            Kind::Line(Line::RelayRedis, Break::Swallow),
            Kind::Line(Line::RelayRedis, Break::Refuse),
            Kind::Line(Line::RelayPostgres, Break::Cut),
            Kind::Line(Line::RelayPostgres, Break::Stall),
            Kind::Line(Line::RelayPostgres, Break::Swallow),
            Kind::Line(Line::RelayPostgres, Break::Refuse),
        ],
        (300, 2500),
    ),
    (
        "lines of the clients",
        &[
            Kind::Line(Line::SseRedis, Break::Cut),
            Kind::Line(Line::SseRedis, Break::Stall),
            Kind::Line(Line::SseRedis, Break::Swallow),
            Kind::Line(Line::SseRedis, Break::Refuse),
            Kind::Line(Line::ClientSse, Break::Cut),
            Kind::Line(Line::ClientSse, Break::Stall),
            Kind::Line(Line::ClientSse, Break::Swallow),
            Kind::Line(Line::ClientSse, Break::Refuse),
        ],
        (300, 2500),
    ),
];

/// Nothing is broken before, so that every process has started.
const QUIET: Duration = Duration::from_millis(1500);

impl Plan {
    /// The plan of this seed for a run of this length.
    pub(crate) fn new(seed: u64, length: Duration) -> Self {
        Self(DECKS.iter().map(|deck| lane(seed, length, deck)).collect())
    }

    /// All faults, by their times.
    pub(crate) fn in_order(&self) -> Vec<&Fault> {
        let mut all: Vec<&Fault> = self.0.iter().flat_map(|lane| &lane.faults).collect();
        all.sort_by_key(|fault| fault.at);
        all
    }
}

fn lane(seed: u64, length: Duration, (name, kinds, (least, most)): &Deck) -> Lane {
    let mut random = Random::new(seed, name);
    let mut at = QUIET + random.millis(0, *most);
    let mut deck: Vec<Kind> = Vec::new();
    let mut faults = Vec::new();
    while at < length {
        if deck.is_empty() {
            deck = kinds.to_vec();
            random.shuffle(&mut deck);
        }
        let Some(kind) = deck.pop() else { break };
        let (shortest, longest) = kind.lasts_ms();
        let lasts = random.millis(shortest, longest);
        faults.push(Fault { at, kind, lasts, target: random.between(0, 1 << 32) });
        at += lasts + random.millis(*least, *most);
    }
    Lane { name, faults }
}

impl Kind {
    /// How long it lasts at least and at most, in milliseconds.
    fn lasts_ms(self) -> (u64, u64) {
        match self {
            // Longer than a silent leader keeps the lead (`world::TAKEOVER_SECONDS`), most of the time.
            Self::RelayFrozen => (1500, 4500),
            Self::RelayKilled | Self::SseKilled | Self::RedisKilled | Self::RedisLostItsData => (50, 1200),
            Self::SseFrozen | Self::RedisFrozen => (200, 2500),
            Self::RedisFull | Self::RedisReadOnly => (300, 1500),
            Self::HistoryOfWrongType | Self::ChannelForbidden | Self::KeyForbidden => (800, 2500),
            Self::Line(_, Break::Stall) => (200, 3500),
            Self::Line(_, Break::Swallow | Break::Refuse) => (200, 1500),
            Self::RelayTerminated
            | Self::SseTerminated
            | Self::RedisFlushed
            | Self::ScriptForgotten
            | Self::SubscribersCutOff
            | Self::PostgresKilled
            | Self::PostgresRestarted
            | Self::SessionsTerminated
            | Self::Line(_, Break::Cut) => (0, 1),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::RelayKilled => "relay killed",
            Self::RelayFrozen => "relay frozen",
            Self::RelayTerminated => "relay terminated",
            Self::SseKilled => "SSE server killed",
            Self::SseFrozen => "SSE server frozen",
            Self::SseTerminated => "SSE server terminated",
            Self::RedisKilled => "Redis killed",
            Self::RedisLostItsData => "Redis lost its data",
            Self::RedisFlushed => "Redis flushed",
            Self::RedisFrozen => "Redis frozen",
            Self::RedisFull => "Redis full",
            Self::RedisReadOnly => "Redis read-only",
            Self::ScriptForgotten => "script forgotten",
            Self::SubscribersCutOff => "subscribers cut off",
            Self::HistoryOfWrongType => "history of wrong type",
            Self::ChannelForbidden => "channel forbidden",
            Self::KeyForbidden => "key forbidden",
            Self::PostgresKilled => "Postgres killed",
            Self::PostgresRestarted => "Postgres restarted",
            Self::SessionsTerminated => "sessions terminated",
            Self::Line(line, how) => return f.pad(&format!("{line} {how}")),
        };
        f.pad(text)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RelayRedis => "relay-Redis",
            Self::RelayPostgres => "relay-Postgres",
            Self::SseRedis => "SSE-Redis",
            Self::ClientSse => "client-SSE",
        })
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cut => "cut",
            Self::Stall => "stalled",
            Self::Swallow => "swallowed",
            Self::Refuse => "refused",
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Fault { at, kind, lasts, target } in self.in_order() {
            writeln!(f, "{:>8.3} s  {kind:<26} {:>6} ms  {target}", at.as_secs_f64(), lasts.as_millis())?;
        }
        Ok(())
    }
}
