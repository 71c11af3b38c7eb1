//! The rules of the sink model that a mutant takes out, and the bounds of an exploration.

/// What the protocol does. A mutant turns one rule around.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The sink refuses a batch that begins above `top + 1`.
    pub(super) refuses_a_gap: bool,
    /// In an epoch that a rebase has begun, the sink refuses a batch as long as it does not know the epoch.
    pub(super) needs_the_claim: bool,
    /// A batch has one epoch, and the sink refuses one that mixes them.
    pub(super) one_epoch_a_batch: bool,
    /// The sink sets `top` on every return, also on one in the middle of a batch.
    pub(super) sets_top_on_errors: bool,
    /// What a repair cannot give back is recorded in the sink, so that the next `prev` of each topic shows
    /// the hole.
    pub(super) marks_what_is_lost: bool,
    /// A rebase claims its epoch in the sink before it looks at the histories and commits.
    pub(super) claims_the_epoch: bool,
    /// A request to discard or release takes the rows up to the one that it names.
    pub(super) requests_name_rows: bool,
    /// A repair gives every event that was published, also those of a topic that is held now.
    pub(super) repairs_held_topics: bool,
    /// A topic's first `prev` is empty only if the log has no earlier event of the topic.
    pub(super) first_is_known: bool,
    /// A release uses up a number of its own, which is written down before anything is published.
    pub(super) releases_use_up_a_number: bool,
    /// Before a discard, what the sink has of a release that broke off counts as released.
    pub(super) discards_ask_the_sink: bool,
    /// What may have arrived in a try that broke off, and that the sink has forgotten, is not discarded.
    pub(super) discards_spare_what_may_have_arrived: bool,
    /// The numbers of parked events are used up in the sink after they are written down as parked.
    pub(super) parks_before_it_uses_up: bool,
    /// The sink knows up to which number the log had recorded what it has used up without an event. A log that
    /// has not recorded them any more went back.
    pub(super) sink_knows_what_is_recorded: bool,
    /// A batch whose numbers the sink has used up has arrived, and changes nothing.
    pub(super) used_up_is_arrived: bool,
    /// A relay writes to the log by the session that holds the leader's lock: one that led before can write
    /// nothing more.
    pub(super) one_lead_in_the_log: bool,
    /// A reader compares each event's `prev` with the id before it.
    pub(super) reader_compares_prev: bool,
    /// A reader whose place is past the end of the history is reset.
    pub(super) reader_needs_its_place: bool,
    /// A reader whose place is before what was recorded as lost is reset, also while its topic is quiet.
    pub(super) reader_heeds_what_is_lost: bool,
    /// A rebase that finds Redis behind the position records everything of earlier epochs as lost.
    pub(super) rebase_marks_what_is_lost: bool,
}

impl Rules {
    pub(super) const PROTOCOL: Self = Self {
        refuses_a_gap: true,
        needs_the_claim: true,
        one_epoch_a_batch: true,
        sets_top_on_errors: true,
        marks_what_is_lost: true,
        claims_the_epoch: true,
        requests_name_rows: true,
        repairs_held_topics: true,
        first_is_known: true,
        releases_use_up_a_number: true,
        discards_ask_the_sink: true,
        discards_spare_what_may_have_arrived: true,
        parks_before_it_uses_up: true,
        sink_knows_what_is_recorded: true,
        used_up_is_arrived: true,
        one_lead_in_the_log: true,
        reader_compares_prev: true,
        reader_needs_its_place: true,
        reader_heeds_what_is_lost: true,
        rebase_marks_what_is_lost: true,
    };
}

/// How often each of these can happen in one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Bounds {
    /// Events that are committed at the beginning, of both topics together.
    pub(super) backlog: u8,
    /// Events that are committed later.
    pub(super) events: u8,
    /// Relays that take part, at most two.
    pub(super) relays: u8,
    /// Events of one batch.
    pub(super) batch: u8,
    /// Redis goes back to a copy that was taken at any time, or to nothing.
    pub(super) redis_goes_back: u8,
    /// The history of one topic vanishes.
    pub(super) vanishes: u8,
    /// The oldest entry of a history is trimmed.
    pub(super) trims: u8,
    /// The oldest kept step leaves the log.
    pub(super) rotations: u8,
    /// Postgres goes back to a copy that was taken at any time.
    pub(super) postgres_goes_back: u8,
    /// The log is moved and rebased although nothing went back.
    pub(super) moves: u8,
    /// The sink begins to refuse a topic's events.
    pub(super) refusals: u8,
    /// A script call fails in the middle.
    pub(super) failures: u8,
    /// A relay is killed.
    pub(super) kills: u8,
    /// The reader goes away and comes back later.
    pub(super) departures: u8,
    /// An operator discards parked events.
    pub(super) discards: u8,
    /// From every state, a run without faults is followed to its end.
    pub(super) runs: bool,
}
