//! Brings one client to the end of one topic.
//!
//! First the start that the client asked for becomes a cursor. The client is told the cursor before the
//! response begins; after two seconds the response begins without it. From the cursor the client continues
//! with the recent events in memory, or page by page with the history, until it can be attached to the topic
//! in one go. If nothing proves that no event is missing, the client is reset: it begins again at the end of
//! the topic.

use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;

use super::history_feed::{Fed, HistoryFeed};
use super::opening::Opening;
use crate::backoff::Backoff;
use crate::sse::history::log_of_redis::{ANSWER_KEPT, ASKED_EVERY, NoAnswer};
use crate::sse::history::repair_wait::{RepairWait, between_reads};
use crate::sse::queue::send_queue::{Put, StreamTopic};
use crate::sse::shared::Shared;
use crate::sse::topic::attach::{Attached, Begin};
use crate::sse::topic::pages::FeedError;
use crate::sse::topic::shared_topic::SharedTopic;
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::{self, Block, ResetReason};
use crate::sse::wire::start::StartAt;

/// One client on its way to the end of one topic.
pub(crate) struct CatchUp {
    shared: Arc<Shared>,
    topic: Arc<SharedTopic>,
    stream: StreamTopic,
    /// Where the client asked to begin.
    asked: StartAt,
    opening: Opening,
    feed: HistoryFeed,
    /// The wait after a failed read.
    retry: Backoff,
    /// The wait for the relay to repair Redis.
    repair: RepairWait,
    /// The client has been told that Redis refuses the topic.
    has_sent_refusal: bool,
    /// How the stream was continued, for the metrics.
    outcome: &'static str,
}

impl CatchUp {
    pub(crate) fn new(
        shared: Arc<Shared>,
        topic: Arc<SharedTopic>,
        stream: StreamTopic,
        asked: StartAt,
        opening: Opening,
    ) -> Self {
        let repair = RepairWait::new(shared.settings.repair_wait());
        let feed = HistoryFeed::new(shared.clone(), topic.clone(), stream.clone());
        let (has_sent_refusal, outcome) = (false, "memory");
        Self {
            shared,
            topic,
            stream,
            asked,
            opening,
            feed,
            retry: between_reads(),
            repair,
            has_sent_refusal,
            outcome,
        }
    }

    /// Attaches the client. Returns when it is attached, or gone.
    pub(crate) async fn run(mut self) {
        let asked = self.check_token().await;
        let mut start = self.unless_too_old(asked).await;
        while let Some(cursor) = self.begin(start).await
            && let Some(reason) = self.follow(cursor).await
        {
            start = StartAt::Reset(reason);
        }
    }

    /// Checks that the client's resume token is of the log whose events Redis holds, and returns where the
    /// client begins. A token of another log would hide events of this one.
    async fn check_token(&mut self) -> StartAt {
        let Some(resume) = self.stream.resume.clone() else { return self.asked };
        if let StartAt::Reset(_) = self.asked {
            // The client fetches its state anew, so the token is about an older one.
            return self.without_token(self.asked);
        }
        let is_new = self.asked == StartAt::Resume;
        let mut has_events = false;
        loop {
            let wait = match self.shared.log.get(&self.shared.history).await {
                Ok(Some(log)) if log == resume.log() => return self.asked,
                Ok(Some(_)) if is_new => return self.without_token(StartAt::Reset(ResetReason::BadToken)),
                Ok(Some(_)) => return self.without_token(self.asked),
                // The token was judged when the client was given its place.
                Ok(None) if !is_new => return self.asked,
                // The history has events, but the key that names their log is gone.
                Ok(None) if has_events => return self.without_token(StartAt::Reset(ResetReason::JoinedLate)),
                Ok(None) => {
                    has_events = self.has_events().await;
                    ASKED_EVERY
                }
                Err(NoAnswer) if is_new => {
                    return self.without_token(StartAt::Reset(ResetReason::JoinedLate));
                }
                // The client has its place, and without Redis there is nothing new after it.
                Err(NoAnswer) => ANSWER_KEPT,
            };
            self.opening.report();
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether the topic's history holds an event, or cannot be read.
    async fn has_events(&self) -> bool {
        self.shared.history.absence(&self.topic.topic).await.map_or(true, |absence| absence.is_none())
    }

    fn without_token(&mut self, start: StartAt) -> StartAt {
        self.stream.resume = None;
        self.feed = HistoryFeed::new(self.shared.clone(), self.topic.clone(), self.stream.clone());
        start
    }

    /// Turns the start into a cursor and tells the client. Returns `None` if the client is gone.
    async fn begin(&mut self, mut start: StartAt) -> Option<Cursor> {
        let topic = self.topic.clone();
        loop {
            let mut joined = pin!(topic.join_ended.notified());
            // Registered before the look, so that a join that ends in between is not missed.
            joined.as_mut().enable();
            if self.is_newly_refused() || self.opening.is_over() {
                start = self.open_unplaced(start);
            }
            self.tell_refusal();
            let begin = topic.state().begin(start, self.stream.resume.as_deref());
            match begin {
                // The response began before this place was known.
                Begin::At { .. } if self.opening.has_begun() && self.wants_newest() => {
                    start = self.open_unplaced(start);
                }
                // The client makes room by reading, for which the response must be under way.
                Begin::At { block: Some(block), .. } if block.is_event() && !self.stream.queue.has_room() => {
                    self.opening.report();
                    drop(self.stream.queue.room_for(0).await);
                }
                Begin::At { cursor, block } => return self.tell_place(start, block).then_some(cursor),
                Begin::WhenLive => tokio::select! {
                    () = joined => {}
                    () = self.opening.ends() => {}
                },
                Begin::Instead(next) => start = self.unless_too_old(next).await,
                Begin::InHistory => match self.find_in_history(start).await {
                    ControlFlow::Continue(next) => start = self.unless_too_old(next).await,
                    ControlFlow::Break(found) => return found,
                },
            }
        }
    }

    /// Tells the client its place and lets the response begin. Returns false if the client is gone.
    fn tell_place(&mut self, start: StartAt, block: Option<Block>) -> bool {
        if block.is_some_and(|block| self.stream.put(&block) != Put::Queued) {
            return false;
        }
        if let StartAt::Reset(reason) = start {
            self.shared.metrics.reset(reason, 1);
            self.outcome = "reset";
        }
        self.opening.report();
        true
    }

    /// Looks for a start in the history. Breaks with the cursor after the events that the client has been
    /// given, or with `None` if it is gone; otherwise continues with another start.
    async fn find_in_history(&mut self, start: StartAt) -> ControlFlow<Option<Cursor>, StartAt> {
        let found = match (start, self.stream.resume.clone()) {
            (StartAt::Last, _) => Some(self.feed.find_last().await),
            (StartAt::Resume, Some(resume)) => Some(self.feed.find_seen(&resume).await),
            _ => None,
        };
        match found {
            Some(Ok(found)) => return ControlFlow::Continue(found),
            Some(Err(error)) => {
                self.pause(&error).await;
                return ControlFlow::Continue(start);
            }
            None => {}
        }
        // Feeding waits for the client to read.
        self.opening.report();
        match self.feed(None).await {
            Fed::To(cursor) | Fed::NothingBefore(cursor) => ControlFlow::Break(Some(cursor)),
            Fed::Again => ControlFlow::Continue(start),
            Fed::Forgotten | Fed::Unproven => ControlFlow::Continue(StartAt::Reset(ResetReason::HistoryGone)),
            Fed::Gone => ControlFlow::Break(None),
        }
    }

    /// Continues after a cursor until the client is attached or gone. Returns the reason if it has to be
    /// reset.
    async fn follow(&mut self, mut cursor: Cursor) -> Option<ResetReason> {
        let topic = self.topic.clone();
        let mut has_joined_anew = false;
        loop {
            let mut joined = pin!(topic.join_ended.notified());
            joined.as_mut().enable();
            self.tell_refusal();
            let attached = {
                // Another topic of the stream may be about to use the room.
                let _room = self.stream.queue.room_for(0).await;
                topic.state().attach(&self.stream, cursor)
            };
            match attached {
                Attached::Yes => {
                    self.count_outcome();
                    return None;
                }
                Attached::Gone => return None,
                Attached::Partly(here) => cursor = here,
                Attached::WhenLive => joined.await,
                Attached::Ahead if !has_joined_anew => {
                    // Another server may have been quicker: read the history before saying that there is no
                    // such id.
                    has_joined_anew = true;
                    self.shared.join_anew(&topic);
                    joined.await;
                }
                Attached::Ahead if self.repair.wait().await => {}
                Attached::Ahead => return Some(ResetReason::UnknownId),
                Attached::Behind => match self.feed(Some(cursor)).await {
                    Fed::To(here) | Fed::NothingBefore(here) => cursor = here,
                    Fed::Again => {}
                    // Redis may get back what it has forgotten.
                    Fed::Forgotten if self.repair.wait().await => {}
                    Fed::Forgotten | Fed::Unproven => return Some(ResetReason::HistoryGone),
                    Fed::Gone => return None,
                },
            }
        }
    }

    /// Gives the client the next page of the history, and pauses where there is none yet.
    async fn feed(&mut self, after: Option<Cursor>) -> Fed {
        match self.feed.feed(after).await {
            Ok(Fed::To(cursor)) => {
                if self.outcome == "memory" {
                    self.outcome = "history";
                }
                Fed::To(cursor)
            }
            Ok(Fed::NothingBefore(cursor)) => match self.stream.put(&frame::cursor(cursor)) {
                Put::Queued => Fed::NothingBefore(cursor),
                Put::Gone | Put::CutOff => Fed::Gone,
            },
            Ok(Fed::Again) => {
                tokio::time::sleep(self.retry.next_wait()).await;
                Fed::Again
            }
            Ok(fed) => fed,
            Err(error) => {
                self.pause(&error).await;
                Fed::Again
            }
        }
    }

    async fn pause(&mut self, error: &FeedError) {
        match error {
            // It has waited for long already.
            FeedError::NoRoom => {
                tracing::debug!(topic = %self.topic.topic, "a client waits for room for its history");
            }
            FeedError::Read(error) => {
                tracing::warn!(topic = %self.topic.topic, %error, "cannot read the history yet");
                tokio::time::sleep(self.retry.next_wait()).await;
            }
        }
    }

    fn is_newly_refused(&self) -> bool {
        self.topic.is_refused() && !self.has_sent_refusal
    }

    /// Tells the client once that Redis refuses the topic.
    fn tell_refusal(&mut self) {
        if self.is_newly_refused() {
            self.has_sent_refusal = true;
            // A client that is gone need not be told.
            let _put = self.stream.queue.put_bytes(frame::topic_refused(&self.topic.topic));
        }
    }

    /// Whether the start depends on where the topic ends.
    fn wants_newest(&self) -> bool {
        matches!(self.asked, StartAt::Latest | StartAt::Last)
    }

    /// Lets the response begin although the client's place is not known, and returns where the client begins
    /// then.
    ///
    /// From here on the client believes that it is connected. A client that named its place, or wants all
    /// events, misses nothing. A client that wants the newest events would miss those that are committed
    /// before its place is known, so it begins with a reset. A client that is to be reset is sent the id of
    /// an unknown place. If it is cut off before its reset, that id makes the next server reset it, and not
    /// treat it as new.
    fn open_unplaced(&mut self, start: StartAt) -> StartAt {
        if !self.opening.is_awaited() {
            return start;
        }
        let start = if self.wants_newest() { StartAt::Reset(ResetReason::JoinedLate) } else { start };
        if matches!(start, StartAt::Reset(_)) {
            // A client that is gone needs no id.
            let _put = self.stream.put(&frame::cursor(Cursor::UNKNOWN));
        }
        self.opening.report();
        start
    }

    /// The start, or a reset for a start of a topic that was seen too long ago.
    async fn unless_too_old(&self, start: StartAt) -> StartAt {
        match start {
            StartAt::After(Cursor::UNKNOWN) => StartAt::Reset(ResetReason::JoinedLate),
            StartAt::After(cursor) if self.shared.is_too_old(cursor).await => {
                StartAt::Reset(ResetReason::HistoryGone)
            }
            start => start,
        }
    }

    fn count_outcome(&self) {
        if matches!(self.asked, StartAt::After(_) | StartAt::Resume | StartAt::Reset(_)) {
            self.shared.metrics.resumed(self.outcome);
        }
    }
}
