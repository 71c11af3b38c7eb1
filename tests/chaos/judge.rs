//! Comparison of Redis and of each client with the log.

use std::collections::{HashMap, HashSet};

use aftercommit::event::StreamId;

use crate::clients::{Received, Seen, State};
use crate::ledger::Ledger;
use crate::payload;
use crate::report::Numbers;
use crate::truth::{ChannelTruth, Row, Truth};

/// The log's own numbers: a topic's events are published in the order in which they were written, and copies
/// in the order of their originals.
pub(crate) fn of_log(truth: &Truth, seed: u64) -> Numbers {
    let mut numbers = Numbers { invented: truth.altered, ..Numbers::default() };
    for channel in &truth.channels {
        // Of what writers wrote, and of each replay.
        let mut last: HashMap<Option<i64>, i64> = HashMap::new();
        for row in &channel.rows {
            // Writers take their keys while they hold the topic.
            let key = payload::key_of(seed, row.event_id);
            let Some((of, place)) = row
                .copy_of
                .map(|(replay, original)| (Some(replay), original))
                .or_else(|| Some((None, key?.cast_signed())))
            else {
                continue;
            };
            let last = last.entry(of).or_insert(place);
            if place < *last {
                numbers.reordered += 1;
                eprintln!("out of order in the log: {place} behind {last}: {row:?}");
            }
            *last = place.max(*last);
        }
    }
    numbers
}

/// Redis's histories against the log, byte for byte.
pub(crate) fn of_redis(truth: &Truth, ledger: &Ledger) -> Numbers {
    let mut numbers = Numbers::default();
    for (channel, of) in truth.channels.iter().enumerate() {
        numbers.add(&of_history(of, ledger, channel));
    }
    numbers
}

fn of_history(of: &ChannelTruth, ledger: &Ledger, channel: usize) -> Numbers {
    let may_lack = ledger.may_lack(channel);
    let mut numbers = Numbers::default();
    let by_id: HashMap<StreamId, &Row> =
        of.rows.iter().filter_map(|row| Some((row.stream_id?, row))).collect();
    let events: HashSet<_> = of.rows.iter().map(|row| row.event_id).collect();
    let (mut seen, mut last) = (HashSet::new(), None);
    for entry in &of.history {
        let fits = |row: &&&Row| {
            Some(row.event_id) == entry.event_id
                && row.event_type == entry.event_type
                && row.payload == entry.payload
        };
        match entry.id.and_then(|id| by_id.get(&id)).filter(fits) {
            Some(row) if seen.insert(row.id) => numbers.reordered += usize::from(entry.id <= last),
            Some(_) => numbers.repeated += 1,
            None if entry
                .id
                .is_some_and(|id| of.discarded.contains_key(&id) && ledger.may_have_arrived(channel, id)) => {
            }
            // Under an id that the log does not give it: it is there twice, or only there.
            None if entry.event_id.is_some_and(|event_id| events.contains(&event_id)) => {
                numbers.repeated += 1
            }
            None => numbers.invented += 1,
        }
        last = entry.id.or(last);
    }
    let epoch = of.epoch();
    let is_lost = |row: &&Row| {
        let was_destroyed = row.stream_id.zip(may_lack).is_some_and(|(id, through)| id <= through);
        let is_of_the_past = row.stream_id.map_or(row.was_told_before, |id| id.epoch < epoch);
        !seen.contains(&row.id) && !was_destroyed && !is_of_the_past
    };
    numbers.lost = of.rows.iter().filter(is_lost).count();
    numbers
}

/// What each client received against the log, from where it began to listen.
pub(crate) fn of_clients(truth: &Truth, ledger: &Ledger, seen: &[Seen]) -> Numbers {
    let mut numbers = Numbers::default();
    for client in seen {
        numbers.add(&of_client(&truth.channels[client.channel], ledger, client));
    }
    numbers
}

/// The events that a client was told between two resets, or before the first one.
struct Account<'a> {
    of: &'a ChannelTruth,
    ledger: &'a Ledger,
    channel: usize,
    rows: &'a [Row],
    places: &'a HashMap<StreamId, usize>,
    /// The first row that the client must receive.
    from: usize,
    /// The state that its page has fetched: these rows may be missing, of the earlier epochs or of all.
    state: Option<&'a State>,
    /// The first epoch whose rows it must be told, also those that its page has fetched.
    strict_from: u64,
    /// The reason of the reset that it begins with.
    reason: Option<&'a str>,
    /// Behind the last row that it was told of.
    end: usize,
    told: HashSet<usize>,
    numbers: Numbers,
}

impl<'a> Account<'a> {
    fn new(
        (of, ledger, channel): (&'a ChannelTruth, &'a Ledger, usize),
        places: &'a HashMap<StreamId, usize>,
        behind: Option<StreamId>,
        reset: Option<(&'a str, &'a State)>,
    ) -> Self {
        let rows = &of.rows;
        let from = behind.map_or(0, |id| {
            rows.iter().position(|row| row.stream_id.is_some_and(|of| of > id)).unwrap_or(rows.len())
        });
        let (reason, state) = (reset.map(|(reason, _)| reason), reset.map(|(_, state)| state));
        let strict_from = match behind {
            Some(id) if reason == Some("rebased") => id.epoch + 1,
            Some(id) if id.epoch > 0 => 0,
            // A place that names no event says nothing of where it is: what the page has fetched, it may be
            // told again or not.
            _ => u64::MAX,
        };
        let mut account = Self {
            of,
            ledger,
            channel,
            rows,
            places,
            from,
            state,
            strict_from,
            reason,
            end: from,
            told: HashSet::new(),
            numbers: Numbers::default(),
        };
        if let Some(state) = state {
            // All that was published before the place was committed before the page looked. Where a row
            // without a number stands is only guessed.
            let is_lost = |row: &&Row| !row.is_unnumbered() && !state.contains(&row.event_id);
            let lost = rows[..from].iter().filter(is_lost).count();
            if lost > 0 {
                let first = rows[..from].iter().find(is_lost);
                eprintln!(
                    "a client was reset to {behind:?}, and its page lacked {lost}, the first of them \
                     {first:?}"
                );
            }
            account.numbers.lost += lost;
        }
        account
    }

    fn event(&mut self, id: Option<StreamId>, told: u64, name_fits: bool) {
        let before = self.numbers;
        let place = id.and_then(|id| self.places.get(&id).copied());
        match place.map(|place| (place, &self.rows[place])) {
            Some((_, row)) if row.told != told || !name_fits => self.numbers.invented += 1,
            None if name_fits && self.has_another_id_by_now(id, told) => {}
            None if name_fits && id.is_some_and(|id| self.was_given_up(id, told)) => {}
            None => self.numbers.invented += 1,
            Some((place, _)) if place < self.from || !self.told.insert(place) => self.numbers.repeated += 1,
            Some((place, _)) if place < self.end => self.numbers.reordered += 1,
            Some((place, _)) => self.end = place + 1,
        }
        if before != self.numbers {
            let from = self.rows.get(self.from).and_then(|row| row.stream_id);
            let same = self.rows.iter().find(|row| row.told == told);
            let discarded = self.of.discarded.iter().find(|(_, given_up)| given_up.told == told);
            let shown = id.map(|id| id.to_string());
            eprintln!(
                "a client was told {shown:?} (row {place:?}): {}; it was to be told from {from:?} on; the \
                 same data: {same:?}, {discarded:?}",
                self.numbers
            );
        }
    }

    /// Whether the client received this event before a rebase that no longer found it in Redis. The relay
    /// then publishes it again in the next epoch, after the reset.
    fn has_another_id_by_now(&self, id: Option<StreamId>, told: u64) -> bool {
        let is_later = |row: &Row| {
            row.stream_id.map_or(row.was_told_before, |of| id.is_some_and(|id| of.epoch > id.epoch))
        };
        self.rows.iter().any(|row| row.told == told && is_later(row))
    }

    /// Whether an operator gave this event up although clients may have received it: under this id, or under
    /// the one that it was parked with after a rebase that no longer found it in Redis.
    fn was_given_up(&self, id: StreamId, told: u64) -> bool {
        self.of.discarded.iter().any(|(of, given_up)| {
            given_up.told == told
                && (*of == id || of.epoch > id.epoch)
                && self.ledger.may_have_arrived(self.channel, *of)
        })
    }

    /// Whether the client's page has this row from Postgres and need not be told.
    ///
    /// At the end of an epoch the page fetches all that was committed by then. A Redis that had lost events
    /// of that epoch is not given them again, and a page that has fetched them lacks nothing.
    fn has_fetched(&self, row: &Row) -> bool {
        row.stream_id.is_none_or(|id| id.epoch < self.strict_from)
            && self.state.is_some_and(|state| state.contains(&row.event_id))
    }

    fn close(mut self, to_the_end: bool) -> Numbers {
        let end = if to_the_end { self.rows.len() } else { self.end };
        let is_lost = |place: &usize| {
            let row = &self.rows[*place];
            !self.told.contains(place) && !self.has_fetched(row) && !row.is_unnumbered()
        };
        let lost = (self.from..end).filter(is_lost).count();
        if lost > 0 {
            let first = (self.from..end).find(is_lost).map(|place| &self.rows[place]);
            let told = self.told.iter().min().map(|place| &self.rows[*place]);
            eprintln!(
                "a client that was reset as {:?} was not told {lost} rows from {} to {end}, the first of them \
                 {first:?}; it was told {} from {told:?} on",
                self.reason,
                self.from,
                self.told.len()
            );
        }
        self.numbers.lost += lost;
        self.numbers
    }
}

fn of_client(of: &ChannelTruth, ledger: &Ledger, client: &Seen) -> Numbers {
    let places: HashMap<StreamId, usize> =
        of.rows.iter().enumerate().filter_map(|(place, row)| Some((row.stream_id?, place))).collect();
    let of_topic = (of, ledger, client.channel);
    let mut numbers = Numbers::default();
    let mut foreign = HashSet::new();
    let Some(begun) = client.begun else { return numbers };
    let mut account = Account::new(of_topic, &places, Some(begun), None);
    for received in &client.received {
        match received {
            Received::Event { id, name_fits, told, .. } => account.event(*id, *told, *name_fits),
            Received::Foreign { data, connection } => {
                // Each of them is published once, and no two are alike. It has no id by which a client that
                // comes to the other server, which is slower, could be spared it.
                let (is_known, is_new) =
                    (ledger.was_forged(client.channel, data), foreign.insert((connection, data)));
                if !is_known || !is_new {
                    let shown: String = data.chars().take(100).collect();
                    eprintln!("a client was told without an id (known {is_known}, new {is_new}): {shown}");
                }
                numbers.invented += usize::from(!is_known);
                numbers.repeated += usize::from(!is_new);
            }
            Received::Reset { id, state, fits, reason, .. } => {
                numbers.resets += 1;
                numbers.invented += usize::from(!fits);
                let next =
                    Account::new(of_topic, &places, *id, state.get().map(|state| (reason.as_str(), state)));
                numbers.add(&std::mem::replace(&mut account, next).close(false));
            }
        }
    }
    numbers.add(&account.close(true));
    numbers
}
