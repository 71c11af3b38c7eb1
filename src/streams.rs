//! Streams of any topic, for any application: who may listen is told by the token's `subscribe` claim. And tickets, with
//! which a page listens across sites. Knows no application.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, FromRef, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::auth::{AuthError, Listener, Verifier};
use crate::event::{EventError, Topic};
use crate::http::{ConnectionEnd, Json, Path, Problem, Query};
use crate::sse::{self, Hub, StreamQuery, Wanted};

/// A body that asks for a ticket names a topic, which is short. A larger one is refused with 413.
const TICKET_BODY_BYTES: usize = 4096;

/// What the handlers work with.
#[derive(Debug, Clone, FromRef)]
pub struct StreamsState {
    hub: Hub,
    verifier: Arc<Verifier>,
}

impl StreamsState {
    /// Streams of `hub`, for those whom `verifier` knows.
    pub fn new(hub: Hub, verifier: Arc<Verifier>) -> Self {
        Self { hub, verifier }
    }
}

/// `GET /streams/{topic}` and `POST /api/stream-tickets`.
pub fn router(state: StreamsState) -> Router {
    Router::new()
        .route("/streams/{topic}", get(stream))
        .route("/api/stream-tickets", post(ticket).layer(DefaultBodyLimit::max(TICKET_BODY_BYTES)))
        .with_state(state)
}

async fn stream(
    State(hub): State<Hub>,
    listener: Listener,
    Path(topic): Path<String>,
    Query(query): Query<StreamQuery>,
    Extension(connection): Extension<ConnectionEnd>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let topic = parsed(&topic)?;
    let user = listener.of_topic(topic.as_str())?;
    if !user.may_subscribe(topic.as_str()) {
        return Err(Problem::forbidden("the token's claim 'subscribe' does not allow this topic"));
    }
    let wanted = Wanted { topic, expires_at: Some(user.expires_at) };
    Ok(sse::open(&hub, wanted, &headers, &query, connection).await)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedTicket {
    topic: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ticket {
    ticket: String,
    expires_at: String,
}

/// A ticket says who wants to listen and to what. Whether they may is decided when they open the stream.
async fn ticket(
    State(verifier): State<Arc<Verifier>>,
    listener: Listener,
    Json(wanted): Json<WantedTicket>,
) -> Result<Response, Problem> {
    let user = listener.with_token()?;
    let topic = parsed(&wanted.topic)?;
    let (ticket, expires_at) = verifier.issue_ticket(&user, topic.as_str()).map_err(not_made)?;
    let body = axum::Json(Ticket { ticket, expires_at: text_of(expires_at) });
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], body).into_response())
}

fn text_of(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn parsed(topic: &str) -> Result<Topic, Problem> {
    Topic::new(topic).map_err(|error: EventError| Problem::bad_request(error.to_string()))
}

fn not_made(error: AuthError) -> Problem {
    Problem::new(StatusCode::NOT_IMPLEMENTED, error.to_string())
}
