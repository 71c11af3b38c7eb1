//! The Postgres that the tests run on.

use sqlx::PgConnection;

use crate::commands::{assert_fails, stdout};
use crate::harness::{
    Database, System, TestResult, cli, database, database_on, empty_database, start_postgres,
};

/// Its version as a number, such as 150018 for 15.18, and as people write it.
pub(crate) async fn postgres_version(connection: &mut PgConnection) -> TestResult<(i32, String)> {
    let sql = "select current_setting('server_version_num')::int, current_setting('server_version')";
    Ok(sqlx::query_as(sql).fetch_one(connection).await?)
}

/// `scripts/test-postgres` sets the variable and reads what this prints: a wrong path must not pass for
/// another version.
#[tokio::test]
async fn the_servers_are_of_the_version_that_test_postgres_major_names() -> TestResult {
    let own = start_postgres(Vec::new()).await;
    let of_own = database_on(&own).await;
    for (name, database) in [("shared", &database().await), ("own", &of_own)] {
        let (number, text) = postgres_version(&mut database.connect().await).await?;
        println!("the {name} server is PostgreSQL {text}");
        assert!(number >= 130_000, "{text} is older than the oldest version that is promised");
        if let Ok(major) = std::env::var("TEST_POSTGRES_MAJOR") {
            assert_eq!(number / 10_000, major.parse::<i32>()?, "TEST_POSTGRES_MAJOR is {major}: {text}");
        }
    }
    Ok(())
}

/// A database that says that its server is PostgreSQL 12: `current_setting` is another function there.
async fn database_that_says_12() -> TestResult<Database> {
    let database = empty_database().await;
    let mut connection = database.connect().await;
    for sql in [
        "set allow_system_table_mods = on",
        "alter function pg_catalog.current_setting(text) rename to true_setting",
        "create function pg_catalog.current_setting(name text) returns text language sql stable
         as $$ select case name when 'server_version_num' then '120022' when 'server_version' then '12.22'
                                else pg_catalog.true_setting(name) end $$",
    ] {
        sqlx::raw_sql(sql).execute(&mut connection).await?;
    }
    Ok(database)
}

#[tokio::test]
async fn a_server_that_is_too_old_is_told_by_its_version_before_anything_else() -> TestResult {
    let database = database_that_says_12().await?;
    let settings = System::new().await.settings().clone().set("DATABASE_URL", database.url());
    let sentence = "this server is PostgreSQL 12.22, and version 13 is the oldest that works";
    assert_fails(&settings, &["migrate"], 1, sentence).await;
    assert_fails(&settings, &["relay"], 1, sentence).await;
    let found = stdout(&cli(&settings, &["doctor", "--output", "json"]).await);
    assert!(found.contains(sentence) && !found.contains("aftercommit migrate"), "{found}");
    Ok(())
}
