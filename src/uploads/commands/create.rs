//! Begins an upload session.

use serde::Deserialize;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::http::Problem;
use crate::uploads::error::Error;
use crate::uploads::session::{FILE_NAME_LEN_MAX, Session};
use crate::uploads::store;

/// A request for a new session: a number of photos, or their names.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(in crate::uploads) struct Order {
    total_photos: Option<i64>,
    photos: Option<Vec<PhotoOrder>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PhotoOrder {
    file_name: String,
}

/// The largest body of a request for a new session, in bytes: the largest number of photos, each with the
/// longest name, all of whose characters are escaped (`\ud83d\ude00`).
pub(in crate::uploads) fn order_bytes_max(max_photos: u32) -> usize {
    const PHOTO: usize = r#"{"fileName":""},"#.len() + 12 * FILE_NAME_LEN_MAX;
    // Some serializers put white space between tokens.
    const SPACE: usize = 64;
    SPACE + max_photos as usize * (PHOTO + SPACE)
}

impl Order {
    /// Whether the request names photos, and so may be large.
    pub(in crate::uploads) fn names_photos(&self) -> bool {
        self.photos.is_some()
    }

    /// The names of the photos; `None` for each photo without a name.
    fn names(self, max_photos: u32) -> Result<Vec<Option<String>>, Problem> {
        let limit = |count: usize| {
            if (1..=max_photos as usize).contains(&count) {
                Ok(count)
            } else {
                Err(Problem::bad_request(format!("a session has 1 to {max_photos} photos")))
            }
        };
        match (self.total_photos, self.photos) {
            (Some(count), None) => Ok(vec![None; limit(usize::try_from(count).unwrap_or(0))?]),
            (None, Some(photos)) => {
                limit(photos.len())?;
                photos.into_iter().map(|photo| file_name(photo.file_name).map(Some)).collect()
            }
            _ => Err(Problem::bad_request("send either totalPhotos or photos")),
        }
    }
}

fn file_name(name: String) -> Result<String, Problem> {
    // NUL is the only character that Postgres cannot store in a text.
    if name.is_empty() || name.chars().count() > FILE_NAME_LEN_MAX || name.contains('\0') {
        return Err(Problem::bad_request(format!(
            "a fileName has 1 to {FILE_NAME_LEN_MAX} characters, none of them NUL"
        )));
    }
    Ok(name)
}

/// Creates the session and its photos, and returns both.
pub(in crate::uploads) async fn create(
    connection: &mut PgConnection,
    user_id: Uuid,
    order: Order,
    max_photos: u32,
) -> Result<(Session, Vec<Uuid>), Error> {
    let names = order.names(max_photos)?;
    let total = u32::try_from(names.len()).unwrap_or(max_photos);
    let session = Session { id: Uuid::now_v7(), user_id, total, uploaded: 0, failed: 0 };
    let photos: Vec<(Uuid, Option<String>)> = names.into_iter().map(|name| (Uuid::now_v7(), name)).collect();
    let mut tx = connection.begin().await?;
    store::insert_session(&mut tx, &session, &photos).await?;
    tx.commit().await?;
    Ok((session, photos.into_iter().map(|(id, _)| id).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(order: &str) -> Result<usize, String> {
        let order: Order = serde_json::from_str(order).map_err(|error| error.to_string())?;
        order.names(100).map(|names| names.len()).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn a_session_has_one_to_so_many_photos() {
        assert_eq!(names(r#"{"totalPhotos":1}"#), Ok(1));
        assert_eq!(names(r#"{"totalPhotos":100}"#), Ok(100));
        assert_eq!(names(r#"{"photos":[{"fileName":"a"},{"fileName":"ü"}]}"#), Ok(2));
        let long = "x".repeat(FILE_NAME_LEN_MAX + 1);
        for bad in [
            r#"{"totalPhotos":0}"#,
            r#"{"totalPhotos":101}"#,
            r#"{"totalPhotos":-1}"#,
            r#"{"totalPhotos":1.5}"#,
            r#"{"photos":[]}"#,
            r#"{"photos":[{"fileName":""}]}"#,
            r#"{"photos":[{"fileName":"a\u0000"}]}"#,
            r#"{"photos":[{}]}"#,
            r#"{"totalPhotos":1,"photos":[{"fileName":"a"}]}"#,
            r#"{"totalFotos":1}"#,
            "{}",
            "[]",
            &format!(r#"{{"photos":[{{"fileName":"{long}"}}]}}"#),
        ] {
            assert!(names(bad).is_err(), "{bad}");
        }
    }
}
