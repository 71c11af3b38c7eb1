//! temporary
use sqlx::{AssertSqlSafe, Connection, PgConnection};
pub(crate) struct Database {
    name: String,
    url: String,
}
impl Database {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("c")
    }
}
pub(crate) async fn database() -> Database {
    let base = std::env::var("TEST_DATABASE_URL").expect("url");
    let mut c = PgConnection::connect(&base).await.expect("c");
    let name = format!("t{}", uuid::Uuid::new_v4().simple());
    sqlx::raw_sql(AssertSqlSafe(format!("create database {name}"))).execute(&mut c).await.expect("create");
    let url = format!("{}/{}", base.rsplit_once('/').expect("url").0, name);
    let mut c = PgConnection::connect(&url).await.expect("c");
    aftercommit::outbox::schema::SCHEMA.apply(&mut c).await.expect("migrate");
    Database { name, url }
}
pub(crate) struct Redis {
    prefix: String,
}
pub(crate) async fn redis() -> Redis {
    Redis { prefix: format!("t{}", uuid::Uuid::new_v4().simple()) }
}
impl Redis {
    pub(crate) fn relay_name(&self) -> String {
        self.prefix.clone()
    }
    pub(crate) fn topic(&self, name: &str) -> aftercommit::event::Topic {
        aftercommit::event::Topic::new(format!("{}:{name}", self.prefix)).expect("t")
    }
    pub(crate) fn settings(&self) -> aftercommit::redis::Settings {
        aftercommit::redis::Settings {
            url: "redis://127.0.0.1:56379".to_owned().into(),
            connect_timeout_ms: 3000,
            response_timeout_ms: 5000,
            history_max_events: 10000,
            history_ttl_seconds: 86400,
        }
    }
    pub(crate) fn client(&self) -> redis::Client {
        self.settings().client().expect("c")
    }
    pub(crate) async fn connect(&self) -> redis::aio::MultiplexedConnection {
        self.settings().connect().await.expect("c")
    }
}
