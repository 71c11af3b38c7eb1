//! Settles a photo: completes it or fails it.

use chrono::Utc;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::event::{NewEvent, TraceParent};
use crate::http::Problem;
use crate::outbox;
use crate::uploads::error::Error;
use crate::uploads::messages::{self, Settled};
use crate::uploads::session::{Decision, Session, SessionStatus};
use crate::uploads::store;

/// Settles a photo of the caller's session. Returns the session after that, and whether anything changed. The
/// events carry `trace`.
pub(in crate::uploads) async fn resolve_photo(
    connection: &mut PgConnection,
    user_id: Uuid,
    session_id: Uuid,
    photo_id: Uuid,
    settled: &Settled,
    trace: Option<TraceParent>,
) -> Result<(Session, bool), Error> {
    let mut tx = connection.begin().await?;
    // All commands on photos of this session wait here for each other. So no count is lost, and the topic's
    // events are appended in the order in which they commit.
    let session = store::lock_session(&mut tx, session_id).await?;
    let session = owned_by(user_id, session)?;
    let photo = store::photo_status(&mut tx, session_id, photo_id)
        .await?
        .ok_or_else(|| Problem::not_found("this session has no such photo"))?;
    let decision = match settled {
        Settled::Uploaded => session.complete(photo)?,
        Settled::Failed { .. } => session.fail(photo)?,
    };
    let Decision::Settled(after) = decision else {
        tx.rollback().await?;
        return Ok((session, false));
    };
    store::save(&mut tx, &after, photo_id, settled).await?;
    if after.status() == SessionStatus::Completed {
        // Two sessions of one user may complete at the same time and share no row; this lock orders the
        // user's topic. It is always taken after the session's lock, so two transactions cannot deadlock.
        outbox::lock_topic(&mut tx, &messages::user_topic(user_id)?).await?;
    }
    let mut events = messages::events_of(&after, photo_id, settled, Utc::now())?;
    if let Some(trace) = trace {
        events = events.into_iter().map(|event: NewEvent| event.with_trace(trace)).collect();
    }
    outbox::append_all(&mut tx, &events).await?;
    tx.commit().await?;
    Ok((after, true))
}

/// The session, if it exists and belongs to this user.
pub(in crate::uploads) fn owned_by(user_id: Uuid, session: Option<Session>) -> Result<Session, Problem> {
    match session {
        None => Err(Problem::not_found("there is no such session")),
        Some(session) if session.user_id != user_id => {
            Err(Problem::forbidden("this session is another user's"))
        }
        Some(session) => Ok(session),
    }
}
