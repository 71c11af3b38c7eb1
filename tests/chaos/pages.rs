//! Pages that read their topic's state from Postgres, with a resume token, and then open a stream for a
//! moment: the state and the events of the stream together must be the truth.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aftercommit::event::StreamId;
use futures_util::StreamExt;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::harness::{Parser, http_builder};
use crate::random::Random;
use crate::truth::{ChannelTruth, Truth};
use crate::world::{Channel, World};

/// The newest events of a state that a page remembers: a relay never lags by more in one topic.
const STATE: i64 = 600;
/// The rows before a page's first event that have to be in its state.
const LOOKED_AT: usize = 100;
/// A page gives up a server that does not answer for this long.
const SILENCE: Duration = Duration::from_secs(4);

/// What one page has read and was told.
#[derive(Debug)]
struct Page {
    channel: usize,
    state: HashSet<Uuid>,
    told: Vec<StreamId>,
    was_reset: bool,
}

/// Pages at work: one for each topic with many events at any time.
#[derive(Debug)]
pub(crate) struct Pages {
    tasks: Vec<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<Page>>>,
}

/// The difference between the pages and the truth.
#[derive(Debug, Clone, Default)]
pub(crate) struct PageNumbers {
    pages: usize,
    with_events: usize,
    resets: usize,
    missing: usize,
    repeated: usize,
}

pub(crate) fn begin(world: &Arc<World>, seed: u64) -> Pages {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let busy = world.channels.len() - 2;
    let tasks = (0..busy)
        .map(|channel| {
            let (world, seen) = (world.clone(), seen.clone());
            let mut random = Random::new(seed, &format!("page {channel}"));
            tokio::spawn(async move {
                loop {
                    if let Some(page) = load(&world, channel, &mut random).await {
                        seen.lock().expect("pages").push(page);
                    }
                    // Between two loads.
                    tokio::time::sleep(random.millis(200, 1500)).await;
                }
            })
        })
        .collect();
    Pages { tasks, seen }
}

/// Loads the page once. `None` if Postgres or the server could not be reached.
async fn load(world: &World, channel: usize, random: &mut Random) -> Option<Page> {
    let of = &world.channels[channel];
    let (state, token) = tokio::time::timeout(SILENCE, read(world, of)).await.ok()??;
    // A slow page.
    tokio::time::sleep(random.millis(0, 400)).await;
    let url = format!("{}?resume={token}", world.outlets[random.below(2)].url);
    let http = http_builder().connect_timeout(SILENCE).build().ok()?;
    let asked = http.get(url).bearer_auth(&of.token).send();
    let response = tokio::time::timeout(SILENCE, asked).await.ok()?.ok()?;
    let mut page = Page { channel, state: state.into_iter().collect(), told: Vec::new(), was_reset: false };
    let (mut parser, mut chunks) = (Parser::default(), response.bytes_stream());
    let leaves = tokio::time::sleep(random.millis(300, 3000));
    tokio::pin!(leaves);
    while !page.was_reset {
        let chunk = tokio::select! {
            () = &mut leaves => break,
            chunk = chunks.next() => chunk,
        };
        let Some(Ok(chunk)) = chunk else { break };
        parser.feed(&chunk, |event| match (event.event.as_str(), event.id.map(|id| id.parse())) {
            ("reset", _) => page.was_reset = true,
            (_, Some(Ok(id))) if !page.was_reset => page.told.push(id),
            _ => {}
        });
    }
    Some(page)
}

/// The newest events of a topic, and the token of the same statement.
async fn read(world: &World, of: &Channel) -> Option<(Vec<Uuid>, String)> {
    let mut connection = world.postgres().await;
    let sql = "select array(select event_id from outbox.event where topic = $1 order by id desc limit $2),
                      outbox.resume_token()";
    sqlx::query_as(sql).bind(of.topic.as_str()).bind(STATE).fetch_one(&mut connection).await.ok()
}

impl Pages {
    /// Ends the pages.
    pub(crate) fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }

    /// Compares the pages since the last comparison with the truth.
    pub(crate) fn judge(&self, truth: &Truth, numbers: &mut PageNumbers) {
        for page in std::mem::take(&mut *self.seen.lock().expect("pages")) {
            numbers.judge(&page, &truth.channels[page.channel]);
        }
    }
}

impl PageNumbers {
    fn judge(&mut self, page: &Page, of: &ChannelTruth) {
        let places: HashMap<StreamId, usize> =
            of.rows.iter().enumerate().filter_map(|(place, row)| Some((row.stream_id?, place))).collect();
        self.pages += 1;
        self.with_events += usize::from(!page.told.is_empty());
        self.resets += usize::from(page.was_reset);
        let told: Vec<usize> = page.told.iter().filter_map(|id| places.get(id).copied()).collect();
        let Some(first) = told.first().copied() else { return };
        // A copy has the identity of its original, which the state may hold.
        let is_repeated = |place: &&usize| {
            let row = &of.rows[**place];
            row.copy_of.is_none() && page.state.contains(&row.event_id)
        };
        let repeated = told.iter().filter(is_repeated).count();
        let last = told.iter().max().copied().unwrap_or(first);
        let told: HashSet<usize> = told.into_iter().collect();
        let is_missing = |place: &usize| {
            let row = &of.rows[*place];
            !row.is_unnumbered() && !told.contains(place) && !page.state.contains(&row.event_id)
        };
        let missing = (first.saturating_sub(LOOKED_AT)..last).filter(is_missing).count();
        if repeated + missing > 0 {
            let lost = (first.saturating_sub(LOOKED_AT)..last).find(is_missing).map(|place| &of.rows[place]);
            eprintln!(
                "a page was told {:?} to {:?}: {repeated} repeated, {missing} missing, the first of them {lost:?}",
                page.told.first(),
                page.told.last()
            );
        }
        self.repeated += repeated;
        self.missing += missing;
    }

    pub(crate) fn are_zero(&self) -> bool {
        self.missing + self.repeated == 0
    }
}

impl fmt::Display for PageNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages, with_events, resets, missing, repeated } = self;
        write!(
            f,
            "missing {missing}, repeated {repeated} ({pages} pages, {with_events} with events, {resets} resets)"
        )
    }
}
