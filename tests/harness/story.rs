//! The mission's story: processes around one database and one Redis, and a user who uploads photos.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use aftercommit::auth::{self, UserId};

use super::database::{Database, database};
use super::http::http;
use super::process::{Process, Settings};
use super::redis::{Redis, redis, shared_url};
use super::sse::Client;
use super::{items_of, str_of};

const SECRET: &str = "a secret of the tests, 32 bytes or more";

/// Everything that a story's processes share.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) database: Database,
    pub(crate) redis: Redis,
    settings: Settings,
    http: reqwest::Client,
}

impl System {
    /// A fresh database and a fresh namespace of the shared Redis.
    pub(crate) async fn new() -> Self {
        Self::with_redis(shared_url()).await
    }

    /// A fresh database, and a Redis that the test can stop.
    pub(crate) async fn with_redis(redis_url: &str) -> Self {
        Self::with(database().await, redis_url).await
    }

    /// This database, and this Redis.
    pub(crate) async fn with(database: Database, redis_url: &str) -> Self {
        let redis = redis().await;
        let settings = Settings::default()
            .set("DATABASE_URL", database.url())
            .set("REDIS_URL", redis_url)
            .set("AFTERCOMMIT_RELAY_NAME", redis.relay_name())
            .set("AFTERCOMMIT_REDIS_NAMESPACE", redis.relay_name())
            .set("AFTERCOMMIT_JWT_SECRET", SECRET)
            .set("AFTERCOMMIT_JWT_LEEWAY_SECONDS", "0")
            .set("AFTERCOMMIT_API_LISTEN", "127.0.0.1:0")
            .set("AFTERCOMMIT_SSE_LISTEN", "127.0.0.1:0")
            .set("AFTERCOMMIT_RELAY_LISTEN", "127.0.0.1:0")
            .set("AFTERCOMMIT_SSE_DRAIN_SECONDS", "1");
        Self { database, redis, settings, http: http() }
    }

    /// One more environment variable for processes started from now on.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.settings = self.settings.set(name, value);
        self
    }

    /// Another value of an environment variable for processes started from now on.
    pub(crate) fn set_again(&mut self, name: &str, value: &str) {
        self.settings = std::mem::take(&mut self.settings).set(name, value);
    }

    /// One environment variable less for processes started from now on.
    pub(crate) fn unset(&mut self, name: &str) {
        self.settings = std::mem::take(&mut self.settings).without(name);
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) async fn start(&self, role: &str) -> Process {
        Process::start(role, &self.settings).await
    }

    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// A token that all processes of this system accept.
    pub(crate) fn token(&self, user: impl Into<UserId>) -> String {
        self.token_for(user, Duration::from_secs(3600))
    }

    pub(crate) fn token_for(&self, user: impl Into<UserId>, valid_for: Duration) -> String {
        self.token_with(user, valid_for, &[])
    }

    /// A token for streams of topics that match these patterns.
    pub(crate) fn token_with(
        &self,
        user: impl Into<UserId>,
        valid_for: Duration,
        subscribe: &[&str],
    ) -> String {
        let settings = auth::Settings {
            secret: SECRET.to_owned().into(),
            public_key_file: String::new(),
            jwks_url: String::new(),
            jwks_refresh_seconds: 0,
            jwks_cooldown_seconds: 0,
            algorithm: auth::Algorithm::HS256,
            issuer: String::new(),
            audience: String::new(),
            leeway_seconds: 0,
            cookie: String::new(),
            ticket_seconds: 0,
        };
        let subscribe: Vec<String> = subscribe.iter().map(ToString::to_string).collect();
        auth::issue_with(&settings, user, valid_for, &subscribe).expect("a token")
    }

    /// A user's new session of so many photos.
    pub(crate) async fn session(&self, api: &Process, user: Uuid, photos: usize) -> Session {
        let token = self.token(user);
        let url = api.url("/api/upload/sessions");
        let response =
            self.http.post(&url).bearer_auth(&token).json(&json!({ "totalPhotos": photos })).send().await;
        let response = response.expect("an answer");
        assert_eq!(response.status(), StatusCode::CREATED);
        let created: Value = response.json().await.expect("JSON");
        let uuid = |value: &Value| Uuid::parse_str(str_of(value)).expect("a UUID");
        let photos = items_of(&created["photoIds"]).iter().map(uuid).collect();
        Session {
            id: uuid(&created["sessionId"]),
            user,
            photos,
            api: api.url(""),
            token,
            http: self.http.clone(),
        }
    }
}

/// A user's session.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) id: Uuid,
    pub(crate) user: Uuid,
    pub(crate) photos: Vec<Uuid>,
    pub(crate) token: String,
    api: String,
    http: reqwest::Client,
}

impl Session {
    pub(crate) fn topic(&self) -> String {
        format!("upload-session:{}", self.id)
    }

    pub(crate) fn stream_path(&self) -> String {
        format!("/api/upload/sessions/{}/stream", self.id)
    }

    /// Opens the session's stream on this server.
    pub(crate) async fn listen(&self, sse: &Process) -> Client {
        Client::open(&sse.url(&self.stream_path()), &self.token).await
    }

    /// Opens the user's notifications on this server.
    pub(crate) async fn listen_to_notifications(&self, sse: &Process) -> Client {
        Client::open(&sse.url("/api/upload/sessions/notifications/stream"), &self.token).await
    }

    pub(crate) async fn complete(&self, photo: usize) -> StatusCode {
        self.post(photo, "complete", &Value::Null).await
    }

    pub(crate) async fn fail(&self, photo: usize, reason: &str) -> StatusCode {
        self.post(photo, "fail", &json!({ "reason": reason })).await
    }

    async fn post(&self, photo: usize, what: &str, body: &Value) -> StatusCode {
        let url =
            format!("{}/api/upload/sessions/{}/photos/{}/{what}", self.api, self.id, self.photos[photo]);
        let mut request = self.http.post(url).bearer_auth(&self.token);
        if !body.is_null() {
            request = request.json(body);
        }
        request.send().await.expect("an answer").status()
    }

    /// Settles all photos in their order, the one at `failing` by failing it.
    pub(crate) async fn settle_all(&self, failing: Option<usize>) {
        for photo in 0..self.photos.len() {
            let status = if failing == Some(photo) {
                self.fail(photo, "the disk is full").await
            } else {
                self.complete(photo).await
            };
            assert_eq!(status, StatusCode::OK);
        }
    }

    pub(crate) async fn show(&self) -> Value {
        let url = format!("{}/api/upload/sessions/{}", self.api, self.id);
        let response = self.http.get(url).bearer_auth(&self.token).send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        response.json().await.expect("JSON")
    }
}
