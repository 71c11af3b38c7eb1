//! Each error of Redis, caused on a real server or on the connection to it: no event is lost or repeated, the
//! class is counted, and all events arrive in order once the cause is gone.

use secrecy::ExposeSecret;

use crate::harness::{Flow, Line, Listener, TestResult, Wiring, eventually, new_event};

/// Breaks Redis by commands, waits until the failure is counted, repairs Redis, and waits until all events
/// have arrived.
async fn assert_survived(break_it: &str, class: &str, mend_it: &str) {
    let mut line = Line::new().await;
    line.append(3).await;
    line.wait_until_whole().await;
    for command in break_it.split("; ") {
        line.command(command).await.expect(command);
    }
    line.append(2).await;
    line.wait_for_failure(class).await;
    for command in mend_it.split("; ") {
        line.command(command).await.expect(command);
    }
    line.append(1).await;
    line.wait_until_whole().await;
}

#[tokio::test]
async fn a_redis_that_is_out_of_memory() {
    assert_survived("config set maxmemory 1", "oom", "config set maxmemory 0").await;
}

#[tokio::test]
async fn a_redis_that_has_become_a_replica() {
    assert_survived("replicaof 127.0.0.1 1", "readonly", "replicaof no one").await;
}

#[tokio::test]
async fn a_redis_that_is_a_replica_of_one_that_is_gone() {
    assert_survived(
        "config set replica-serve-stale-data no; replicaof 127.0.0.1 1",
        "masterdown",
        "replicaof no one; config set replica-serve-stale-data yes",
    )
    .await;
}

#[tokio::test]
async fn a_redis_that_lacks_replicas() {
    assert_survived("config set min-replicas-to-write 1", "noreplicas", "config set min-replicas-to-write 0")
        .await;
}

#[tokio::test]
async fn a_redis_that_does_not_answer_for_a_while() {
    assert_survived("client pause 1500 all", "timeout", "ping").await;
}

#[tokio::test]
async fn a_redis_that_has_forgotten_the_script_is_given_it_again() -> TestResult {
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    line.command("script flush").await?;
    line.append(1).await;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_user_that_may_not_run_the_script_at_all() {
    assert_survived("acl setuser default -evalsha -eval", "auth", "acl setuser default +@all").await;
}

#[tokio::test]
async fn a_user_that_may_not_do_what_the_script_does() {
    assert_survived("acl setuser default -xadd", "auth", "acl setuser default +@all").await;
}

#[tokio::test]
async fn a_password_that_has_changed() -> TestResult {
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    let mut connection = line.redis().await;
    let mut admin = async |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async::<()>(&mut connection).await.expect("a command of the admin's");
    };
    let old = line.redis.url().expose_secret().to_owned();
    let old = old.split([':', '@']).nth(2).ok_or("no password")?.to_owned();
    admin(&["config", "set", "requirepass", "another"]).await;
    line.proxy.cut();
    line.append(2).await;
    line.wait_for_failure("auth").await;
    line.relay.wait_for_log("authentication failed").await;
    admin(&["config", "set", "requirepass", &old]).await;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_redis_that_cannot_save_and_therefore_refuses_writes() -> TestResult {
    let mut line = Line::with(Wiring {
        redis: vec![("enable-protected-configs", "yes".to_owned())],
        ..Wiring::default()
    })
    .await;
    line.append(1).await;
    line.wait_until_whole().await;
    line.words(&["config", "set", "save", "1 1"]).await?;
    // A directory that takes no files.
    line.command("config set dir /proc").await?;
    line.command("bgsave").await?;
    let failed = async || {
        let info = format!("{:?}", line.command("info persistence").await.expect("info"));
        info.contains("rdb_last_bgsave_status:err").then_some(())
    };
    eventually("saving fails", failed).await;
    line.append(2).await;
    line.wait_for_failure("misconf").await;
    line.command("config set stop-writes-on-bgsave-error no").await?;
    // Without a save point, Redis ends when it is told to.
    line.words(&["config", "set", "save", ""]).await?;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_redis_that_is_busy_with_somebody_elses_script() -> TestResult {
    let mut line =
        Line::with(Wiring { redis: vec![("busy-reply-threshold", "50".to_owned())], ..Wiring::default() })
            .await;
    line.append(1).await;
    line.wait_until_whole().await;
    let mut connection = line.redis().await;
    let endless = tokio::spawn(async move {
        let script = redis::cmd("eval").arg("while true do end").arg(0).exec_async(&mut connection).await;
        script.expect_err("it is killed, or is given up").to_string()
    });
    eventually("the script runs", async || line.command("ping").await.is_err().then_some(())).await;
    line.append(2).await;
    line.wait_for_failure("busy").await;
    // Redis answers nothing else meanwhile, logins excepted.
    line.command("script kill").await?;
    endless.await?;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_is_down() {
    let mut line =
        Line::with(Wiring { redis: vec![("cluster-enabled", "yes".to_owned())], ..Wiring::default() }).await;
    line.append(1).await;
    line.wait_for_failure("clusterdown").await;
    assert_eq!(line.metric("aftercommit_relay_published_total").await, 0);
}

#[tokio::test]
async fn a_cluster_that_has_no_slots_yet() -> TestResult {
    let cluster = vec![("cluster-enabled", "yes".to_owned())];
    let mut line = Line::with(Wiring { redis: cluster, ..Wiring::default() }).await;
    line.append(1).await;
    line.wait_for_failure("clusterdown").await;
    assert_eq!(line.metric("aftercommit_relay_published_total").await, 0);
    line.words(&["cluster", "addslotsrange", "0", "16383"]).await?;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_redis_that_is_still_loading() -> TestResult {
    let mut line = Line::with(Wiring {
        redis: vec![("enable-debug-command", "yes".to_owned()), ("save", "1000 1000".to_owned())],
        ..Wiring::default()
    })
    .await;
    line.append(200).await;
    line.wait_until_whole().await;
    line.command("debug populate 3000").await?;
    // A millisecond a key, and a look at the clients every few bytes.
    line.command("config set key-load-delay 500").await?;
    line.command("config set loading-process-events-interval-bytes 1024").await?;
    let mut connection = line.redis().await;
    let reload =
        tokio::spawn(async move { redis::cmd("debug").arg("reload").exec_async(&mut connection).await });
    line.append(2).await;
    line.wait_for_failure("loading").await;
    // Its own client gives up waiting; the reload itself goes on.
    let _given_up_or_done = reload.await?;
    line.wait_until_whole().await;
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_cut_again_and_again() {
    let mut line = Line::new().await;
    for _ in 0..20 {
        line.append(50).await;
        line.proxy.cut();
    }
    line.wait_until_whole().await;
}

#[tokio::test]
async fn a_redis_that_refuses_connections() {
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    line.proxy.flow(Flow::Refuse);
    line.proxy.cut();
    line.append(2).await;
    line.wait_for_failure("connection").await;
    line.proxy.flow(Flow::Pass);
    line.wait_until_whole().await;
}

#[tokio::test]
async fn a_half_open_connection_is_given_up_after_the_response_time_out() {
    let mut line = Line::new().await;
    line.append(1).await;
    line.wait_until_whole().await;
    line.proxy.flow(Flow::Stall);
    line.append(2).await;
    line.wait_for_failure("timeout").await;
    line.proxy.flow(Flow::Pass);
    line.wait_until_whole().await;
}

#[tokio::test]
async fn an_answer_that_never_comes_back_is_asked_for_again_and_repeats_nothing() -> TestResult {
    // No comparison meanwhile: without its answer the relay would not publish at all.
    let relay = vec![("AFTERCOMMIT_RELAY_RECONCILE_INTERVAL_MS", "600000".to_owned())];
    let mut line = Line::with(Wiring { relay, ..Wiring::default() }).await;
    line.append(1).await;
    line.wait_until_whole().await;
    let client = line.redis_client();
    let mut listener = Listener::to(&client, &line.topic).await;
    line.proxy.flow(Flow::SwallowReplies);
    line.append(2).await;
    line.wait_for_failure("timeout").await;
    // They have arrived, but the relay does not know.
    line.wait_until_arrived().await;
    line.proxy.flow(Flow::Pass);
    line.append(1).await;
    line.wait_until_whole().await;
    // A repeated batch is not published again.
    listener.wait_for_exactly(3).await;
    Ok(())
}

#[tokio::test]
async fn a_channel_that_is_forbidden_parks_its_topic_and_shows_nothing_of_it() -> TestResult {
    let mut line = Line::new().await;
    let forbidden = line.system.redis.topic("forbidden");
    // The relay knows the topic's head before the permission is taken.
    let before = line.append_to(&forbidden, 1).await;
    eventually("it is published", async || (line.history_of(&forbidden).await == before).then_some(())).await;
    let public = crate::harness::keys::public(&line.topic);
    let acl = format!("acl setuser default resetchannels &{public} &aftercommit:*");
    line.command(&acl).await?;
    line.append_to(&forbidden, 2).await;
    line.append(2).await;
    line.wait_until_whole().await;
    eventually("it is parked", async || {
        (line.metric("aftercommit_relay_parked_total").await == 2).then_some(())
    })
    .await;
    assert_eq!(line.history_of(&forbidden).await, before, "nothing of a parked event is to be seen");
    Ok(())
}

/// An entry from before the refusal would pass for published in the next try.
#[tokio::test]
async fn an_event_whose_ttl_may_not_be_set_reaches_plain_subscribers_once_it_may() -> TestResult {
    let mut line = Line::new().await;
    let mut listener = Listener::to(&line.redis_client(), &line.topic).await;
    line.command("acl setuser default -expire").await?;
    line.append(1).await;
    line.wait_for_failure("auth").await;
    line.command("acl setuser default +expire").await?;
    listener.wait_for_exactly(1).await;
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_forbidden_parks_its_topic_among_others_of_its_chunk() -> TestResult {
    let mut line = Line::new().await;
    let forbidden = line.system.redis.topic("forbidden");
    let own = crate::harness::keys::history(&line.topic);
    let top = crate::harness::keys::top(&line.system.redis.relay_name());
    // In one transaction, so that they are in one chunk.
    let begun = own.replace(":history", ":begun");
    let log = line.system.redis.keys().log();
    line.command(&format!("acl setuser default resetkeys ~{own} ~{begun} ~{top} ~{log}")).await?;
    let mut connection = line.system.database.connect().await;
    let topics = [&line.topic, &forbidden, &line.topic, &forbidden, &line.topic];
    let events = topics.map(|topic| new_event(topic, "T", &1));
    aftercommit::outbox::append_all(&mut connection, &events).await?;
    line.appended.extend([0, 2, 4].map(|n: usize| events[n].event_id()));
    line.wait_until_whole().await;
    eventually("the two are parked", async || {
        (line.metric("aftercommit_relay_parked_total").await == 2).then_some(())
    })
    .await;
    // The error concerns one event: the whole batch is not retried unchanged.
    let refusals = line.metric("aftercommit_relay_failures_total{class=\"noperm\"}").await;
    assert_eq!(refusals, 1, "{}", line.relay.log());
    let arrived = sqlx::query_scalar::<_, bool>("select bool_or(may_have_arrived) from outbox.parked");
    assert!(!arrived.fetch_one(&mut connection).await?, "Redis has not run the script");
    Ok(())
}
