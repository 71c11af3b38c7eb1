//! Resume tokens: a page that reads its state and then opens its stream misses nothing and gets nothing
//! twice.

use aftercommit::event::{ResumeToken, Seen, StreamId, Topic};
use aftercommit::outbox;
use redis::AsyncCommands;
use sqlx::{Acquire, PgConnection};
use uuid::Uuid;

use crate::append_door::execute;
use crate::harness::{
    Client, Feed, Flow, NOTIFICATIONS, OwnPostgres, Process, Proxy, Standby, System, TestResult, cli,
    database_on, eventually, new_event, numbers, shared_url, start_postgres, str_of,
};
use crate::parked_requests::wait_until_parked;
use crate::systemd::port_of;

/// Two integers of one statement's snapshot: the state, and the token.
async fn read(connection: &mut PgConnection, topic: &Topic) -> TestResult<(u64, String)> {
    let (n, token): (i64, String) =
        sqlx::query_as("select count(*), outbox.resume_token() from outbox.event where topic = $1")
            .bind(topic.as_str())
            .fetch_one(connection)
            .await?;
    Ok((n.cast_unsigned(), token))
}

fn page(feed: &Feed, sse: &Process, token: &str) -> Client {
    page_of(sse, &feed.token(), token)
}

fn page_of(sse: &Process, access: &str, token: &str) -> Client {
    Client::begin(sse.url(&format!("{NOTIFICATIONS}?resume={token}")), access, None)
}

/// The same token, as a log with another identity would give it.
fn of_another_log(token: &str) -> TestResult<String> {
    let (_, log) = token.split_once('~').ok_or("a log")?;
    Ok(token.replace(&log[..32], &Uuid::new_v4().simple().to_string()))
}

/// The numbers that a page gets after its state, once `n` is the last of them.
async fn told_up_to(client: &Client, n: u64) -> Vec<u64> {
    eventually("the last number", async || {
        let events = client.so_far();
        events.last().is_some_and(|event| event.data == n.to_string()).then(|| numbers(&events))
    })
    .await
}

async fn reset_of(client: &Client) -> TestResult<String> {
    let events = client.wait_for_events(1).await;
    assert_eq!(events[0].event, "reset", "{events:?}");
    let data: serde_json::Value = serde_json::from_str(&events[0].data)?;
    Ok(str_of(&data["reason"]).to_owned())
}

#[tokio::test]
async fn a_page_gets_what_was_committed_after_its_state_was_read_and_before_its_stream_was_open() -> TestResult
{
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    let mut reader = feed.system.database.connect().await;
    // The first read comes before the topic's first event.
    for state in [0, 3, 6] {
        let (n, token) = read(&mut reader, &feed.topic()).await?;
        assert_eq!(n, state);
        feed.commit(state..state + 3).await;
        let client = page(&feed, &sse, &token);
        assert_eq!(numbers(&client.wait_for_events(3).await), [state, state + 1, state + 2]);
        drop(client);
    }
    Ok(())
}

#[tokio::test]
async fn an_event_that_the_state_holds_is_not_told_again_however_late_the_relay_publishes_it() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    let mut reader = feed.system.database.connect().await;
    let (_, empty) = read(&mut reader, &feed.topic()).await?;
    feed.commit([0]).await;
    assert_eq!(told_up_to(&page(&feed, &sse, &empty), 0).await, [0]);
    feed.relay.signal("STOP").await;
    feed.commit([1, 2]).await;
    let (n, token) = read(&mut reader, &feed.topic()).await?;
    assert_eq!(n, 3);
    let client = page(&feed, &sse, &token);
    client.wait_until_placed().await;
    feed.commit([3]).await;
    feed.relay.signal("CONT").await;
    assert_eq!(told_up_to(&client, 3).await, [3]);
    // A browser that reconnects sends the same URL, and its newest id.
    feed.commit([4]).await;
    told_up_to(&client, 4).await;
    let again = Client::resume(&sse.url(&format!("{NOTIFICATIONS}?resume={token}")), &feed.token(), "1-1");
    assert_eq!(told_up_to(&again, 4).await, [3, 4]);
    Ok(())
}

#[tokio::test]
async fn a_transaction_that_commits_late_is_behind_every_state_that_was_read_before() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    feed.commit([0]).await;
    let mut writer = feed.system.database.connect().await;
    let mut late = writer.begin().await?;
    outbox::append(&mut late, &new_event(&feed.topic(), "N", &1)).await?;
    // Others take later transaction numbers, and end.
    let mut reader = feed.system.database.connect().await;
    for _ in 0..3 {
        execute(&mut reader, "select pg_current_xact_id()").await;
    }
    let (n, token) = read(&mut reader, &feed.topic()).await?;
    assert_eq!(n, 1);
    late.commit().await?;
    let client = page(&feed, &sse, &token);
    assert_eq!(told_up_to(&client, 1).await, [1]);
    Ok(())
}

#[tokio::test]
async fn a_transaction_that_writes_takes_its_token_after_its_last_append() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    let mut connection = feed.system.database.connect().await;
    let mut tx = connection.begin().await?;
    outbox::append(&mut tx, &new_event(&feed.topic(), "N", &0)).await?;
    let token = outbox::resume_token(&mut tx).await?;
    tx.commit().await?;
    // The next transaction of the same session may append.
    let mut tx = connection.begin().await?;
    outbox::append(&mut tx, &new_event(&feed.topic(), "N", &1)).await?;
    tx.commit().await?;
    assert_eq!(told_up_to(&page(&feed, &sse, &token), 1).await, [1], "its own event is in its state");

    let mut tx = connection.begin().await?;
    execute(&mut tx, "select pg_current_xact_id()").await;
    outbox::resume_token(&mut tx).await?;
    let event = new_event(&feed.topic(), "N", &2);
    for all in [false, true] {
        let mut savepoint = tx.begin().await?;
        let refused = match all {
            false => outbox::append(&mut savepoint, &event).await.map(|_| ()),
            true => outbox::append_all(&mut savepoint, std::slice::from_ref(&event)).await.map(|_| ()),
        };
        let error = refused.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("take it after the last append"), "{error}");
    }
    drop(tx);
    // A token before the first write calls nothing of the transaction seen.
    let mut tx = connection.begin().await?;
    let token = outbox::resume_token(&mut tx).await?;
    outbox::append(&mut tx, &new_event(&feed.topic(), "N", &3)).await?;
    tx.commit().await?;
    assert_eq!(told_up_to(&page(&feed, &sse, &token), 3).await, [3]);
    Ok(())
}

#[tokio::test]
async fn a_token_that_proves_nothing_is_a_reset_with_its_reason() -> TestResult {
    let feed = Feed::with(System::new().await.set("AFTERCOMMIT_REDIS_HISTORY_MAX_EVENTS", "10")).await;
    let sse = feed.sse().await;
    let mut reader = feed.system.database.connect().await;
    feed.commit(0..3).await;
    let (_, token) = read(&mut reader, &feed.topic()).await?;
    let watcher = feed.client(&sse).await;
    for bad in ["", "1-42", "null", &token[..token.len() / 2], &token.replacen('r', "q", 1)] {
        assert_eq!(reset_of(&page(&feed, &sse, bad)).await?, "bad_token", "{bad}");
    }
    let other = of_another_log(&token)?;
    assert_eq!(reset_of(&page(&feed, &sse, &other)).await?, "bad_token", "a token of another log");
    // More events than the history keeps; and the server forgets what it has in memory.
    feed.commit(3..503).await;
    told_up_to(&watcher, 502).await;
    drop(watcher);
    let sse = feed.replaced(sse).await;
    assert_eq!(reset_of(&page(&feed, &sse, &token)).await?, "history_gone");
    Ok(())
}

/// As long as Redis names no log, nobody knows which tokens are good. Events must wait for that, or a token
/// of another log hides them.
#[tokio::test]
async fn tokens_are_judged_also_on_pages_that_were_open_before_any_event() -> TestResult {
    let system = System::new().await;
    let (sse, user) = (system.start("sse").await, Uuid::new_v4());
    let topic = Topic::new(format!("user-notifications:{user}"))?;
    let (_, token) = read(&mut system.database.connect().await, &topic).await?;
    let good = page_of(&sse, &system.token(user), &token);
    let bad = page_of(&sse, &system.token(user), &of_another_log(&token)?);
    for page in [&good, &bad] {
        page.wait_for_connections(1).await;
    }
    let feed = Feed::of(system, user).await;
    feed.commit(0..3).await;
    assert_eq!(told_up_to(&good, 2).await, [0, 1, 2]);
    assert_eq!(reset_of(&bad).await?, "bad_token");
    feed.commit([3]).await;
    assert_eq!(told_up_to(&good, 3).await, [0, 1, 2, 3]);
    // From its reset on it gets what comes.
    let after_reset = eventually("the last number", async || {
        let events = bad.so_far();
        (events.last()?.data == "3").then(|| numbers(&events[1..]))
    });
    let after_reset = after_reset.await;
    assert!([0, 1, 2, 3].ends_with(&after_reset), "{after_reset:?}");
    Ok(())
}

#[tokio::test]
async fn a_page_that_comes_back_while_redis_is_away_keeps_its_token() -> TestResult {
    let feed = Feed::new().await;
    let to_redis = Proxy::to(port_of(shared_url())?).await;
    let settings = feed.system.settings().clone().set("REDIS_URL", to_redis.url(shared_url()));
    let sse = Process::start("sse", &settings).await;
    let client = feed.client(&sse).await;
    feed.commit([0]).await;
    told_up_to(&client, 0).await;
    let place = client.last_event_id();
    drop(client);
    feed.relay.signal("STOP").await;
    feed.commit([1]).await;
    let (n, token) = read(&mut feed.system.database.connect().await, &feed.topic()).await?;
    assert_eq!(n, 2);
    to_redis.flow(Flow::Refuse);
    to_redis.cut();
    let url = sse.url(&format!("{NOTIFICATIONS}?resume={token}"));
    let again = Client::resume(&url, &feed.token(), &place);
    sse.wait_for_log("cannot tell whether resume tokens are of this log").await;
    to_redis.flow(Flow::Pass);
    feed.relay.signal("CONT").await;
    feed.commit([2]).await;
    assert_eq!(told_up_to(&again, 2).await, [2], "the state holds the one before it");
    Ok(())
}

/// Nothing says whose the events are that the history holds.
#[tokio::test]
async fn a_token_beside_events_without_an_owner_is_a_reset() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    let watcher = feed.client(&sse).await;
    feed.commit([0]).await;
    told_up_to(&watcher, 0).await;
    let (_, token) = read(&mut feed.system.database.connect().await, &feed.topic()).await?;
    // It would write the owner down again.
    feed.relay.signal("STOP").await;
    let _: () = feed.system.redis.connect().await.del(feed.system.redis.keys().log()).await?;
    assert_eq!(reset_of(&page(&feed, &sse, &token)).await?, "joined_late");
    Ok(())
}

#[tokio::test]
async fn a_token_from_before_a_rebase_is_a_reset_and_one_from_after_it_is_good() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    feed.commit(0..3).await;
    let watcher = feed.client(&sse).await;
    let mut reader = feed.system.database.connect().await;
    let (_, before) = read(&mut reader, &feed.topic()).await?;
    feed.commit([3]).await;
    told_up_to(&watcher, 3).await;
    let Feed { system, relay, user } = feed;
    relay.signal("KILL").await;
    drop(relay);
    // The log forgets its newest checkpoints, as a restored backup has.
    let mut admin = system.database.connect().await;
    execute(&mut admin, "delete from outbox.checkpoint where n > (select min(n) from outbox.checkpoint)")
        .await;
    let rebased = cli(system.settings(), &["rebase", "--yes", "--reason", "test"]).await;
    assert!(rebased.status.success(), "{}", String::from_utf8_lossy(&rebased.stderr));
    let relay = system.start("relay").await;
    let feed = Feed { system, relay, user };
    let (n, after) = read(&mut reader, &feed.topic()).await?;
    assert_eq!(n, 4);
    feed.commit([4]).await;
    assert_eq!(told_up_to(&page(&feed, &sse, &after), 4).await, [4]);
    assert_eq!(reset_of(&page(&feed, &sse, &before)).await?, "rebased");
    Ok(())
}

#[tokio::test]
async fn a_prepared_transaction_is_behind_every_state_that_was_read_before_its_commit() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    feed.commit([0]).await;
    let mut writer = feed.system.database.connect().await;
    execute(&mut writer, "begin").await;
    outbox::append(&mut writer, &new_event(&feed.topic(), "N", &1)).await?;
    let gid = Uuid::new_v4();
    execute(&mut writer, &format!("prepare transaction '{gid}'")).await;
    let mut reader = feed.system.database.connect().await;
    let (_, before) = read(&mut reader, &feed.topic()).await?;
    execute(&mut writer, &format!("commit prepared '{gid}'")).await;
    let (n, after) = read(&mut reader, &feed.topic()).await?;
    assert_eq!(n, 2);
    feed.commit([2]).await;
    assert_eq!(told_up_to(&page(&feed, &sse, &before), 2).await, [1, 2]);
    assert_eq!(told_up_to(&page(&feed, &sse, &after), 2).await, [2]);
    Ok(())
}

#[tokio::test]
async fn a_parked_event_that_is_released_later_was_seen_by_the_states_that_hold_it() -> TestResult {
    let feed = Feed::new().await;
    let (sse, topic) = (feed.sse().await, feed.topic());
    let mut redis = feed.system.redis.connect().await;
    let history = feed.system.redis.keys().history(&topic);
    let _: () = redis.set(&history, "in the way").await?;
    feed.commit([0]).await;
    wait_until_parked(&feed.system, &topic, 1).await;
    let mut reader = feed.system.database.connect().await;
    let (n, token) = read(&mut reader, &topic).await?;
    assert_eq!(n, 1);
    feed.commit([1]).await;
    wait_until_parked(&feed.system, &topic, 2).await;
    let _: () = redis.del(&history).await?;
    let release = ["parked", "release", topic.as_str(), "--yes", "--reason", "mended"];
    let released = cli(feed.system.settings(), &release).await;
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    assert_eq!(told_up_to(&page(&feed, &sse, &token), 1).await, [1]);
    Ok(())
}

#[tokio::test]
async fn a_replays_copies_are_events_of_their_own() -> TestResult {
    let feed = Feed::new().await;
    let sse = feed.sse().await;
    feed.commit(0..2).await;
    let watcher = feed.client(&sse).await;
    feed.commit([2]).await;
    told_up_to(&watcher, 2).await;
    let mut reader = feed.system.database.connect().await;
    let (_, before) = read(&mut reader, &feed.topic()).await?;
    let replay =
        ["replay", "--topic", feed.topic().as_str(), "--yes", "--reason", "a test"].map(str::to_owned);
    let replayed = cli(feed.system.settings(), &replay.each_ref().map(String::as_str)).await;
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    let (_, after) = read(&mut reader, &feed.topic()).await?;
    feed.commit([3]).await;
    assert_eq!(told_up_to(&page(&feed, &sse, &before), 3).await, [0, 1, 2, 3]);
    assert_eq!(told_up_to(&page(&feed, &sse, &after), 3).await, [3]);
    Ok(())
}

/// Postgres's own functions call every transaction between xmin and xmax seen there.
#[tokio::test]
async fn a_standby_that_lags_says_exactly_which_transactions_it_has_seen() -> TestResult {
    let own = OwnPostgres::new(start_postgres(Vec::new()).await).await;
    let database = database_on(&own.server).await;
    let standby = Standby::of(&own).await?;
    let (topic, other) = (Topic::new("t")?, Topic::new("u")?);
    let (mut first, mut second) = (database.connect().await, database.connect().await);
    let xid = "select pg_current_xact_id()::text::bigint";
    let mut late = first.begin().await?;
    outbox::append(&mut late, &new_event(&topic, "N", &1)).await?;
    let late_xid: i64 = sqlx::query_scalar(xid).fetch_one(&mut *late).await?;
    let mut ended = second.begin().await?;
    outbox::append(&mut ended, &new_event(&other, "N", &2)).await?;
    let ended_xid: i64 = sqlx::query_scalar(xid).fetch_one(&mut *ended).await?;
    ended.commit().await?;
    let mut reader = standby.connect().await;
    eventually("the standby has the second event", async || {
        read(&mut reader, &other).await.ok().filter(|(n, _)| *n == 1)
    })
    .await;
    let (n, token) = read(&mut reader, &topic).await?;
    assert_eq!(n, 0);
    standby.pause().await?;
    late.commit().await?;
    outbox::append(&mut second, &new_event(&other, "N", &3)).await?;
    let (_, lagging) = read(&mut reader, &topic).await?;
    for token in [&token, &lagging] {
        let parsed = ResumeToken::parse(token)?;
        let sees = |xid: i64| parsed.sees(1, StreamId::new(1, 1), Some(xid.cast_unsigned()));
        assert_eq!((sees(late_xid), sees(ended_xid)), (Seen::No, Seen::Yes), "{token}");
    }
    standby.resume().await?;
    Ok(())
}
