//! The upload story with real processes: started late, killed in the middle, and with Redis stopped in the
//! middle.

use std::time::Duration;

use secrecy::ExposeSecret;
use uuid::Uuid;

use aftercommit::local::{Home, RedisServer, redis::Options};

use crate::harness::{Client, Event, Session, System, TestResult};

/// What the story of a session of ten with one failure must look like to every client.
fn assert_story(session: &Session, events: &[Event], failing: usize) {
    let total = session.photos.len();
    let types: Vec<&str> = events.iter().map(|event| event.event.as_str()).collect();
    let mut expected = vec!["PHOTO_UPLOADED"; total];
    expected[failing] = "PHOTO_FAILED";
    expected.push("SESSION_COMPLETED");
    assert_eq!(types, expected);
    for (event, photo) in events.iter().zip(&session.photos) {
        assert!(event.data.contains(&photo.to_string()), "{event:?} is about {photo}");
    }
    let ids: Vec<_> = events.iter().map(sequence_of).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

fn sequence_of(event: &Event) -> u64 {
    let id = event.id.as_deref().expect("an id");
    id.strip_prefix("1-").and_then(|seq| seq.parse().ok()).unwrap_or_else(|| panic!("{id}"))
}

#[tokio::test]
async fn three_processes_and_a_second_sse_server_tell_the_story_to_every_client() {
    let system = System::new().await;
    let (api, _relay) = (system.start("api").await, system.start("relay").await);
    let servers = [system.start("sse").await, system.start("sse").await];
    let session = system.session(&api, Uuid::new_v4(), 10).await;
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..5 {
        for sse in &servers {
            clients.push(session.listen(sse).await);
        }
    }
    let notifications = session.listen_to_notifications(&servers[1]).await;
    session.settle_all(Some(4)).await;
    for client in &clients {
        assert_story(&session, &client.wait_for_events(11).await, 4);
    }
    let told = notifications.wait_for_events(1).await;
    assert_eq!(told.len(), 1);
    assert!(told[0].data.contains("Upload session completed: 9 uploaded, 1 failed"));
}

#[tokio::test]
async fn a_relay_that_starts_long_after_the_commits_delivers_them_all() -> TestResult {
    let system = System::new().await;
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let session = system.session(&api, Uuid::new_v4(), 10).await;
    let client = session.listen(&sse).await;
    session.settle_all(Some(0)).await;
    // An hour passes: the rows are as old as that, and so is the transaction that wrote them.
    let mut connection = system.database.connect().await;
    sqlx::query("update outbox.event set created_at = created_at - interval '1 hour'")
        .execute(&mut connection)
        .await?;
    let _relay = system.start("relay").await;
    assert_story(&session, &client.wait_for_events(11).await, 0);
    Ok(())
}

#[tokio::test]
async fn a_relay_that_is_killed_and_started_again_repeats_nothing_and_loses_nothing() {
    let system = System::new().await;
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let session = system.session(&api, Uuid::new_v4(), 60).await;
    let client = session.listen(&sse).await;
    let mut relay = system.start("relay").await;
    for (photo, _) in session.photos.iter().enumerate() {
        assert_eq!(session.complete(photo).await.as_u16(), 200);
        if photo % 10 == 5 {
            relay.kill().await;
            relay = system.start("relay").await;
        }
    }
    let events = client.wait_for_events(61).await;
    let failing_none: Vec<&str> = events.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(failing_none[..60], ["PHOTO_UPLOADED"; 60]);
    assert_eq!(failing_none[60], "SESSION_COMPLETED");
    for (event, photo) in events.iter().zip(&session.photos) {
        assert!(event.data.contains(&photo.to_string()));
    }
}

#[tokio::test]
async fn redis_stopped_and_started_with_its_data_is_an_interruption_and_no_more() -> TestResult {
    let dir = tempfile::tempdir()?;
    let options =
        |port| Options { home: Home::Kept(dir.path().to_owned()), port, durable: true, settings: Vec::new() };
    let server = RedisServer::start(&options(None)).await?;
    let (url, port) = (server.url().expose_secret().to_owned(), server.port());
    let system = System::with_redis(&url).await;
    let (api, _relay) = (system.start("api").await, system.start("relay").await);
    let servers = [system.start("sse").await, system.start("sse").await];
    let session = system.session(&api, Uuid::new_v4(), 10).await;
    let clients = [session.listen(&servers[0]).await, session.listen(&servers[1]).await];
    for photo in 0..4 {
        assert_eq!(session.complete(photo).await.as_u16(), 200);
    }
    for client in &clients {
        client.wait_for_events(4).await;
    }
    server.stop().await?;
    for photo in 4..8 {
        assert_eq!(session.complete(photo).await.as_u16(), 200, "commands need no Redis");
    }
    // A client that comes while Redis is away is connected all the same.
    let late = Client::resume(&servers[0].url(&session.stream_path()), &session.token, "1-2");
    late.wait_for_connections(1).await;
    let server = RedisServer::start(&options(Some(port))).await?;
    assert_eq!(server.port(), port);
    for photo in 8..10 {
        assert_eq!(session.complete(photo).await.as_u16(), 200);
    }
    for client in &clients {
        let events = client.wait_for_events(11).await;
        assert_eq!(events.len(), 11);
        assert!(
            events.iter().zip(&session.photos).all(|(event, photo)| event.data.contains(&photo.to_string()))
        );
        assert_eq!(events[10].event, "SESSION_COMPLETED");
    }
    let events = late.wait_for_events(9).await;
    assert!(events.iter().zip(&session.photos[2..]).all(|(e, photo)| e.data.contains(&photo.to_string())));
    Ok(())
}

#[tokio::test]
async fn a_client_of_an_sse_server_that_is_killed_continues_on_another() {
    let system = System::new().await;
    let (api, _relay, first) =
        (system.start("api").await, system.start("relay").await, system.start("sse").await);
    let session = system.session(&api, Uuid::new_v4(), 6).await;
    let client = session.listen(&first).await;
    for photo in 0..3 {
        assert_eq!(session.complete(photo).await.as_u16(), 200);
    }
    client.wait_for_events(3).await;
    first.kill().await;
    for photo in 3..6 {
        assert_eq!(session.complete(photo).await.as_u16(), 200);
    }
    let second = system.start("sse").await;
    let rest = Client::resume(&second.url(&session.stream_path()), &session.token, &client.last_event_id());
    let events = rest.wait_for_events(4).await;
    assert_eq!(events.len(), 4);
    assert!(events.iter().zip(&session.photos[3..]).all(|(e, photo)| e.data.contains(&photo.to_string())));
}

#[tokio::test]
async fn a_standby_relay_takes_over_when_the_leader_is_killed() {
    let system = System::new().await;
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let session = system.session(&api, Uuid::new_v4(), 2).await;
    let client = session.listen(&sse).await;
    let leader = system.start("relay").await;
    assert_eq!(session.complete(0).await.as_u16(), 200);
    client.wait_for_events(1).await;
    let _standby = system.start("relay").await;
    leader.kill().await;
    let begun = std::time::Instant::now();
    assert_eq!(session.complete(1).await.as_u16(), 200);
    assert_eq!(client.wait_for_events(3).await.len(), 3);
    assert!(begun.elapsed() < Duration::from_secs(10), "took over after {:?}", begun.elapsed());
}

#[tokio::test]
async fn every_role_ends_with_0_on_sigterm_and_sigint_in_the_middle_of_its_work() -> TestResult {
    let system = System::new().await;
    let (api, relay, sse) =
        (system.start("api").await, system.start("relay").await, system.start("sse").await);
    let session = system.session(&api, Uuid::new_v4(), 2).await;
    let client = session.listen(&sse).await;
    assert_eq!(session.complete(0).await.as_u16(), 200);
    client.wait_for_events(1).await;
    for mut process in [relay, api, sse] {
        process.signal("INT").await;
        assert_eq!(process.exit_code().await, 0, "{}", process.log());
    }
    // What was committed meanwhile, by somebody else, is delivered by the next ones.
    let (api, _relay, sse) =
        (system.start("api").await, system.start("relay").await, system.start("sse").await);
    let url = sse.url(&session.stream_path());
    let client = Client::resume(&url, &session.token, "1-1");
    let complete = format!("/api/upload/sessions/{}/photos/{}/complete", session.id, session.photos[1]);
    let status = system.http().post(api.url(&complete)).bearer_auth(&session.token).send().await;
    assert_eq!(status?.status().as_u16(), 200);
    assert_eq!(client.wait_for_events(2).await.len(), 2);
    Ok(())
}
