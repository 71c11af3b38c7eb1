//! Explains an event: its window, the step that delivered it and its number, or why it is still pending.
//!
//! None of this is stored with the event. Its number is computed from the log: the number of the step's first
//! event, plus the count of the chunk's rows before this one. It is unknown once the checkpoints of that time
//! have been rotated away.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, Row};

use super::browse::{EventDetail, EventRow, EventState};
use crate::log::{Error, overview, time};

/// The most copies of one row that are listed.
const COPIES: i64 = 100;

/// The facts that the log still holds about an event after its commit.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The window that the event is in.
    pub window: Option<WindowOf>,
    /// How it was set aside.
    pub parked: Option<SetAside>,
    /// Who released it, when and why.
    pub released: Option<ByHand>,
    /// Who gave it up, when and why.
    pub discarded: Option<ByHand>,
    /// When it was published.
    pub delivered: Option<Delivered>,
    /// Its id in the sink, `<epoch>-<seq>`.
    pub stream_id: Option<String>,
    /// Why it waits.
    pub waits_because: Option<String>,
    /// The row that this one repeats.
    pub copy_of: Option<i64>,
    /// The rows by which replays have repeated it.
    pub copies: Vec<i64>,
}

/// A window, by the checkpoint that opened it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WindowOf {
    /// The checkpoint.
    pub checkpoint: i64,
    /// When it was opened.
    pub opened_at: DateTime<Utc>,
    /// The snapshot before it.
    pub lower: String,
    /// The snapshot that it ends with.
    pub upper: String,
}

/// How an event was set aside.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SetAside {
    /// When.
    pub at: DateTime<Utc>,
    /// The checkpoint that settled its step.
    pub checkpoint: Option<i64>,
    /// Why, in the sink's words, or that it waits.
    pub because: String,
    /// The first parked event of its topic, by its id, if the event waits behind it.
    pub behind: Option<String>,
}

/// What an operator did, as the audit has it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ByHand {
    /// When.
    pub at: DateTime<Utc>,
    /// Who.
    pub who: String,
    /// Why.
    pub reason: String,
}

/// A delivery.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivered {
    /// The checkpoint that settled it. None where an operator released it.
    pub checkpoint: Option<i64>,
    /// When that was written down, which is just after the event was published.
    pub at: DateTime<Utc>,
    /// How long after the event's transaction began, in seconds.
    pub after_seconds: f64,
}

/// Explains what happened to an event since its commit.
///
/// Call [`crate::log::read::prepare_session`] on the connection first.
///
/// # Errors
/// [`Error`].
pub async fn of(
    connection: &mut PgConnection,
    relay: &str,
    event: &EventDetail,
) -> Result<Explanation, Error> {
    let mut explanation = Explanation { copy_of: copied_row(event), ..Explanation::default() };
    explanation.copies = copies(connection, &event.row).await?;
    let is = |state: EventState| event.row.state == state.as_str();
    if is(EventState::Pending) {
        explanation.waits_because = Some(why_it_waits(connection, relay).await?);
        explanation.window = open_window(connection, relay, event).await?;
        return Ok(explanation);
    }
    find_delivery(connection, relay, event, &mut explanation).await?;
    set_aside(connection, relay, &event.row, &mut explanation).await?;
    Ok(explanation)
}

fn copied_row(event: &EventDetail) -> Option<i64> {
    event.headers.as_ref()?.get("replay")?.get("row")?.as_i64()
}

/// The copies that replays made lie between the rows that each has written down.
async fn copies(connection: &mut PgConnection, row: &EventRow) -> Result<Vec<i64>, Error> {
    Ok(sqlx::query_scalar(
        "select e.id
         from outbox.replay r
         cross join lateral (
           select e.id from outbox.event e
           where e.id between r.first_copy and r.last_copy and e.event_id = $1
             and e.headers->'replay' @> jsonb_build_object('row', $2::bigint, 'replay', r.id)
         ) e
         where r.through_id >= $2 and r.first_copy is not null
         order by e.id limit $3",
    )
    .bind(row.event_id)
    .bind(row.id)
    .bind(COPIES)
    .fetch_all(connection)
    .await?)
}

/// The step that settled the event, its window, and its number.
async fn find_delivery(
    connection: &mut PgConnection,
    relay: &str,
    event: &EventDetail,
    explanation: &mut Explanation,
) -> Result<(), Error> {
    // The previous step is needed as well: it holds the window and the first number. If it is missing, the
    // oldest checkpoint that is kept covers the event, and the checkpoint that settled it is gone.
    let row = sqlx::query(
        "select step.n, step.created_at, extract(epoch from step.created_at - $4)::float8 as after_seconds,
                before.lower::text, before.upper::text, before.epoch, before.next_seq, chunk.earlier,
                chunk.events = step.next_seq - before.next_seq and step.epoch = before.epoch as is_whole,
                opener.n as opener, opener.created_at as opened_at
         from outbox.checkpoint step
         join outbox.checkpoint before
           on before.relay = step.relay and before.n = step.n - 1 and before.upper is not null
         cross join lateral (
           select count(*) as events, count(*) filter (where w.id < $3) as earlier
           from outbox.window_rows(
             before.lower, before.lower_horizon, before.high_id, before.upper, before.after_id,
             step.next_seq - before.next_seq) w
         ) chunk
         cross join lateral (
           select c.n, c.created_at from outbox.checkpoint c
           where c.relay = before.relay and c.n <= before.n and c.after_id = 0 order by c.n desc limit 1
         ) opener
         where step.relay = $1 and step.n = outbox.delivered_in($1, $2::text::xid8, $3)",
    )
    .bind(relay)
    .bind(&event.transaction)
    .bind(event.row.id)
    .bind(event.row.created_at)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(()) };
    explanation.window = Some(WindowOf {
        checkpoint: row.try_get("opener")?,
        opened_at: time::shown(&row, "opened_at")?,
        lower: row.try_get("lower")?,
        upper: row.try_get("upper")?,
    });
    explanation.delivered = Some(Delivered {
        checkpoint: Some(row.try_get("n")?),
        at: time::shown(&row, "created_at")?,
        after_seconds: row.try_get("after_seconds")?,
    });
    // Where rows of the chunk have been rotated away, the count says nothing.
    if row.try_get("is_whole")? {
        let (epoch, first): (i64, i64) = (row.try_get("epoch")?, row.try_get("next_seq")?);
        explanation.stream_id = Some(format!("{epoch}-{}", first + row.try_get::<i64, _>("earlier")?));
    }
    Ok(())
}

/// A parked row, the operator who has settled it, and the first row of its topic that still waits.
const SET_ASIDE: &str = "select k.epoch || '-' || k.seq as number, k.parked_at, k.reason as because,
            k.settled_as, k.settled_at,
            extract(epoch from k.settled_at - $3)::float8 as after_seconds, first.number as behind,
            a.who, a.reason, a.at
     from outbox.parked k
     left join lateral (
       select a.* from outbox.audit a
       where a.action = any(case when k.settled_as = 'discarded' then array['discard', 'discard_arrived']
                                 else array['release'] end)
         and a.at between k.parked_at and k.settled_at
         and a.selection @> jsonb_build_object('relay', k.relay, 'topics', jsonb_build_array(k.topic))
       order by a.at desc limit 1
     ) a on true
     left join lateral (
       select f.epoch || '-' || f.seq as number from outbox.parked f
       where f.relay = k.relay and f.topic = k.topic and f.settled_as is null
         and k.settled_as is null and (f.epoch, f.seq) < (k.epoch, k.seq)
       order by f.epoch, f.seq limit 1
     ) first on true
     where k.relay = $1 and k.id = $2";

/// Adds the facts about an event that was set aside: its number, the reason, and the operator's decision. A
/// released event was delivered at its release, and not by the step that set it aside.
async fn set_aside(
    connection: &mut PgConnection,
    relay: &str,
    row: &EventRow,
    explanation: &mut Explanation,
) -> Result<(), Error> {
    let found = sqlx::query(SET_ASIDE)
        .bind(relay)
        .bind(row.id)
        .bind(row.created_at)
        .fetch_optional(connection)
        .await?;
    let Some(found) = found else { return Ok(()) };
    let settled_as: Option<String> = found.try_get("settled_as")?;
    explanation.stream_id = Some(found.try_get("number")?);
    explanation.parked = Some(SetAside {
        at: time::shown(&found, "parked_at")?,
        checkpoint: explanation.delivered.take().and_then(|step| step.checkpoint),
        because: found.try_get("because")?,
        behind: found.try_get("behind")?,
    });
    let by_hand = match time::shown_if_any(&found, "at")? {
        Some(at) => Some(ByHand { at, who: found.try_get("who")?, reason: found.try_get("reason")? }),
        None => None,
    };
    match settled_as.as_deref() {
        Some("discarded") => explanation.discarded = by_hand,
        Some(_released) => {
            explanation.released = by_hand;
            explanation.delivered = Some(Delivered {
                checkpoint: None,
                at: time::shown(&found, "settled_at")?,
                after_seconds: found.try_get("after_seconds")?,
            });
        }
        None => {}
    }
    Ok(())
}

/// The open window, if the event is in it.
async fn open_window(
    connection: &mut PgConnection,
    relay: &str,
    event: &EventDetail,
) -> Result<Option<WindowOf>, Error> {
    let row = sqlx::query(
        "select p.lower::text, p.upper::text, opener.n, opener.created_at
         from outbox.position p
         cross join lateral (
           select c.n, c.created_at from outbox.checkpoint c
           where c.relay = p.relay and c.n <= p.n and c.after_id = 0 order by c.n desc limit 1
         ) opener
         where p.relay = $1 and pg_visible_in_snapshot($2::text::xid8, p.upper)",
    )
    .bind(relay)
    .bind(&event.transaction)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(WindowOf {
        checkpoint: row.try_get("n")?,
        opened_at: time::shown(&row, "created_at")?,
        lower: row.try_get("lower")?,
        upper: row.try_get("upper")?,
    }))
}

async fn why_it_waits(connection: &mut PgConnection, relay: &str) -> Result<String, Error> {
    let Some(one) = overview::relays(connection).await?.into_iter().find(|one| one.relay == relay) else {
        return Ok(format!("no relay named {relay} has run yet: start one with `aftercommit relay`"));
    };
    if let Some(pause) = one.paused {
        return Ok(format!("relay {relay} is paused by {}: {}", pause.who, pause.reason));
    }
    if one.leader.is_none() {
        return Ok(format!("no relay named {relay} leads: start one with `aftercommit relay`"));
    }
    let error = one.processes.into_iter().find_map(|heard| heard.heartbeat.error);
    Ok(match error {
        Some(error) => format!("relay {relay} fails: {error}"),
        None => format!("its turn has not come: relay {relay} stands at {}", one.last_id),
    })
}
