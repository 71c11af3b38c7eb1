//! What can happen in the sink model, one effect an action.

use std::fmt;

use super::postgres::Event;
use super::reader::{Mode, READ_TOPIC};
use super::relay::{Standing, standing};
use super::rules::Rules;
use super::state::{Doing, State};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Commit { topic: u8 },
    Load(u8),
    Compare(u8),
    Read(u8),
    TakeRequest(u8),
    Publish(u8),
    PublishFails { relay: u8, at: u8 },
    WriteDown(u8),
    Kill(u8),
    Join,
    ReadHistory,
    Verify,
    Leave,
    Refuse { topic: u8 },
    Mend { topic: u8 },
    Request { topic: u8, is_discard: bool },
    ClaimEpoch,
    CommitRebase,
    AbandonRebase,
    CopyRedis,
    RedisGoesBack,
    RedisForgets,
    Vanish { topic: u8 },
    Trim { topic: u8 },
    Rotate,
    BackUpPostgres,
    PostgresGoesBack,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit { topic } => write!(f, "an event of topic {topic} is committed"),
            Self::Load(r) => write!(f, "relay {r} loads the newest checkpoint"),
            Self::Compare(r) => write!(f, "relay {r} compares Redis with its position"),
            Self::Read(r) => write!(f, "relay {r} reads a batch, of a window that it has written down"),
            Self::TakeRequest(r) => write!(f, "relay {r} takes up the operator's request"),
            Self::Publish(r) => write!(f, "relay {r} calls the script with its batch"),
            Self::PublishFails { relay, at } => {
                write!(f, "relay {relay} calls the script, which fails after {at}")
            }
            Self::WriteDown(r) => write!(f, "relay {r} writes down what it has published"),
            Self::Kill(r) => write!(f, "relay {r} is killed"),
            Self::Join => write!(f, "the reader subscribes"),
            Self::ReadHistory => write!(f, "the reader reads the history and goes live"),
            Self::Verify => {
                write!(f, "the reader's server finds its place before what is lost, and joins anew")
            }
            Self::Leave => write!(f, "the reader goes away with its place"),
            Self::Refuse { topic } => write!(f, "Redis begins to refuse topic {topic}"),
            Self::Mend { topic } => write!(f, "topic {topic} is mended"),
            Self::Request { topic, is_discard: true } => {
                write!(f, "an operator discards what is parked of topic {topic}")
            }
            Self::Request { topic, .. } => write!(f, "an operator releases what is parked of topic {topic}"),
            Self::ClaimEpoch => write!(f, "a rebase locks the log and claims a new epoch"),
            Self::CommitRebase => write!(f, "the rebase looks at the histories and commits"),
            Self::AbandonRebase => write!(f, "the rebase is killed"),
            Self::CopyRedis => write!(f, "Redis is copied"),
            Self::RedisGoesBack => write!(f, "Redis goes back to the copy"),
            Self::RedisForgets => write!(f, "Redis loses everything"),
            Self::Vanish { topic } => write!(f, "the history of topic {topic} vanishes"),
            Self::Trim { topic } => write!(f, "the oldest entry of topic {topic} is trimmed"),
            Self::Rotate => write!(f, "the oldest step leaves the log"),
            Self::BackUpPostgres => write!(f, "Postgres is backed up"),
            Self::PostgresGoesBack => write!(f, "Postgres goes back to the backup"),
        }
    }
}

/// Adds every action that can happen in this state.
pub(super) fn enabled(rules: &Rules, state: &State, actions: &mut Vec<Action>) {
    progress(rules, state, actions);
    let left = &state.left;
    if left.events > 0 {
        actions.extend([0, 1].map(|topic| Action::Commit { topic }));
    }
    if left.departures > 0 && state.reader.mode != Mode::Away {
        actions.push(Action::Leave);
    }
    if left.kills > 0 && state.rebasing.is_some() {
        actions.push(Action::AbandonRebase);
    }
    for r in 0..left.relays {
        let doing = &state.relays[usize::from(r)].doing;
        if left.kills > 0 && *doing != Doing::Down {
            actions.push(Action::Kill(r));
        }
        if let Doing::Holding(batch) = doing
            && left.failures > 0
        {
            let items = u8::try_from(batch.call.items.len()).expect("a small batch");
            actions.extend((1..items).map(|at| Action::PublishFails { relay: r, at }));
        }
    }
    for topic in 0..2 {
        operators(state, topic, actions);
    }
    faults(rules, state, actions);
}

fn operators(state: &State, topic: u8, actions: &mut Vec<Action>) {
    let is_refused = state.refused & (1 << topic) != 0;
    if is_refused {
        actions.push(Action::Mend { topic });
    } else if state.left.refusals > 0 {
        actions.push(Action::Refuse { topic });
    }
    let requested = state.log.request.map(|request| request.is_discard);
    if requested != Some(true) && state.log.waiting(topic).next().is_some() {
        if !is_refused && requested.is_none() {
            actions.push(Action::Request { topic, is_discard: false });
        }
        if state.left.discards > 0 {
            actions.push(Action::Request { topic, is_discard: true });
        }
    }
}

fn faults(rules: &Rules, state: &State, actions: &mut Vec<Action>) {
    let left = &state.left;
    if left.moves > 0 && state.rebasing.is_none() && !state.needs_rebase(rules) {
        actions.push(Action::ClaimEpoch);
    }
    if left.redis_goes_back > 0 {
        if state.copy.is_none() && state.redis.top.is_some() {
            actions.push(Action::CopyRedis);
        }
        if state.copy.as_deref().is_some_and(|copy| *copy != state.redis) {
            actions.push(Action::RedisGoesBack);
        }
        if state.redis.top.is_some() {
            actions.push(Action::RedisForgets);
        }
    }
    for topic in 0..2 {
        let entries = state.redis.histories[usize::from(topic)].len();
        if left.vanishes > 0 && entries > 0 {
            actions.push(Action::Vanish { topic });
        }
        if left.trims > 0 && entries > 1 {
            actions.push(Action::Trim { topic });
        }
    }
    if left.rotations > 0 && !state.log.steps.is_empty() {
        actions.push(Action::Rotate);
    }
    if left.postgres_goes_back > 0 {
        match state.backup.as_deref() {
            None => actions.push(Action::BackUpPostgres),
            Some(backup) if *backup != state.log => actions.push(Action::PostgresGoesBack),
            Some(_) => {}
        }
    }
}

/// Adds what happens by itself when faults stop: relays, the reader, and a rebase that a relay has asked for.
pub(super) fn progress(rules: &Rules, state: &State, actions: &mut Vec<Action>) {
    for r in 0..state.left.relays {
        relay_steps(rules, state, r, actions);
    }
    match state.reader.mode {
        Mode::Away => actions.push(Action::Join),
        Mode::Joining(_) => actions.push(Action::ReadHistory),
        Mode::Live if state.is_behind(rules) => actions.push(Action::Verify),
        Mode::Live => {}
    }
    if state.rebasing.is_some() {
        actions.push(Action::CommitRebase);
    } else if state.needs_rebase(rules) {
        actions.push(Action::ClaimEpoch);
    }
}

/// How many numbers releases use up at most: two relays that both believe that they lead take a new one again
/// and again.
const RELEASES: usize = 3;

fn relay_steps(rules: &Rules, state: &State, r: u8, actions: &mut Vec<Action>) {
    let relay = &state.relays[usize::from(r)];
    let log = &state.log;
    match &relay.doing {
        // To begin to lead, it writes a row, and a rebase locks the log.
        Doing::Down if state.rebasing.is_some() => {}
        Doing::Down => actions.push(Action::Load(r)),
        Doing::Loaded => actions.push(Action::Compare(r)),
        Doing::Holding(_) => actions.push(Action::Publish(r)),
        Doing::Published(_) => actions.push(Action::WriteDown(r)),
        // Its connection to Postgres has broken.
        Doing::Ready if state.incarnation != relay.session => actions.push(Action::Load(r)),
        Doing::Ready => {
            // A release waits for the end of a window, whose numbers may be published already.
            let is_ready =
                !rules.releases_use_up_a_number || !relay.at.has_window() && log.releases() < RELEASES;
            if log.request.is_some() && is_ready {
                // A relay that may not write learns so, and starts over.
                let can_write = state.can_write(rules, usize::from(r));
                actions.push(if can_write { Action::TakeRequest(r) } else { Action::Load(r) });
            }
            if relay.at.has_window() || log.last_row() > relay.at.done {
                actions.push(Action::Read(r));
            } else if standing(&relay.at, &state.redis) != Standing::InStep {
                actions.push(Action::Compare(r));
            }
        }
        Doing::Stopped { is_conflict } => {
            let has_moved = log.position.n != relay.at.n || state.incarnation != relay.session;
            if has_moved || !is_conflict && !state.needs_rebase(rules) {
                actions.push(Action::Load(r));
            }
        }
    }
}

/// The state after an action.
pub(super) fn apply(rules: &Rules, before: &State, action: Action) -> State {
    let mut state = before.clone();
    match action {
        Action::Commit { topic } => {
            state.log.events.push(Event { uuid: state.next_uuid, topic });
            state.next_uuid += 1;
            state.left.events -= 1;
        }
        Action::Load(r) => state.load(usize::from(r)),
        Action::Compare(r) => state.compare(rules, usize::from(r)),
        Action::Read(r) => state.read(rules, usize::from(r)),
        Action::TakeRequest(r) => state.take_request(rules, usize::from(r)),
        Action::Publish(r) => state.publish(rules, usize::from(r), None),
        Action::PublishFails { relay, at } => {
            state.left.failures -= 1;
            state.publish(rules, usize::from(relay), Some(usize::from(at)));
        }
        Action::WriteDown(r) => state.write_down(rules, usize::from(r)),
        Action::Kill(r) => {
            state.left.kills -= 1;
            state.relays[usize::from(r)].stop();
        }
        Action::Join | Action::Verify => state.reader.mode = Mode::Joining(vec![]),
        Action::ReadHistory => state.read_history(rules),
        Action::Leave => {
            state.left.departures -= 1;
            state.reader.mode = Mode::Away;
        }
        Action::Refuse { topic } => {
            state.left.refusals -= 1;
            state.refused |= 1 << topic;
        }
        Action::Mend { topic } => state.refused &= !(1 << topic),
        Action::Request { topic, is_discard } => state.request(topic, is_discard),
        Action::ClaimEpoch => state.claim(rules),
        Action::CommitRebase => state.commit_rebase(),
        Action::AbandonRebase => {
            state.left.kills -= 1;
            state.rebasing = None;
        }
        _ => store_fault(&mut state, action),
    }
    state
}

/// A store goes back or loses something.
fn store_fault(state: &mut State, action: Action) {
    match action {
        Action::CopyRedis => state.copy = Some(Box::new(state.redis.clone())),
        Action::BackUpPostgres => state.backup = Some(Box::new(state.log.clone())),
        Action::RedisGoesBack => {
            state.left.redis_goes_back -= 1;
            state.redis = state.copy.take().map(|copy| *copy).unwrap_or_default();
            state.causes.redis = true;
        }
        Action::RedisForgets => {
            state.left.redis_goes_back -= 1;
            state.redis = super::redis::Redis::default();
            state.copy = None;
            state.causes.redis = true;
        }
        Action::Vanish { topic } => {
            state.left.vanishes -= 1;
            state.causes.vanished |= topic == READ_TOPIC;
            state.redis.histories[usize::from(topic)].clear();
            state.causes.redis = true;
        }
        Action::Trim { topic } => {
            state.left.trims -= 1;
            state.redis.histories[usize::from(topic)].remove(0);
            state.causes.redis = true;
        }
        Action::Rotate => {
            state.left.rotations -= 1;
            state.log.steps.remove(0);
        }
        Action::PostgresGoesBack => {
            state.left.postgres_goes_back -= 1;
            if let Some(backup) = state.backup.take() {
                state.log = *backup;
            }
            state.incarnation += 1;
            state.rebasing = None;
            state.causes.postgres = true;
        }
        _ => {}
    }
}
