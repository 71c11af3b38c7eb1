//! The log model with one rule taken out at a time: each must break a property.

use super::properties::{DELIVERED, NUMBERS, ORDER};
use super::{A_LAGGING_SERVER, Bounds, LATE_COMMITS, LogModel, Rules, TWO_RELAYS};
use crate::explore::assert_breaks;

fn breaks(name: &str, property: &'static str, rules: Rules, bounds: Bounds) {
    assert_breaks(name, property, LogModel { rules, bounds });
}

#[test]
fn without_the_fence_a_number_is_given_to_two_events() {
    breaks("no fence", NUMBERS, Rules { fence: false, ..Rules::PROTOCOL }, TWO_RELAYS);
}

#[test]
fn without_the_horizon_a_late_commit_is_lost() {
    breaks("no horizon", DELIVERED, Rules { horizon: false, ..Rules::PROTOCOL }, LATE_COMMITS);
}

#[test]
fn a_horizon_from_before_the_snapshot_loses_a_late_commit() {
    let rules = Rules { horizon_follows_the_snapshot: false, ..Rules::PROTOCOL };
    breaks("horizon before the snapshot", DELIVERED, rules, LATE_COMMITS);
}

#[test]
fn order_by_xid_turns_events_of_one_topic_around() {
    breaks("order by xid", ORDER, Rules { orders_by_id: false, ..Rules::PROTOCOL }, LATE_COMMITS);
}

#[test]
fn without_proof_of_the_checkpoint_a_lagging_server_loses_events() {
    let rules = Rules { proves_the_checkpoint: false, ..Rules::PROTOCOL };
    breaks("no checkpoint proof", DELIVERED, rules, A_LAGGING_SERVER);
}

#[test]
fn a_window_without_an_upper_bound_numbers_events_differently_each_time() {
    let rules = Rules { upper_bounds_the_window: false, ..Rules::PROTOCOL };
    breaks("no upper bound", NUMBERS, rules, TWO_RELAYS);
}
