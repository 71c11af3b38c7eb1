//! A database for each test: a copy of a template that has been migrated once.

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;

use aftercommit::local::{self, PostgresServer};
use aftercommit::{outbox, uploads};
use secrecy::ExposeSecret;

use super::servers::servers;

/// The prefix of the databases that tests create.
const PREFIX: &str = "aftercommit_test_";

/// A test's own database.
#[derive(Debug)]
pub(crate) struct Database {
    name: String,
    url: String,
}

/// Makes a log take the database that it is in for the one in which it was made.
const MADE_HERE: &str = "update outbox.log set database_oid = (
                           select oid from pg_database where datname = current_database())";

impl Database {
    /// An existing database.
    pub(crate) fn at(url: &str) -> Self {
        let (_, name) = url.rsplit_once('/').expect("a url with a database");
        Self { name: name.to_owned(), url: url.to_owned() }
    }

    /// A backup of it as it is now: its log believes that this is the database in which it was made, as after
    /// a restore of the whole server.
    pub(crate) async fn backup(&self) -> Self {
        let backup = self.copy().await;
        let mut connection = backup.connect().await;
        execute(&mut connection, MADE_HERE.to_owned()).await;
        connection.close().await.expect("a goodbye");
        backup
    }

    /// A copy of it as it is now, on the same server. Ends all sessions, such as the one in which an SSE
    /// server listens for revocations, and lets nobody in meanwhile.
    pub(crate) async fn copy(&self) -> Self {
        let mut server = connect_to_server().await;
        self.allow_connections(&mut server, false).await;
        let in_use = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1";
        super::eventually("nobody is connected", async || {
            let users: i64 =
                sqlx::query_scalar(in_use).bind(&self.name).fetch_one(&mut server).await.expect("sessions");
            (users == 0).then_some(())
        })
        .await;
        let copy = copy_of(&self.name).await;
        self.allow_connections(&mut server, true).await;
        copy
    }

    async fn allow_connections(&self, server: &mut PgConnection, are_allowed: bool) {
        let sql = format!("alter database \"{}\" allow_connections {are_allowed}", self.name);
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(server).await.expect("an altered database");
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("a connection to the test's database")
    }
}

/// A fresh, migrated database.
pub(crate) async fn database() -> Database {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let template = TEMPLATE.get_or_init(make_template).await;
    let database = copy_of(template).await;
    // A log of its own, and not a copy of the template's.
    let mut connection = database.connect().await;
    execute(&mut connection, format!("{MADE_HERE}, id = gen_random_uuid()")).await;
    connection.close().await.expect("a goodbye");
    database
}

/// The one database of a server of the test's own, migrated.
pub(crate) async fn database_on(server: &PostgresServer) -> Database {
    let url = server.url(local::postgres::DATABASE).expose_secret().to_owned();
    migrate(&url).await;
    Database { name: local::postgres::DATABASE.to_owned(), url }
}

/// A fresh database without any schema of ours.
pub(crate) async fn empty_database() -> Database {
    copy_of("template0").await
}

async fn copy_of(template: &str) -> Database {
    let mut server = connect_to_server().await;
    let name = format!("{PREFIX}{}", uuid::Uuid::new_v4().simple());
    execute(&mut server, format!("create database {name} template {template}")).await;
    server.close().await.expect("a goodbye");
    Database { url: url_of(&name), name }
}

async fn make_template() -> String {
    let mut server = connect_to_server().await;
    drop_old(&mut server).await;
    let name = format!("{PREFIX}template_{}", uuid::Uuid::new_v4().simple());
    execute(&mut server, format!("create database {name}")).await;
    migrate(&url_of(&name)).await;
    server.close().await.expect("a goodbye");
    name
}

async fn migrate(url: &str) {
    let mut connection = PgConnection::connect(url).await.expect("a connection");
    for schema in [&outbox::schema::SCHEMA, &uploads::schema::SCHEMA] {
        schema.apply(&mut connection).await.expect("a migration");
    }
    connection.close().await.expect("a goodbye");
}

/// Drops unused databases that earlier runs left on a shared server.
async fn drop_old(server: &mut PgConnection) {
    let unused: Vec<String> = sqlx::query_scalar(
        "select datname::text from pg_database d
         where starts_with(datname, $1)
           and not exists (select from pg_stat_activity a where a.datid = d.oid)
           and (pg_stat_file('base/' || d.oid || '/PG_VERSION')).modification < now() - interval '1 hour'",
    )
    .bind(PREFIX)
    .fetch_all(&mut *server)
    .await
    .expect("a list of databases");
    for name in unused {
        execute(server, format!("drop database if exists {name}")).await;
    }
}

async fn connect_to_server() -> PgConnection {
    PgConnection::connect(&servers().database_url).await.expect("a connection to the test server")
}

async fn execute(connection: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.expect("a statement on the test server");
}

fn url_of(database: &str) -> String {
    let (server, _) = servers().database_url.rsplit_once('/').expect("a url with a database");
    format!("{server}/{database}")
}
