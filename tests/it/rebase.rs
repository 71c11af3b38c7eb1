//! A Postgres that went back in time or was moved: the relay refuses it and explains why; after a rebase it
//! goes on, and no event is published twice.

use std::process::Stdio;
use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use aftercommit::log::{checkpoint, parked};
use aftercommit::ops::audit::Operator;
use aftercommit::ops::browse::Selection;
use aftercommit::ops::rebase::{Lineage, Rebase, RebaseError};
use aftercommit::ops::replay::{self, ReplayError};

use crate::harness::{
    Client, Database, Event, Line, Listener, OwnPostgres, Process, TestResult, Wiring, cli, database,
    eventually, keys, start_postgres,
};

/// Runs `aftercommit rebase` and returns its JSON.
async fn rebase(line: &Line, arguments: &[&str]) -> TestResult<Value> {
    let mut all = vec!["rebase", "--output", "json"];
    all.extend(arguments);
    let output = cli(line.system.settings(), &all).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn listener(line: &Line) -> Listener {
    let client = line.redis_client();
    Listener::to(&client, &line.topic).await
}

/// The relay ends and starts again.
async fn restart(line: &mut Line) {
    line.relay.signal("KILL").await;
    line.relay = line.system.start("relay").await;
}

#[tokio::test]
async fn a_postgres_that_went_back_is_refused_and_after_a_rebase_goes_on_above_what_was_seen() -> TestResult {
    let mut line = Line::new().await;
    let sse = line.system.start("sse").await;
    let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(3600), &[line.topic.as_str()]);
    let stream = |sse: &Process| sse.url(&format!("/streams/{}", line.topic));
    let (of_memory, client) = (stream(&sse), Client::open(&stream(&sse), &token).await);
    // With almost no recent events in memory, so that it reads the history for its clients.
    let settings = line.system.settings().clone().set("AFTERCOMMIT_SSE_RECENT_EVENTS", "1");
    let forgetful = Process::start("sse", &settings).await;
    let of_history = stream(&forgetful);
    line.append(20).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    // Committed before the backup and delivered after it: the backup takes them for pending.
    line.append(3).await;
    let backup = line.system.database.backup().await;
    line.relay = line.system.start("relay").await;
    // Delivered after the backup, and then lost with everything since.
    line.append(4).await;
    line.wait_until_whole().await;

    line.system.database = backup;
    let url = line.system.database.url().to_owned();
    line.system.set_again("DATABASE_URL", &url);
    restart(&mut line).await;
    line.append(2).await;
    line.wait_for_failure("conflict").await;
    line.relay.wait_for_log("aftercommit rebase").await;
    assert_eq!(line.delivered().await, 27, "nothing was published");
    eventually("the doctor names it", async || {
        let output = cli(line.system.settings(), &["doctor"]).await;
        let told = String::from_utf8_lossy(&output.stdout).contains("WRONG    deliveries: relay");
        (told && output.status.code() == Some(1)).then_some(())
    })
    .await;

    let refused = cli(line.system.settings(), &["rebase", "--yes"]).await;
    assert!(!refused.status.success(), "a relay leads");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stop every relay"));
    line.relay.signal("KILL").await;
    let plan = eventually("nobody leads", async || {
        let output = cli(line.system.settings(), &["rebase", "--dry-run", "--output", "json"]).await;
        serde_json::from_slice::<Value>(&output.stdout).ok()
    })
    .await;
    assert_eq!((&plan["database"], &plan["done"]), (&"same".into(), &false.into()));
    assert_eq!((&plan["pending"], &plan["told"], &plan["lost"]), (&5.into(), &3.into(), &4.into()));
    let done = rebase(&line, &["--yes", "--reason", "a test"]).await?;
    assert_eq!((&done["done"], &done["epoch"]), (&true.into(), &2.into()));

    let mut listener = listener(&line).await;
    line.relay = line.system.start("relay").await;
    line.append(1).await;
    line.wait_until_whole().await;
    // Two events from before the rebase and one from after it. The three that were pending in the backup are
    // not repeated.
    listener.wait_for_exactly(3).await;
    // Clients that received events which Postgres has lost get one reset.
    let since = client.wait_for_events(27 + 1 + 3).await.split_off(27);
    assert_eq!(names(&since), ["reset", "T", "T", "T"]);
    assert!(since[0].data.contains("\"reason\":\"rebased\""), "{since:?}");
    for url in [&of_memory, &of_history] {
        let events = Client::resume(url, &token, "1-25").wait_for_events(2 + 1 + 3).await;
        assert_eq!(names(&events), ["T", "T", "reset", "T", "T", "T"], "{url}");
    }
    assert_pages_end_behind_27(&line, &sse, &token).await?;
    let again = eventually("it says that there is nothing to do", async || {
        line.relay.signal("KILL").await;
        let output = cli(line.system.settings(), &["rebase", "--output", "json"]).await;
        serde_json::from_slice::<Value>(&output.stdout).ok()
    })
    .await;
    assert_eq!(again["needed"], false);
    Ok(())
}

/// A reader of pages is not taken past the end of an epoch.
async fn assert_pages_end_behind_27(line: &Line, sse: &Process, token: &str) -> TestResult {
    let read = async |offset: &str| -> TestResult<Response> {
        let url = sse.url(&format!("/ds/{}?offset={offset}", line.topic));
        Ok(line.system.http().get(url).bearer_auth(token).send().await?)
    };
    let page = read("00000000000000000001-00000000000000000025").await?;
    let end = page.headers()["stream-next-offset"].to_str()?.to_owned();
    assert_eq!(end, "00000000000000000001-00000000000000000027");
    assert_eq!(page.json::<Value>().await?.as_array().map(Vec::len), Some(2));
    assert_eq!(read(&end).await?.status(), StatusCode::GONE);
    Ok(())
}

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.event.as_str()).collect()
}

/// Leaves a replay of everything that has not repeated anything yet.
async fn interrupted_replay(line: &Line) -> TestResult {
    let mut connection = line.system.database.connect().await;
    let relay = line.system.redis.relay_name();
    let plan = replay::plan(&mut connection, &relay, &Selection::default()).await?;
    let operator = Operator { who: "a test".to_owned(), reason: "a test".to_owned() };
    replay::begin(&mut connection, &plan, &operator).await?;
    Ok(())
}

/// Moves a database to another cluster, as `pg_dump | psql` does.
async fn dump_and_restore(from: &OwnPostgres, to: &OwnPostgres) -> TestResult {
    let url = |own: &OwnPostgres| own.url();
    let dump = from.program("pg_dump").arg(url(from)).output().await?;
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let mut restore = to.program("psql");
    restore.args(["--quiet", "--set", "ON_ERROR_STOP=1"]).arg(url(to));
    let mut restore = restore.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let mut stdin = restore.stdin.take().ok_or("no pipe")?;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, &dump.stdout).await?;
    drop(stdin);
    assert!(restore.wait().await?.success(), "a restore");
    Ok(())
}

#[tokio::test]
async fn a_log_that_was_moved_to_another_cluster_is_refused_and_after_a_rebase_goes_on_where_it_was()
-> TestResult {
    let mut line = Line::with(Wiring { postgres: Some(Vec::new()), ..Wiring::default() }).await;
    // The old cluster has seen more transactions than the new one will have by the rebase: there, new rows
    // have xids that the old snapshots seem to see.
    let burn = "do $$ begin for n in 1..5000 loop perform pg_current_xact_id(); commit; end loop; end $$";
    sqlx::raw_sql(burn).execute(&mut line.system.database.connect().await).await?;
    line.append(30).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    interrupted_replay(&line).await?;
    line.append(5).await;
    let moved = OwnPostgres::new(start_postgres(Vec::new()).await).await;
    dump_and_restore(line.postgres(), &moved).await?;

    line.system.database = Database::at(&moved.url());
    line.system.set_again("DATABASE_URL", &moved.url());
    line.relay = line.system.start("relay").await;
    line.wait_for_failure("conflict").await;
    line.relay.wait_for_log("another Postgres database").await;
    line.relay.signal("KILL").await;
    // The relay refuses, and writers go on. So does somebody who has taken the replay up.
    line.append(4).await;
    let mut replaying = line.system.database.connect().await;
    let operator = Operator { who: "a test".to_owned(), reason: "a test".to_owned() };
    let mut taken_up = replay::resume(&mut replaying, 1, &operator).await?;

    let done = eventually("nobody leads", async || {
        let output = cli(line.system.settings(), &["rebase", "--yes", "--output", "json"]).await;
        serde_json::from_slice::<Value>(&output.stdout).ok()
    })
    .await;
    assert_eq!((&done["database"], &done["pending"], &done["told"]), (&"other".into(), &9.into(), &0.into()));
    // The replay uses snapshots of the other cluster: it must not append anything.
    let went_on = replay::run(&mut replaying, &mut taken_up, None, &CancellationToken::new(), |_| {}).await;
    assert!(matches!(went_on, Err(ReplayError::Overtaken(1))), "{went_on:?}");
    drop(replaying);
    let mut listener = listener(&line).await;
    line.relay = line.system.start("relay").await;
    line.append(10).await;
    line.wait_until_whole().await;
    listener.wait_for_exactly(19).await;
    let mut connection = line.system.database.connect().await;
    let states: Vec<(String, i64)> =
        sqlx::query_as("select state, count(*) from outbox.event_status group by 1")
            .fetch_all(&mut connection)
            .await?;
    assert_eq!(states, [("delivered".to_owned(), 49)]);
    let resumed = cli(line.system.settings(), &["replay", "--resume", "1", "--output", "json"]).await;
    let resumed: Value = serde_json::from_slice(&resumed.stdout)?;
    assert_eq!((&resumed["events"], &resumed["missing"]), (&30.into(), &0.into()), "{resumed}");
    Ok(())
}

/// Waits until nobody leads, and rebases.
async fn rebase_once_nobody_leads(line: &Line) -> Value {
    line.relay.signal("KILL").await;
    eventually("nobody leads", async || {
        let output = cli(line.system.settings(), &["rebase", "--yes", "--output", "json"]).await;
        serde_json::from_slice::<Value>(&output.stdout).ok()
    })
    .await
}

#[tokio::test]
async fn events_parked_in_two_epochs_are_released_in_order_and_none_is_taken_for_a_repeat() -> TestResult {
    let mut line = Line::new().await;
    let topic = line.system.redis.topic("parked");
    let key = keys::history(&topic);
    line.words(&["set", &key, "of another type"]).await?;
    let mut waiting = line.append_to(&topic, 3).await;
    line.append(1).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    let backup = line.system.database.backup().await;
    line.relay = line.system.start("relay").await;
    line.append(1).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    let url = backup.url().to_owned();
    line.system.database = backup;
    line.system.set_again("DATABASE_URL", &url);
    let done = rebase_once_nobody_leads(&line).await;
    assert_eq!((&done["done"], &done["epoch"]), (&true.into(), &2.into()), "{done}");
    line.relay = line.system.start("relay").await;
    waiting.extend(line.append_to(&topic, 2).await);
    let mut connection = line.system.database.connect().await;
    let relay = line.system.redis.relay_name();
    eventually("all are parked", async || {
        (parked::count(&mut connection, &relay, &topic).await.expect("a count") == 5).then_some(())
    })
    .await;
    line.words(&["del", &key]).await?;
    line.release(&topic).await;
    eventually("they are released", async || {
        (parked::count(&mut connection, &relay, &topic).await.expect("a count") == 0).then_some(())
    })
    .await;
    assert_eq!(line.history_of(&topic).await, waiting);
    Ok(())
}

/// A rebase claims its epoch in a Redis that lacks earlier events: those are not restored any more.
#[tokio::test]
async fn a_rebase_beside_a_redis_that_has_forgotten_shows_what_is_missing_to_each_reader() -> TestResult {
    let mut line = Line::new().await;
    let token = line.system.token_with(Uuid::new_v4(), Duration::from_secs(600), &[line.topic.as_str()]);
    let path = format!("/streams/{}", line.topic);
    let sse = line.system.start("sse").await;
    let before_the_first = Client::open(&sse.url(&path), &token).await.last_event_id();
    sse.kill().await;
    line.append(3).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    line.command("flushall").await?;
    let moved = "update outbox.log set system_identifier = 42";
    sqlx::raw_sql(moved).execute(&mut line.system.database.connect().await).await?;
    let done = rebase_once_nobody_leads(&line).await;
    assert_eq!((&done["done"], &done["database"]), (&true.into(), &"other".into()), "{done}");
    line.relay = line.system.start("relay").await;
    line.append(1).await;
    eventually("it arrives", async || (line.delivered().await == 1).then_some(())).await;
    let all_are_reset = async |line: &Line| {
        let sse = line.system.start("sse").await;
        for place in [before_the_first.as_str(), "1-3"] {
            let events = Client::resume(&sse.url(&path), &token, place).wait_for_events(1).await;
            assert_eq!(names(&events)[0], "reset", "{place}: {events:?}");
        }
    };
    all_are_reset(&line).await;
    // Redis forgets that too, and is given again what was delivered since.
    line.command("flushall").await?;
    eventually("a repair", async || {
        (line.metric("aftercommit_relay_repairs_total").await == 1).then_some(())
    })
    .await;
    assert_eq!(line.delivered().await, 1);
    all_are_reset(&line).await;
    Ok(())
}

#[tokio::test]
async fn a_log_of_more_relays_than_a_move_can_tell_apart_is_refused_and_left_as_it_is() -> TestResult {
    let database = database().await;
    let mut connection = database.connect().await;
    for n in 1..=9 {
        checkpoint::load_or_begin(&mut connection, &format!("relay-{n}")).await?;
    }
    let moved = "update outbox.log set system_identifier = 42; select outbox.append('t', 'T', '1')";
    sqlx::raw_sql(moved).execute(&mut connection).await?;
    let epoch = Lineage { epoch: 2, is_copy: false };
    let operator = Operator { who: "test".to_owned(), reason: "a move".to_owned() };
    let looked = Rebase::look(&mut connection, "relay-1").await;
    assert!(matches!(looked, Err(RebaseError::TooManyRelays(9))), "{looked:?}");
    drop(looked);
    let refused = Rebase::begin(&mut connection, "relay-1").await;
    assert!(matches!(refused, Err(RebaseError::TooManyRelays(9))), "before an epoch is claimed: {refused:?}");
    drop(refused);
    let kept = checkpoint::newest(&mut connection, "relay-1").await?.ok_or("no position")?;
    assert_eq!(kept.epoch, 1);
    sqlx::raw_sql("delete from outbox.checkpoint where relay = 'relay-9'").execute(&mut connection).await?;
    {
        let looked = Rebase::look(&mut connection, "relay-1").await?;
        let refused = looked.finish(epoch, &operator, &json!({})).await;
        assert!(matches!(refused, Err(RebaseError::NotLocked)), "{refused:?}");
    }
    let rebase = Rebase::begin(&mut connection, "relay-1").await?;
    rebase.finish(epoch, &operator, &json!({})).await?;
    Ok(())
}

/// What the other relay's Redis has, only a rebase for that relay can find out.
#[tokio::test]
async fn a_rebase_for_one_relay_leaves_the_others_to_a_rebase_of_their_own() -> TestResult {
    let mut line = Line::new().await;
    let main = line.system.redis.relay_name();
    let other = format!("{main}-eu");
    let as_other = line.system.settings().clone().set("AFTERCOMMIT_RELAY_NAME", &other);
    let as_other = as_other.set("AFTERCOMMIT_REDIS_NAMESPACE", "eu");
    let relay = Process::start("relay", &as_other).await;
    line.append(3).await;
    line.wait_until_whole().await;
    let keys = aftercommit::redis::keys::Keys::new("eu");
    let history = keys.history(&line.topic);
    let entries = async |line: &Line| -> usize {
        redis::AsyncCommands::xlen(&mut line.redis().await, &history).await.expect("a length")
    };
    eventually("the other relay delivers", async || (entries(&line).await == 3).then_some(())).await;
    drop((relay, line.relay.signal("KILL").await));
    // As after a restore of a backup that knows of one event.
    let mut admin = line.system.database.connect().await;
    let went_back = "update outbox.log set system_identifier = 42;
                     delete from outbox.checkpoint c
                     where n > (select min(n) from outbox.checkpoint o where o.relay = c.relay)";
    sqlx::raw_sql(went_back).execute(&mut admin).await?;
    let done = rebase_once_nobody_leads(&line).await;
    assert_eq!((&done["done"], &done["told"]), (&true.into(), &3.into()), "{done}");
    let relay = Process::start("relay", &as_other).await;
    relay.wait_for_log("was rebased for another relay").await;
    drop(relay);
    let done = eventually("nobody leads", async || {
        let output = cli(&as_other, &["rebase", "--yes", "--output", "json"]).await;
        serde_json::from_slice::<Value>(&output.stdout).ok()
    })
    .await;
    assert_eq!((&done["done"], &done["told"]), (&true.into(), &3.into()), "{done}");
    let _relay = Process::start("relay", &as_other).await;
    line.relay = line.system.start("relay").await;
    line.append(1).await;
    eventually("the new event arrives", async || (entries(&line).await >= 4).then_some(())).await;
    assert_eq!(entries(&line).await, 4, "and no other one again");
    Ok(())
}
