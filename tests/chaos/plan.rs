//! The plan of faults: made up front from the seed, so that the same seed makes the same faults at the same
//! times.
//!
//! Lanes run at the same time, so faults of different lanes overlap. Within a lane the faults follow each
//! other, so that no fault repairs the damage of another one. Each lane deals its faults from a shuffled
//! deck, so that each kind comes up.
//!
//! A run is a sequence of rounds, and each ends with a comparison: a later fault could repair, or excuse, the
//! damage of an earlier one. The first part of each round is careful: no fault in it makes Redis forget. A
//! reset that names lost events has no cause there.

use std::fmt;
use std::time::Duration;

use crate::kinds::{Break, Grant, Key, Kind, Line, Right};
use crate::random::Random;

/// One fault of the plan.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    pub(crate) kind: Kind,
    /// How long it lasts.
    pub(crate) lasts: Duration,
    /// A random number that chooses the target, if the fault has several.
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

/// The deck of a lane: its name, its kinds (a kind that is listed twice comes twice as often), and the pauses
/// between faults, in milliseconds.
type Deck = (&'static str, &'static [Kind], (u64, u64));

const DECKS: [Deck; 10] = [
    ("clocks", &[Kind::ClockForward, Kind::ClockBack], (2000, 7000)),
    (
        "relay",
        &[
            Kind::RelayKilled,
            Kind::RelayKilled,
            Kind::RelayKilled,
            Kind::RelayFrozen,
            Kind::RelayFrozen,
            Kind::RelayFrozen,
            Kind::RelayTerminated,
            Kind::RelayLogFull,
            Kind::RelayLogUnread,
        ],
        (2000, 6000),
    ),
    (
        "sse",
        &[
            Kind::SseKilled,
            Kind::SseKilled,
            Kind::SseFrozen,
            Kind::SseTerminated,
            Kind::SseLogFull,
            Kind::SseLogUnread,
        ],
        (1000, 3500),
    ),
    (
        "redis",
        &[
            Kind::RedisKilled,
            Kind::RedisLostItsData,
            Kind::RedisRestored,
            Kind::RedisRestored,
            Kind::RedisFlushed,
            Kind::RedisFrozen,
            Kind::RedisFull,
            Kind::RedisReadOnly,
            Kind::ScriptForgotten,
            Kind::SubscribersCutOff,
            Kind::HistoryOfWrongType,
            Kind::ChannelForbidden,
            Kind::ChannelForbidden,
            Kind::KeyForbidden,
            Kind::KeyForbidden,
            Kind::KeyVanished(Key::History),
            Kind::KeyVanished(Key::History),
            Kind::KeyVanished(Key::Begun),
            Kind::KeyVanished(Key::Top),
            Kind::KeyVanished(Key::Log),
            Kind::KeyOfWrongType(Key::Top),
            Kind::KeyOfWrongType(Key::Begun),
            Kind::KeyOfWrongType(Key::Log),
            Kind::RelayRightTaken(Right::Write),
            Kind::RelayRightTaken(Right::Scripts),
            Kind::RelayRightTaken(Right::Keys),
            Kind::RelayRightTaken(Right::SignIn),
            Kind::SseRightTaken(Right::Read),
            Kind::SseRightTaken(Right::Subscribe),
            Kind::SseRightTaken(Right::Keys),
            Kind::SseRightTaken(Right::SignIn),
        ],
        (200, 1500),
    ),
    (
        "postgres",
        &[Kind::PostgresKilled, Kind::PostgresRestarted, Kind::SessionsTerminated, Kind::SessionsTerminated],
        (4000, 9000),
    ),
    (
        "rights in Postgres",
        &[
            Kind::GrantTaken(Grant::Schema),
            Kind::GrantTaken(Grant::ReadEvents),
            Kind::GrantTaken(Grant::WriteCheckpoints),
            Kind::GrantTaken(Grant::Parked),
            Kind::GrantTaken(Grant::Functions),
            Kind::RowSecurity,
            Kind::RowSecurity,
        ],
        (6000, 14_000),
    ),
    (
        "operators",
        &[
            Kind::Paused,
            Kind::Paused,
            Kind::Replayed,
            Kind::Replayed,
            Kind::ParkedReleased,
            Kind::ParkedReleased,
            Kind::ParkedDiscarded,
            Kind::ParkedDiscarded,
            Kind::ParkedDiscarded,
            Kind::SequenceReset,
        ],
        (300, 3000),
    ),
    (
        "neighbours",
        &[
            Kind::StrangerCame,
            Kind::NeighbourWrote,
            Kind::PublicForged,
            Kind::PublicForged,
            Kind::LiveForged,
            Kind::LiveForged,
        ],
        (300, 2500),
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
            Kind::StandbyRead,
            Kind::StandbyRead,
        ],
        (1500, 5000),
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

/// The time without faults at the start, in which every process starts.
const QUIET: Duration = Duration::from_millis(1500);
/// The longest time of a round's faults.
const ROUND: Duration = Duration::from_secs(40);

/// Which faults are made when.
#[derive(Debug, Clone, Copy)]
struct Rounds {
    length: Duration,
}

impl Rounds {
    /// Short runs have one round.
    fn of(run: Duration) -> Self {
        Self { length: ROUND.min(run).max(Duration::from_millis(1)) }
    }

    fn number(self, at: Duration) -> u128 {
        at.as_millis() / self.length.as_millis()
    }

    fn begin(self, at: Duration) -> Duration {
        Duration::from_millis(u64::try_from(self.number(at) * self.length.as_millis()).expect("a time"))
    }

    /// How far into its round a time is, of a hundred.
    fn place(self, at: Duration) -> u128 {
        (at - self.begin(at)).as_millis() * 100 / self.length.as_millis()
    }

    fn allows(self, kind: Kind, at: Duration) -> bool {
        let place = self.place(at);
        match kind {
            // Ending before the first losses of the round.
            Kind::StrangerCame => place < 45,
            // Redis is given back nothing of an epoch before the last rebase. So the losses of a round count
            // only if no rebase follows them.
            Kind::SequenceReset => (55..65).contains(&place),
            _ => place >= 55 || kind.loses().is_none(),
        }
    }
}

impl Plan {
    /// The plan of this seed for a run of this length.
    pub(crate) fn new(seed: u64, length: Duration) -> Self {
        Self(DECKS.iter().map(|deck| lane(seed, length, deck)).collect())
    }

    /// The faults of each round, in their lanes, by their times since its begin; and the length of a round.
    pub(crate) fn rounds(&self, length: Duration) -> (Duration, Vec<Vec<Lane>>) {
        let rounds = Rounds::of(length);
        let last = rounds.number(length.saturating_sub(Duration::from_millis(1)));
        let lanes = |number| {
            let of_round = |fault: &&Fault| rounds.number(fault.at) == number;
            let since_its_begin = |fault: &Fault| Fault { at: fault.at - rounds.begin(fault.at), ..*fault };
            let lane = |lane: &Lane| Lane {
                name: lane.name,
                faults: lane.faults.iter().filter(of_round).map(since_its_begin).collect(),
            };
            self.0.iter().map(lane).collect()
        };
        (rounds.length, (0..=last).map(lanes).collect())
    }

    /// All faults, by their times.
    pub(crate) fn in_order(&self) -> Vec<&Fault> {
        let mut all: Vec<&Fault> = self.0.iter().flat_map(|lane| &lane.faults).collect();
        all.sort_by_key(|fault| fault.at);
        all
    }
}

fn lane(seed: u64, length: Duration, (name, kinds, (least, most)): &Deck) -> Lane {
    let rounds = Rounds::of(length);
    let mut random = Random::new(seed, name);
    let mut at = QUIET + random.millis(0, *most);
    let mut deck: Vec<Kind> = Vec::new();
    let mut faults = Vec::new();
    while at < length {
        // The next one that may be made now; those before it wait for their time.
        let next = deck.iter().rposition(|kind| rounds.allows(*kind, at));
        let Some(next) = next else {
            let mut more = kinds.to_vec();
            // Shuffle a new deck into the waiting kinds, of which at most a deck is kept, so that delayed
            // faults do not all come at once.
            more.extend(deck);
            more.truncate(2 * kinds.len());
            deck = more;
            random.shuffle(&mut deck);
            if !deck.iter().any(|kind| rounds.allows(*kind, at)) {
                at += random.millis(*least, *most);
            }
            continue;
        };
        let kind = deck.remove(next);
        let (shortest, longest) = kind.lasts_ms();
        let lasts = random.millis(shortest, longest);
        faults.push(Fault { at, kind, lasts, target: random.between(0, 1 << 32) });
        at += lasts + random.millis(*least, *most);
    }
    Lane { name, faults }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Fault { at, kind, lasts, target } in self.in_order() {
            writeln!(f, "{:>8.3} s  {kind:<28} {:>6} ms  {target}", at.as_secs_f64(), lasts.as_millis())?;
        }
        Ok(())
    }
}
