//! The reading half of the Durable Streams protocol, at `/ds/{topic}`: a topic is a stream whose messages are
//! the payloads of its events. Clients of that protocol read it in pages, by long polls or by a stream of
//! events. Writing is `outbox.append`'s.
//!
//! `query` and `offset` are what a request says, `collapse` is the protocol's cursor for caches, `body` the
//! bytes of messages, `answer` the headers. `catch_up`, `long_poll` and `live_stream` are the three ways to
//! read. Must not know any application.

mod answer;
mod body;
mod catch_up;
mod collapse;
mod live_stream;
mod long_poll;
mod offset;
mod query;

use std::sync::Arc;

use axum::extract::{FromRef, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router, middleware};

use self::query::{Live, ReadQuery};
use crate::auth::{Listener, User, Verifier};
use crate::event::{EventError, Topic};
use crate::http::{Connection, Path, Problem, Query};
use crate::sse::{Hub, TopicReader};

/// The path of a topic.
const PATH: &str = "/ds/{topic}";

/// The state of the handlers.
#[derive(Debug, Clone, FromRef)]
pub struct DurableStreamsState {
    hub: Hub,
    verifier: Arc<Verifier>,
}

impl DurableStreamsState {
    /// Topics of `hub`, for users that `verifier` accepts.
    pub fn new(hub: Hub, verifier: Arc<Verifier>) -> Self {
        Self { hub, verifier }
    }
}

/// Serves `GET` and `HEAD /ds/{topic}`.
pub fn router(state: DurableStreamsState) -> Router {
    Router::new()
        .route(PATH, get(read).head(tail).fallback(write))
        .layer(middleware::map_response(answer::guarded))
        .with_state(state)
}

/// The answer to requests that come when all connections are taken.
pub fn refuse_when_full() -> Router {
    let full = || async {
        Problem::unavailable("this process has as many connections as it may have: try again after a while")
    };
    Router::new().route(PATH, get(full)).layer(middleware::map_response(answer::guarded))
}

async fn read(
    State(hub): State<Hub>,
    listener: Listener,
    Path(topic): Path<String>,
    Query(pairs): Query<Vec<(String, String)>>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (reader, user) = allowed(&hub, listener, &topic)?;
    let asked = ReadQuery::of(&pairs)?;
    match asked.live {
        None => catch_up::answer(&reader, &asked, &headers, &connection).await,
        Some(Live::LongPoll) => long_poll::answer(&reader, &asked, user, connection).await,
        Some(Live::EventStream) => live_stream::answer(reader, &asked, user, connection).await,
    }
}

/// Answers `HEAD`: where the topic ends.
async fn tail(
    State(hub): State<Hub>,
    listener: Listener,
    Path(topic): Path<String>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let (reader, _user) = allowed(&hub, listener, &topic)?;
    let asked = ReadQuery::of(&pairs)?;
    Ok(answer::of_tail(reader.tail().await?, asked.form))
}

/// Checks that the listener may read the topic, by the rule of `/streams`. Returns a reader and the user.
fn allowed(hub: &Hub, listener: Listener, topic: &str) -> Result<(TopicReader, User), Problem> {
    let topic = Topic::new(topic).map_err(|error: EventError| Problem::bad_request(error.to_string()))?;
    let user = listener.subscriber_of([topic.as_str()])?;
    Ok((TopicReader::new(hub, topic), user))
}

/// Answers the methods that write.
async fn write() -> Response {
    let problem = Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "streams are only read here: append events with outbox.append, in the transaction of the change",
    );
    ([(header::ALLOW, HeaderValue::from_static("GET, HEAD"))], problem).into_response()
}
