//! The fifth number: resets that no fault explains.
//!
//! A fault explains a reset if it can cause one, on the topic that it hit, from its beginning until some time
//! after its end. Most faults must cause none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aftercommit::event::StreamId;

use crate::clients::{Received, Seen};
use crate::kinds::{Kind, Reach};
use crate::ledger::Deed;
use crate::repairs::Repairs;

/// The time after Redis is readable again in which a server resets the clients that it accepted without
/// reading it.
const SIGHT: Duration = Duration::from_secs(8);

/// The time in which a relay restores what Redis has lost, where it was not seen to be whole.
const REPAIR: Duration = Duration::from_secs(20);

const FOREVER: Duration = Duration::from_secs(1 << 20);

/// A reset without a cause.
#[derive(Debug, Clone)]
pub(crate) struct Causeless {
    pub(crate) channel: usize,
    pub(crate) reason: String,
    pub(crate) at: Instant,
}

/// The resets since the begin of a round that nothing in it explains. At its begin, every client has
/// everything.
pub(crate) fn without_cause(
    seen: &[Seen],
    begun: Instant,
    deeds: &[Deed],
    repairs: &Repairs,
) -> Vec<Causeless> {
    let mut found = Vec::new();
    for client in seen {
        let mut before = Vec::new();
        for received in &client.received {
            let Received::Reset { from, reason, at, .. } = received else { continue };
            let reset = Reset { channel: client.channel, from: *from, reason, at: *at, before: &before };
            if *at >= begun && !deeds.iter().any(|deed| reset.is_explained_by(deed, repairs)) {
                found.push(Causeless { channel: client.channel, reason: reason.clone(), at: *at });
            }
            before.push(*at);
        }
    }
    found
}

/// The number of resets by reason.
pub(crate) fn by_reason(found: &[Causeless]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for reset in found {
        *counts.entry(reset.reason.clone()).or_default() += 1;
    }
    counts
}

/// A reset of a client.
struct Reset<'a> {
    channel: usize,
    /// The client's place before it.
    from: Option<StreamId>,
    reason: &'a str,
    at: Instant,
    /// When the client was reset before.
    before: &'a [Instant],
}

impl Reset<'_> {
    fn is_explained_by(&self, deed: &Deed, repairs: &Repairs) -> bool {
        // The place of a client of a topic without events is a time; and where Redis is away, that is hidden
        // until it can be judged.
        let is_time = self.from.is_some_and(|from| from.epoch == 0);
        let is_first_since = !self.before.iter().any(|before| *before >= deed.from);
        let (reach, time) = match self.reason {
            "joined_late" => (deed.kind.blinds(), SIGHT),
            "history_gone" if is_time && deed.kind.steps_clocks() => (Some(Reach::EveryTopic), REPAIR),
            // A new epoch shows with the next event of a topic, however late that comes.
            "unknown_id" | "history_gone" | "gap" if deed.kind == Kind::SequenceReset && is_first_since => {
                (Some(Reach::EveryTopic), FOREVER)
            }
            "unknown_id" | "history_gone" | "gap" => {
                let whole = repairs.after(deed.until).map(|whole| whole - deed.until + SIGHT);
                (deed.kind.loses(), whole.unwrap_or(FOREVER).max(REPAIR))
            }
            // A client that comes back from an earlier epoch is told, however late.
            "rebased" => ((deed.kind == Kind::SequenceReset).then_some(Reach::EveryTopic), FOREVER),
            _ => (None, Duration::ZERO),
        };
        let reaches = match reach {
            Some(Reach::EveryTopic) => true,
            Some(Reach::ItsTopic) => deed.channel == self.channel,
            None => false,
        };
        reaches && deed.from <= self.at && self.at <= deed.until + time
    }
}
