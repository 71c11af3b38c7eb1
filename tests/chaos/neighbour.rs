//! The relay of another log on the same Redis: with its own names it works beside ours; with ours it must be
//! refused.

use std::time::Duration;

use aftercommit::event::{EventType, NewEvent, Topic};
use aftercommit::outbox;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::{Process, Settings, System, redis_settings_of};
use crate::world::World;

const TOPIC: &str = "neighbour:1";
const NAMESPACE: &str = "neighbour";
/// Events of the third log.
const STRANGERS: i32 = 40_000;

/// Another log.
#[derive(Debug)]
pub(crate) struct Neighbour {
    url: String,
    /// Its relay. No fault kills it, but it meets all faults of Redis and Postgres.
    _relay: Process,
    /// A third log, whose relay is given our names.
    stranger: Settings,
    /// The third log's identity.
    stranger_log: String,
}

impl Neighbour {
    /// Makes two databases beside ours, and starts a relay for the first. Its name is the one of ours, too.
    /// The third log has events of our topic, as a copy of our database has, and more of them than ours.
    pub(crate) async fn start(system: &System, redis_url: &str, topic: &Topic) -> Self {
        let mut server = system.database.connect().await;
        let mut urls = Vec::new();
        for name in ["neighbour", "stranger"] {
            execute(&mut server, &format!("create database {name}")).await;
            let (place, _) = system.database.url().rsplit_once('/').expect("a database");
            let url = format!("{place}/{name}");
            let mut connection = PgConnection::connect(&url).await.expect("a connection");
            outbox::schema::SCHEMA.apply(&mut connection).await.expect("a migration");
            urls.push(url);
        }
        let mut third = PgConnection::connect(&urls[1]).await.expect("a connection");
        let more = "select count(outbox.append($1, 'N', '1')) from generate_series(1, $2)";
        let appended = sqlx::query(more).bind(topic.as_str()).bind(STRANGERS).execute(&mut third).await;
        appended.expect("events");
        let log = sqlx::query_scalar("select id::text from outbox.log").fetch_one(&mut third).await;
        let of = |url: &str| system.settings().clone().set("REDIS_URL", redis_url).set("DATABASE_URL", url);
        let settings = of(&urls[0]).set("AFTERCOMMIT_REDIS_NAMESPACE", NAMESPACE);
        Self {
            _relay: Process::start("relay", &settings).await,
            stranger: of(&urls[1]),
            stranger_log: log.expect("an identity"),
            url: urls.swap_remove(0),
        }
    }

    /// The settings of a third log's relay without a namespace of its own.
    pub(crate) fn stranger(&self) -> &Settings {
        &self.stranger
    }

    /// Takes our keys away from the third log, as the relay's error tells an operator to. It owns them if it
    /// came to a Redis that had lost its owner while our relays were away. Fails while Redis does not answer.
    pub(crate) async fn take_keys_back(&self, world: &World) -> redis::RedisResult<()> {
        let owner = world.system.redis.keys().log();
        let log: Option<String> = redis::from_redis_value(world.tell_redis(&["hget", &owner, "log"]).await?)?;
        if log.as_deref() == Some(&self.stranger_log) {
            world.tell_redis(&["del", &owner]).await?;
        }
        Ok(())
    }

    /// Appends events now and then.
    pub(crate) fn write(&self, until: CancellationToken) -> JoinHandle<()> {
        let url = self.url.clone();
        tokio::spawn(async move {
            let topic = Topic::new(TOPIC).expect("a topic");
            while !until.is_cancelled() {
                if let Ok(mut connection) = PgConnection::connect(&url).await {
                    while !until.is_cancelled() && append(&mut connection, &topic).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(150)).await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }

    /// Whether its history holds what its log holds.
    pub(crate) async fn is_whole(&self, world: &World) -> bool {
        let Ok(mut connection) = PgConnection::connect(&self.url).await else { return false };
        let logged = sqlx::query_scalar::<_, String>("select event_id::text from outbox.event order by id")
            .fetch_all(&mut connection)
            .await;
        let Ok(mut redis) = redis_settings_of(world.redis_url()).connect().await else { return false };
        let key =
            aftercommit::redis::keys::Keys::new(NAMESPACE).history(&Topic::new(TOPIC).expect("a topic"));
        let history: redis::RedisResult<redis::streams::StreamRangeReply> =
            redis::AsyncCommands::xrange_all(&mut redis, key).await;
        let (Ok(logged), Ok(history)) = (logged, history) else { return false };
        let told: Vec<String> = history.ids.iter().filter_map(|entry| entry.get("event")).collect();
        logged == told
    }
}

async fn append(connection: &mut PgConnection, topic: &Topic) -> Result<(), outbox::AppendError> {
    let (topic, kind) = (topic.clone(), EventType::new("N").expect("a type"));
    outbox::append(connection, &NewEvent::new(topic, kind, &1).expect("an event")).await.map(|_| ())
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.expect("a statement");
}
