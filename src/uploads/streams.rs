//! The application's streams: who may open them, and how their events are named. The SSE process serves them.

use std::sync::Arc;

use axum::extract::{FromRef, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router, middleware};
use serde::Serialize;
use uuid::Uuid;

use super::error::Error;
use super::messages::{self, USER_PREFIX};
use super::owners::Owners;
use crate::auth::{Listener, Verifier};
use crate::http::{Connection, Path, Problem, Query, no_route};
use crate::postgres::Pool;
use crate::sse::{self, Hub, Naming, StreamGrant, StreamQuery, Topics};

/// The state of the streams' handlers.
#[derive(Debug, Clone, FromRef)]
pub struct StreamsState {
    hub: Hub,
    verifier: Arc<Verifier>,
    owners: Arc<Owners>,
}

impl StreamsState {
    /// Streams of `hub`. The owners of sessions are read through `pool`.
    pub fn new(hub: Hub, verifier: Arc<Verifier>, pool: Pool) -> Self {
        Self { hub, verifier, owners: Arc::new(Owners::new(pool)) }
    }
}

/// Names all events of a user's stream `notification`, and each event of a session's stream by its type.
pub fn naming(topic: &str) -> Naming {
    if topic.starts_with(USER_PREFIX) { Naming::Fixed("notification") } else { Naming::OfType }
}

/// Routes of the streams and of `/api/realtime/info`.
pub fn router(state: StreamsState) -> Router {
    Router::new()
        .route("/api/upload/sessions/{session_id}/stream", get(session_stream))
        .route("/api/upload/sessions/notifications/stream", get(notification_stream))
        .layer(middleware::from_fn_with_state(state.hub.clone(), sse::retry_later))
        .route("/api/realtime/info", get(info))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(state)
}

async fn session_stream(
    State(state): State<StreamsState>,
    listener: Listener,
    Path(session_id): Path<Uuid>,
    Query(query): Query<StreamQuery>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let topic = messages::session_topic(session_id)?;
    let user = listener.of_topics([topic.as_str()])?;
    match state.owners.of(session_id).await? {
        None => return Err(Problem::not_found("there is no such session").into()),
        Some(owner) if Some(owner) != user.id.as_uuid() => {
            return Err(Problem::forbidden("this session is another user's").into());
        }
        Some(_) => {}
    }
    let grant = StreamGrant { topics: Topics::One(topic), user };
    Ok(sse::open(&state.hub, grant, &headers, &query, connection).await)
}

async fn notification_stream(
    State(state): State<StreamsState>,
    listener: Listener,
    Query(query): Query<StreamQuery>,
    Extension(connection): Extension<Connection>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let topic = messages::topic_of_user(listener.id().as_str()).map_err(|_| no_channel())?;
    let user = listener.of_topics([topic.as_str()])?;
    let grant = StreamGrant { topics: Topics::One(topic), user };
    Ok(sse::open(&state.hub, grant, &headers, &query, connection).await)
}

/// The refusal if the user's id cannot be a part of a topic.
fn no_channel() -> Problem {
    Problem::forbidden(
        "this user has no notification channel: its name is 'user-notifications:' followed by the token's \
         claim 'sub', and a topic has up to 200 characters of A-Z a-z 0-9 : . _ -; listen to another topic \
         at /streams",
    )
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Info {
    session_stream_endpoint: &'static str,
    protocol: &'static str,
    message_types: [&'static str; 4],
    notification_stream_endpoint: &'static str,
}

/// The endpoints and message types that a client needs.
pub(super) async fn info() -> axum::Json<Info> {
    axum::Json(Info {
        session_stream_endpoint: "/api/upload/sessions/{sessionId}/stream",
        protocol: "SSE",
        message_types: [
            messages::PHOTO_UPLOADED,
            messages::PHOTO_FAILED,
            messages::SESSION_COMPLETED,
            messages::UPLOAD_SESSION_COMPLETED,
        ],
        notification_stream_endpoint: "/api/upload/sessions/notifications/stream",
    })
}

pub(super) async fn no_method() -> Response {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method").into_response()
}
