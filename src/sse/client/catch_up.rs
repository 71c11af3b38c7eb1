//! Bringing one client from where it was to where its topic is.
//!
//! Most clients continue from the recent events in memory. One that is further back is fed from the history, page by
//! page and only as fast as it takes them, until it has reached the recent events; then it is attached in one go. One that
//! is ahead of the history knows what Redis has forgotten: it waits a little for the relay to give that back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::event::PAYLOAD_BYTES_MAX;
use crate::redis::continuity::Prev;
use crate::redis::history::ReadError;
use crate::sse::history::backoff::{Backoff, RETRY};
use crate::sse::history::read::{
    FIRST_READ, READ_BYTES, bytes_of_frames, next_count, read_after, read_first,
};
use crate::sse::queue::byte_budget::Reservation;
use crate::sse::queue::send_queue::{Put, StreamTopic};
use crate::sse::shared::Shared;
use crate::sse::topic::pages::{Key, Page, PageEnd};
use crate::sse::topic::shared_topic::SharedTopic;
use crate::sse::topic::state::Attached;
use crate::sse::wire::cursor::Cursor;
use crate::sse::wire::frame::{self, ResetReason};
use crate::sse::wire::start::StartAt;

/// By how much the clocks of servers may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// How long the response waits for the stream's place to be known. With Redis at hand that takes a millisecond; without
/// it the stream is opened all the same, so that the browser is connected, and told later that it may have missed events.
const WAIT_FOR_PLACE: Duration = Duration::from_secs(2);

/// What the history gave.
enum Fed {
    /// The client is here now.
    To(Cursor),
    /// There is no history, and nothing that the client lacks: it needs all that comes after this place of the topic's.
    Nothing(Option<Cursor>),
    /// Nothing yet: look again.
    Again,
    /// It holds nothing from the client's place on: it was lost, or has expired.
    Forgotten,
    /// It cannot be proven that nothing is missing.
    Unproven,
    /// The client is gone.
    Gone,
}

/// Why a page could not be had.
#[derive(Debug, thiserror::Error)]
enum PageError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("there is no room for a page of the history: events for all streams take sse.max_held_bytes")]
    NoRoom,
}

/// One client on its way to the end of one topic.
pub(crate) struct CatchUp {
    shared: Arc<Shared>,
    topic: Arc<SharedTopic>,
    stream: StreamTopic,
    /// What it asked for.
    wanted: StartAt,
    /// Where it is.
    from: StartAt,
    opening: Opening,
    outcome: &'static str,
    /// Entries that are read next.
    count: usize,
    /// The largest event of the page before; 0 before the first one.
    largest: usize,
    backoff: Backoff,
}

impl CatchUp {
    pub(crate) fn new(
        shared: Arc<Shared>,
        topic: Arc<SharedTopic>,
        stream: StreamTopic,
        wanted: StartAt,
        opening: Opening,
    ) -> Self {
        let backoff = Backoff::new(shared.settings.repair_wait());
        let (from, count) = (fresh(&shared, wanted), FIRST_READ);
        Self { shared, topic, stream, wanted, from, opening, outcome: "memory", count, largest: 0, backoff }
    }

    /// Attaches the client. Returns when it is attached, or gone.
    pub(crate) async fn run(mut self) {
        let topic = self.topic.clone();
        let (mut has_joined_anew, mut has_been_refused) = (false, false);
        loop {
            let settled = topic.join_ended.notified();
            tokio::pin!(settled);
            // Registered before the look, so that a join that ends in between is not missed.
            settled.as_mut().enable();
            if !has_been_refused && topic.is_refused() {
                has_been_refused = true;
                self.open_unplaced();
                // A client that is gone need not be told.
                let _put = self.stream.queue.put_bytes(frame::topic_refused(&topic.topic));
            }
            if self.opening.is_over() {
                self.open_unplaced();
            }
            match self.attach().await {
                // The response began in the very moment of attaching.
                Attached::Yes
                    if self.opening.has_begun() && matches!(self.from, StartAt::Latest | StartAt::Last) =>
                {
                    self.open_unplaced();
                }
                Attached::Yes => break,
                Attached::Partly(here) => {
                    self.from = StartAt::After(here);
                    self.tell();
                }
                Attached::WhenLive => self.wait_for(settled).await,
                // It waits for room at each turn.
                Attached::WhenRoom => {}
                Attached::Ahead if !has_joined_anew => {
                    // Another server may have been quicker: read the history before saying that there is no such id.
                    has_joined_anew = true;
                    self.shared.join_anew(&topic);
                    self.wait_for(settled).await;
                }
                Attached::Ahead => self.wait_or_reset(ResetReason::UnknownId).await,
                // Feeding waits for the client to read, so the response must be under way before it.
                Attached::Behind if self.opening.is_awaited() => self.tell(),
                Attached::Behind => {
                    if !self.go_on().await {
                        return;
                    }
                }
            }
        }
        self.tell();
        self.count_outcome();
    }

    async fn attach(&mut self) -> Attached {
        // These need little room, and must not miss what comes while they wait for more.
        if matches!(self.from, StartAt::Latest | StartAt::Last | StartAt::Reset(_)) {
            let attached = self.topic.state().attach(&self.stream, self.from);
            if attached != Attached::WhenRoom {
                return attached;
            }
            // It wants the newest event, of a topic of which no earlier place is known: whatever that is once there is room.
        }
        // What a client has missed needs room, which another topic of its stream may be about to use.
        let queue = self.stream.queue.clone();
        let room = queue.try_room();
        if room.is_none() {
            // The client makes room by reading, for which the response must be under way.
            self.tell();
        }
        let _room = match room {
            Some(room) => room,
            None => queue.room_for(0).await,
        };
        self.topic.state().attach(&self.stream, self.from)
    }

    /// Goes one page on in the history. False if the client is gone.
    async fn go_on(&mut self) -> bool {
        let fed = match self.from {
            StartAt::Last => self.find_last().await,
            _ => self.feed().await,
        };
        match fed {
            Ok(Fed::To(place)) => {
                self.outcome = "history";
                self.from = StartAt::After(place);
            }
            Ok(Fed::Nothing(place)) => self.from = place.map_or(StartAt::Latest, StartAt::After),
            Ok(Fed::Again) => {}
            Ok(Fed::Forgotten) => self.wait_or_reset(ResetReason::HistoryGone).await,
            Ok(Fed::Unproven) => self.from = StartAt::Reset(ResetReason::HistoryGone),
            Ok(Fed::Gone) => return false,
            Err(PageError::NoRoom) => {
                tracing::debug!(topic = %self.topic.topic, "a client waits for room for its history");
            }
            Err(PageError::Read(error)) => {
                tracing::warn!(topic = %self.topic.topic, %error, "cannot read the history yet");
                self.backoff.pause(RETRY).await;
            }
        }
        true
    }

    /// Waits before the next look whether Redis has been given back what it forgot. After that, the client is reset.
    async fn wait_or_reset(&mut self, reason: ResetReason) {
        if !self.backoff.wait().await {
            self.from = StartAt::Reset(reason);
        }
    }

    /// Waits for the topic, but lets the response begin when that takes too long.
    async fn wait_for(&mut self, settled: impl Future<Output = ()>) {
        tokio::pin!(settled);
        tokio::select! {
            () = &mut settled => return,
            () = self.opening.ends() => {}
        }
        self.open_unplaced();
        settled.await;
    }

    /// Says that the client's place is known.
    fn tell(&mut self) {
        self.opening.tell();
    }

    /// Lets the response begin although the client's place is not known.
    ///
    /// From here on the client believes that it is connected. What is committed before its place is known it would miss
    /// without knowing, unless it named its place or wants all there is: so it begins with a reset then. If it is cut off
    /// before that, this id makes it come back as one that is reset, and not as one that is new.
    fn open_unplaced(&mut self) {
        if !self.opening.is_awaited() {
            return;
        }
        if matches!(self.wanted, StartAt::Latest | StartAt::Last) {
            self.from = StartAt::Reset(ResetReason::JoinedLate);
        }
        if matches!(self.from, StartAt::Reset(_)) {
            // A client that is gone needs no id.
            let _put = self.stream.put(&frame::cursor(Cursor::UNKNOWN));
        }
        self.tell();
    }

    fn count_outcome(&self) {
        let mut outcome = self.outcome;
        if let StartAt::Reset(reason) = self.from {
            self.shared.metrics.reset(reason, 1);
            outcome = "reset";
        }
        if matches!(self.wanted, StartAt::After(_) | StartAt::Reset(_)) {
            self.shared.metrics.resumed(outcome);
        }
    }

    /// Gives the client of the next page of the history what it has room for.
    ///
    /// A stream has one page at a time, also one of several topics, and reads it only when the client has taken what it was
    /// given. What there is no room for is let go of and read again: a client that does not read holds no page.
    async fn feed(&mut self) -> Result<Fed, PageError> {
        let queue = self.stream.queue.clone();
        let _room = queue.room_for(READ_BYTES).await;
        let after = match self.from {
            StartAt::After(place) => Some(place),
            _ => None,
        };
        let (frames, end) = match self.page(after).await? {
            Page::Follows { frames, end } => (frames, end),
            Page::Hole => return Ok(Fed::Unproven),
            // The place itself is gone together with all that followed it: nothing proves that nothing followed.
            Page::Nothing if after.is_some() => return Ok(Fed::Forgotten),
            Page::Nothing => return Ok(self.find_nothing(None).await?),
        };
        let Some(last) = frames.last().map(|frame| Cursor::After(frame.id)) else {
            return Ok(self.stay(after, end).await?);
        };
        self.largest = frames.iter().map(|frame| frame.block.len()).max().unwrap_or_default();
        self.count = next_count(frames.len(), bytes_of_frames(&frames));
        let begun = after.and_then(Cursor::id);
        let mut place = begun;
        for frame in frames.iter() {
            if let Some(here) = place.filter(|here| Some(*here) != begun && !queue.has_room()) {
                return Ok(Fed::To(Cursor::After(here)));
            }
            let reset = frame::rebased(place.replace(frame.id), frame.id, &self.topic.topic);
            self.shared.metrics.reset(ResetReason::Rebased, usize::from(reset.is_some()));
            for block in reset.iter().chain([&frame.block]).filter(|block| !block.is_empty()) {
                if self.stream.put(block) != Put::Queued {
                    return Ok(Fed::Gone);
                }
            }
        }
        Ok(Fed::To(last))
    }

    /// The history has nothing that follows the client's place.
    async fn stay(&mut self, after: Option<Cursor>, end: PageEnd) -> Result<Fed, ReadError> {
        match after {
            _ if end == PageEnd::Hole => Ok(Fed::Unproven),
            Some(Cursor::Start { seen_ms }) if end == PageEnd::Last => self.find_nothing(Some(seen_ms)).await,
            _ => {
                // The topic stands elsewhere all the same: look again, but not in a hot loop.
                self.backoff.pause(RETRY).await;
                Ok(Fed::Again)
            }
        }
    }

    /// Finds the place before the newest event, which is too large to be kept in memory.
    async fn find_last(&mut self) -> Result<Fed, PageError> {
        let _room = self.shared.budget.reserve(PAYLOAD_BYTES_MAX).await.ok_or(PageError::NoRoom)?;
        self.shared.metrics.history_reads.inc();
        let newest = self.shared.history.newest(&self.topic.topic, 1).await.map_err(PageError::Read)?;
        self.from = match newest.first().map(|newest| newest.prev) {
            None => StartAt::Latest,
            Some(Prev::Event(before)) => StartAt::After(Cursor::After(before)),
            Some(Prev::First | Prev::Unknown) => StartAt::Earliest,
        };
        Ok(Fed::Again)
    }

    /// Makes sure that there is no history, and that there has been none since `seen_ms`: the page may be of a moment ago.
    /// The topic's place is taken before the look, so that what comes after the look comes after the place.
    async fn find_nothing(&mut self, seen_ms: Option<u64>) -> Result<Fed, ReadError> {
        let (place, newest_ms) = {
            let state = self.topic.state();
            (state.place(), state.newest_ms())
        };
        self.shared.metrics.history_reads.inc();
        let Some(absence) = self.shared.history.absence(&self.topic.topic).await? else {
            self.backoff.pause(RETRY).await;
            return Ok(Fed::Again);
        };
        let Some(seen_ms) = seen_ms else { return Ok(Fed::Nothing(place)) };
        if !absence.proves_none_since(seen_ms) {
            return Ok(Fed::Unproven);
        }
        // This server has reset the topic's clients since, as something may be missing.
        if matches!(place, Some(Cursor::Start { seen_ms: since_ms }) if since_ms > seen_ms) {
            return Ok(Fed::Unproven);
        }
        // This server has seen an event since: Redis has forgotten it.
        let has_forgotten = place.and_then(Cursor::id).is_some() && newest_ms >= seen_ms;
        Ok(if has_forgotten { Fed::Forgotten } else { Fed::Nothing(place) })
    }

    /// Room for the page that is read next, going by the one before it. Of the first one nothing is known.
    async fn room(&self) -> Option<Reservation> {
        let largest = if self.largest == 0 { PAYLOAD_BYTES_MAX } else { self.largest };
        let bytes = self.count.saturating_mul(largest).min(READ_BYTES.max(FIRST_READ * largest));
        if !self.shared.budget.has_room(bytes) {
            self.shared.metrics.room_waits.inc();
            self.shared.pages.make_room();
        }
        self.shared.budget.reserve(bytes).await
    }

    /// The page of the history behind this place, or its first one.
    async fn page(&self, after: Option<Cursor>) -> Result<Page, PageError> {
        let key = Key { topic: self.topic.topic.clone(), after, count: self.count };
        let read = async || {
            // Taken before the page is there; then its events are counted themselves.
            let room = self.room().await.ok_or(PageError::NoRoom)?;
            // The semaphore is never closed.
            let _permit = self.shared.reads.acquire().await;
            let page = match after {
                Some(place) => read_after(&self.shared, &self.topic, place, self.count).await?,
                None => read_first(&self.shared, &self.topic, self.count).await?,
            };
            drop(room);
            Ok::<Page, PageError>(page)
        };
        self.shared.pages.get(key, read).await
    }
}

/// What the response waits for before it begins: that the client's place is known, but not for long.
pub(crate) struct Opening {
    /// Told as soon as the place is known, or is not waited for any longer.
    placed: Option<oneshot::Sender<()>>,
    /// Until when it is waited for.
    until: Instant,
    /// The response has begun without waiting any longer.
    opened: CancellationToken,
}

impl Opening {
    pub(crate) fn new(placed: oneshot::Sender<()>, opened: CancellationToken) -> Self {
        Self { placed: Some(placed), until: Instant::now() + WAIT_FOR_PLACE, opened }
    }

    /// Whether the response still waits for this word, as far as is known.
    fn is_awaited(&self) -> bool {
        self.placed.is_some()
    }

    /// Whether the response has begun without waiting for this word.
    fn has_begun(&self) -> bool {
        self.is_awaited() && self.opened.is_cancelled()
    }

    /// Whether it has, or is to begin now.
    fn is_over(&self) -> bool {
        self.has_begun() || self.is_awaited() && Instant::now() >= self.until
    }

    /// Waits until then; for ever if it was given.
    async fn ends(&self) {
        if !self.is_awaited() {
            return std::future::pending().await;
        }
        tokio::select! {
            () = self.opened.cancelled() => {}
            () = sleep_until(self.until) => {}
        }
    }

    /// Says that the response may begin.
    fn tell(&mut self) {
        if let Some(placed) = self.placed.take() {
            // Nobody takes its word when the client is gone, or the response has begun.
            let _sent = placed.send(());
        }
    }
}

/// A start that was seen longer ago than histories are kept proves nothing: events may have come and expired since.
fn fresh(shared: &Shared, from: StartAt) -> StartAt {
    let StartAt::After(Cursor::Start { seen_ms }) = from else { return from };
    if from == StartAt::After(Cursor::UNKNOWN) {
        return StartAt::Reset(ResetReason::JoinedLate);
    }
    let now = u64::try_from(chrono::Utc::now().timestamp_millis()).unwrap_or(0);
    let age = Duration::from_millis(now.saturating_sub(seen_ms));
    let ahead = Duration::from_millis(seen_ms.saturating_sub(now));
    // A clock stood wrong when the place was seen, or does now: how old it is cannot be told.
    let is_fresh = age <= shared.history_ttl.saturating_sub(CLOCKS_DIFFER) && ahead <= CLOCKS_DIFFER;
    if is_fresh { from } else { StartAt::Reset(ResetReason::HistoryGone) }
}
