//! The live page of `aftercommit dev`: an upload whose events five clients receive, while its reader cuts
//! connections, kills the relay and stops Redis, and a proof of what arrived.
//!
//! It is for one person at one machine. It listens on a loopback address only, and everything that it shows
//! or switches needs the key in the page's address. The key stands after `#`, so a browser sends it to
//! nobody, and no other page can add it to a request. The five clients are EventSources of the browser. Each
//! reaches the SSE server by a TCP line of its own, which can be cut.
//!
//! - `gate`: admits requests of the page itself and no others.
//! - `lines`: TCP lines to the SSE server that can be cut.
//! - `switches`: orders to stop and start the relay and Redis, which `dev` carries out.
//! - `committed`: the events of a topic, counted in Postgres.
//! - `pages`: the files of `assets`, compiled in.

mod committed;
mod gate;
mod lines;
mod pages;
mod switches;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Router, middleware};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::http::{Json, OperatorGate, Path, Problem, REQUEST_TIMEOUT, request_timeout};
use crate::postgres::{self, ConnectError, Pool};

pub use switches::{Order, Orders, Part, SwitchError, Switchboard, switchboard};

use lines::Line;

/// The clients of the page. Each is an EventSource with a line of its own.
const CLIENTS: usize = 5;

/// Connections to Postgres: two open pages ask at the same time.
const CONNECTIONS: u32 = 2;

/// The largest body of a request that switches a part, in bytes.
const BODY_BYTES_MAX: usize = 1024;

/// The parts of `dev` that the page uses.
#[derive(Debug)]
pub struct Parts {
    /// The address of the page.
    pub address: SocketAddr,
    /// Admits requests that carry the key of the page's address.
    pub gate: OperatorGate,
    /// The API of the upload application. It must answer for every path.
    pub api: Router,
    /// The address of the SSE server.
    pub sse: SocketAddr,
    /// The database of the log.
    pub database: postgres::Settings,
    /// The name of the relay that delivers.
    pub relay: String,
    /// Stops and starts the relay and Redis.
    pub switchboard: Switchboard,
    /// The credentials and addresses that the page shows.
    pub guide: Guide,
}

/// The credentials and addresses that the page shows to its reader.
#[derive(Debug)]
pub struct Guide {
    /// A token that may create sessions and read every topic.
    pub token: String,
    /// `postgres://…`, with the password.
    pub database: SecretString,
    /// The URL of the SSE server.
    pub sse: String,
    /// The URL of the operator's page.
    pub console: String,
}

/// The live page. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LivePage(Arc<Shared>);

/// Shared by all requests.
#[derive(Debug)]
struct Shared {
    parts: Parts,
    pool: Pool,
    clients: Vec<Line>,
    /// The line for the reader's own events, which stays.
    own: Line,
}

impl LivePage {
    /// Opens the lines to the SSE server.
    ///
    /// # Errors
    /// [`OpenError`] if a line gets no port, or if the address of Postgres is not valid.
    pub async fn open(parts: Parts) -> Result<Self, OpenError> {
        let database = postgres::Settings { max_connections: CONNECTIONS, ..parts.database.clone() };
        let pool = database.lazy_pool("aftercommit live page")?;
        let mut clients = Vec::with_capacity(CLIENTS);
        for _ in 0..CLIENTS {
            clients.push(Line::open(parts.sse).await?);
        }
        let own = Line::open(parts.sse).await?;
        Ok(Self(Arc::new(Shared { parts, pool, clients, own })))
    }

    /// The routes of the page and of the API that it calls.
    pub fn router(&self) -> Router {
        let shared = &self.0;
        let for_the_page = Router::new()
            .route("/live/page", get(page))
            .route("/live/state", get(state))
            .route("/live/committed", get(committed::committed))
            .route("/live/parts/{part}", post(switch_part))
            .route("/live/clients/{number}", post(switch_client))
            .layer(middleware::from_fn_with_state(shared.clone(), gate::page_only))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
        Router::new()
            .route("/", get(pages::page))
            .route("/live/assets/{name}", get(pages::asset))
            .merge(for_the_page)
            .layer(middleware::from_fn_with_state(4 * REQUEST_TIMEOUT, request_timeout))
            // It answers for paths that nobody serves, too.
            .fallback_service(shared.parts.api.clone())
            .layer(middleware::from_fn_with_state(shared.clone(), gate::own_host_only))
            .layer(middleware::map_response_with_state(shared.clone(), pages::guard))
            .with_state(shared.clone())
    }

    /// Carries the lines until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let lines = self.0.clients.iter().chain([&self.0.own]);
        futures_util::future::join_all(lines.map(|line| line.carry(&stop))).await;
        self.0.pool.close().await;
    }
}

/// The page cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A line to the SSE server gets no port.
    #[error("the live page gets no port on 127.0.0.1")]
    Line(#[from] io::Error),
    /// The address of Postgres is not valid.
    #[error(transparent)]
    Database(#[from] ConnectError),
}

/// The answer of `GET /live/page`: all that a page learns once.
#[derive(Serialize)]
struct PageInfo<'a> {
    clients: Vec<String>,
    own: String,
    token: &'a str,
    database: &'a str,
    sse: &'a str,
    console: &'a str,
}

async fn page(State(shared): State<Arc<Shared>>) -> axum::response::Response {
    let Guide { token, database, sse, console } = &shared.parts.guide;
    let info = PageInfo {
        clients: shared.clients.iter().map(Line::origin).collect(),
        own: shared.own.origin(),
        token,
        database: database.expose_secret(),
        sse,
        console,
    };
    axum::response::IntoResponse::into_response(axum::Json(info))
}

/// The answer of `GET /live/state`: what runs and what is connected.
#[derive(Serialize)]
struct StateInfo {
    relay: bool,
    redis: bool,
    clients: Vec<bool>,
}

async fn state(State(shared): State<Arc<Shared>>) -> axum::Json<StateInfo> {
    let switchboard = &shared.parts.switchboard;
    axum::Json(StateInfo {
        relay: switchboard.runs(Part::Relay),
        redis: switchboard.runs(Part::Redis),
        clients: shared.clients.iter().map(Line::is_connected).collect(),
    })
}

/// `{"run": false}` stops or cuts, `{"run": true}` starts or restores.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    run: bool,
}

async fn switch_part(
    State(shared): State<Arc<Shared>>,
    Path(part): Path<Part>,
    Json(wanted): Json<Wanted>,
) -> Result<StatusCode, Problem> {
    let switched = shared.parts.switchboard.switch(part, wanted.run).await;
    switched.map_err(|error| Problem::unavailable(error.to_string()))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn switch_client(
    State(shared): State<Arc<Shared>>,
    Path(number): Path<usize>,
    Json(wanted): Json<Wanted>,
) -> Result<StatusCode, Problem> {
    let line = shared.clients.get(number).ok_or_else(|| Problem::not_found("there is no such client"))?;
    line.connect(wanted.run);
    Ok(StatusCode::NO_CONTENT)
}
