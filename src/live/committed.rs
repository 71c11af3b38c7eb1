//! The committed events of a topic, as Postgres has them: the page compares what its clients received with
//! these.

use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::event::Topic;
use crate::http::{Problem, Query};
use crate::log;
use crate::ops::browse::{self, Selection};
use crate::postgres;

/// More events than any session of the page has.
const EVENTS_MAX: u32 = 2000;

#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    topic: String,
}

/// An event of the log. The payload is a text, so that it can be compared byte for byte.
#[derive(Debug, Serialize)]
pub(super) struct Committed {
    row: i64,
    r#type: String,
    payload: String,
    state: String,
}

/// `GET /live/committed?topic=…`: the topic's rows of the log, in their order.
pub(super) async fn committed(
    State(shared): State<Arc<Shared>>,
    Query(asked): Query<Asked>,
) -> Result<axum::Json<Vec<Committed>>, Problem> {
    let topic = Topic::new(asked.topic).map_err(|error| Problem::bad_request(error.to_string()))?;
    let mut connection = shared.pool.acquire().await.map_err(|error| away(&error))?;
    let selection = Selection { topic: Some(topic.as_str().to_owned()), ..Selection::default() };
    let events = browse::show(&mut connection, &shared.parts.relay, &selection, EVENTS_MAX).await.map_err(
        |error| match error {
            log::Error::Database(error) => away(&error),
            other => Problem::unavailable(other.to_string()),
        },
    )?;
    let events = events.into_iter().map(|event| Committed {
        row: event.row.id,
        r#type: event.row.event_type,
        payload: event.payload.get().to_owned(),
        state: event.row.state,
    });
    Ok(axum::Json(events.collect()))
}

fn away(error: &sqlx::Error) -> Problem {
    Problem::unavailable(format!("Postgres: {}", postgres::error_text(error)))
}
