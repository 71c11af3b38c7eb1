//! Pages of a topic's history, and what proves that they follow the reader's place. Gives no event after a
//! hole.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout;

use crate::event::{PAYLOAD_BYTES_MAX, StreamId, Topic};
use crate::http::Problem;
use crate::redis::continuity::Absence;
use crate::redis::history::{Entry, ReadError};
use crate::sse::history::read::{
    Entries, FIRST_READ, READ_BYTES, READ_ENTRIES, bytes_of, entries_after, next_count,
};
use crate::sse::history::repair_wait::RepairWait;
use crate::sse::hub::Hub;
use crate::sse::queue::byte_budget::{ByteBudget, Reservation};
use crate::sse::shared::Shared;
use crate::sse::topic::event_page::{EventPage, EventPageKey, PageError};
use crate::sse::topic::pages::PageEnd;
use crate::sse::wire::cursor::{Cursor, now_ms};

/// The time of a start is rounded down to a multiple of the histories' TTL divided by this number. So readers
/// that see a topic without an event shortly after each other get the same place.
const STEPS_OF_A_START: u64 = 16;
/// How long a reader waits for its turn.
const WAIT_FOR_TURN: Duration = Duration::from_secs(10);

/// A topic, to be read page by page.
#[derive(Debug, Clone)]
pub struct TopicReader {
    pub(super) shared: Arc<Shared>,
    pub(super) topic: Topic,
}

impl From<PageError> for Problem {
    fn from(error: PageError) -> Self {
        match &error {
            PageError::Gone => Self::gone(error.to_string()),
            PageError::Read(cause) => {
                tracing::warn!(error = %cause, "cannot read a history");
                Self::unavailable(error.to_string())
            }
            PageError::NoRoom => Self::unavailable(error.to_string()),
        }
    }
}

/// The right to read, until it is dropped.
struct Turn<'a> {
    _read: Option<SemaphorePermit<'a>>,
    _room: Reservation,
    _page: Option<SemaphorePermit<'a>>,
}

/// This process's knowledge of a topic that its streams use.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    is_live: bool,
    place: Option<Cursor>,
    newest_ms: u64,
    has_expired: bool,
}

impl TopicReader {
    /// A reader of this topic. The caller has checked that it may be read.
    pub fn new(hub: &Hub, topic: Topic) -> Self {
        Self { shared: hub.0.clone(), topic }
    }

    /// Returns the events after a place, or from the topic's first event on, as many as fit a page. Waits if
    /// Redis has forgotten the place, because a relay may restore it.
    ///
    /// # Errors
    /// [`PageError::Gone`] if the history does not prove that nothing is missing, [`PageError::Read`] if it
    /// cannot be read, and [`PageError::NoRoom`] if there is no memory for it.
    pub async fn page(&self, from: Option<Cursor>) -> Result<EventPage, PageError> {
        let now_ms = now_ms();
        let ttl = self.shared.history_ttl;
        let place = match from {
            // An event before that has expired, and the application's state includes its effect.
            None => Cursor::Start { seen_ms: now_ms.saturating_sub(millis(ttl)) },
            Some(place) if self.shared.is_too_old(place).await => return Err(PageError::Gone),
            Some(place) => place,
        };
        let mut repair = RepairWait::new(self.shared.settings.repair_wait());
        loop {
            if let Some(page) = self.read(place, now_ms, from.is_none()).await? {
                return Ok(page);
            }
            if !repair.wait().await {
                return Err(PageError::Gone);
            }
        }
    }

    /// Returns the page after a place. `newest` is the topic's newest event by now. Readers that wait at one
    /// place share one read.
    pub(super) async fn page_with(
        &self,
        after: Cursor,
        newest: Option<StreamId>,
    ) -> Result<Arc<EventPage>, PageError> {
        let key = EventPageKey { topic: self.topic.clone(), after, newest };
        let read = async || Ok(Arc::new(self.page(Some(after)).await?));
        self.shared.event_pages.get(key, read).await
    }

    /// Counts bytes among those that this process holds for its streams, until nobody has them any more.
    pub fn hold(&self, bytes: Bytes) -> Bytes {
        self.shared.budget.hold(bytes)
    }

    /// Returns the place after the topic's newest event.
    ///
    /// # Errors
    /// [`PageError::Read`] if the history cannot be read, and [`PageError::Gone`] if it comes and goes.
    pub async fn tail(&self) -> Result<Cursor, PageError> {
        let mut repair = RepairWait::new(self.shared.settings.repair_wait());
        loop {
            let now_ms = now_ms();
            let newest = {
                let _turn = self.turn(PAYLOAD_BYTES_MAX).await?;
                self.shared.metrics.history_reads.inc();
                self.shared.history.newest(&self.topic, 1).await?
            };
            if let Some(newest) = newest.last() {
                // An event after a loss names the end of the loss as the event before it.
                return Ok(Cursor::After(self.shared.lost().map_or(newest.id, |lost| newest.id.max(lost))));
            }
            if let Some(absence) = self.absence().await? {
                return Ok(self.start(now_ms, absence));
            }
            if !repair.wait().await {
                return Err(PageError::Gone);
            }
        }
    }

    /// Reads one page. `None` if Redis has forgotten the place.
    async fn read(
        &self,
        place: Cursor,
        now_ms: u64,
        wants_all: bool,
    ) -> Result<Option<EventPage>, PageError> {
        let _turn = self.turn(READ_BYTES.max(FIRST_READ * PAYLOAD_BYTES_MAX)).await?;
        let mut filling = PageBuilder::new(place, &self.shared.budget);
        loop {
            let read = entries_after(&self.shared, &self.topic, filling.page.next, filling.count).await?;
            let end = match read {
                Entries::Follow { entries, end } => filling.add(entries, end),
                Entries::Hole => Some(PageEnd::Hole),
                Entries::Nothing if filling.taken == 0 => {
                    return self.nothing(place, now_ms, wants_all).await;
                }
                // The history went between two reads.
                Entries::Nothing => Some(PageEnd::Hole),
            };
            match end {
                None => {}
                Some(PageEnd::Hole) if filling.taken == 0 => return Err(PageError::Gone),
                Some(end) => {
                    filling.page.is_last = end == PageEnd::Last;
                    return Ok(Some(filling.page));
                }
            }
        }
    }

    /// Waits for the turn to read this many bytes, in order with other readers.
    async fn turn(&self, bytes: usize) -> Result<Turn<'_>, PageError> {
        let shared = &self.shared;
        let page = timeout(WAIT_FOR_TURN, shared.page_reads.acquire()).await.ok().ok_or(PageError::NoRoom)?;
        let room = shared.budget.reserve(bytes).await.ok_or(PageError::NoRoom)?;
        // The semaphores are never closed.
        Ok(Turn { _read: shared.reads.acquire().await.ok(), _room: room, _page: page.ok() })
    }

    /// The conclusion from a history without an entry from the place on. `None`: Redis has forgotten the
    /// place.
    async fn nothing(
        &self,
        place: Cursor,
        now_ms: u64,
        wants_all: bool,
    ) -> Result<Option<EventPage>, PageError> {
        let at_end = |end| Ok(Some(EventPage::empty(end)));
        let seen_ms = match place {
            Cursor::Start { seen_ms } => seen_ms,
            // Nothing has come since the loss, or since this process had the topic's newest event.
            Cursor::After(id) if self.shared.lost() == Some(id) => return at_end(place),
            Cursor::After(_) if self.known().is_at(place) => return at_end(place),
            Cursor::After(_) => return Ok(None),
        };
        let Some(absence) = self.absence().await? else { return Ok(None) };
        let known = self.known();
        match known.place {
            _ if !absence.proves_none_since(seen_ms) => Err(PageError::Gone),
            // The events that it wants have expired, and the application's state includes their effects.
            Some(Cursor::After(_)) if wants_all && known.has_expired => at_end(self.start(now_ms, absence)),
            // This process has reset the topic's clients since, because events may be missing.
            Some(Cursor::Start { seen_ms: since_ms }) if since_ms > seen_ms => Err(PageError::Gone),
            // It has seen an event since: Redis has forgotten that.
            Some(Cursor::After(_)) if known.newest_ms >= seen_ms => Ok(None),
            _ => at_end(self.start(now_ms, absence)),
        }
    }

    async fn absence(&self) -> Result<Option<Absence>, ReadError> {
        self.shared.metrics.history_reads.inc();
        self.shared.history.absence(&self.topic).await
    }

    fn known(&self) -> Known {
        let Some(topic) = self.shared.topics().get(self.topic.as_str()).cloned() else {
            return Known::default();
        };
        let state = topic.state();
        Known {
            is_live: state.is_live(),
            place: state.end_cursor(),
            newest_ms: state.newest_ms(),
            has_expired: state.has_expired(),
        }
    }

    /// The place of a reader that finds the topic without an event now. Its time is rounded down (see
    /// [`STEPS_OF_A_START`]), but not below the last time at which an event may have been lost.
    fn start(&self, now_ms: u64, absence: Absence) -> Cursor {
        let step = (millis(self.shared.history.kept_since(now_ms)) / STEPS_OF_A_START).max(1);
        let doubted = match self.known().place {
            Some(Cursor::Start { seen_ms }) => seen_ms,
            _ => 0,
        };
        let proven = absence.proves_from();
        Cursor::Start { seen_ms: (now_ms - now_ms % step).max(doubted).max(proven).min(now_ms) }
    }
}

impl Known {
    fn is_at(self, place: Cursor) -> bool {
        self.is_live && self.place == Some(place)
    }
}

/// A page that is being read.
struct PageBuilder<'a> {
    budget: &'a ByteBudget,
    page: EventPage,
    /// Entries taken so far.
    taken: usize,
    bytes: usize,
    /// Entries of the next read.
    count: usize,
}

impl<'a> PageBuilder<'a> {
    fn new(place: Cursor, budget: &'a ByteBudget) -> Self {
        let page = EventPage { payloads: Vec::new(), next: place, is_last: false };
        Self { budget, page, taken: 0, bytes: 0, count: FIRST_READ }
    }

    /// Adds entries that follow. Returns how the page ends, or `None` if more entries are to be read.
    fn add(&mut self, entries: Vec<Entry>, end: PageEnd) -> Option<PageEnd> {
        self.count = next_count(entries.len(), bytes_of(&entries));
        for entry in entries {
            if self.is_full() {
                return Some(PageEnd::More);
            }
            // Postgres may have lost events that the reader was given in the epoch before.
            if self.page.next.id().is_some_and(|place| place.epoch != entry.id.epoch) {
                return Some(PageEnd::Hole);
            }
            self.page.next = Cursor::After(entry.id);
            self.taken += 1;
            if let Some((_, payload)) = entry.event {
                self.bytes += payload.len();
                self.page.payloads.push(self.budget.hold(payload.into()));
            }
        }
        (end != PageEnd::More || self.is_full()).then_some(end)
    }

    fn is_full(&self) -> bool {
        self.bytes >= READ_BYTES || self.taken >= READ_ENTRIES.1
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
