//! Replay: delivered events once more, as copies that go the normal way, in order with live events.
//!
//! A copy has the same event id and a header `replay` that names the row it repeats, so that a client can tell. It is a
//! new row, and so gets a new number: clients that have seen the original see the copy as well.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::Error;
use super::audit::{self, Operator};
use super::browse::{EventState, SELECTED, Selection, bind_selection};

/// How many delivered events a selection holds for `relay`.
///
/// # Errors
/// [`Error`].
pub async fn count(connection: &mut PgConnection, relay: &str, selection: &Selection) -> Result<i64, Error> {
    let selection = &delivered(selection);
    let sql = format!("{SELECTED} select count(*) from status where ($8::text is null or state = $8)");
    Ok(bind_selection!(sqlx::query_scalar(AssertSqlSafe(sql)), relay, selection)
        .fetch_one(connection)
        .await?)
}

/// Appends a copy of every delivered event of the selection, in their order, and writes the audit row, in one transaction.
/// Returns how many that were. Ring the bell afterwards.
///
/// # Errors
/// [`Error`]; nothing is then replayed.
pub async fn replay(
    connection: &mut PgConnection,
    relay: &str,
    selection: &Selection,
    operator: &Operator,
) -> Result<u64, Error> {
    let delivered = &delivered(selection);
    let mut tx = connection.begin().await?;
    let sql = format!(
        "{SELECTED} insert into outbox.event (event_id, topic, type, payload, headers)
         select event_id, topic, type, payload,
                coalesce(headers, '{{}}') || jsonb_build_object('replay', jsonb_build_object('row', id, 'reason', $9::text))
         from status where ($8::text is null or state = $8)
         order by id"
    );
    let done = bind_selection!(sqlx::query(AssertSqlSafe(sql)), relay, delivered)
        .bind(&operator.reason)
        .execute(&mut *tx)
        .await?
        .rows_affected();
    audit::write(
        &mut tx,
        operator,
        "replay",
        &serde_json::json!({ "relay": relay, "selection": selection }),
        done,
    )
    .await?;
    tx.commit().await?;
    Ok(done)
}

/// Only what has been delivered is repeated: what is pending comes anyway, and what is parked has its own way.
fn delivered(selection: &Selection) -> Selection {
    Selection { state: Some(EventState::Delivered), ..selection.clone() }
}
