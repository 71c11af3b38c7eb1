//! The Postgres that the tests run on.

use sqlx::PgConnection;

use crate::harness::{TestResult, database, database_on, start_postgres};

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
