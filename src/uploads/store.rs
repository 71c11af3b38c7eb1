//! The application's rows. All statements on the schema `uploads` are here.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::error::Error;
use super::messages::Settled;
use super::session::{PhotoStatus, Session};

/// A photo as it is shown.
#[derive(Debug, Clone)]
pub(super) struct Photo {
    pub(super) id: Uuid,
    pub(super) file_name: Option<String>,
    pub(super) status: PhotoStatus,
    pub(super) reason: Option<String>,
}

/// Inserts a session and its photos, in their order.
pub(super) async fn insert_session(
    connection: &mut PgConnection,
    session: &Session,
    photos: &[(Uuid, Option<String>)],
) -> Result<(), Error> {
    sqlx::query("insert into uploads.session (id, user_id, total_count) values ($1, $2, $3)")
        .bind(session.id)
        .bind(session.user_id)
        .bind(session.total.cast_signed())
        .execute(&mut *connection)
        .await?;
    let ids: Vec<Uuid> = photos.iter().map(|(id, _)| *id).collect();
    let names: Vec<Option<&str>> = photos.iter().map(|(_, name)| name.as_deref()).collect();
    sqlx::query(
        "insert into uploads.photo (session_id, id, position, file_name)
         select $1, id, position, file_name
         from unnest($2::uuid[], $3::text[]) with ordinality as given (id, file_name, position)",
    )
    .bind(session.id)
    .bind(&ids)
    .bind(&names)
    .execute(connection)
    .await?;
    Ok(())
}

/// Loads a session and locks its row. The lock serializes all changes of the session and all appends to its
/// topic.
pub(super) async fn lock_session(connection: &mut PgConnection, id: Uuid) -> Result<Option<Session>, Error> {
    let row = sqlx::query(
        "select id, user_id, total_count, uploaded_count, failed_count from uploads.session
         where id = $1 for update",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    row.map(|row| session_of(&row)).transpose()
}

/// Loads a session without a lock.
pub(super) async fn session(connection: &mut PgConnection, id: Uuid) -> Result<Option<Session>, Error> {
    let row = sqlx::query(
        "select id, user_id, total_count, uploaded_count, failed_count from uploads.session where id = $1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?;
    row.map(|row| session_of(&row)).transpose()
}

/// The status of a photo. The caller holds the lock of its session.
pub(super) async fn photo_status(
    connection: &mut PgConnection,
    session: Uuid,
    photo: Uuid,
) -> Result<Option<PhotoStatus>, Error> {
    let status: Option<String> =
        sqlx::query_scalar("select status from uploads.photo where session_id = $1 and id = $2")
            .bind(session)
            .bind(photo)
            .fetch_optional(connection)
            .await?;
    status.map(|status| status_of(photo, status)).transpose()
}

/// Saves the outcome of a photo, and the session after it.
pub(super) async fn save(
    connection: &mut PgConnection,
    session: &Session,
    photo: Uuid,
    settled: &Settled,
) -> Result<(), Error> {
    let (status, reason) = match settled {
        Settled::Uploaded => (PhotoStatus::Uploaded, None),
        Settled::Failed { reason } => (PhotoStatus::Failed, Some(reason)),
    };
    sqlx::query(
        "update uploads.photo set status = $3, fail_reason = $4, settled_at = now()
         where session_id = $1 and id = $2",
    )
    .bind(session.id)
    .bind(photo)
    .bind(status.as_str())
    .bind(reason)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "update uploads.session
         set uploaded_count = $2, failed_count = $3,
             completed_at = case when $2::integer + $3::integer = total_count then now() end
         where id = $1",
    )
    .bind(session.id)
    .bind(session.uploaded.cast_signed())
    .bind(session.failed.cast_signed())
    .execute(connection)
    .await?;
    Ok(())
}

/// A session as it is shown.
#[derive(Debug)]
pub(super) struct SessionState {
    pub(super) session: Session,
    /// In their order.
    pub(super) photos: Vec<Photo>,
    /// Which events this state holds.
    pub(super) resume_token: String,
}

/// Loads a session with its photos. One statement does it, so that the counts match the photos, and the token
/// matches both.
pub(super) async fn session_with_photos(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Option<SessionState>, Error> {
    let rows = sqlx::query(
        "select session.id, user_id, total_count, uploaded_count, failed_count,
                photo.id as photo_id, file_name, status, fail_reason,
                (select outbox.resume_token()) as resume_token
         from uploads.session join uploads.photo on photo.session_id = session.id
         where session.id = $1 order by position",
    )
    .bind(id)
    .fetch_all(connection)
    .await?;
    // A session has at least one photo.
    let Some(first) = rows.first() else { return Ok(None) };
    let photo = |row: &sqlx::postgres::PgRow| {
        let id = row.try_get("photo_id")?;
        Ok(Photo {
            id,
            file_name: row.try_get("file_name")?,
            status: status_of(id, row.try_get("status")?)?,
            reason: row.try_get("fail_reason")?,
        })
    };
    let photos = rows.iter().map(photo).collect::<Result<_, Error>>()?;
    let resume_token = first.try_get("resume_token")?;
    Ok(Some(SessionState { session: session_of(first)?, photos, resume_token }))
}

fn session_of(row: &sqlx::postgres::PgRow) -> Result<Session, Error> {
    let count = |name| row.try_get::<i32, _>(name).map(i32::cast_unsigned);
    Ok(Session {
        id: row.try_get("id")?,
        user_id: row.try_get("user_id")?,
        total: count("total_count")?,
        uploaded: count("uploaded_count")?,
        failed: count("failed_count")?,
    })
}

fn status_of(photo: Uuid, status: String) -> Result<PhotoStatus, Error> {
    PhotoStatus::parse(&status).ok_or(Error::Status { photo, status })
}
