//! The application's HTTP API: parses a request, runs the command, rings the bell, answers.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, FromRef, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http_body::Body;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::commands::{self, Order, owned_by};
use super::error::Error;
use super::messages::Settled;
use super::session::{PhotoStatus, REASON_LEN_MAX, Session, SessionStatus};
use super::{Settings, store, streams};
use crate::auth::{User, Verifier};
use crate::event::TraceParent;
use crate::http::{Json, Path, Problem, REQUEST_TIMEOUT, RequestTrace, no_route, request_timeout, traced};
use crate::outbox::Bell;
use crate::postgres::Pool;

/// The state of the API's handlers.
#[derive(Debug, Clone, FromRef)]
pub struct ApiState {
    /// Connections to Postgres.
    pub pool: Pool,
    /// Checks tokens.
    pub verifier: Arc<Verifier>,
    /// Wakes the relay after a commit.
    pub bell: Bell,
    /// The application's settings.
    pub settings: Settings,
}

/// The number of requests for new sessions with large bodies that are read at the same time.
const LARGE_ORDERS_AT_ONCE: usize = 4;

/// The API. Refuses bodies over `max_body_bytes`, except a new session's, which may name all its photos.
/// Refuses requests that take longer than [`REQUEST_TIMEOUT`].
pub fn router(state: ApiState, max_body_bytes: usize) -> Router {
    let order_bytes = commands::order_bytes_max(state.settings.max_photos).max(max_body_bytes);
    let large = LargeOrders { over: max_body_bytes, places: Arc::new(Semaphore::new(LARGE_ORDERS_AT_ONCE)) };
    let create = post(create)
        .layer(DefaultBodyLimit::max(order_bytes))
        .layer(middleware::from_fn_with_state(large, a_few_at_a_time));
    Router::new()
        .route("/api/upload/sessions", create)
        .route("/api/upload/sessions/{session_id}", get(show))
        .route("/api/upload/sessions/{session_id}/photos/{photo_id}/complete", post(complete))
        .route("/api/upload/sessions/{session_id}/photos/{photo_id}/fail", post(fail))
        .route("/api/realtime/info", get(streams::info))
        .fallback(no_route)
        .method_not_allowed_fallback(streams::no_method)
        .layer(DefaultBodyLimit::max(max_body_bytes))
        .layer(middleware::from_fn_with_state(REQUEST_TIMEOUT, request_timeout))
        .layer(middleware::from_fn(traced))
        .with_state(state)
}

/// Limits the number of requests with large bodies.
#[derive(Debug, Clone)]
struct LargeOrders {
    over: usize,
    places: Arc<Semaphore>,
}

/// Middleware: a request with a large body, or with one of unknown size, waits for one of a few places. Its
/// body is not read before.
async fn a_few_at_a_time(State(large): State<LargeOrders>, mut request: Request, next: Next) -> Response {
    let size = match request.body().size_hint().exact() {
        Some(bytes) if bytes <= large.over as u64 => Size::Small,
        Some(_) => Size::Large,
        None => Size::Unknown,
    };
    request.extensions_mut().insert(BodySize(size));
    let _place = match size {
        Size::Small => None,
        // The semaphore is never closed.
        Size::Large | Size::Unknown => large.places.acquire().await.ok(),
    };
    next.run(request).await
}

/// The size of the body of a request for a new session, as far as its headers tell it.
#[derive(Debug, Clone, Copy)]
struct BodySize(Size);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// At most the limit for other requests' bodies.
    Small,
    Large,
    /// Not known before the end of the body.
    Unknown,
}

/// A session's counts.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    total_count: u32,
    uploaded_count: u32,
    failed_count: u32,
    progress_percent: f64,
    status: SessionStatus,
}

impl From<&Session> for Counts {
    fn from(session: &Session) -> Self {
        Self {
            total_count: session.total,
            uploaded_count: session.uploaded,
            failed_count: session.failed,
            progress_percent: session.progress_percent(),
            status: session.status(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Created {
    session_id: Uuid,
    photo_ids: Vec<Uuid>,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    session_id: Uuid,
    #[serde(flatten)]
    counts: Counts,
    photos: Vec<ShownPhoto>,
    /// For `?resume=` of the session's stream, which then leaves out the messages that this state holds.
    resume_token: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownPhoto {
    photo_id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_name: Option<String>,
    status: PhotoStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// A photo and its session after a command.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SettledPhoto {
    session_id: Uuid,
    photo_id: Uuid,
    photo_status: PhotoStatus,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Failure {
    reason: String,
}

impl Failure {
    fn checked(self) -> Result<String, Problem> {
        let length = self.reason.chars().count();
        if self.reason.trim().is_empty() || length > REASON_LEN_MAX || self.reason.contains('\0') {
            return Err(Problem::bad_request(format!(
                "reason is required and has 1 to {REASON_LEN_MAX} characters, none of them NUL"
            )));
        }
        Ok(self.reason)
    }
}

/// The id of the user, which must be a UUID in this application.
fn uploader(user: &User) -> Result<Uuid, Problem> {
    user.id.as_uuid().ok_or_else(|| {
        Problem::forbidden("uploads need a user whose id is a UUID: the token's claim 'sub' is not a UUID")
    })
}

async fn create(
    State(state): State<ApiState>,
    user: User,
    Extension(BodySize(size)): Extension<BodySize>,
    Json(order): Json<Order>,
) -> Result<Response, Error> {
    let uploader = uploader(&user)?;
    if size == Size::Large && !order.names_photos() {
        let detail = "a body this large may only name photos: send totalPhotos alone, in a small body";
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).into());
    }
    let mut connection = state.pool.acquire().await?;
    let (session, photo_ids) =
        commands::create(&mut connection, uploader, order, state.settings.max_photos).await?;
    let created = Created { session_id: session.id, photo_ids, counts: Counts::from(&session) };
    Ok((StatusCode::CREATED, axum::Json(created)).into_response())
}

async fn show(
    State(state): State<ApiState>,
    user: User,
    Path(session_id): Path<Uuid>,
) -> Result<Response, Error> {
    let uploader = uploader(&user)?;
    let mut connection = state.pool.acquire().await?;
    let state = store::session_with_photos(&mut connection, session_id).await?;
    let (session, rest) = state.map(|state| (state.session, (state.photos, state.resume_token))).unzip();
    let session = owned_by(uploader, session)?;
    let (photos, resume_token) = rest.unwrap_or_default();
    let shown = |photo: store::Photo| ShownPhoto {
        photo_id: photo.id,
        file_name: photo.file_name,
        status: photo.status,
        reason: photo.reason,
    };
    let photos = photos.into_iter().map(shown).collect();
    Ok(axum::Json(Shown { session_id, counts: Counts::from(&session), photos, resume_token }).into_response())
}

async fn complete(
    State(state): State<ApiState>,
    user: User,
    RequestTrace(trace): RequestTrace,
    Path(ids): Path<(Uuid, Uuid)>,
) -> Result<Response, Error> {
    resolve_photo(&state, &user, ids, &Settled::Uploaded, trace).await
}

async fn fail(
    State(state): State<ApiState>,
    user: User,
    RequestTrace(trace): RequestTrace,
    Path(ids): Path<(Uuid, Uuid)>,
    Json(failure): Json<Failure>,
) -> Result<Response, Error> {
    resolve_photo(&state, &user, ids, &Settled::Failed { reason: failure.checked()? }, trace).await
}

async fn resolve_photo(
    state: &ApiState,
    user: &User,
    (session_id, photo_id): (Uuid, Uuid),
    settled: &Settled,
    trace: Option<TraceParent>,
) -> Result<Response, Error> {
    let uploader = uploader(user)?;
    let mut connection = state.pool.acquire().await?;
    let (session, is_new) =
        commands::resolve_photo(&mut connection, uploader, session_id, photo_id, settled, trace).await?;
    if is_new {
        // After the commit, never inside the transaction: see `outbox::bell`.
        state.bell.ring();
    }
    let photo_status = match settled {
        Settled::Uploaded => PhotoStatus::Uploaded,
        Settled::Failed { .. } => PhotoStatus::Failed,
    };
    let answer = SettledPhoto { session_id, photo_id, photo_status, counts: Counts::from(&session) };
    Ok(axum::Json(answer).into_response())
}
