//! The kinds of faults: their names, their durations, and the resets that they may cause.

use std::fmt;

/// A connection that passes a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Line {
    RelayRedis,
    RelayPostgres,
    SseRedis,
    ClientSse,
}

/// A fault of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Break {
    Cut,
    Stall,
    /// The server's replies are dropped.
    Swallow,
    Refuse,
}

/// A right of the relay's or the SSE server's user of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Right {
    /// All commands that write.
    Write,
    /// To run scripts.
    Scripts,
    /// To read.
    Read,
    /// To hear channels.
    Subscribe,
    /// All keys.
    Keys,
    /// To sign in.
    SignIn,
}

/// A right of the relay's role of Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grant {
    Schema,
    ReadEvents,
    WriteCheckpoints,
    Parked,
    Functions,
}

/// A Redis key of the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    History,
    Begun,
    Top,
    Log,
}

/// A kind of fault or of somebody's action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    RelayKilled,
    RelayFrozen,
    RelayTerminated,
    /// Its stderr is a device that is full.
    RelayLogFull,
    /// Its stderr is a pipe that nobody reads.
    RelayLogUnread,
    SseKilled,
    SseFrozen,
    SseTerminated,
    SseLogFull,
    SseLogUnread,
    /// The clocks of all our processes are set forward, then back.
    ClockForward,
    ClockBack,
    RedisKilled,
    /// Killed, and started without its data.
    RedisLostItsData,
    /// Killed, and started with an RDB of some seconds before.
    RedisRestored,
    RedisFlushed,
    RedisFrozen,
    RedisFull,
    RedisReadOnly,
    ScriptForgotten,
    SubscribersCutOff,
    HistoryOfWrongType,
    ChannelForbidden,
    KeyForbidden,
    KeyVanished(Key),
    KeyOfWrongType(Key),
    RelayRightTaken(Right),
    SseRightTaken(Right),
    PostgresKilled,
    PostgresRestarted,
    SessionsTerminated,
    GrantTaken(Grant),
    /// Row level security on the log's tables.
    RowSecurity,
    Line(Line, Break),
    /// New connections of the relays lead to a standby that lags: all of them, or some.
    StandbyRead,
    Paused,
    Replayed,
    /// An operator releases some of the events that are parked at that moment.
    ParkedReleased,
    ParkedDiscarded,
    /// The sequence of the log is set back, and an operator mends that by a rebase.
    SequenceReset,
    /// A second relay of another log comes with the same namespace.
    StrangerCame,
    /// Another service writes keys of its own.
    NeighbourWrote,
    /// Messages that no relay published, on public channels.
    PublicForged,
    /// The same on live channels: malformed ones, and envelopes that cannot be.
    LiveForged,
}

/// The clients that a fault may reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    EveryTopic,
    /// Of the topic that the fault hit.
    ItsTopic,
}

impl Kind {
    /// Its shortest and its longest duration, in milliseconds.
    pub(crate) fn lasts_ms(self) -> (u64, u64) {
        match self {
            // Longer than a silent leader keeps the lead (`world::TAKEOVER_SECONDS`), most of the time.
            Self::RelayFrozen => (1500, 4500),
            Self::StandbyRead => (2000, 6000),
            Self::RelayKilled | Self::SseKilled | Self::RedisKilled | Self::RedisLostItsData => (50, 1200),
            Self::SseFrozen | Self::RedisFrozen => (200, 2500),
            Self::RedisFull | Self::RedisReadOnly | Self::RedisRestored => (300, 1500),
            Self::HistoryOfWrongType | Self::ChannelForbidden | Self::KeyForbidden => (1500, 4000),
            Self::KeyOfWrongType(_)
            | Self::RelayRightTaken(_)
            | Self::SseRightTaken(_)
            | Self::GrantTaken(_)
            | Self::RowSecurity
            | Self::Paused
            | Self::SequenceReset => (200, 1800),
            Self::ClockForward | Self::ClockBack | Self::StrangerCame => (500, 2500),
            Self::Line(_, Break::Stall) => (200, 3500),
            Self::Line(_, Break::Swallow | Break::Refuse) => (200, 1500),
            Self::RelayTerminated
            | Self::RelayLogFull
            | Self::RelayLogUnread
            | Self::SseTerminated
            | Self::SseLogFull
            | Self::SseLogUnread
            | Self::RedisFlushed
            | Self::ScriptForgotten
            | Self::SubscribersCutOff
            | Self::KeyVanished(_)
            | Self::PostgresKilled
            | Self::PostgresRestarted
            | Self::SessionsTerminated
            | Self::Replayed
            | Self::ParkedReleased
            | Self::ParkedDiscarded
            | Self::NeighbourWrote
            | Self::PublicForged
            | Self::LiveForged
            | Self::Line(_, Break::Cut) => (0, 1),
        }
    }

    /// Whether Redis loses data: clients may then get resets because their position cannot be proven.
    pub(crate) fn loses(self) -> Option<Reach> {
        match self {
            Self::RedisLostItsData
            | Self::RedisRestored
            | Self::RedisFlushed
            // Its last second of writes may be missing.
            | Self::RedisKilled
            // In the new epoch, events that Redis lacked at that moment are not restored.
            | Self::SequenceReset
            | Self::KeyVanished(Key::Top | Key::Log)
            | Self::KeyOfWrongType(Key::Top | Key::Log) => Some(Reach::EveryTopic),
            Self::KeyVanished(Key::History | Key::Begun)
            | Self::KeyOfWrongType(Key::History | Key::Begun)
            | Self::HistoryOfWrongType => Some(Reach::ItsTopic),
            _ => None,
        }
    }

    /// Whether SSE servers may be unable to read Redis because of it: they accept clients all the same, and
    /// send resets later.
    pub(crate) fn blinds(self) -> Option<Reach> {
        match self {
            Self::RedisFrozen | Self::SseRightTaken(_) => Some(Reach::EveryTopic),
            Self::Line(Line::SseRedis, _) => Some(Reach::EveryTopic),
            Self::KeyForbidden | Self::ChannelForbidden => Some(Reach::ItsTopic),
            _ => self.loses(),
        }
    }

    /// Whether times that servers sent before may be wrong when clients send them back.
    pub(crate) fn steps_clocks(self) -> bool {
        matches!(self, Self::ClockForward | Self::ClockBack)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::RelayKilled => "relay killed",
            Self::RelayFrozen => "relay frozen",
            Self::RelayTerminated => "relay terminated",
            Self::RelayLogFull => "relay's stderr full",
            Self::RelayLogUnread => "relay's stderr unread",
            Self::SseKilled => "SSE server killed",
            Self::SseFrozen => "SSE server frozen",
            Self::SseTerminated => "SSE server terminated",
            Self::SseLogFull => "SSE server's stderr full",
            Self::SseLogUnread => "SSE server's stderr unread",
            Self::ClockForward => "clocks set forward",
            Self::ClockBack => "clocks set back",
            Self::RedisKilled => "Redis killed",
            Self::RedisLostItsData => "Redis lost its data",
            Self::RedisRestored => "Redis from an older RDB",
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
            Self::RowSecurity => "row level security",
            Self::StandbyRead => "standby read",
            Self::Paused => "paused",
            Self::Replayed => "replayed",
            Self::ParkedReleased => "parked events released",
            Self::ParkedDiscarded => "parked events discarded",
            Self::SequenceReset => "sequence reset, rebased",
            Self::StrangerCame => "other log, same names",
            Self::NeighbourWrote => "other service's keys",
            Self::PublicForged => "public channel forged",
            Self::LiveForged => "live channel forged",
            Self::KeyVanished(key) => return f.pad(&format!("{key} vanished")),
            Self::KeyOfWrongType(key) => return f.pad(&format!("{key} of wrong type")),
            Self::RelayRightTaken(right) => return f.pad(&format!("relay may not {right}")),
            Self::SseRightTaken(right) => return f.pad(&format!("SSE server may not {right}")),
            Self::GrantTaken(grant) => return f.pad(&format!("no grant: {grant}")),
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

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write => "write",
            Self::Scripts => "run scripts",
            Self::Read => "read",
            Self::Subscribe => "subscribe",
            Self::Keys => "use keys",
            Self::SignIn => "sign in",
        })
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Schema => "schema",
            Self::ReadEvents => "read events",
            Self::WriteCheckpoints => "write positions",
            Self::Parked => "parked",
            Self::Functions => "functions",
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::History => "history",
            Self::Begun => "begun",
            Self::Top => "top",
            Self::Log => "owner",
        })
    }
}
