//! The parts of a chunk: which server takes which events, and which numbers it uses up. No I/O.

use std::time::{Duration, Instant};

use super::chunk::Chunk;
use super::server::Server;
use crate::event::{StreamId, Topic};
use crate::relay::{Delivery, PublishMode};

/// A server without events is told this often which numbers the position has passed. So its top is at most
/// this old, and after a restart only the events since then are compared with the log.
const MOVED_EVERY: Duration = Duration::from_secs(1);

/// The part of a chunk that one server takes.
#[derive(Debug)]
pub(super) struct Part<'a> {
    /// The server's index.
    pub(super) server: usize,
    /// The index of each event in the chunk.
    pub(super) at: Vec<usize>,
    deliveries: Vec<Delivery<'a>>,
    through: Option<StreamId>,
    whole: Chunk<'a>,
}

impl Part<'_> {
    /// The part as a chunk of its own.
    pub(super) fn chunk(&self) -> Chunk<'_> {
        Chunk { deliveries: &self.deliveries, through: self.through, ..self.whole }
    }
}

/// Returns the part of the only server: the whole chunk.
pub(super) fn only_part(chunk: Chunk<'_>) -> Part<'_> {
    Part {
        server: 0,
        at: (0..chunk.deliveries.len()).collect(),
        deliveries: chunk.deliveries.to_vec(),
        through: chunk.through,
        whole: chunk,
    }
}

/// Divides a chunk among the servers of a cluster. `owner` is the index of the server that has a topic.
///
/// Servers that are away take nothing. In a repair, a server that already has these numbers takes nothing
/// either. A server without events takes a part if every server has to learn of the numbers: in a repair, in
/// a batch without events, and from time to time.
///
/// # Errors
/// The topic that no server has.
pub(super) fn parts_of<'a>(
    chunk: Chunk<'a>,
    servers: &[Server],
    owner: impl Fn(&Topic) -> Option<usize>,
    now: Instant,
) -> Result<Vec<Part<'a>>, &'a Topic> {
    let mut of_server: Vec<(Vec<usize>, Vec<Delivery<'a>>)> =
        servers.iter().map(|_| Default::default()).collect();
    for (at, delivery) in chunk.deliveries.iter().enumerate() {
        let (indexes, deliveries) =
            &mut of_server[owner(&delivery.event.topic).ok_or(&delivery.event.topic)?];
        indexes.push(at);
        deliveries.push(*delivery);
    }
    let is_for_all = chunk.mode.is_restore() || chunk.deliveries.is_empty();
    let before = (chunk.first.seq > 1).then(|| StreamId::new(chunk.first.epoch, chunk.first.seq - 1));
    let parts = of_server.into_iter().zip(servers).enumerate().filter_map(|(server, (events, it))| {
        let (at, deliveries) = events;
        let has_it = chunk.mode.is_restore() && it.reached >= Some(end_of(&chunk));
        if it.away.is_some() || has_it {
            return None;
        }
        let through = match deliveries.last() {
            // So that the top names the event with its number.
            Some(last) if chunk.mode == PublishMode::Normal => chunk.through.map(|_| last.id),
            Some(_) => chunk.through,
            None if is_for_all => chunk.through,
            // The position has passed these numbers.
            None if is_due(it, before, now) => before,
            None => return None,
        };
        Some(Part { server, at, deliveries, through, whole: chunk })
    });
    Ok(parts.collect())
}

/// The highest number that a chunk is about.
fn end_of(chunk: &Chunk<'_>) -> StreamId {
    let own = chunk.deliveries.last().filter(|_| !chunk.mode.is_release()).map(|last| last.id);
    chunk.through.or(own).unwrap_or(chunk.first)
}

/// Whether a server has to be told that these numbers have been used up.
fn is_due(server: &Server, before: Option<StreamId>, now: Instant) -> bool {
    before > server.reached && server.moved_at.is_none_or(|at| now.duration_since(at) >= MOVED_EVERY)
}

#[cfg(test)]
mod tests {
    use super::super::super::endpoint::Endpoint;
    use super::super::super::keys::Keys;
    use super::super::super::slots::SlotSet;
    use super::*;
    use crate::event::{Event, EventId, EventType};

    fn id(seq: u64) -> StreamId {
        StreamId::new(1, seq)
    }

    /// Three servers that have reached these numbers.
    fn servers(reached: [u64; 3], now: Instant) -> Vec<Server> {
        let server = |(i, seq): (u16, u64)| {
            let endpoint = Endpoint { host: "h".to_owned(), port: i };
            let slots = SlotSet::parse(&i.to_string());
            let mut server = Server::of_cluster(&Keys::default(), "main", endpoint, slots);
            server.took((seq > 0).then(|| id(seq)), now);
            server
        };
        (0..).zip(reached).map(server).collect()
    }

    fn events(topics: &[&str]) -> Vec<Event> {
        let event = |topic: &&str| Event {
            id: 1,
            event_id: EventId::nil(),
            topic: Topic::new(*topic).expect("a topic"),
            event_type: EventType::new("T").expect("a type"),
            payload: "1".to_owned(),
            created_at: chrono::DateTime::UNIX_EPOCH,
            xid: Some(3),
            trace: None,
        };
        topics.iter().map(event).collect()
    }

    /// The parts of a batch with these topics, under the numbers from 5 on: the server, the numbers of its
    /// events, and the last number that it uses up. A topic's name begins with the index of its server.
    fn divide(
        servers: &[Server],
        topics: &[&str],
        through: Option<u64>,
        mode: PublishMode,
        now: Instant,
    ) -> Vec<(usize, Vec<u64>, Option<u64>)> {
        let events = events(topics);
        let deliveries: Vec<Delivery<'_>> =
            (5..).zip(&events).map(|(seq, event)| Delivery { id: id(seq), event }).collect();
        let chunk =
            Chunk { deliveries: &deliveries, first: id(5), through: through.map(id), mode, lost: None };
        let owner = |topic: &Topic| topic.as_str()[..1].parse().ok();
        let parts = parts_of(chunk, servers, owner, now).expect("each topic has a server");
        let part = |part: Part<'_>| {
            let numbers = part.deliveries.iter().map(|delivery| delivery.id.seq).collect();
            (part.server, numbers, part.through.map(|id| id.seq))
        };
        parts.into_iter().map(part).collect()
    }

    #[test]
    fn each_server_takes_the_events_of_its_topics_and_uses_up_the_number_of_the_last_one() {
        let now = Instant::now();
        let three = servers([4, 4, 4], now);
        let parts = divide(&three, &["0a", "1b", "0a", "1c"], Some(8), PublishMode::Normal, now);
        assert_eq!(parts, [(0, vec![5, 7], Some(7)), (1, vec![6, 8], Some(8))]);
        let parts = divide(&three, &["0a", "1b"], None, PublishMode::Normal, now);
        assert_eq!(parts, [(0, vec![5], None), (1, vec![6], None)]);
    }

    #[test]
    fn a_server_without_events_learns_each_second_which_numbers_the_position_has_passed() {
        let now = Instant::now();
        let three = servers([4, 4, 2], now);
        let later = now + MOVED_EVERY;
        let parts = divide(&three, &["0a"], Some(5), PublishMode::Normal, later);
        assert_eq!(parts, [(0, vec![5], Some(5)), (2, vec![], Some(4))]);
    }

    #[test]
    fn a_batch_without_events_goes_to_every_server_that_is_not_away() {
        let now = Instant::now();
        let mut three = servers([4, 4, 4], now);
        three[1].leave_behind("frozen".to_owned());
        let parts = divide(&three, &[], Some(6), PublishMode::Normal, now);
        assert_eq!(parts, [(0, vec![], Some(6)), (2, vec![], Some(6))]);
        let parts = divide(&three, &["1a", "2b"], Some(6), PublishMode::Normal, now);
        assert_eq!(parts, [(2, vec![6], Some(6))]);
    }

    #[test]
    fn a_repair_goes_to_the_servers_that_lack_its_numbers() {
        let now = Instant::now();
        let three = servers([9, 4, 0], now);
        let parts = divide(&three, &["0a", "1b"], Some(6), PublishMode::Restore, now);
        assert_eq!(parts, [(1, vec![6], Some(6)), (2, vec![], Some(6))]);
        // The number of a release is above those of its events.
        let parts = divide(&three, &["0a", "1b"], Some(8), PublishMode::RestoreRelease, now);
        assert_eq!(parts, [(1, vec![6], Some(8)), (2, vec![], Some(8))]);
    }

    #[test]
    fn a_topic_that_no_server_has_is_named() {
        let now = Instant::now();
        let events = events(&["a"]);
        let deliveries = [Delivery { id: id(5), event: &events[0] }];
        let mode = PublishMode::Normal;
        let chunk = Chunk { deliveries: &deliveries, first: id(5), through: None, mode, lost: None };
        let divided = parts_of(chunk, &servers([4, 4, 4], now), |_| None, now);
        assert_eq!(divided.err().map(Topic::as_str), Some("a"));
    }
}
