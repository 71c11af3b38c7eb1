//! What can happen in the log model, one effect an action.

use std::fmt;

use super::rules::{Bounds, Rules, window_rows};
use super::state::{Batch, Position, Relay, State, TOPIC, WRITERS, Window, Writer};

/// Where a relay's reading connection ended up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    Primary,
    Replica,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Begin(u8),
    Append(u8),
    Commit(u8),
    RollBack(u8),
    Replicate,
    Load(u8),
    Look(u8),
    Open(u8),
    Read(u8, Server),
    Publish(u8),
    WriteDown(u8),
    Kill(u8),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin(w) => write!(f, "transaction {w} takes its xid"),
            Self::Append(w) => {
                write!(f, "transaction {w} takes its row's id (topic {})", TOPIC[usize::from(*w)])
            }
            Self::Commit(w) => write!(f, "transaction {w} commits"),
            Self::RollBack(w) => write!(f, "transaction {w} rolls back"),
            Self::Replicate => write!(f, "the replica catches up"),
            Self::Load(r) => write!(f, "relay {r} loads the newest checkpoint"),
            Self::Look(r) => write!(f, "relay {r} takes the snapshot of a new window"),
            Self::Open(r) => write!(f, "relay {r} takes the horizon and writes the window down"),
            Self::Read(r, Server::Primary) => write!(f, "relay {r} reads a batch"),
            Self::Read(r, Server::Replica) => write!(f, "relay {r} reads a batch from the replica"),
            Self::Publish(r) => write!(f, "relay {r} publishes its batch"),
            Self::WriteDown(r) => write!(f, "relay {r} writes the next checkpoint"),
            Self::Kill(r) => write!(f, "relay {r} is killed"),
        }
    }
}

/// Events that a relay reads at once.
const BATCH: usize = 2;

/// Adds every action that can happen in this state.
pub(super) fn enabled(rules: &Rules, bounds: &Bounds, state: &State, actions: &mut Vec<Action>) {
    for w in 0..bounds.writers {
        match state.writers[usize::from(w)] {
            Writer::Idle => actions.push(Action::Begin(w)),
            Writer::Begun { .. } if is_locked(state, usize::from(w)) => actions.push(Action::RollBack(w)),
            Writer::Begun { .. } => actions.extend([Action::Append(w), Action::RollBack(w)]),
            Writer::Appended(_) => actions.extend([Action::Commit(w), Action::RollBack(w)]),
            Writer::Committed(_) | Writer::RolledBack => {}
        }
    }
    if bounds.has_replica
        && (state.replica.committed, state.replica.rows) != (state.committed(), state.newest())
    {
        actions.push(Action::Replicate);
    }
    for r in 0..bounds.relays {
        relay_steps(rules, bounds, state, r, actions);
        if state.kills_left > 0 && state.relays[usize::from(r)] != Relay::Down {
            actions.push(Action::Kill(r));
        }
    }
}

/// Adds what a relay does by itself in this state.
pub(super) fn relay_steps(rules: &Rules, bounds: &Bounds, state: &State, r: u8, actions: &mut Vec<Action>) {
    match &state.relays[usize::from(r)] {
        Relay::Down => actions.push(Action::Load(r)),
        Relay::At { position, .. } if position.window.is_none() => {
            if !rows_between(rules, state, position, state.snapshot()).is_empty() {
                actions.push(Action::Look(r));
            }
        }
        Relay::At { n, .. } => {
            actions.push(Action::Read(r, Server::Primary));
            let is_proven = state.replica.rows >= *n || !rules.proves_the_checkpoint;
            if bounds.has_replica && is_proven {
                actions.push(Action::Read(r, Server::Replica));
            }
        }
        Relay::Opening { .. } => actions.push(Action::Open(r)),
        Relay::Holding { .. } => actions.push(Action::Publish(r)),
        Relay::Published { .. } => actions.push(Action::WriteDown(r)),
    }
}

/// The row lock of a topic: whoever has appended to it holds it until the end of its transaction.
fn is_locked(state: &State, writer: usize) -> bool {
    (0..WRITERS).any(|other| {
        other != writer
            && TOPIC[other] == TOPIC[writer]
            && matches!(state.writers[other], Writer::Appended(_))
    })
}

/// The rows of a window from the position's place up to a snapshot, as the primary holds them.
fn rows_between(rules: &Rules, state: &State, from: &Position, upper: super::state::Snapshot) -> Vec<u8> {
    let window = Window { upper, upper_horizon: 0, after_id: 0 };
    window_rows(rules, state, state.committed(), &Position { window: Some(window), ..*from })
}

/// The state after an action.
pub(super) fn apply(rules: &Rules, before: &State, action: Action) -> State {
    let mut state = before.clone();
    match action {
        Action::Begin(w) => state.writers[usize::from(w)] = Writer::Begun { xid: state.take_xid() },
        Action::Append(w) | Action::Commit(w) | Action::RollBack(w) => write(&mut state, w, action),
        Action::Replicate => {
            state.replica.committed = before.committed();
            state.replica.rows = before.newest();
        }
        Action::Load(r) => {
            let n = state.newest();
            state.relays[usize::from(r)] = Relay::At { n, position: state.checkpoints[usize::from(n) - 1] };
        }
        Action::Kill(r) => {
            state.kills_left -= 1;
            state.relays[usize::from(r)] = Relay::Down;
        }
        Action::Look(r)
        | Action::Open(r)
        | Action::Read(r, _)
        | Action::Publish(r)
        | Action::WriteDown(r) => {
            let relay = std::mem::replace(&mut state.relays[usize::from(r)], Relay::Down);
            let after = step(rules, &mut state, relay, action);
            state.relays[usize::from(r)] = after;
        }
    }
    state
}

fn write(state: &mut State, w: u8, action: Action) {
    let writer = &mut state.writers[usize::from(w)];
    match (*writer, action) {
        (Writer::Begun { xid }, Action::Append(_)) => {
            *writer = Writer::Appended(super::state::Row { xid, id: state.next_id });
            state.next_id += 1;
        }
        (Writer::Appended(row), Action::Commit(_)) => {
            *writer = Writer::Committed(row);
            state.end(row.xid);
        }
        (Writer::Appended(super::state::Row { xid, .. }) | Writer::Begun { xid }, _) => {
            *writer = Writer::RolledBack;
            state.end(xid);
        }
        _ => {}
    }
}

/// One step of a relay: what it holds afterwards.
fn step(rules: &Rules, state: &mut State, relay: Relay, action: Action) -> Relay {
    match relay {
        Relay::At { n, position } => match action {
            Action::Read(_, server) => read(rules, state, n, position, server),
            _ => {
                let horizon = (!rules.horizon_follows_the_snapshot).then_some(state.completed + 1);
                Relay::Opening { n, position, snapshot: state.snapshot(), horizon }
            }
        },
        Relay::Opening { n, position, snapshot, horizon } => {
            let xid = state.take_xid();
            state.end(xid);
            let upper_horizon = horizon.unwrap_or(xid);
            let window = Window { upper: snapshot, upper_horizon, after_id: 0 };
            insert(rules, state, n, Position { window: Some(window), ..position })
        }
        Relay::Holding { n, position, batch } => {
            publish(state, position.next_seq, &batch.events);
            Relay::Published { n, position, batch }
        }
        Relay::Published { n, position, batch } => write_down(rules, state, n, &position, &batch),
        Relay::Down => Relay::Down,
    }
}

fn read(rules: &Rules, state: &State, n: u8, position: Position, server: Server) -> Relay {
    let committed = match server {
        Server::Primary => state.committed(),
        Server::Replica => state.replica.committed,
    };
    let mut events = window_rows(rules, state, committed, &position);
    let is_last = events.len() <= BATCH;
    events.truncate(BATCH);
    let after_id = position.window.map_or(0, |window| window.after_id);
    let last_id = events.iter().filter_map(|w| state.row(*w)).map(|row| row.id).max().unwrap_or(after_id);
    Relay::Holding { n, position, batch: Batch { events, last_id, is_last } }
}

/// The sink: a repeat changes nothing, and a number is given to one event only.
fn publish(state: &mut State, first: u8, events: &[u8]) {
    for (seq, event) in (usize::from(first)..).zip(events) {
        match state.published.get(seq - 1) {
            Some(known) if known == event => {}
            Some(_) => state.has_conflict = true,
            None => state.published.push(*event),
        }
    }
}

/// `checkpoint::advance` and `checkpoint::close_window`: one statement, whose snapshot opens the next window.
fn write_down(rules: &Rules, state: &mut State, n: u8, from: &Position, batch: &Batch) -> Relay {
    let Some(window) = from.window else { return Relay::Down };
    let next_seq = from.next_seq + u8::try_from(batch.events.len()).expect("a small batch");
    let snapshot = state.snapshot();
    let xid = state.take_xid();
    state.end(xid);
    if !batch.is_last {
        let window = Some(Window { after_id: batch.last_id, ..window });
        return insert(rules, state, n, Position { window, next_seq, ..*from });
    }
    let mut to = Position {
        lower: window.upper,
        lower_horizon: window.upper_horizon,
        high_id: from.high_id.max(window.after_id).max(batch.last_id),
        window: None,
        next_seq,
    };
    if !rows_between(rules, state, &to, snapshot).is_empty() {
        let horizon_before = snapshot.xmax;
        let upper_horizon = if rules.horizon_follows_the_snapshot { xid } else { horizon_before };
        to.window = Some(Window { upper: snapshot, upper_horizon, after_id: 0 });
    }
    insert(rules, state, n, to)
}

/// Inserts row n + 1. The primary key refuses one that is there: the relay then starts over.
fn insert(rules: &Rules, state: &mut State, n: u8, to: Position) -> Relay {
    if state.newest() == n {
        state.checkpoints.push(to);
    } else if rules.fence {
        return Relay::Down;
    } else {
        state.checkpoints[usize::from(n)] = to;
    }
    Relay::At { n: n + 1, position: to }
}
