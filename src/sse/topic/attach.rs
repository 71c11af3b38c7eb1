//! Where a client begins in a topic, and which events it has missed since. Decides under the topic's lock.

use super::recent::Recent;
use super::state::TopicState;
use crate::event::StreamId;
use crate::sse::queue::send_queue::{Put, StreamTopic};
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::{self, Block, Frame, ResetReason};
use crate::sse::wire::resume::{Found, Resume};
use crate::sse::wire::start::StartAt;

/// Where a client begins.
#[derive(Debug)]
pub(crate) enum Begin {
    /// After this cursor. The block tells the client its place; a client that wants all events needs none.
    At { cursor: Cursor, block: Option<Block> },
    /// Not before the topic is live.
    WhenLive,
    /// The recent events do not reach back that far: look in the history.
    InHistory,
    /// At this other start.
    Instead(StartAt),
}

/// The result of attaching a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attached {
    /// It has every event up to the topic's place, and gets those that follow.
    Yes,
    /// Not before the topic is live.
    WhenLive,
    /// It has the events up to this cursor now. There was no room for more, and it does not get the events
    /// that follow yet.
    Partly(Cursor),
    /// It needs older events than are kept in memory: read them from the history first.
    Behind,
    /// Its cursor is past the topic's place.
    Ahead,
    /// It is gone, or was cut off by this.
    Gone,
}

impl TopicState {
    /// Turns a start into a cursor. `resume` is the client's token.
    pub(crate) fn begin(&self, start: StartAt, resume: Option<&Resume>) -> Begin {
        let at = |cursor| Begin::At { cursor, block: Some(frame::cursor(cursor)) };
        if let StartAt::After(cursor) = start {
            // The client knows its place; whether it can be continued from is found out later.
            return at(cursor);
        }
        // Every other start needs a live topic.
        let Some(recent) = self.recent.as_ref().filter(|_recent| self.is_live()) else {
            return Begin::WhenLive;
        };
        match start {
            StartAt::Last if recent.lacks_newest() => Begin::InHistory,
            StartAt::Last => match (recent.before_last(), recent.last()) {
                (_, None) => at(self.client_cursor()),
                (Some(before), Some(_)) => at(before),
                // No place before it is known: the event itself tells the client its place.
                (None, Some(newest)) if !newest.block.is_empty() => {
                    Begin::At { cursor: Cursor::After(newest.id), block: Some(newest.block.clone()) }
                }
                (None, Some(newest)) => at(Cursor::After(newest.id)),
            },
            StartAt::Earliest => match recent.start() {
                Some(cursor) => Begin::At { cursor, block: None },
                None => Begin::InHistory,
            },
            StartAt::Resume => resume.map_or(Begin::InHistory, |resume| begin_with(recent, resume)),
            StartAt::Reset(reason) => {
                let cursor = self.client_cursor();
                Begin::At { cursor, block: Some(frame::reset(reason, &self.topic, cursor)) }
            }
            StartAt::Latest | StartAt::After(_) => at(self.client_cursor()),
        }
    }

    /// The place as a cursor for clients.
    pub(super) fn client_cursor(&self) -> Cursor {
        match self.end_cursor() {
            Some(after @ Cursor::After(_)) => after,
            // Seen just now: the later a start was seen, the longer it can be proven.
            Some(Cursor::Start { .. }) | None => Cursor::start_now(),
        }
    }

    /// Gives a client the events after its cursor and adds it to those who get the events that follow, in one
    /// go.
    pub(crate) fn attach(&mut self, stream: &StreamTopic, from: Cursor) -> Attached {
        let Some(recent) = &self.recent else { return Attached::WhenLive };
        let missed: Vec<&Frame> = match from {
            Cursor::Start { seen_ms } if recent.reaches_start_of(seen_ms) => recent.all().collect(),
            Cursor::Start { .. } => return Attached::Behind,
            Cursor::After(id) => match recent.after(id) {
                Some(frames) => frames.collect(),
                None if !self.is_live() => return Attached::WhenLive,
                None if recent.end_cursor().and_then(Cursor::id).is_none_or(|tip| id > tip) => {
                    return Attached::Ahead;
                }
                None => return Attached::Behind,
            },
        };
        let attached = give(stream, from, self.blocks(from.id(), missed));
        if attached == Attached::Yes {
            self.add_client(stream);
        }
        attached
    }

    /// The blocks for a client at this place: the events, with a reset where an epoch ends.
    fn blocks<'a>(
        &'a self,
        place: Option<StreamId>,
        frames: Vec<&'a Frame>,
    ) -> impl Iterator<Item = Block> + 'a {
        let mut place = place;
        frames.into_iter().flat_map(move |frame| {
            let reset = frame::rebased(place.replace(frame.id), frame.id, &self.topic);
            self.metrics.reset(ResetReason::Rebased, usize::from(reset.is_some()));
            reset.into_iter().chain([frame.block.clone()])
        })
    }
}

/// Where a client with a resume token begins, as far as the recent events tell.
fn begin_with(recent: &Recent, resume: &Resume) -> Begin {
    match resume.find(recent.all().rev()) {
        Found::Behind(frame) => Begin::Instead(StartAt::After(Cursor::After(frame.id))),
        Found::Reset(reason) => Begin::Instead(StartAt::Reset(reason)),
        Found::Before if recent.reaches_start_of(resume.taken_ms()) => {
            Begin::Instead(StartAt::After(Cursor::Start { seen_ms: resume.taken_ms() }))
        }
        Found::Before => Begin::InHistory,
    }
}

/// Gives a client these blocks as long as there is room for them.
fn give(stream: &StreamTopic, from: Cursor, blocks: impl Iterator<Item = Block>) -> Attached {
    let had_room = stream.queue.has_room();
    let (mut here, mut has_moved) = (from, false);
    for block in blocks.filter(|block| !block.is_empty()) {
        // If there was room, at least one block that moves the client's cursor is given. Otherwise the client
        // might never get further.
        if (has_moved || !had_room) && !stream.queue.has_room() {
            return Attached::Partly(here);
        }
        if stream.put(&block) != Put::Queued {
            return Attached::Gone;
        }
        if let Some(place) = block.cursor() {
            has_moved |= place != here;
            here = place;
        }
    }
    Attached::Yes
}
