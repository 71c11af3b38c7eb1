//! Topics as Durable Streams: pages, long polls and streams of events, which pass over no hole.

mod door;

use std::time::{Duration, Instant};

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use uuid::Uuid;

use self::door::{Answer, Door, HISTORY_READS, OPEN_STREAMS, SOON, behind};
use crate::harness::{
    Client, Flow, Process, TestResult, eventually, http, http_get, keys, metric_of, str_of,
};

#[tokio::test]
async fn a_topic_is_read_from_its_first_event_and_behind_each_offset() -> TestResult {
    let mut door = Door::new().await;
    door.line.append(5).await;
    door.line.wait_until_whole().await;
    for query in ["", "offset=-1"] {
        let all = door.get(query).await?;
        assert_eq!(all.numbers()?, [0, 1, 2, 3, 4]);
        assert!(all.is_up_to_date() && all.next()? == behind(5), "{all:?}");
        assert_eq!(all.header("content-type"), Some("application/json"));
    }
    for seq in 1..=5 {
        assert_eq!(door.at(&behind(seq)).await?.numbers()?, (seq..5).collect::<Vec<_>>(), "{seq}");
    }
    let now = door.at("now").await?;
    assert_eq!((now.body.as_str(), now.next()?), ("[]", behind(5)));
    let tail = Answer::of(door.send(Method::HEAD, "").await?).await?;
    assert_eq!((tail.next()?, tail.header("content-length")), (behind(5), None));
    Ok(())
}

#[tokio::test]
async fn payloads_are_given_byte_for_byte_and_as_texts_where_asked_for() -> TestResult {
    let door = Door::new().await;
    let mut database = door.line.system.database.connect().await;
    for payload in ["{ \"b\" : 1.0,\n  \"a\":1 }", "\"two\\n\"", "\" three\""] {
        let append = sqlx::query("select outbox.append($1, 'T', $2::json)");
        append.bind(door.line.topic.as_str()).bind(payload).execute(&mut database).await?;
    }
    let json = "[{ \"b\" : 1.0,\n  \"a\":1 },\"two\\n\",\" three\"]";
    eventually("they arrive", async || (door.get("").await.ok()?.body == json).then_some(())).await;
    let text = door.get(&format!("data=text&offset={}", behind(1))).await?;
    assert_eq!((text.body.as_str(), text.header("content-type")), ("two\n three", Some("text/plain")));
    Ok(())
}

#[tokio::test]
async fn a_long_topic_comes_in_pages_and_only_the_last_one_is_up_to_date() -> TestResult {
    let door = Door::new().await;
    let filled = "select outbox.append($1, 'T', json_build_object('n', n, 'fill', repeat('x', 9000))) \
                  from generate_series(0, 199) n order by n";
    let mut database = door.line.system.database.connect().await;
    sqlx::query(filled).bind(door.line.topic.as_str()).execute(&mut database).await?;
    eventually("all arrive", async || (door.at("now").await.ok()?.next().ok()? == behind(200)).then_some(()))
        .await;
    let (mut offset, mut numbers, mut pages) = ("-1".to_owned(), Vec::new(), 0);
    loop {
        let page = door.at(&offset).await?;
        assert!(page.body.len() < 300_000, "a page of {} bytes", page.body.len());
        let events: Vec<Value> = serde_json::from_str(&page.body)?;
        numbers.extend(events.iter().filter_map(|event| event["n"].as_u64()));
        (offset, pages) = (page.next()?, pages + 1);
        if page.is_up_to_date() {
            break;
        }
    }
    assert_eq!(numbers, (0..200).collect::<Vec<_>>());
    assert!(pages > 5, "{pages} pages");
    Ok(())
}

#[tokio::test]
async fn a_topic_without_an_event_is_an_empty_stream_whose_offset_continues() -> TestResult {
    let mut door = Door::new().await;
    let empty = door.get("").await?;
    assert_eq!((empty.numbers()?.len(), empty.is_up_to_date()), (0, true));
    let offset = empty.next()?;
    let now = door.at("now").await?.next()?;
    assert!(now.starts_with(&"0".repeat(20)), "{now}");
    let poll = door.begin_poll(&offset).await;
    door.line.append(2).await;
    let answer = Answer::of(poll.await??).await?;
    assert_eq!(answer.numbers()?.first(), Some(&0));
    door.line.wait_until_whole().await;
    for offset in [&offset, &now] {
        assert_eq!(door.at(offset).await?.numbers()?, [0, 1]);
    }
    Ok(())
}

#[tokio::test]
async fn an_offset_that_the_history_does_not_prove_is_gone() -> TestResult {
    let mut door = Door::new().await;
    door.line.append(6).await;
    // The numbers are those of the relay, so the topic's next event is not of the next number.
    let other = door.line.system.redis.topic("other");
    door.line.append_to(&other, 1).await;
    door.line.append(1).await;
    door.line.wait_until_whole().await;
    // The number of an event of another topic, one that nobody has, and one of another epoch.
    let of_later_epoch = behind(1).replacen('1', "2", 1);
    for unknown in [&behind(7), &behind(9), &of_later_epoch] {
        door.at(unknown).await?.assert_gone()?;
    }
    door.line.words(&["xtrim", &door.history(), "maxlen", "4"]).await?;
    for trimmed in ["-1", &behind(1), &behind(2)] {
        door.at(trimmed).await?.assert_gone()?;
        door.get(&format!("offset={trimmed}&live=long-poll")).await?.assert_gone()?;
        door.get(&format!("offset={trimmed}&live=sse")).await?.assert_gone()?;
    }
    assert_eq!(door.at(&behind(3)).await?.numbers()?.len(), 4, "the first entry names this place");
    door.line.words(&["xdel", &door.history(), "1-5"]).await?;
    let page = door.at(&behind(3)).await?;
    assert_eq!((page.numbers()?, page.is_up_to_date()), (vec![3], false), "up to the hole");
    door.at(&page.next()?).await?.assert_gone()?;
    Ok(())
}

#[tokio::test]
async fn a_history_that_is_missing_proves_nothing_to_whoever_knows_that_there_was_one() -> TestResult {
    let mut door = Door::new().await;
    let before_the_first = door.get("").await?.next()?;
    let poll = door.begin_poll("now").await;
    door.line.append(3).await;
    poll.await??;
    door.line.wait_until_whole().await;
    assert_eq!(door.get("").await?.numbers()?.len(), 3);
    door.line.words(&["del", &door.history()]).await?;
    // Redis knows that there was one.
    let settings = door.line.system.settings().clone().set("AFTERCOMMIT_SSE_REPAIR_WAIT_MS", "100");
    let mut fresh = Door { sse: Process::start("sse", &settings).await, ..door };
    for offset in ["-1", &before_the_first, &behind(3)] {
        fresh.at(offset).await?.assert_gone()?;
    }
    // It does not, and only the process that has had the events does.
    let begun = fresh.history().replace(":history", ":begun");
    fresh.line.words(&["del", &begun]).await?;
    assert_eq!(fresh.at("-1").await?.body, "[]", "as for a topic that never had an event");
    let poll = fresh.begin_poll("now").await;
    fresh.line.append(1).await;
    poll.await??;
    fresh.line.words(&["del", &fresh.history(), &begun]).await?;
    for offset in ["-1", &before_the_first, &behind(2)] {
        fresh.at(offset).await?.assert_gone()?;
    }
    assert_eq!(fresh.at(&behind(4)).await?.body, "[]", "it knows that nothing follows the newest one");
    // Once it has told its streams that events may be missing, no place from before that is good.
    fresh.line.command("client kill type pubsub").await?;
    eventually("the newest place is not good either", async || {
        (fresh.at(&behind(4)).await.ok()?.status == StatusCode::GONE).then_some(())
    })
    .await;
    for offset in ["-1", &before_the_first] {
        fresh.at(offset).await?.assert_gone()?;
    }
    let now = fresh.at("now").await?;
    assert_eq!((now.status, now.body.as_str()), (StatusCode::OK, "[]"), "there is a way on");
    assert_eq!(fresh.at(&now.next()?).await?.body, "[]");
    Ok(())
}

/// A stream keeps the topic's newest event in the server's memory.
#[tokio::test]
async fn a_topic_whose_history_has_expired_is_read_as_one_that_never_had_an_event() -> TestResult {
    let mut door = Door::with(&[("AFTERCOMMIT_SSE_VERIFY_SECONDS", "1")], Vec::new()).await;
    let stream = door.sse.url(&format!("/streams/{}", door.line.topic));
    let client = Client::open(&stream, &door.token).await;
    door.line.append(1).await;
    client.wait_for_events(1).await;
    let joined = metric_of(&door.sse, "aftercommit_sse_joins_total").await;
    // As they expire by themselves: with a minute left for the key beside the history.
    let begun = door.line.system.redis.keys().begun(&door.line.topic);
    door.line.words(&["pexpire", &begun, "59000"]).await?;
    door.line.words(&["pexpire", &door.history(), "1"]).await?;
    eventually("the server finds the expiry", async || {
        (metric_of(&door.sse, "aftercommit_sse_joins_total").await > joined).then_some(())
    })
    .await;
    Client::open(&stream, &door.token).await;
    assert_eq!(door.at("-1").await?.body, "[]");
    let (url, token) = (door.url("offset=now&live=long-poll"), door.token.clone());
    let poll = tokio::spawn(http().get(url).bearer_auth(token).send());
    // A relay that does not know the topic names no event before the next one.
    door.line.relay.signal("KILL").await;
    door.line.relay = door.line.system.start("relay").await;
    door.line.append(1).await;
    let answer = Answer::of(poll.await??).await?;
    assert_eq!((answer.numbers()?.len(), answer.next()?), (1, behind(2)));
    Ok(())
}

#[tokio::test]
async fn an_empty_topic_that_was_seen_in_the_future_or_too_long_ago_is_gone() -> TestResult {
    let door = Door::new().await;
    let seen =
        |minutes: i64| format!("{:020}-{:020}", 0, chrono::Utc::now().timestamp_millis() + minutes * 60_000);
    for minutes in [10, -48 * 60] {
        door.at(&seen(minutes)).await?.assert_gone()?;
    }
    assert_eq!(door.at(&seen(-60)).await?.status, StatusCode::OK);
    Ok(())
}

/// The reader asks again after each page, while events come at any moment of that.
#[tokio::test]
async fn long_polls_miss_no_event_and_give_none_twice() -> TestResult {
    let mut door = Door::new().await;
    let (url, token) = (door.sse.url(&format!("/ds/{}", door.line.topic)), door.token.clone());
    let reader: JoinHandle<TestResult<usize>> = tokio::spawn(async move {
        let (http, mut offset, mut count) = (http(), "-1".to_owned(), 0);
        while count < 300 {
            let poll = http.get(format!("{url}?offset={offset}&live=long-poll")).bearer_auth(&token);
            let page = Answer::of(poll.send().await?).await?;
            offset = page.next()?;
            count += page.numbers()?.len();
        }
        assert_eq!(offset, behind(300));
        Ok(count)
    });
    for _ in 0..150 {
        door.line.append(2).await;
    }
    let count = tokio::time::timeout(4 * SOON, reader).await???;
    assert_eq!(count, 300);
    Ok(())
}

/// Polls begin at every moment of an event's way: before it, while it is read, and after it.
#[tokio::test]
async fn a_long_poll_is_answered_whenever_its_event_comes() -> TestResult {
    const POLLS: usize = 50;
    let mut door = Door::new().await;
    let mut offset = door.get("").await?.next()?;
    for round in 1..=10 {
        let (http, url, token) = (http(), door.url(&format!("offset={offset}&live=long-poll")), &door.token);
        let mut append = Box::pin(door.line.append(1));
        let mut polls: Vec<JoinHandle<reqwest::Result<Response>>> = Vec::new();
        let mut moments = tokio::time::interval(Duration::from_micros(500));
        let mut has_appended = false;
        while !has_appended || polls.len() < POLLS {
            tokio::select! {
                () = &mut append, if !has_appended => has_appended = true,
                _ = moments.tick(), if polls.len() < POLLS => {
                    polls.push(tokio::spawn(http.get(&url).bearer_auth(token).send()));
                }
            }
        }
        drop(append);
        for poll in polls {
            let answer = Answer::of(tokio::time::timeout(SOON, poll).await???).await?;
            assert_eq!((answer.numbers()?, answer.next()?), (vec![0], behind(round)));
        }
        offset = behind(round);
    }
    Ok(())
}

#[tokio::test]
async fn readers_that_wait_at_one_place_share_the_read_of_the_next_event() -> TestResult {
    const READS: &str = "aftercommit_sse_history_reads_total";
    let mut door = Door::new().await;
    door.line.append(1).await;
    door.line.wait_until_whole().await;
    let url = door.url(&format!("offset={}&live=long-poll", behind(1)));
    let poll = || tokio::spawn(http().get(&url).bearer_auth(&door.token).send());
    let polls: Vec<_> = std::iter::repeat_with(poll).take(40).collect();
    eventually("all wait", async || (metric_of(&door.sse, OPEN_STREAMS).await == 40).then_some(())).await;
    // Each has read once, to see that nothing is there yet.
    let read = eventually("and have read", async || {
        Some(metric_of(&door.sse, READS).await).filter(|reads| *reads >= 40)
    })
    .await;
    door.line.append(1).await;
    for poll in polls {
        assert_eq!(Answer::of(poll.await??).await?.next()?, behind(2));
    }
    let more = metric_of(&door.sse, READS).await - read;
    assert!(more < 10, "{more} reads for 40 readers");
    Ok(())
}

#[tokio::test]
async fn a_stream_of_events_begins_with_what_there_is_and_goes_on_live() -> TestResult {
    let mut door = Door::new().await;
    door.line.append(3).await;
    door.line.wait_until_whole().await;
    let (mut all, mut new) = (door.stream("-1").await?, door.stream("now").await?);
    all.wait_for(2).await?;
    new.wait_for(1).await?;
    assert_eq!(all.numbers()?, [0, 1, 2]);
    for stream in [&all, &new] {
        let control = stream.last_control()?;
        assert_eq!((&control["streamNextOffset"], &control["upToDate"]), (&json!(behind(3)), &json!(true)));
    }
    door.line.append(2).await;
    while new.numbers()?.len() < 2 {
        new.wait_for(new.events.len() + 1).await?;
    }
    while all.numbers()?.len() < 5 {
        all.wait_for(all.events.len() + 1).await?;
    }
    assert_eq!((all.numbers()?, new.numbers()?), (vec![0, 1, 2, 0, 1], vec![0, 1]));
    Ok(())
}

/// The server has missed the second event, and Redis has lost it: the third one shows that.
#[tokio::test]
async fn a_stream_of_events_ends_before_a_hole_and_the_next_read_is_told() -> TestResult {
    let mut door = Door::with(&[("AFTERCOMMIT_SSE_VERIFY_SECONDS", "3600")], Vec::new()).await;
    door.line.append(1).await;
    door.line.wait_until_whole().await;
    let mut stream = door.stream("-1").await?;
    stream.wait_for(2).await?;
    door.line.proxy.flow(Flow::Refuse);
    door.line.proxy.cut();
    door.line.relay.signal("KILL").await;
    let (history, event) = (door.history(), Uuid::new_v4().to_string());
    let entry = ["xadd", &history, "1-3", "event", &event, "type", "T", "payload", "3", "prev", "1-2"];
    door.line.words(&entry).await?;
    door.line.proxy.flow(Flow::Pass);
    stream.wait_for(usize::MAX).await?;
    assert_eq!(stream.numbers()?, [0], "nothing behind the hole");
    let offset = str_of(&stream.last_control()?["streamNextOffset"]).to_owned();
    door.at(&offset).await?.assert_gone()?;
    Ok(())
}

#[tokio::test]
async fn who_may_read_is_the_same_as_for_streams_and_nobody_writes() -> TestResult {
    let door = Door::new().await;
    let status = async |path: String, token: Option<&str>| -> TestResult<StatusCode> {
        let request = http().get(door.sse.url(&path));
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        Ok(request.send().await?.status())
    };
    let own = format!("/ds/{}", door.line.topic);
    for query in ["", "?offset=now&live=sse", "?offset=now&live=long-poll"] {
        let path = format!("{own}{query}");
        assert_eq!(status(path.clone(), None).await?, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(status(path, Some("x")).await?, StatusCode::UNAUTHORIZED);
        let other = format!("/ds/other{query}");
        assert_eq!(status(other, Some(&door.token)).await?, StatusCode::FORBIDDEN);
    }
    assert_eq!(status("/ds/not%20a%20topic".to_owned(), Some(&door.token)).await?, StatusCode::BAD_REQUEST);
    let request = http().post(door.sse.url("/api/stream-tickets")).bearer_auth(&door.token);
    let ticket: Value = request.json(&json!({ "topic": door.line.topic })).send().await?.json().await?;
    let ticket = str_of(&ticket["ticket"]);
    assert_eq!(status(format!("{own}?ticket={ticket}"), None).await?, StatusCode::OK);
    assert_eq!(status(format!("/ds/other?ticket={ticket}"), None).await?, StatusCode::FORBIDDEN);

    for method in [Method::PUT, Method::POST, Method::DELETE] {
        let answer = Answer::of(door.send(method, "").await?).await?;
        assert_eq!(
            (answer.status, answer.header("allow")),
            (StatusCode::METHOD_NOT_ALLOWED, Some("GET, HEAD"))
        );
        assert!(answer.body.contains("outbox.append"), "{answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_revocation_ends_the_reads_that_wait_and_refuses_the_next_ones() -> TestResult {
    let door = Door::new().await;
    let poll = door.begin_poll("now").await;
    let mut stream = door.stream("now").await?;
    let begun = Instant::now();
    door.revoke().await;
    let answer = tokio::time::timeout(SOON, poll).await???;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    stream.wait_for(usize::MAX).await?;
    assert!(begun.elapsed() < SOON);
    for query in ["", "offset=now&live=long-poll", "offset=now&live=sse"] {
        assert_eq!(door.get(query).await?.status, StatusCode::UNAUTHORIZED, "{query}");
    }
    Ok(())
}

#[tokio::test]
async fn a_read_that_waits_ends_with_its_token() -> TestResult {
    let mut door = Door::new().await;
    let topic = door.line.topic.as_str();
    door.token = door.line.system.token_with(Uuid::new_v4(), Duration::from_secs(3), &[topic]);
    let poll = door.get("offset=now&live=long-poll").await?;
    assert_eq!(poll.status, StatusCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test]
async fn reads_that_wait_have_the_limits_of_streams() -> TestResult {
    let door = Door::with(&[("AFTERCOMMIT_SSE_MAX_CONNECTIONS_PER_USER", "1")], Vec::new()).await;
    let poll = door.begin_poll("now").await;
    for live in ["long-poll", "sse"] {
        let refused = door.get(&format!("offset=now&live={live}")).await?;
        assert_eq!(
            (refused.status, refused.header("retry-after")),
            (StatusCode::TOO_MANY_REQUESTS, Some("1"))
        );
    }
    assert_eq!(door.get("").await?.status, StatusCode::OK, "a read that does not wait is no stream");
    poll.abort();
    eventually("the place is free", async || (metric_of(&door.sse, OPEN_STREAMS).await == 0).then_some(()))
        .await;
    Ok(())
}

#[tokio::test]
async fn while_redis_is_away_readers_are_told_to_try_again() -> TestResult {
    let mut door = Door::new().await;
    door.line.append(1).await;
    door.line.wait_until_whole().await;
    let poll = door.begin_poll(&behind(1)).await;
    door.line.proxy.flow(Flow::Refuse);
    door.line.proxy.cut();
    for query in ["", "offset=now", "offset=-1&live=long-poll", "offset=-1&live=sse"] {
        let answer = door.get(query).await?;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (StatusCode::SERVICE_UNAVAILABLE, Some("1"))
        );
    }
    door.line.proxy.flow(Flow::Pass);
    door.line.append(1).await;
    let answer = Answer::of(tokio::time::timeout(2 * SOON, poll).await???).await?;
    assert_eq!(answer.numbers()?, [0], "the poll that waited has missed nothing");
    Ok(())
}

/// Messages and reads have connections of their own: an event may be heard before its history can be read.
#[tokio::test]
async fn a_read_that_waits_goes_on_waiting_while_the_history_cannot_be_read() -> TestResult {
    let mut door = Door::with(&[("AFTERCOMMIT_SSE_VERIFY_SECONDS", "3600")], Vec::new()).await;
    door.line.append(1).await;
    door.line.wait_until_whole().await;
    let poll = door.begin_poll(&behind(1)).await;
    door.line.relay.signal("KILL").await;
    let (history, aside) = (door.history(), format!("{}:aside", door.history()));
    door.line.words(&["rename", &history, &aside]).await?;
    door.line.words(&["set", &history, "of another type"]).await?;
    let reads = metric_of(&door.sse, HISTORY_READS).await;
    let event = Uuid::new_v4().to_string();
    let message = json!({"id": "1-2", "prev": "1-1", "event": event, "type": "T", "payload": 2});
    door.line.words(&["publish", &keys::live(&door.line.topic), &message.to_string()]).await?;
    eventually("a read has failed, and another one has followed", async || {
        (metric_of(&door.sse, HISTORY_READS).await >= reads + 2).then_some(())
    })
    .await;
    door.line.words(&["del", &history]).await?;
    door.line.words(&["rename", &aside, &history]).await?;
    let entry = ["xadd", &history, "1-2", "event", &event, "type", "T", "payload", "2", "prev", "1-1"];
    door.line.words(&entry).await?;
    let answer = Answer::of(tokio::time::timeout(SOON, poll).await???).await?;
    assert_eq!(answer.numbers()?, [2]);
    Ok(())
}

#[tokio::test]
async fn pages_of_allowed_origins_may_read_the_offsets_and_ask_for_what_has_changed() -> TestResult {
    let door = Door::with(&[("AFTERCOMMIT_SSE_CORS_ORIGINS", "https://app.example")], Vec::new()).await;
    let preflight = http()
        .request(Method::OPTIONS, door.url(""))
        .header("origin", "https://app.example")
        .header("access-control-request-method", "GET")
        .send()
        .await?;
    let allowed = preflight.headers()["access-control-allow-headers"].to_str()?;
    assert!(allowed.contains("if-none-match") && allowed.contains("authorization"), "{allowed}");
    let first = door.get("").await?;
    for exposed in ["stream-next-offset", "stream-up-to-date", "stream-cursor", "etag"] {
        let all = first.header("access-control-expose-headers").ok_or("no header")?;
        assert!(all.contains(exposed), "{all}");
    }
    let again = http().get(door.url("")).bearer_auth(&door.token);
    let again = again.header("if-none-match", first.header("etag").ok_or("no tag")?).send().await?;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    // A problem is guarded too, and needs no token.
    let problem = http_get(door.url("")).await?;
    assert_eq!(problem.headers()["x-content-type-options"], "nosniff");
    Ok(())
}
