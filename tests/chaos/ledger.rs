//! The faults and actions of a run with their times: the judges look here for causes.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Instant;

use aftercommit::event::StreamId;

use crate::kinds::Kind;

/// A fault that was made.
#[derive(Debug, Clone)]
pub(crate) struct Deed {
    pub(crate) kind: Kind,
    /// The topic that it hit, if it hit one.
    pub(crate) channel: usize,
    pub(crate) from: Instant,
    pub(crate) until: Instant,
}

/// A request to discard: the events of a topic that were parked when the operator looked, up to the id that
/// the operator named.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) channel: usize,
    pub(crate) named: HashSet<StreamId>,
    /// Whether the operator gives them up although clients may have received them.
    pub(crate) also_arrived: bool,
}

/// Facts for the judges besides the faults.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    requests: Mutex<Vec<Request>>,
    vanished: Mutex<HashMap<usize, StreamId>>,
    forged: Mutex<HashMap<usize, Vec<String>>>,
}

impl Ledger {
    pub(crate) fn asked(&self, request: Request) {
        self.requests.lock().expect("requests").push(request);
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("requests").clone()
    }

    /// Whether an operator gave this event up although clients may have received it.
    pub(crate) fn may_have_arrived(&self, channel: usize, id: StreamId) -> bool {
        let requests = self.requests.lock().expect("requests");
        requests
            .iter()
            .any(|request| request.also_arrived && request.channel == channel && request.named.contains(&id))
    }

    /// A topic's history up to this id was destroyed for good: the relay repairs a Redis that lost data, but
    /// not a single deleted history.
    pub(crate) fn destroyed(&self, channel: usize, through: StreamId) {
        let mut vanished = self.vanished.lock().expect("what vanished");
        let at = vanished.entry(channel).or_insert(through);
        *at = through.max(*at);
    }

    /// The last id that a topic's history may lack.
    pub(crate) fn may_lack(&self, channel: usize) -> Option<StreamId> {
        self.vanished.lock().expect("what vanished").get(&channel).copied()
    }

    /// A message that no relay published.
    pub(crate) fn forged(&self, channel: usize, message: String) {
        self.forged.lock().expect("messages").entry(channel).or_default().push(message);
    }

    /// Whether somebody else published this on a topic's public channel.
    pub(crate) fn was_forged(&self, channel: usize, told: &str) -> bool {
        let forged = self.forged.lock().expect("messages");
        forged.get(&channel).is_some_and(|messages| messages.iter().any(|message| message == told))
    }
}
