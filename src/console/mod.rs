//! The operator's page: one page for the person on call, served by the relay's own port.
//!
//! It shows what `aftercommit status` shows, live, and does what an operator does by hand: release, discard, pause, resume,
//! replay. Everything but the sign-in is behind the operators' token.
//!
//! Guarantees: it never stands in the way of a delivery. It has connections of its own, five at most and only while
//! somebody uses it; what it shows is looked up once for all who look. Whatever it changes, it writes into the audit in the
//! same transaction.
//!
//! - `access`: who is let in, and from where a change may be asked for.
//! - `trend`: the last ten minutes, one sample a second.
//! - `feed`: what there is to see, as a stream of server-sent events.
//! - `actions` and `replay`: what an operator does.
//! - `change`: a change is carried out in time and while its operator waits, or not at all.
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

/// Everything of the page is below this path; its cookie goes nowhere else.
pub const PATH: &str = "/console";

/// What an operator's request may weigh, in bytes. Event ids are the longest part of it.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Connections for changes, beside the feed's one and a replay's: two operators do not wait for each other, and a hundred do not press on Postgres.
const CONNECTIONS: u32 = 2;
/// How long a statement of this page may take, in milliseconds.
const STATEMENT_TIMEOUT_MS: u64 = 10_000;
/// How long a sign-in may take, its form included.
const SIGN_IN_TAKES: Duration = Duration::from_secs(5);
/// Pages that may be open at a time.
const VIEWERS_MAX: usize = 32;

/// What the page is about, and what it works with.
#[derive(Debug)]
pub struct Parts {
    /// The relay whose trend is shown.
    pub relay: String,
    /// How long its events may wait before it counts as late.
    pub pending_limit: Duration,
    /// What this process's relay does.
    pub state: StateHandle,
    /// Lets operators in.
    pub gate: OperatorGate,
    /// Where the log is.
    pub database: postgres::Settings,
    /// How the servers beside the relay are.
    pub neighbours: Readiness,
}

/// The operator's page. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Console(Arc<Shared>);

/// What all requests share.
#[derive(Debug)]
struct Shared {
    parts: Parts,
    pool: Pool,
    sessions: Sessions,
    trend: Trend,
    feed: Feed,
    replays: Replays,
    viewers: Arc<Semaphore>,
    /// Cancelled when the process ends: streams end with it.
    ended: CancellationToken,
}

impl Console {
    /// A page over these parts. Connects when somebody signs in, not before.
    ///
    /// # Errors
    /// [`ConnectError::NoUrl`] and [`ConnectError::Url`].
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

    /// The page and all that it asks for.
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
        // Nobody is known yet whose request it is.
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

    /// Samples the trend, and looks at the log while somebody looks at the page, until `stop`. Streams end then too, and
    /// so do replays that this process is at: they can be taken up again.
    pub async fn run(self, stop: CancellationToken) {
        let shared = &self.0;
        tokio::join!(trend::sample(shared, &stop), feed::look_after(shared, &stop));
        shared.ended.cancel();
        shared.replays.end().await;
        shared.pool.close().await;
    }
}
