//! Streams of any topic, allowed by the token's `subscribe` claim, and tickets, with which a page opens
//! streams across sites. Must not know any application.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, FromRef, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router, middleware};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::auth::{self, AuthError, Listener, TICKET_TOPICS_MAX, Verifier};
use crate::event::{EventError, TOPIC_LEN_MAX, Topic};
use crate::http::{Connection, Json, Path, Problem, Query, REQUEST_TIMEOUT, request_timeout};
use crate::sse::{self, Hub, MultiTopic, StreamGrant, StreamQuery, Topics};

/// The largest size of a stream's URL in bytes: `/streams`, the largest number of topics, each of the largest
/// size and with every character escaped, a ticket, an escaped id, and the other parameters.
const ADDRESS_BYTES_MAX: usize = 64
    + sse::TOPICS_MAX * ("topic=&".len() + 3 * TOPIC_LEN_MAX)
    + ("ticket=&".len() + auth::TICKET_BYTES_MAX)
    + ("lastEventId=&".len() + 3 * sse::ID_BYTES_MAX)
    + "name=topic&from=earliest&".len();

/// The largest size in bytes of the headers that this server reads, with their names: the id of a browser
/// that reconnects, and a token in `Authorization` or in a cookie.
const OWN_HEADERS_BYTES_MAX: usize = 64 + sse::ID_BYTES_MAX + auth::TOKEN_BYTES_MAX;

/// Room for a browser's other headers and cookies, and for headers that proxies add, in bytes.
const OTHER_HEADERS_BYTES_MAX: usize = 8 * 1024;

/// The largest head of a request in bytes. A request that reaches all other limits at once still fits. So a
/// browser that reconnects with its id is not refused if its first connection, without an id, was accepted.
pub const HEAD_BYTES_MAX: usize = ADDRESS_BYTES_MAX + OWN_HEADERS_BYTES_MAX + OTHER_HEADERS_BYTES_MAX;

/// The state of the handlers.
#[derive(Debug, Clone, FromRef)]
pub struct StreamsState {
    hub: Hub,
    verifier: Arc<Verifier>,
}

impl StreamsState {
    /// Streams of `hub`, for users that `verifier` accepts.
    pub fn new(hub: Hub, verifier: Arc<Verifier>) -> Self {
        Self { hub, verifier }
    }
}

/// Serves `GET /streams/{topic}`, `GET /streams?topic=a&topic=b` and `POST /api/stream-tickets`. The last one
/// may take [`REQUEST_TIMEOUT`].
pub fn router(state: StreamsState) -> Router {
    let streams = Router::new()
        .route("/streams", get(multi_topic))
        .route("/streams/{topic}", get(stream))
        .layer(middleware::from_fn_with_state(state.hub.clone(), sse::retry_later));
    Router::new()
        .route("/api/stream-tickets", post(ticket))
        .layer(DefaultBodyLimit::max(TICKET_REQUEST_BYTES_MAX))
        .layer(middleware::from_fn_with_state(REQUEST_TIMEOUT, request_timeout))
        .merge(streams)
        .with_state(state)
}

async fn stream(
    State(hub): State<Hub>,
    listener: Listener,
    Path(topic): Path<String>,
    Query(query): Query<StreamQuery>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let topic = parsed(&topic)?;
    let user = listener.subscriber_of([topic.as_str()])?;
    let grant = StreamGrant { topics: Topics::One(topic), user };
    Ok(sse::open(&hub, grant, &headers, &query, connection).await)
}

/// The query of a stream of several topics: `?topic=a&topic=b`. `&name=topic` names events by their topic.
#[derive(Debug)]
struct MultiTopicQuery {
    topics: Vec<String>,
    is_named_by_topic: bool,
}

impl MultiTopicQuery {
    fn of(pairs: Vec<(String, String)>) -> Result<Self, Problem> {
        let (mut topics, mut name) = (Vec::new(), None);
        for (key, value) in pairs {
            match key.as_str() {
                "topic" => topics.push(value),
                // The last one counts, as with every parameter that a stream has once.
                "name" => name = Some(value),
                _ => {}
            }
        }
        let is_named_by_topic = match name.as_deref() {
            None | Some("type") => false,
            Some("topic") => true,
            Some(_) => return Err(Problem::bad_request("name must be 'type' (the default) or 'topic'")),
        };
        Ok(Self { topics, is_named_by_topic })
    }
}

async fn multi_topic(
    State(hub): State<Hub>,
    listener: Listener,
    Query(pairs): Query<Vec<(String, String)>>,
    Query(query): Query<StreamQuery>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asked = MultiTopicQuery::of(pairs)?;
    let topics = asked.topics.iter().map(|name| parsed(name)).collect::<Result<_, _>>()?;
    let multi_topic = MultiTopic::new(topics, asked.is_named_by_topic)
        .map_err(|error| Problem::bad_request(error.to_string()))?;
    let user = listener.subscriber_of(multi_topic.topics().iter().map(Topic::as_str))?;
    let grant = StreamGrant { topics: Topics::Multi(multi_topic), user };
    Ok(sse::open(&hub, grant, &headers, &query, connection).await)
}

/// The largest body of a request for a ticket, in bytes.
const TICKET_REQUEST_BYTES_MAX: usize = 16 * 1024;
// Room for the largest number of topics, each of the largest size, in quotes and with a comma.
const _: () = assert!(TICKET_REQUEST_BYTES_MAX > 2 * TICKET_TOPICS_MAX * (TOPIC_LEN_MAX + 4));

/// `{"topic": "a"}` or `{"topics": ["a", "b"]}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedTicket {
    topic: Option<String>,
    topics: Option<Vec<String>>,
}

impl WantedTicket {
    fn topics(self) -> Result<Vec<Topic>, Problem> {
        let names = match (self.topic, self.topics) {
            (Some(name), None) => vec![name],
            (None, Some(names)) => names,
            _ => return Err(Problem::bad_request("send either 'topic' or 'topics'")),
        };
        if !(1..=TICKET_TOPICS_MAX).contains(&names.len()) {
            let detail = format!("a ticket is for 1 to {TICKET_TOPICS_MAX} topics, not for {}", names.len());
            return Err(Problem::bad_request(detail));
        }
        names.iter().map(|name| parsed(name)).collect()
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ticket {
    ticket: String,
    expires_at: String,
}

/// A ticket names a user and topics. Whether the user may read the topics is decided when the stream opens.
async fn ticket(
    State(verifier): State<Arc<Verifier>>,
    listener: Listener,
    Json(grant): Json<WantedTicket>,
) -> Result<Response, Problem> {
    let topics = grant.topics()?;
    let names: Vec<&str> = topics.iter().map(Topic::as_str).collect();
    let user = listener.with_token(names.iter().copied())?;
    let (ticket, expires_at) = verifier.issue_ticket(&user, &names).map_err(not_made)?;
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
