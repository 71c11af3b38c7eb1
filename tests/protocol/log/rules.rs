//! The rules of the log model that a mutant takes out, and the reading rule itself.

use super::state::{Position, State, Writer};

/// What the protocol does. Each flag is true in the protocol; a mutant sets one to false.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// A checkpoint row's primary key lets one relay write it.
    pub(super) fence: bool,
    /// The reading rule asks for the xids from `lower`'s xmax up to its horizon too.
    pub(super) horizon: bool,
    /// The horizon is an xid assigned after the snapshot was taken.
    pub(super) horizon_follows_the_snapshot: bool,
    /// Rows are ordered by id, not by xid.
    pub(super) orders_by_id: bool,
    /// The query that reads a batch proves that it sees the checkpoint of its window.
    pub(super) proves_the_checkpoint: bool,
    /// Rows that `upper` does not see are left for a later window.
    pub(super) upper_bounds_the_window: bool,
}

/// How much of everything there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Transactions, at most [`super::state::WRITERS`].
    pub(super) writers: u8,
    /// Relays that take part, at most two.
    pub(super) relays: u8,
    /// How often a relay can be killed.
    pub(super) kills: u8,
    /// There is a server that lags, and reads may end up there.
    pub(super) has_replica: bool,
}

impl Rules {
    pub(super) const PROTOCOL: Self = Self {
        fence: true,
        horizon: true,
        horizon_follows_the_snapshot: true,
        orders_by_id: true,
        proves_the_checkpoint: true,
        upper_bounds_the_window: true,
    };
}

/// `outbox.window_rows`: the rows of the position's window after `after_id`, by writer, of those that a
/// server holds.
pub(super) fn window_rows(rules: &Rules, state: &State, committed: u8, position: &Position) -> Vec<u8> {
    let Some(window) = position.window else { return Vec::new() };
    let mut rows: Vec<(u8, u8, u8)> = Vec::new();
    for (w, writer) in (0_u8..).zip(&state.writers) {
        let Writer::Committed(row) = writer else { continue };
        let was_running = position.lower.was_running(row.xid)
            || rules.horizon && row.xid >= position.lower.xmax && row.xid < position.lower_horizon;
        let is_late = row.id <= position.high_id && was_running;
        let is_new = row.id > position.high_id && !position.lower.sees(row.xid);
        let is_visible = window.upper.sees(row.xid) || !rules.upper_bounds_the_window;
        let is_there = committed & (1 << w) != 0;
        if is_there && is_visible && row.id > window.after_id && (is_late || is_new) {
            let order = if rules.orders_by_id { row.id } else { row.xid };
            rows.push((order, row.id, w));
        }
    }
    rows.sort_unstable();
    rows.into_iter().map(|(_, _, w)| w).collect()
}
