//! The committed events and their ids, computed from the log and its checkpoints alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aftercommit::event::StreamId;
use futures_util::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use crate::clients::Clients;
use crate::faults;
use crate::payload;
use crate::world::{Entry, World};
use crate::writers::Commits;

/// One row of the log that clients must receive.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) event_id: Uuid,
    pub(crate) event_type: String,
    /// Which replay made it, and of which row.
    pub(crate) copy_of: Option<(i64, i64)>,
    /// [`payload::mark`] of its payload, and of the data that a client receives.
    pub(crate) payload: u64,
    pub(crate) told: u64,
    /// Whether a rebase found it in Redis, and not in the position.
    pub(crate) was_told_before: bool,
    /// The id that the log gives it; `None` if only Redis knows it, because the publish was not recorded in
    /// Postgres.
    pub(crate) stream_id: Option<StreamId>,
}

/// An event that an operator gave up.
#[derive(Debug)]
pub(crate) struct Discarded {
    /// [`payload::mark`] of the data that a client receives, if it was told of the event before that.
    pub(crate) told: u64,
    /// Its history as the log has it. It is for the eyes.
    #[expect(dead_code, reason = "the judge prints it with Debug")]
    history: String,
}

/// A topic's events.
#[derive(Debug, Default)]
pub(crate) struct ChannelTruth {
    /// In the order in which they were published, without those that an operator gave up. For what writers
    /// wrote that is the order of the log; a replay's copies come between as it happens.
    pub(crate) rows: Vec<Row>,
    /// Events that an operator gave up, by the ids that they were parked with.
    pub(crate) discarded: HashMap<StreamId, Discarded>,
    /// The histories in Redis at the end.
    pub(crate) history: Vec<Entry>,
}

/// The committed events of all topics.
#[derive(Debug)]
pub(crate) struct Truth {
    pub(crate) channels: Vec<ChannelTruth>,
    /// Rows that differ from the bytes that their writers wrote.
    pub(crate) altered: usize,
}

/// After this time without progress, an operator checks whether the relay refuses the log.
const REFUSAL: Duration = Duration::from_secs(8);

/// Waits until the log has been delivered and every client has reached the end. False after `limit`.
pub(crate) async fn wait_until_complete(world: &World, clients: &Clients, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    let mut look = Instant::now() + REFUSAL;
    while Instant::now() < deadline {
        if Instant::now() > look {
            faults::rebase_if_needed(world).await;
            look = Instant::now() + REFUSAL;
        }
        world.release_parked(Duration::from_secs(1)).await;
        let mut connection = world.postgres().await;
        let waiting: Result<i64, _> = sqlx::query_scalar(
            "select count(*) from outbox.event_status where relay = $1 and state in ('pending', 'parked')",
        )
        .bind(world.system.redis.relay_name())
        .fetch_one(&mut connection)
        .await;
        if waiting.is_ok_and(|waiting| waiting == 0)
            && let Some(last) = world.last_ids().await
            && clients.have_reached(&last)
            && clients.fetching() == 0
            && world.neighbour.is_whole(world).await
        {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    false
}

impl Truth {
    pub(crate) async fn read(world: &World) -> Self {
        let mut connection = world.postgres().await;
        let relay = world.system.redis.relay_name();
        let mut known = world.numbers.lock().await;
        known.learn(&mut connection, &relay).await;
        let numbers = &known.of_rows;
        let mut truth = Self { channels: Vec::new(), altered: 0 };
        for channel in 0..world.channels.len() {
            let history = world.history(channel).await.expect("Redis runs again");
            truth.channels.push(ChannelTruth { history, ..ChannelTruth::default() });
            truth.read_channel(world, &mut connection, channel, numbers).await;
            truth.channels[channel].name_the_unnumbered();
        }
        truth
    }

    async fn read_channel(
        &mut self,
        world: &World,
        connection: &mut PgConnection,
        channel: usize,
        numbers: &HashMap<i64, StreamId>,
    ) {
        let of = &mut self.channels[channel];
        let mut rows = sqlx::query(
            "select e.id, e.event_id, e.type, e.payload::text as payload,
                    (e.headers->'replay'->>'replay')::bigint as replay,
                    (e.headers->'replay'->>'row')::bigint as original,
                    exists (
                      select from outbox.delivered_before d
                      where d.relay = $2 and (d.id, d.event_id) = (e.id, e.event_id)) as was_told_before,
                    k.epoch, k.seq,
                    format('parked %s as %s, discarded %s', k.parked_at, k.reason, k.settled_at) as history
             from outbox.event e
             left join outbox.parked k on k.relay = $2 and k.id = e.id and k.event_id = e.event_id
               and k.settled_as = 'discarded'
             where e.topic = $1 order by e.id",
        )
        .bind(world.channels[channel].topic.as_str())
        .bind(world.system.redis.relay_name())
        .fetch(connection);
        while let Some(row) = rows.try_next().await.expect("the log") {
            let (event_id, text): (Uuid, String) = (row.get("event_id"), row.get("payload"));
            let written = payload::key_of(world.seed, event_id).map(|key| payload::of(world.seed, key));
            self.altered += usize::from(written.as_ref() != Some(&text));
            if let (Some(epoch), Some(seq)) =
                (row.get::<Option<i64>, _>("epoch"), row.get::<Option<i64>, _>("seq"))
            {
                let id = StreamId::new(epoch.cast_unsigned(), seq.cast_unsigned());
                let told = payload::mark(payload::as_told(&text).as_bytes());
                of.discarded.insert(id, Discarded { told, history: row.get("history") });
                continue;
            }
            of.rows.push(Row::read(&row, &text, numbers));
        }
    }

    pub(crate) fn events(&self) -> usize {
        self.channels.iter().map(|channel| channel.rows.len() + channel.discarded.len()).sum()
    }

    pub(crate) fn discarded(&self) -> usize {
        self.channels.iter().map(|channel| channel.discarded.len()).sum()
    }

    pub(crate) fn copies(&self) -> usize {
        self.channels.iter().flat_map(|channel| &channel.rows).filter(|row| row.copy_of.is_some()).count()
    }
}

/// The number of events with a confirmed commit that the log lacks.
pub(crate) async fn missing(world: &World, commits: &Commits) -> usize {
    let mut connection = world.postgres().await;
    let held: Vec<Uuid> = sqlx::query_scalar("select distinct event_id from outbox.event")
        .fetch_all(&mut connection)
        .await
        .expect("the log");
    let held: std::collections::HashSet<u64> =
        held.into_iter().filter_map(|event_id| payload::key_of(world.seed, event_id)).collect();
    commits.keys().filter(|key| !held.contains(key)).count()
}

impl Row {
    /// Whether only clients know the id that it was told with.
    pub(crate) fn is_unnumbered(&self) -> bool {
        self.stream_id.is_none() && self.was_told_before
    }

    fn read(row: &PgRow, text: &str, numbers: &HashMap<i64, StreamId>) -> Self {
        let id = row.get("id");
        Self {
            id,
            event_id: row.get("event_id"),
            event_type: row.get("type"),
            copy_of: row.get::<Option<_>, _>("replay").zip(row.get("original")),
            payload: payload::mark(text.as_bytes()),
            told: payload::mark(payload::as_told(text).as_bytes()),
            was_told_before: row.get("was_told_before"),
            stream_id: numbers.get(&id).copied(),
        }
    }
}

impl ChannelTruth {
    /// The epoch that ids are of by now. Of an earlier one, Redis is given nothing again.
    pub(crate) fn epoch(&self) -> u64 {
        self.rows.iter().filter_map(|row| row.stream_id).map(|id| id.epoch).max().unwrap_or(0)
    }

    /// Rows that were published in an epoch whose end Postgres did not see: they stand in Redis under the ids
    /// that they were told with.
    fn name_the_unnumbered(&mut self) {
        let known: std::collections::HashSet<StreamId> =
            self.rows.iter().filter_map(|row| row.stream_id).collect();
        let mut free: HashMap<Uuid, Vec<StreamId>> = HashMap::new();
        for entry in self.history.iter().rev() {
            if let (Some(id), Some(event_id)) = (entry.id.filter(|id| !known.contains(id)), entry.event_id) {
                free.entry(event_id).or_default().push(id);
            }
        }
        for row in self.rows.iter_mut().filter(|row| row.stream_id.is_none()) {
            row.stream_id = free.get_mut(&row.event_id).and_then(Vec::pop);
        }
        // A row that has no id any more stands after the row that was before it.
        self.rows.sort_by_key(|row| row.id);
        let mut last = None;
        let mut placed: Vec<(Option<StreamId>, Row)> = Vec::new();
        for row in std::mem::take(&mut self.rows) {
            last = row.stream_id.or(last);
            placed.push((last, row));
        }
        placed.sort_by_key(|(place, _)| *place);
        self.rows = placed.into_iter().map(|(_, row)| row).collect();
    }
}

/// The ids of all rows that the relay has delivered or set aside, as far as they are known. They stay as they
/// are: a rebase changes undelivered rows alone.
#[derive(Debug, Default)]
pub(crate) struct KnownNumbers {
    of_rows: HashMap<i64, StreamId>,
    /// The last checkpoint whose rows are among them.
    through: i64,
}

impl KnownNumbers {
    /// Adds the rows of later checkpoints.
    async fn learn(&mut self, connection: &mut PgConnection, relay: &str) {
        for (id, number, n) in numbers(connection, relay, self.through).await {
            self.of_rows.insert(id, number);
            self.through = self.through.max(n);
        }
    }
}

/// The ids of rows after a checkpoint: two checkpoints that follow each other name a window, the place in it,
/// and how many numbers were used up between them. With the first of the two checkpoints.
async fn numbers(connection: &mut PgConnection, relay: &str, after: i64) -> Vec<(i64, StreamId, i64)> {
    let rows: Vec<(i64, i64, i64, i64)> = sqlx::query_as(
        "select w.id, before.epoch, before.next_seq + w.place - 1, before.n
         from outbox.checkpoint before
         join outbox.checkpoint step on step.relay = before.relay and step.n = before.n + 1
          and step.epoch = before.epoch and step.next_seq > before.next_seq
         cross join lateral (
           select r.id, r.event_id, row_number() over (order by r.id) as place
           from outbox.window_rows(before.lower, before.lower_horizon, before.high_id, before.upper,
             before.after_id,
                                   step.next_seq - before.next_seq) r
         ) w
         where before.relay = $1 and before.upper is not null and before.n > $2
           and not exists (select from outbox.delivered_before d
                           where d.relay = $1 and (d.id, d.event_id) = (w.id, w.event_id))",
    )
    .bind(relay)
    .bind(after)
    .fetch_all(connection)
    .await
    .expect("the positions");
    rows.into_iter()
        .map(|(id, epoch, seq, n)| (id, StreamId::new(epoch.cast_unsigned(), seq.cast_unsigned()), n))
        .collect()
}
