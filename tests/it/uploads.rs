//! The upload application: its endpoints, its messages byte for byte, and concurrent requests.

use futures_util::StreamExt;
use futures_util::future::join_all;
use reqwest::StatusCode;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Session, System, TestResult, items_of, start_redis, str_of};

/// The expected text with the message's own time, which must be a recent one in whole seconds of UTC.
fn with_time_of(message: &str, expected: &str) -> TestResult<String> {
    let parsed: Value = serde_json::from_str(message)?;
    let time = parsed["timestamp"].as_str().unwrap_or_default();
    if !time.is_empty() {
        let parsed = chrono::DateTime::parse_from_rfc3339(time)?;
        assert!(time.len() == 20 && time.ends_with('Z'), "whole seconds in UTC: {time}");
        assert!(
            (chrono::Utc::now() - parsed.to_utc()).num_seconds().abs() < 60,
            "the time of the change: {time}"
        );
    }
    Ok(expected.replace("<time>", time))
}

#[tokio::test]
async fn each_message_arrives_on_its_redis_channel_byte_for_byte() -> TestResult {
    // A Redis of its own, so that the names are those without a namespace.
    let redis = start_redis(Vec::new(), None).await;
    let url = redis.url().expose_secret().to_owned();
    let system = System::with_redis(&url).await.set("AFTERCOMMIT_REDIS_NAMESPACE", "");
    let (api, _relay) = (system.start("api").await, system.start("relay").await);
    let session = system.session(&api, Uuid::new_v4(), 3).await;
    let client = redis::Client::open(url.as_str())?;
    let mut subscriber = client.get_async_pubsub().await?;
    let user_channel = format!("user-notifications:{}", session.user);
    subscriber.subscribe(&[session.topic(), user_channel.clone()]).await?;

    assert_eq!(session.complete(0).await, StatusCode::OK);
    assert_eq!(session.fail(1, "the \"disk\" is full: ü").await, StatusCode::OK);
    assert_eq!(session.complete(2).await, StatusCode::OK);

    let (id, photos) = (session.id, &session.photos);
    let expected = [
        format!(
            concat!(
                r#"{{"type":"PHOTO_UPLOADED","sessionId":"{id}","photoId":"{}","uploadedCount":1,"#,
                r#""totalCount":3,"progressPercent":33.3,"timestamp":"<time>"}}"#,
            ),
            photos[0],
            id = id
        ),
        format!(
            concat!(
                r#"{{"type":"PHOTO_FAILED","sessionId":"{id}","photoId":"{}","#,
                r#""reason":"the \"disk\" is full: ü","failedCount":1,"totalCount":3,"timestamp":"<time>"}}"#,
            ),
            photos[1],
            id = id
        ),
        format!(
            concat!(
                r#"{{"type":"PHOTO_UPLOADED","sessionId":"{id}","photoId":"{}","uploadedCount":2,"#,
                r#""totalCount":3,"progressPercent":66.7,"timestamp":"<time>"}}"#,
            ),
            photos[2],
            id = id
        ),
        format!(
            concat!(
                r#"{{"type":"SESSION_COMPLETED","sessionId":"{id}","uploadedCount":2,"failedCount":1,"#,
                r#""totalCount":3,"timestamp":"<time>"}}"#,
            ),
            id = id
        ),
        format!(
            concat!(
                r#"{{"type":"UPLOAD_SESSION_COMPLETED","#,
                r#""message":"Upload session completed: 2 uploaded, 1 failed","sessionId":"{id}"}}"#,
            ),
            id = id
        ),
    ];
    let mut messages = subscriber.on_message();
    for (at, expected) in expected.iter().enumerate() {
        let message = tokio::time::timeout(crate::harness::LIMIT, messages.next()).await;
        let message = message?.ok_or("no message")?;
        let text: String = message.get_payload()?;
        assert_eq!(text, with_time_of(&text, expected)?);
        let channel = if at == 4 { &user_channel } else { &session.topic() };
        assert_eq!(message.get_channel_name(), channel);
    }
    Ok(())
}

#[tokio::test]
async fn fifty_completes_at_once_count_to_fifty_and_complete_the_session_once() -> TestResult {
    let system = System::new().await;
    let (api, _relay, sse) =
        (system.start("api").await, system.start("relay").await, system.start("sse").await);
    let session = system.session(&api, Uuid::new_v4(), 50).await;
    let client = session.listen(&sse).await;
    let notifications = session.listen_to_notifications(&sse).await;
    let statuses = join_all((0..50).map(|photo| session.complete(photo))).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");

    let events = client.wait_for_events(51).await;
    for (at, event) in events[..50].iter().enumerate() {
        let data: Value = serde_json::from_str(&event.data)?;
        assert_eq!((event.event.as_str(), &data["uploadedCount"]), ("PHOTO_UPLOADED", &json!(at + 1)));
    }
    assert_eq!(events[50].event, "SESSION_COMPLETED");
    assert_eq!(notifications.wait_for_events(1).await.len(), 1);
    assert_eq!(session.show().await["uploadedCount"], 50);
    // Exactly once: in the log itself nothing more was ever written.
    assert_eq!(rows(&system, &session).await?, 52);
    Ok(())
}

/// Rows in the log for a session, its user's included.
async fn rows(system: &System, session: &Session) -> TestResult<i64> {
    let mut connection = system.database.connect().await;
    Ok(sqlx::query_scalar("select count(*) from outbox.event where topic in ($1, $2)")
        .bind(session.topic())
        .bind(format!("user-notifications:{}", session.user))
        .fetch_one(&mut connection)
        .await?)
}

#[tokio::test]
async fn a_repeat_is_a_200_that_changes_nothing_and_a_contradiction_a_409() -> TestResult {
    let system = System::new().await;
    let api = system.start("api").await;
    let session = system.session(&api, Uuid::new_v4(), 2).await;
    for _ in 0..3 {
        assert_eq!(session.complete(0).await, StatusCode::OK);
        assert_eq!(session.fail(1, "torn").await, StatusCode::OK);
    }
    assert_eq!(session.fail(0, "torn").await, StatusCode::CONFLICT);
    assert_eq!(session.complete(1).await, StatusCode::CONFLICT);
    let shown = session.show().await;
    assert_eq!((&shown["uploadedCount"], &shown["failedCount"]), (&json!(1), &json!(1)));
    assert_eq!(shown["status"], "COMPLETED");
    assert_eq!(shown["photos"][1]["reason"], "torn");
    assert_eq!(rows(&system, &session).await?, 4);
    Ok(())
}

#[tokio::test]
async fn a_command_that_is_rolled_back_leaves_nothing_anywhere() -> TestResult {
    let system = System::new().await;
    let (api, _relay, sse) =
        (system.start("api").await, system.start("relay").await, system.start("sse").await);
    let session = system.session(&api, Uuid::new_v4(), 2).await;
    let client = session.listen(&sse).await;
    // The append fails after the state has been changed, in the same transaction.
    let mut connection = system.database.connect().await;
    sqlx::raw_sql(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'refused'; end $$;
         create trigger refuse before insert on outbox.event for each row execute function refuse()",
    )
    .execute(&mut connection)
    .await?;
    assert_eq!(session.complete(0).await, StatusCode::SERVICE_UNAVAILABLE);
    // Replaced and not dropped: dropping takes a lock that conflicts with the relay's.
    let allow =
        "create or replace function refuse() returns trigger language plpgsql as $$ begin return new; end $$";
    sqlx::raw_sql(allow).execute(&mut connection).await?;
    assert_eq!(session.show().await["uploadedCount"], 0);

    assert_eq!(session.complete(1).await, StatusCode::OK);
    let events = client.wait_for_events(1).await;
    assert_eq!(events.len(), 1);
    assert!(events[0].data.contains(&session.photos[1].to_string()));
    assert_eq!(rows(&system, &session).await?, 1);
    Ok(())
}

#[tokio::test]
async fn sessions_of_one_user_that_complete_at_once_notify_once_each() {
    let system = System::new().await;
    let (api, _relay, sse) =
        (system.start("api").await, system.start("relay").await, system.start("sse").await);
    let user = Uuid::new_v4();
    let mut sessions = Vec::new();
    for _ in 0..12 {
        sessions.push(system.session(&api, user, 1).await);
    }
    let notifications = sessions[0].listen_to_notifications(&sse).await;
    let statuses = join_all(sessions.iter().map(|session| session.complete(0))).await;
    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
    let events = notifications.wait_for_events(12).await;
    for session in &sessions {
        let told = events.iter().filter(|event| event.data.contains(&session.id.to_string())).count();
        assert_eq!(told, 1);
    }
}

/// Sends a request and returns its status, after checking that an error is a problem detail.
async fn ask(request: reqwest::RequestBuilder) -> u16 {
    let response = request.send().await.expect("an answer");
    let status = response.status();
    if status.as_u16() >= 400 {
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(status.as_u16() == 401, response.headers().contains_key("www-authenticate"));
        let problem: Value = response.json().await.expect("JSON");
        assert_eq!(problem["status"], status.as_u16());
        assert!(!str_of(&problem["detail"]).is_empty());
    }
    status.as_u16()
}

#[tokio::test]
async fn a_request_without_a_valid_token_is_a_401() {
    let system = System::new().await;
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let session = system.session(&api, Uuid::new_v4(), 1).await;
    let http = system.http();
    let stream = sse.url(&session.stream_path());
    let notifications = sse.url("/api/upload/sessions/notifications/stream");
    let show = api.url(&format!("/api/upload/sessions/{}", session.id));
    for url in [&stream, &notifications, &show] {
        assert_eq!(ask(http.get(url)).await, 401);
        assert_eq!(ask(http.get(url).bearer_auth("nonsense")).await, 401);
        assert_eq!(ask(http.get(url).basic_auth("user", Some("password"))).await, 401);
    }
    let expired = system.token_for(session.user, std::time::Duration::ZERO);
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(ask(http.get(&stream).bearer_auth(&expired)).await, 401);
    assert_eq!(ask(http.post(api.url("/api/upload/sessions")).json(&json!({"totalPhotos": 1}))).await, 401);
}

#[tokio::test]
async fn another_users_session_is_a_403_and_an_unknown_one_a_404() {
    let system = System::new().await;
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let session = system.session(&api, Uuid::new_v4(), 1).await;
    let (http, other) = (system.http(), system.token(Uuid::new_v4()));
    let base = format!("/api/upload/sessions/{}", session.id);
    let photo = format!("{base}/photos/{}", session.photos[0]);
    assert_eq!(ask(http.get(api.url(&base)).bearer_auth(&other)).await, 403);
    assert_eq!(ask(http.get(sse.url(&session.stream_path())).bearer_auth(&other)).await, 403);
    assert_eq!(ask(http.post(api.url(&format!("{photo}/complete"))).bearer_auth(&other)).await, 403);
    let reason = json!({"reason": "x"});
    assert_eq!(
        ask(http.post(api.url(&format!("{photo}/fail"))).bearer_auth(&other).json(&reason)).await,
        403
    );

    let (token, nobody) = (&session.token, Uuid::new_v4());
    let unknown = format!("/api/upload/sessions/{nobody}");
    assert_eq!(ask(http.get(api.url(&unknown)).bearer_auth(token)).await, 404);
    assert_eq!(ask(http.get(sse.url(&format!("{unknown}/stream"))).bearer_auth(token)).await, 404);
    let no_photo = format!("{base}/photos/{nobody}/complete");
    assert_eq!(ask(http.post(api.url(&no_photo)).bearer_auth(token)).await, 404);
    assert_eq!(ask(http.get(api.url("/nowhere")).bearer_auth(token)).await, 404);
}

#[tokio::test]
async fn a_request_that_cannot_be_understood_is_refused_with_a_reason() {
    let system = System::new().await;
    let (api, sse) = (system.start("api").await, system.start("sse").await);
    let session = system.session(&api, Uuid::new_v4(), 1).await;
    let (http, token) = (system.http(), &session.token);
    let get = |url: String| http.get(url).bearer_auth(token);
    let create = |body: String| {
        let request = http.post(api.url("/api/upload/sessions")).bearer_auth(token);
        request.header("content-type", "application/json").body(body)
    };
    for malformed in ["not-a-uuid", "123", "%20", "00000000-0000-0000-0000-00000000000g"] {
        assert_eq!(ask(get(api.url(&format!("/api/upload/sessions/{malformed}")))).await, 400, "{malformed}");
        assert_eq!(ask(get(sse.url(&format!("/api/upload/sessions/{malformed}/stream")))).await, 400);
    }
    for body in
        ["", "{", "[]", "{}", "{\"totalPhotos\":0}", "{\"totalPhotos\":10001}", "{\"totalPhotos\":\"1\"}"]
    {
        assert_eq!(ask(create(body.to_owned())).await, 400, "{body}");
    }
    assert_eq!(ask(create("{\"totalPhotos\":10000}".to_owned())).await, 201);
    assert_eq!(ask(create(format!("{{\"totalPhotos\":1{}}}", " ".repeat(65 * 1024)))).await, 413);
    let url = api.url("/api/upload/sessions");
    assert_eq!(ask(http.post(&url).bearer_auth(token).body("{\"totalPhotos\":1}")).await, 415);
    assert_eq!(ask(http.delete(&url).bearer_auth(token)).await, 405);
    for reason in ["", " ", &"x".repeat(501), "nul \0"] {
        assert_eq!(session.fail(0, reason).await.as_u16(), 400, "{reason:?}");
    }
    let fail = api.url(&format!("/api/upload/sessions/{}/photos/{}/fail", session.id, session.photos[0]));
    assert_eq!(ask(http.post(&fail).bearer_auth(token).json(&json!({}))).await, 400);
    assert_eq!(session.show().await["failedCount"], 0);
    assert_eq!(session.fail(0, &"ü".repeat(500)).await.as_u16(), 200);
}

#[tokio::test]
async fn info_health_and_metrics_need_no_token() -> TestResult {
    let system = System::new().await;
    let (api, relay, sse) =
        (system.start("api").await, system.start("relay").await, system.start("sse").await);
    for process in [&api, &relay, &sse] {
        assert_eq!(ask(system.http().get(process.url("/healthz"))).await, 200);
        crate::harness::eventually("ready", async || {
            (ask_status(system.http().get(process.url("/readyz"))).await == 200).then_some(())
        })
        .await;
        let metrics = system.http().get(process.url("/metrics")).send().await?;
        assert!(metrics.text().await?.ends_with("# EOF\n"));
    }
    for process in [&api, &sse] {
        let info = system.http().get(process.url("/api/realtime/info")).send().await?;
        assert_eq!(
            info.text().await?,
            concat!(
                r#"{"sessionStreamEndpoint":"/api/upload/sessions/{sessionId}/stream","protocol":"SSE","#,
                r#""messageTypes":["PHOTO_UPLOADED","PHOTO_FAILED","SESSION_COMPLETED","#,
                r#""UPLOAD_SESSION_COMPLETED"],"#,
                r#""notificationStreamEndpoint":"/api/upload/sessions/notifications/stream"}"#,
            )
        );
    }
    Ok(())
}

async fn ask_status(request: reqwest::RequestBuilder) -> u16 {
    request.send().await.expect("an answer").status().as_u16()
}

#[tokio::test]
async fn a_session_may_name_as_many_photos_as_it_may_have_each_with_the_longest_name() -> TestResult {
    let system = System::new().await;
    let api = system.start("api").await;
    let token = system.token(Uuid::new_v4());
    // As a serializer writes them that escapes all but ASCII.
    let photo = format!("{{\"fileName\": \"{}\"}}", "\\ud83d\\ude00".repeat(255));
    let create = async |count: usize| {
        let body = format!("{{\"photos\": [{}]}}", vec![photo.as_str(); count].join(", "));
        let request = system.http().post(api.url("/api/upload/sessions")).bearer_auth(&token);
        request.header("content-type", "application/json").body(body).send().await.expect("an answer")
    };
    let created = create(10_000).await;
    assert_eq!(created.status(), StatusCode::CREATED);
    let created: Value = created.json().await?;
    assert_eq!(created["photoIds"].as_array().map(Vec::len), Some(10_000));
    let refused = create(10_001).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let url = api.url(&format!("/api/upload/sessions/{}/photos/{}/fail", Uuid::nil(), Uuid::nil()));
    let large = json!({ "reason": "x".repeat(70_000) });
    let refused = system.http().post(url).bearer_auth(&token).json(&large).send().await?;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE, "other bodies stay small");
    Ok(())
}

#[tokio::test]
async fn a_session_is_shown_with_the_counts_of_its_photos_while_they_are_completed() {
    const PHOTOS: usize = 200;
    let system = System::new().await;
    let api = system.start("api").await;
    let session = system.session(&api, Uuid::new_v4(), PHOTOS).await;
    let completing = async { session.settle_all(Some(7)).await };
    let looking = async {
        let (mut looks, mut done) = (0, 0);
        while done < PHOTOS {
            let shown = session.show().await;
            let photos = items_of(&shown["photos"]);
            let of = |status: &str| photos.iter().filter(|photo| photo["status"] == status).count();
            let counts = (shown["uploadedCount"].as_u64(), shown["failedCount"].as_u64());
            assert_eq!(counts, (Some(of("UPLOADED") as u64), Some(of("FAILED") as u64)), "look {looks}");
            done = of("UPLOADED") + of("FAILED");
            looks += 1;
        }
    };
    tokio::join!(completing, looking, async { while session.show().await["status"] != "COMPLETED" {} });
}
