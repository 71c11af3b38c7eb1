//! The sink model with one rule turned around at a time: each must break a property.

use super::properties::{DELIVERED, GIVEN_UP, LOST, NAMED, TWICE};
use super::{Bounds, QUIET, Rules, SinkModel};
use crate::explore::assert_breaks;

fn breaks(name: &str, property: &'static str, rules: Rules, bounds: Bounds) {
    assert_breaks(name, property, SinkModel { rules, bounds });
}

#[test]
fn without_the_gap_check_a_redis_that_went_back_hides_events() {
    let bounds = Bounds { redis_goes_back: 1, batch: 1, departures: 1, kills: 1, ..QUIET };
    breaks("no GAP check", LOST, Rules { refuses_a_gap: false, ..Rules::PROTOCOL }, bounds);
}

#[test]
fn a_release_that_mixes_epochs_loses_events() {
    let bounds = Bounds { refusals: 1, moves: 1, ..QUIET };
    breaks(
        "epochs mixed in a batch",
        DELIVERED,
        Rules { one_epoch_a_batch: false, ..Rules::PROTOCOL },
        bounds,
    );
}

#[test]
fn top_not_set_on_an_early_error_is_a_conflict_that_never_heals() {
    let bounds = Bounds { backlog: 3, events: 0, batch: 3, failures: 1, trims: 1, ..QUIET };
    breaks(
        "top not set on an early error",
        DELIVERED,
        Rules { sets_top_on_errors: false, ..Rules::PROTOCOL },
        bounds,
    );
}

#[test]
fn a_partial_repair_without_a_mark_hides_events() {
    let bounds =
        Bounds { redis_goes_back: 1, backlog: 3, events: 0, rotations: 2, batch: 1, departures: 1, ..QUIET };
    breaks("a repair without a mark", LOST, Rules { marks_what_is_lost: false, ..Rules::PROTOCOL }, bounds);
}

#[test]
fn a_rebase_that_does_not_claim_its_epoch_lets_an_old_leader_publish() {
    let bounds = Bounds { moves: 1, relays: 2, ..QUIET };
    breaks("a rebase without a claim", TWICE, Rules { claims_the_epoch: false, ..Rules::PROTOCOL }, bounds);
}

#[test]
fn a_discard_without_named_rows_takes_later_ones() {
    let bounds = Bounds { refusals: 1, discards: 1, ..QUIET };
    let rules = Rules { requests_name_rows: false, ..Rules::PROTOCOL };
    breaks("a discard takes later rows", NAMED, rules, bounds);
    breaks("a discard takes later rows", DELIVERED, rules, bounds);
}

#[test]
fn a_discard_that_does_not_ask_the_sink_gives_up_what_was_told() {
    let bounds = Bounds { refusals: 1, discards: 1, kills: 1, ..QUIET };
    // A discard that is told not to spare what may have arrived has only this proof.
    let rules = Rules {
        discards_ask_the_sink: false,
        discards_spare_what_may_have_arrived: false,
        ..Rules::PROTOCOL
    };
    breaks("a discard behind a release that broke off", GIVEN_UP, rules, bounds);
}

#[test]
fn a_discard_of_what_may_have_arrived_gives_up_what_was_told() {
    let bounds = Bounds { refusals: 1, discards: 1, redis_goes_back: 1, events: 0, kills: 1, ..QUIET };
    let rules = Rules { discards_spare_what_may_have_arrived: false, ..Rules::PROTOCOL };
    breaks("a discard of what Redis has forgotten", GIVEN_UP, rules, bounds);
}

#[test]
fn an_empty_prev_behind_a_vanished_history_hides_events() {
    let bounds = Bounds { vanishes: 1, kills: 1, departures: 1, ..QUIET };
    breaks("first not known", LOST, Rules { first_is_known: false, ..Rules::PROTOCOL }, bounds);
}

#[test]
fn a_reader_that_does_not_compare_prev_misses_events() {
    let bounds = Bounds { trims: 1, departures: 1, ..QUIET };
    breaks("prev not compared", LOST, Rules { reader_compares_prev: false, ..Rules::PROTOCOL }, bounds);
}

#[test]
fn a_reader_that_goes_live_behind_a_vanished_history_misses_events() {
    let bounds = Bounds { vanishes: 1, departures: 1, ..QUIET };
    breaks("place not needed", DELIVERED, Rules { reader_needs_its_place: false, ..Rules::PROTOCOL }, bounds);
}

#[test]
fn a_reader_that_does_not_heed_what_is_lost_waits_for_ever() {
    let bounds = Bounds { redis_goes_back: 1, rotations: 1, departures: 1, ..QUIET };
    breaks(
        "lost not heeded",
        DELIVERED,
        Rules { reader_heeds_what_is_lost: false, ..Rules::PROTOCOL },
        bounds,
    );
}

#[test]
fn a_repair_that_leaves_out_held_topics_loses_events() {
    let bounds = Bounds { redis_goes_back: 1, refusals: 1, departures: 1, ..QUIET };
    breaks(
        "repair leaves out held topics",
        DELIVERED,
        Rules { repairs_held_topics: false, ..Rules::PROTOCOL },
        bounds,
    );
}

#[test]
fn a_rebase_that_does_not_look_whether_redis_is_behind_hides_what_is_lost() {
    let bounds = Bounds { redis_goes_back: 1, moves: 1, ..QUIET };
    let rules = Rules { rebase_marks_what_is_lost: false, ..Rules::PROTOCOL };
    breaks("a rebase marks nothing", DELIVERED, rules, bounds);
}

#[test]
fn an_epoch_that_the_sink_need_not_know_hides_that_redis_went_back() {
    let bounds = Bounds { redis_goes_back: 1, moves: 1, ..QUIET };
    breaks("no claim needed", DELIVERED, Rules { needs_the_claim: false, ..Rules::PROTOCOL }, bounds);
}

#[test]
fn a_release_under_old_numbers_is_lost_by_a_redis_that_went_back() {
    let bounds = Bounds { refusals: 1, redis_goes_back: 1, ..QUIET };
    let rules = Rules { releases_use_up_a_number: false, ..Rules::PROTOCOL };
    breaks("a release leaves no trace in top", DELIVERED, rules, bounds);
}

#[test]
fn both_stores_going_back_gives_a_number_to_two_events() {
    let bounds = Bounds { backlog: 0, events: 2, postgres_goes_back: 1, redis_goes_back: 1, ..QUIET };
    breaks("both stores go back", DELIVERED, Rules::PROTOCOL, bounds);
}

#[test]
fn a_frozen_leader_begins_a_vanished_history_anew_and_hides_events() {
    let bounds = Bounds { events: 0, vanishes: 1, relays: 2, batch: 1, ..QUIET };
    let rules = Rules { used_up_is_arrived: false, ..Rules::PROTOCOL };
    breaks("a frozen leader and a vanished history", DELIVERED, rules, bounds);
}

#[test]
fn a_number_used_up_before_its_event_is_written_down_as_parked_hides_a_loss() {
    let bounds = Bounds { backlog: 1, events: 0, refusals: 1, redis_goes_back: 1, relays: 2, ..QUIET };
    let rules = Rules { parks_before_it_uses_up: false, ..Rules::PROTOCOL };
    breaks("a parked number used up too early", DELIVERED, rules, bounds);
}

const TWO: Bounds = Bounds { backlog: 1, events: 0, refusals: 1, redis_goes_back: 1, relays: 2, ..QUIET };

#[test]
fn a_frozen_leader_that_may_write_hides_a_release() {
    let rules = Rules { one_lead_in_the_log: false, ..Rules::PROTOCOL };
    breaks("two leads in the log", DELIVERED, rules, TWO);
}

#[test]
fn a_number_that_the_log_has_forgotten_again_hides_a_parked_event() {
    let bounds = Bounds { backlog: 1, events: 1, refusals: 1, postgres_goes_back: 1, ..QUIET };
    let rules = Rules { sink_knows_what_is_recorded: false, ..Rules::PROTOCOL };
    breaks("a recorded number that the log has forgotten", DELIVERED, rules, bounds);
}
