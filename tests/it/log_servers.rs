//! A log on a standby that lags, and on a server whose storage is damaged.

use std::os::unix::fs::FileExt;

use sqlx::PgConnection;

use aftercommit::log::{Error, checkpoint, read};
use aftercommit::ops::parked_topics;

use crate::append_door::{execute, window_of};
use crate::harness::{
    Line, OwnPostgres, Standby, TestResult, Wiring, database_on, eventually, start_postgres,
};

const LIMIT: read::Limit = read::Limit { events: 10, bytes: 1_000_000 };

async fn ask<T>(connection: &mut PgConnection, sql: &'static str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    sqlx::query_scalar(sql).fetch_one(connection).await.expect(sql)
}

#[tokio::test]
async fn a_standby_that_lags_proves_nothing_and_one_that_has_caught_up_does() -> TestResult {
    let own = OwnPostgres::new(start_postgres(Vec::new()).await).await;
    let database = database_on(&own.server).await;
    let standby = Standby::of(&own).await?;
    let (mut writer, begun) = window_of(&database, 2, 1).await?;
    let mut reader = standby.connect().await;
    eventually("the standby shows the position", async || {
        read::batch(&mut reader, "main", &begun, 0, LIMIT).await.is_ok().then_some(())
    })
    .await;
    standby.pause().await?;
    // The writer closes the window and opens the next one, which the standby does not show.
    execute(&mut writer, "select outbox.append('t', 'T', '1')").await;
    let position = checkpoint::close_window(&mut writer, "main", &begun, 2, 2).await?;
    assert!(position.window.is_some());
    let read_there = read::batch(&mut reader, "main", &position, 0, LIMIT).await;
    assert!(matches!(read_there, Err(Error::StaleReader { n: 3, .. })), "{read_there:?}");
    standby.resume().await?;
    let chunk = eventually("it has caught up", async || {
        read::batch(&mut reader, "main", &position, 0, LIMIT).await.ok()
    })
    .await;
    assert_eq!((chunk.rows.len(), chunk.is_last), (1, true));
    Ok(())
}

/// The pages of large payloads are damaged as by a disk: the server's error concerns one row.
#[tokio::test]
async fn a_row_whose_page_is_damaged_is_parked_by_name_and_the_rest_flows_on() -> TestResult {
    let mut line = Line::with(Wiring { postgres: Some(Vec::new()), ..Wiring::default() }).await;
    line.append(1).await;
    line.wait_until_whole().await;
    line.relay.signal("KILL").await;
    let damaged = line.system.redis.topic("damaged");
    let mut admin = line.system.database.connect().await;
    let append = format!(
        "select outbox.append('{damaged}', 'T',
         (select to_json(string_agg(gen_random_uuid()::text, '')) from generate_series(1, 9999)))"
    );
    execute(&mut admin, &append).await;
    line.append(2).await;
    let file: String = ask(
        &mut admin,
        "select pg_relation_filepath(c.reltoastrelid::regclass) from outbox.event e
         join pg_class c on c.oid = e.tableoid
         order by e.bytes desc limit 1",
    )
    .await;
    line.postgres().control(&["stop"]).await;
    let file = line.postgres().server.data_directory().join(file);
    let pages = std::fs::OpenOptions::new().write(true).open(file)?;
    pages.write_all_at(&[0xff; 8192], 0)?;
    drop(pages);
    line.postgres().start_again().await;
    line.relay = line.system.start("relay").await;
    line.wait_until_arrived().await;
    let mut admin = line.system.database.connect().await;
    let parked = eventually("it is parked", async || {
        let relay = line.system.redis.relay_name();
        parked_topics::list(&mut admin, &relay, 10).await.expect("a list").pop()
    })
    .await;
    assert_eq!(parked.topic, damaged.as_str());
    assert!(parked.reason.contains("cannot be read"), "{}", parked.reason);
    line.append(1).await;
    line.wait_until_arrived().await;
    Ok(())
}
