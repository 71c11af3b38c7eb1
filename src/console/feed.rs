//! The state of the log as server-sent events. It is read once a second for all open pages together, and not
//! at all while none is open.
//!
//! `hello` and `trend` come first. Then come a `sample` each second, and `status` and `lists` whenever they
//! have changed. A page that reads slowly receives fewer events: each stream keeps only the newest state and
//! the last one sent.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::access::Identity;
use super::look::{Looker, Snapshot};
use super::stream_event::event;
use super::trend::Sample;
use crate::http::Problem;

const INTERVAL: Duration = Duration::from_secs(1);
/// Makes a browser wait a second before it reconnects.
const RETRY: &[u8] = b"retry: 1000\n\n";

/// The newest snapshot, for all open pages.
#[derive(Debug)]
pub(super) struct Feed {
    snapshots: watch::Sender<Arc<Snapshot>>,
    wanted: Notify,
}

impl Default for Feed {
    fn default() -> Self {
        Self { snapshots: watch::Sender::new(Arc::default()), wanted: Notify::new() }
    }
}

impl Feed {
    /// Reads the log at once instead of within a second, because it has changed.
    pub(super) fn look_again(&self) {
        self.wanted.notify_one();
    }

    fn follow(&self) -> watch::Receiver<Arc<Snapshot>> {
        let snapshots = self.snapshots.subscribe();
        self.look_again();
        snapshots
    }
}

/// Reads the log once a second while a page is open, until `stop`.
pub(super) async fn look_after(shared: &Shared, stop: &CancellationToken) {
    let feed = &shared.feed;
    let mut looker = Looker::default();
    while !stop.is_cancelled() {
        let is_watched = feed.snapshots.receiver_count() > 0;
        if is_watched {
            tokio::select! {
                () = stop.cancelled() => return,
                seen = looker.look(shared) => drop(feed.snapshots.send_replace(Arc::new(seen))),
            }
        } else {
            looker.rest().await;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = feed.wanted.notified() => {}
            () = tokio::time::sleep(INTERVAL), if is_watched => {}
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Hello<'a> {
    who: &'a str,
    relay: &'a str,
    limit_seconds: u64,
}

/// `GET /console/events`.
pub(super) async fn stream(
    State(shared): State<Arc<Shared>>,
    Extension(identity): Extension<Identity>,
) -> Response {
    let Ok(place) = shared.viewers.clone().try_acquire_owned() else {
        return Problem::unavailable("too many of these pages are open: close one").into_response();
    };
    let (samples, newest) = shared.trend.follow();
    let hello = Hello {
        who: &identity.who,
        relay: &shared.parts.relay,
        limit_seconds: shared.parts.pending_limit.as_secs(),
    };
    let first = [Bytes::from_static(RETRY), event("hello", &hello), event("trend", &samples)];
    let viewer = Viewer {
        first: Some(first.concat().into()),
        samples: newest,
        snapshots: shared.feed.follow(),
        told: Arc::default(),
        session: identity.session,
        shared,
        _place: place,
    };
    let blocks = futures_util::stream::unfold(viewer, |mut viewer| async move {
        let block = viewer.next().await?;
        Some((Ok::<_, Infallible>(block), viewer))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Makes proxies such as nginx pass on each event at once.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(blocks)).into_response()
}

/// One open page.
struct Viewer {
    first: Option<Bytes>,
    samples: watch::Receiver<Option<Sample>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    told: Arc<Snapshot>,
    session: Option<String>,
    shared: Arc<Shared>,
    _place: OwnedSemaphorePermit,
}

impl Viewer {
    /// The next bytes; `None` when the process or the sign-in ends.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            tokio::select! {
                () = self.shared.ended.cancelled() => return None,
                changed = self.samples.changed() => {
                    changed.ok()?;
                    let sample = *self.samples.borrow_and_update();
                    return self.is_signed_in().then(|| event("sample", &sample));
                }
                changed = self.snapshots.changed() => {
                    changed.ok()?;
                    let seen = self.snapshots.borrow_and_update().clone();
                    let news = seen.news_since(&self.told);
                    self.told = seen;
                    if !news.is_empty() {
                        return self.is_signed_in().then_some(news);
                    }
                }
            }
        }
    }

    fn is_signed_in(&self) -> bool {
        let is_over = |id: &String| self.shared.sessions.who(id, Instant::now()).is_none();
        !self.session.as_ref().is_some_and(is_over)
    }
}

impl Snapshot {
    fn news_since(&self, told: &Self) -> Bytes {
        let mut news = BytesMut::new();
        for (block, before) in self.blocks().into_iter().zip(told.blocks()) {
            if block != before {
                news.extend_from_slice(block);
            }
        }
        news.freeze()
    }
}
