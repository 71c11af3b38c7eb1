//! Owners of sessions: one query for all clients that come at once, and cached while Postgres is down.

use std::collections::HashSet;

use aftercommit::local::RedisServer;
use reqwest::{Response, StatusCode};
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::harness::{
    Client, OwnPostgres, Process, System, TestResult, database_on, eventually, refusal_of, start_postgres,
    start_redis,
};

/// The clients' reconnect time: a tenth of the default.
const RETRY_MS: &str = "200";

/// A Postgres and a Redis of the test's own, and an SSE server on them.
struct Own {
    postgres: OwnPostgres,
    _redis: RedisServer,
    system: System,
    sse: Process,
}

impl Own {
    async fn new() -> Self {
        let server = start_postgres(Vec::new()).await;
        let redis = start_redis(Vec::new(), None).await;
        let system = System::with(database_on(&server).await, redis.url().expose_secret()).await;
        let system = system.set("AFTERCOMMIT_SSE_RETRY_MS", RETRY_MS);
        let sse = system.start("sse").await;
        Self { postgres: OwnPostgres::new(server).await, _redis: redis, system, sse }
    }

    fn url(&self, session: Uuid) -> String {
        self.sse.url(&format!("/api/upload/sessions/{session}/stream"))
    }

    async fn open(&self, user: Uuid, session: Uuid) -> Response {
        let request = self.system.http().get(self.url(session)).bearer_auth(self.system.token(user));
        request.send().await.expect("an answer")
    }
}

/// A session without photos, past the API.
async fn session_of(connection: &mut PgConnection, user: Uuid) -> TestResult<Uuid> {
    let session = Uuid::new_v4();
    let sql = "insert into uploads.session (id, user_id, total_count) values ($1, $2, 1)";
    sqlx::query(sql).bind(session).bind(user).execute(connection).await?;
    Ok(session)
}

/// The one number that this query finds.
async fn count(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.expect("a number")
}

#[tokio::test]
async fn a_known_session_opens_while_postgres_is_stopped_and_an_unknown_one_is_told_to_come_back()
-> TestResult {
    let own = Own::new().await;
    let mut connection = own.system.database.connect().await;
    let user = Uuid::new_v4();
    let known = session_of(&mut connection, user).await?;
    let unknown = session_of(&mut connection, user).await?;
    assert_eq!(refusal_of(own.open(user, known).await).await, None);

    own.postgres.control(&["stop", "--mode", "fast"]).await;
    assert_eq!(refusal_of(own.open(user, known).await).await, None, "it is let in");
    assert_eq!(own.open(Uuid::new_v4(), known).await.status(), StatusCode::FORBIDDEN);
    let refused = own.open(user, unknown).await;
    assert_eq!(refused.status(), StatusCode::OK, "EventSource gives up on any other");
    assert_eq!(refusal_of(refused).await.ok_or("no refusal")?["reason"], "unavailable");
    let client = Client::begin(own.url(unknown), &own.system.token(user), None);
    client.wait_for_ends(1).await;
    assert!(client.wait_for_retry().await >= 600, "three times the usual wait");

    own.postgres.start_again().await;
    client.wait_until_placed().await;
    let mut connection = own.system.database.connect().await;
    let another = session_of(&mut connection, user).await?;
    assert_eq!(own.open(Uuid::new_v4(), another).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(refusal_of(own.open(user, another).await).await, None);
    Ok(())
}

#[tokio::test]
async fn a_session_that_is_created_after_it_was_asked_for_is_found_at_once() -> TestResult {
    let system = System::new().await;
    let sse = system.start("sse").await;
    let mut connection = system.database.connect().await;
    let (user, session) = (Uuid::new_v4(), Uuid::new_v4());
    let open = async || {
        let request = system.http().get(sse.url(&format!("/api/upload/sessions/{session}/stream")));
        request.bearer_auth(system.token(user)).send().await.expect("an answer").status()
    };
    assert_eq!(open().await, StatusCode::NOT_FOUND);
    let sql = "insert into uploads.session (id, user_id, total_count) values ($1, $2, 1)";
    sqlx::query(sql).bind(session).bind(user).execute(&mut connection).await?;
    assert_eq!(open().await, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn a_hundred_clients_of_one_session_at_once_ask_postgres_once() -> TestResult {
    let own = Own::new().await;
    let mut connection = own.system.database.connect().await;
    let user = Uuid::new_v4();
    let session = session_of(&mut connection, user).await?;
    let scans = "select coalesce(seq_scan, 0) + coalesce(idx_scan, 0) from pg_stat_user_tables
                 where schemaname = 'uploads' and relname = 'session'";
    let before = count(&mut connection, scans).await;
    let mut held = connection.begin().await?;
    sqlx::query("lock table uploads.session").execute(&mut *held).await?;
    let clients = futures_util::future::join_all((0..100).map(|_| own.open(user, session)));
    let release = async {
        let mut other = own.system.database.connect().await;
        let waiting = "select count(*) from pg_locks where not granted";
        eventually("a question waits", async || (count(&mut other, waiting).await > 0).then_some(())).await;
        held.rollback().await.expect("a rollback");
    };
    let (opened, ()) = tokio::join!(clients, release);
    let statuses: HashSet<StatusCode> = opened.iter().map(Response::status).collect();
    assert_eq!(statuses, HashSet::from([StatusCode::OK]));

    // A server process tells its counts when it ends.
    drop(opened);
    assert_eq!(own.sse.terminate().await, 0);
    let left = "select count(*) from pg_stat_activity where application_name = 'aftercommit sse'";
    eventually("its connections are gone", async || (count(&mut connection, left).await == 0).then_some(()))
        .await;
    let asked = eventually("the counts", async || {
        Some(count(&mut connection, scans).await - before).filter(|asked| *asked > 0)
    });
    assert_eq!(asked.await, 1);
    Ok(())
}
