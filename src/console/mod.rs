//! The operator's page: one page for the person on call, served on the relay's port.
//!
//! It shows the content of `aftercommit status`, live. On it an operator can release, discard, pause, resume
//! and replay. Everything but the sign-in requires the operators' token.
//!
//! The page must never delay a delivery. It has connections of its own, five at most and only while the page
//! is in use. All open pages together cause one read of the log. Every change is written to the audit log in
//! the same transaction.
//!
//! - `access`: admits operators, and changes only from pages of this origin.
//! - `trend`: the last ten minutes, one sample a second.
//! - `feed`: the state of the log, as a stream of server-sent events.
//! - `actions` and `replay`: the operators' actions.
//! - `change`: carries a change out in time and while its operator waits, or not at all.
//! - `streams`: how many streams the SSE server has, refused and cut off.
//! - `pages`: the files of `assets`, compiled in. No build step, no library, nothing from another server.

mod access;
mod actions;
mod change;
mod error;
mod feed;
mod look;
mod pages;
mod replay;
mod sessions;
mod sign_in;
mod stream_event;
mod streams;
mod trend;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::http::{OperatorGate, Readiness, request_timeout};
use crate::postgres::{self, ConnectError, Pool};
use crate::relay::StateHandle;

use feed::Feed;
use replay::Replays;
use sessions::Sessions;
use trend::Trend;

pub use streams::{Streams, StreamsProbe};

/// The path of the page. Everything it uses is below this path, and its cookie is sent nowhere else.
pub const PATH: &str = "/console";

/// The largest body of an operator's request, in bytes. A list of event ids is its longest part.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Connections for changes, besides those of the feed and of replays. Two operators do not wait for each
/// other, and a hundred do not overload Postgres.
const CONNECTIONS: u32 = 2;
/// The time limit of a statement of this page, in milliseconds.
const STATEMENT_TIMEOUT_MS: u64 = 10_000;
/// The time limit of a sign-in, its form included.
const SIGN_IN_TAKES: Duration = Duration::from_secs(5);
/// The largest number of open pages.
const VIEWERS_MAX: usize = 32;

/// The parts of the relay's process that the page uses.
#[derive(Debug)]
pub struct Parts {
    /// The name of the relay whose trend is shown.
    pub relay: String,
    /// The time that its events may wait before the relay counts as late.
    pub pending_limit: Duration,
    /// The state of this process's relay.
    pub state: StateHandle,
    /// Admits operators.
    pub gate: OperatorGate,
    /// The database of the log.
    pub database: postgres::Settings,
    /// Checks Redis and the SSE server.
    pub neighbours: Readiness,
    /// Counts the SSE server's streams.
    pub streams: StreamsProbe,
}

/// The operator's page. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Console(Arc<Shared>);

/// Shared by all requests.
#[derive(Debug)]
struct Shared {
    parts: Parts,
    pool: Pool,
    sessions: Sessions,
    trend: Trend,
    feed: Feed,
    replays: Replays,
    viewers: Arc<Semaphore>,
    /// Cancelled when the process ends, which ends all streams.
    ended: CancellationToken,
}

impl Console {
    /// Creates the page. It connects only after somebody has signed in.
    ///
    /// # Errors
    /// [`ConnectError::NoUrl`] if no URL is configured, [`ConnectError::Url`] if it is not valid.
    pub fn new(parts: Parts) -> Result<Self, ConnectError> {
        let database = postgres::Settings {
            max_connections: CONNECTIONS,
            statement_timeout_ms: parts.database.statement_timeout_ms.min(STATEMENT_TIMEOUT_MS),
            ..parts.database.clone()
        };
        let pool = database.lazy_pool("aftercommit console")?;
        let parts = Parts { database, ..parts };
        Ok(Self(Arc::new(Shared {
            parts,
            pool,
            sessions: Sessions::default(),
            trend: Trend::default(),
            feed: Feed::default(),
            replays: Replays::default(),
            viewers: Arc::new(Semaphore::new(VIEWERS_MAX)),
            ended: CancellationToken::new(),
        })))
    }

    /// The connections for operators' changes, for the endpoints beside the page.
    pub fn pool(&self) -> Pool {
        self.0.pool.clone()
    }

    /// The routes of the page.
    pub fn router(&self) -> Router {
        let shared = &self.0;
        let for_operators = Router::new()
            .route("/console/events", get(feed::stream))
            .route("/console/session", get(sign_in::who))
            .route("/console/sign-out", post(sign_in::sign_out))
            .route("/console/parked/release", post(actions::release))
            .route("/console/parked/discard", post(actions::discard))
            .route("/console/pause", post(actions::pause))
            .route("/console/resume", post(actions::resume))
            .route("/console/replay/preview", post(replay::preview))
            .route("/console/replay", post(replay::start))
            .route("/console/replay/resume", post(replay::resume))
            .layer(middleware::from_fn_with_state(shared.clone(), access::operators_only));
        // No operator is known yet at the sign-in.
        let sign_in = get(pages::to_console)
            .post(sign_in::sign_in)
            .layer(middleware::from_fn_with_state(SIGN_IN_TAKES, request_timeout));
        Router::new()
            .route("/", get(pages::to_console))
            .route(PATH, get(pages::console))
            .route("/console/sign-in", sign_in)
            .route("/console/assets/{name}", get(pages::asset))
            .merge(for_operators)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(middleware::map_response(pages::guard))
            .with_state(shared.clone())
    }

    /// Samples the trend, and reads the log while a page is open, until `stop`. Streams end then, and replays
    /// of this process are interrupted; they can be resumed.
    pub async fn run(self, stop: CancellationToken) {
        let shared = &self.0;
        tokio::join!(trend::sample(shared, &stop), feed::look_after(shared, &stop));
        shared.ended.cancel();
        shared.replays.end().await;
        shared.pool.close().await;
    }
}
