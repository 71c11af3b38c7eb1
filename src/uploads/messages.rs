//! The messages to clients: their exact JSON, topics and types. The order of the fields is part of the
//! contract.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::session::{Session, SessionStatus};
use crate::event::{EventError, EventType, NewEvent, Topic};

/// The prefix of sessions' topics.
pub(super) const SESSION_PREFIX: &str = "upload-session:";
/// The prefix of users' topics.
pub(super) const USER_PREFIX: &str = "user-notifications:";

pub(super) const PHOTO_UPLOADED: &str = "PHOTO_UPLOADED";
pub(super) const PHOTO_FAILED: &str = "PHOTO_FAILED";
pub(super) const SESSION_COMPLETED: &str = "SESSION_COMPLETED";
pub(super) const UPLOAD_SESSION_COMPLETED: &str = "UPLOAD_SESSION_COMPLETED";

/// The topic of a session's progress.
pub(super) fn session_topic(session: Uuid) -> Result<Topic, EventError> {
    Topic::new(format!("{SESSION_PREFIX}{session}"))
}

/// The topic of a user's notifications.
pub(super) fn user_topic(user: Uuid) -> Result<Topic, EventError> {
    topic_of_user(&user.to_string())
}

/// The topic of notifications for a user with any id. Fails if the id cannot be a part of a topic.
pub(super) fn topic_of_user(user: &str) -> Result<Topic, EventError> {
    Topic::new(format!("{USER_PREFIX}{user}"))
}

/// The outcome of a photo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Settled {
    Uploaded,
    Failed { reason: String },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PhotoUploaded {
    r#type: &'static str,
    session_id: Uuid,
    photo_id: Uuid,
    uploaded_count: u32,
    total_count: u32,
    progress_percent: f64,
    #[serde(serialize_with = "whole_seconds")]
    timestamp: DateTime<Utc>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PhotoFailed<'a> {
    r#type: &'static str,
    session_id: Uuid,
    photo_id: Uuid,
    reason: &'a str,
    failed_count: u32,
    total_count: u32,
    #[serde(serialize_with = "whole_seconds")]
    timestamp: DateTime<Utc>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionCompleted {
    r#type: &'static str,
    session_id: Uuid,
    uploaded_count: u32,
    failed_count: u32,
    total_count: u32,
    #[serde(serialize_with = "whole_seconds")]
    timestamp: DateTime<Utc>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UploadSessionCompleted {
    r#type: &'static str,
    message: String,
    session_id: Uuid,
}

fn whole_seconds<S: Serializer>(at: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// The events of a photo that was settled: its own, and those of the session if the photo completes it.
/// `session` is the state after the photo.
pub(super) fn events_of(
    session: &Session,
    photo_id: Uuid,
    settled: &Settled,
    timestamp: DateTime<Utc>,
) -> Result<Vec<NewEvent>, EventError> {
    let topic = session_topic(session.id)?;
    let mut events = vec![photo_event(&topic, session, photo_id, settled, timestamp)?];
    if session.status() == SessionStatus::Completed {
        let completed = SessionCompleted {
            r#type: SESSION_COMPLETED,
            session_id: session.id,
            uploaded_count: session.uploaded,
            failed_count: session.failed,
            total_count: session.total,
            timestamp,
        };
        events.push(NewEvent::new(topic, EventType::new(SESSION_COMPLETED)?, &completed)?);
        let Session { id, user_id, uploaded, failed, .. } = *session;
        let notification = UploadSessionCompleted {
            r#type: UPLOAD_SESSION_COMPLETED,
            message: format!("Upload session completed: {uploaded} uploaded, {failed} failed"),
            session_id: id,
        };
        let kind = EventType::new(UPLOAD_SESSION_COMPLETED)?;
        events.push(NewEvent::new(user_topic(user_id)?, kind, &notification)?);
    }
    Ok(events)
}

fn photo_event(
    topic: &Topic,
    session: &Session,
    photo_id: Uuid,
    settled: &Settled,
    timestamp: DateTime<Utc>,
) -> Result<NewEvent, EventError> {
    match settled {
        Settled::Uploaded => {
            let message = PhotoUploaded {
                r#type: PHOTO_UPLOADED,
                session_id: session.id,
                photo_id,
                uploaded_count: session.uploaded,
                total_count: session.total,
                progress_percent: session.progress_percent(),
                timestamp,
            };
            NewEvent::new(topic.clone(), EventType::new(PHOTO_UPLOADED)?, &message)
        }
        Settled::Failed { reason } => {
            let message = PhotoFailed {
                r#type: PHOTO_FAILED,
                session_id: session.id,
                photo_id,
                reason,
                failed_count: session.failed,
                total_count: session.total,
                timestamp,
            };
            NewEvent::new(topic.clone(), EventType::new(PHOTO_FAILED)?, &message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(uploaded: u32, failed: u32) -> Session {
        Session { id: Uuid::from_u128(1), user_id: Uuid::from_u128(2), total: 100, uploaded, failed }
    }

    fn payloads(session: &Session, settled: &Settled) -> Vec<String> {
        let at =
            DateTime::parse_from_rfc3339("2025-11-11T10:30:00.987Z").expect("a time").with_timezone(&Utc);
        let events = events_of(session, Uuid::from_u128(3), settled, at).expect("events");
        events.iter().map(|event| event.payload().to_owned()).collect()
    }

    #[test]
    fn an_uploaded_photo_is_told_byte_for_byte() {
        assert_eq!(
            payloads(&session(47, 0), &Settled::Uploaded),
            [concat!(
                r#"{"type":"PHOTO_UPLOADED","sessionId":"00000000-0000-0000-0000-000000000001","#,
                r#""photoId":"00000000-0000-0000-0000-000000000003","uploadedCount":47,"#,
                r#""totalCount":100,"progressPercent":47.0,"timestamp":"2025-11-11T10:30:00Z"}"#,
            )]
        );
    }

    #[test]
    fn the_last_photo_is_told_first_then_the_session_then_the_user() {
        let reason = "disk \"full\"".to_owned();
        assert_eq!(
            payloads(&session(99, 1), &Settled::Failed { reason }),
            [
                concat!(
                    r#"{"type":"PHOTO_FAILED","sessionId":"00000000-0000-0000-0000-000000000001","#,
                    r#""photoId":"00000000-0000-0000-0000-000000000003","reason":"disk \"full\"","#,
                    r#""failedCount":1,"totalCount":100,"timestamp":"2025-11-11T10:30:00Z"}"#,
                ),
                concat!(
                    r#"{"type":"SESSION_COMPLETED","sessionId":"00000000-0000-0000-0000-000000000001","#,
                    r#""uploadedCount":99,"failedCount":1,"totalCount":100,"#,
                    r#""timestamp":"2025-11-11T10:30:00Z"}"#,
                ),
                concat!(
                    r#"{"type":"UPLOAD_SESSION_COMPLETED","#,
                    r#""message":"Upload session completed: 99 uploaded, 1 failed","#,
                    r#""sessionId":"00000000-0000-0000-0000-000000000001"}"#,
                ),
            ]
        );
    }

    #[test]
    fn each_message_goes_to_its_topic() {
        let at = Utc::now();
        let events = events_of(&session(100, 0), Uuid::from_u128(3), &Settled::Uploaded, at).expect("events");
        let topics: Vec<&str> = events.iter().map(|event| event.topic().as_str()).collect();
        let (session, user) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (session, user) = (format!("upload-session:{session}"), format!("user-notifications:{user}"));
        assert_eq!(topics, [session.as_str(), session.as_str(), user.as_str()]);
    }
}
