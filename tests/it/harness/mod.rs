//! temporary
use sqlx::{AssertSqlSafe, Connection, PgConnection};
pub struct Database {
    name: String,
    url: String,
}
impl Database {
    pub fn name(&self) -> &str {
        &self.name
    }
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("c")
    }
}
pub async fn database() -> Database {
    let base = std::env::var("TEST_DATABASE_URL").expect("url");
    let mut c = PgConnection::connect(&base).await.expect("c");
    let name = format!("t{}", uuid::Uuid::new_v4().simple());
    sqlx::raw_sql(AssertSqlSafe(format!("create database {name}"))).execute(&mut c).await.expect("create");
    let url = format!("{}/{}", base.rsplit_once('/').expect("url").0, name);
    let mut c = PgConnection::connect(&url).await.expect("c");
    aftercommit::outbox::schema::SCHEMA.apply(&mut c).await.expect("migrate");
    Database { name, url }
}
