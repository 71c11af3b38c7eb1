//! One log in two Postgres servers, each with a relay: a standby that was promoted beside its primary. Whichever
//! publishes second is refused, and counts nothing as delivered.

use aftercommit::event::{EventId, Topic};
use aftercommit::outbox;
use sqlx::PgConnection;

use crate::harness::{Line, Process, Standby, TestResult, Wiring, eventually, keys, new_event};

/// The two servers, and the relays on them.
struct Split {
    line: Line,
    standby: Standby,
    /// The relay on the promoted standby.
    other: Process,
    /// A connection to the promoted standby.
    connection: PgConnection,
}

impl Split {
    /// Three events have been delivered, and both relays lead.
    async fn new() -> TestResult<Self> {
        let mut line = Line::with(Wiring { postgres: Some(Vec::new()), ..Wiring::default() }).await;
        let standby = Standby::of(line.postgres()).await?;
        line.append(3).await;
        line.wait_until_whole().await;
        let position = "select max(next_seq) from outbox.position";
        eventually("the standby has everything", async || {
            let mut there = Self::at(&line, &standby).await;
            let next: i64 = sqlx::query_scalar(position).fetch_one(&mut there).await.ok()?;
            (next == 4).then_some(())
        })
        .await;
        standby.promote().await?;
        let connection = Self::at(&line, &standby).await;
        let settings = line.system.settings().clone().set("DATABASE_URL", Self::url(&line, &standby));
        // It does not look at Redis on its own before it publishes.
        let settings = settings.set("AFTERCOMMIT_RELAY_RECONCILE_INTERVAL_MS", "3600000");
        let other = Process::start("relay", &settings).await;
        other.wait_for_log("leading").await;
        Ok(Self { line, standby, other, connection })
    }

    fn url(line: &Line, standby: &Standby) -> String {
        let port = line.postgres().server.port();
        line.system.database.url().replace(&format!(":{port}/"), &format!(":{}/", standby.port()))
    }

    async fn at(line: &Line, standby: &Standby) -> PgConnection {
        use sqlx::Connection;
        eventually("a connection", async || PgConnection::connect(&Self::url(line, standby)).await.ok()).await
    }

    /// Appends at the promoted standby.
    async fn append_there(&mut self, topic: &Topic, count: usize) -> TestResult<Vec<EventId>> {
        let mut ids = Vec::new();
        for n in 0..count {
            let event = new_event(topic, "T", &n);
            outbox::append(&mut self.connection, &event).await?;
            ids.push(event.event_id());
        }
        Ok(ids)
    }

    /// The events that the promoted standby has, by their state.
    async fn count_there(&mut self, state: &str) -> TestResult<i64> {
        let count = "select count(*) from outbox.event_status where relay = $1 and state = $2";
        let relay = self.line.system.redis.relay_name();
        Ok(sqlx::query_scalar(count).bind(relay).bind(state).fetch_one(&mut self.connection).await?)
    }
}

#[tokio::test]
async fn of_a_primary_and_a_standby_that_was_promoted_beside_it_one_is_refused() -> TestResult {
    // Fewer events than the old primary has, as many, and more; of the same topic, and of others.
    for (there, is_same_topic) in [(1, true), (2, true), (3, true), (1, false), (2, false), (3, false)] {
        let mut split = Split::new().await?;
        let other_topic = split.line.system.redis.topic("elsewhere");
        let topic = if is_same_topic { split.line.topic.clone() } else { other_topic };
        split.line.append(2).await;
        split.line.wait_until_whole().await;
        let case = format!("{there} events, same topic: {is_same_topic}");
        let appended = split.append_there(&topic, there).await?;
        split.other.wait_for_log("Nothing was published").await;
        let (pending, delivered) =
            (split.count_there("pending").await?, split.count_there("delivered").await?);
        assert_eq!((pending, delivered), (i64::try_from(there)?, 3), "{case}: {}", split.other.log());
        let history = split.line.history_of(&topic).await;
        assert!(appended.iter().all(|id| !history.contains(id)), "{case}");
        // The old primary's relay goes on.
        split.line.append(1).await;
        split.line.wait_until_whole().await;
        drop(split.other);
        drop(split.standby);
    }
    Ok(())
}

/// The last number of the old primary's relay is that of a release, or of an event that was parked: no event has
/// it, which proves nothing of the other server's events.
#[tokio::test]
async fn a_number_without_an_event_does_not_pass_for_one_of_the_other_server() -> TestResult {
    for is_released in [false, true] {
        let mut split = Split::new().await?;
        let parked = split.line.system.redis.topic("parked");
        let key = keys::history(&parked);
        split.line.words(&["set", &key, "of another type"]).await?;
        split.line.append_to(&parked, 1).await;
        eventually("it is parked", async || {
            (split.line.metric("aftercommit_relay_parked_total").await == 1).then_some(())
        })
        .await;
        if is_released {
            split.line.words(&["del", &key]).await?;
            split.line.release(&parked).await;
            eventually("it is released", async || {
                (split.line.history_of(&parked).await.len() == 1).then_some(())
            })
            .await;
        }
        let topic = split.line.topic.clone();
        let there = 1 + usize::from(is_released);
        let appended = split.append_there(&topic, there).await?;
        split.other.wait_for_log("Nothing was published").await;
        assert_eq!(split.count_there("pending").await?, i64::try_from(there)?, "{}", split.other.log());
        let history = split.line.history_of(&topic).await;
        assert!(appended.iter().all(|id| !history.contains(id)), "released: {is_released}");
    }
    Ok(())
}
