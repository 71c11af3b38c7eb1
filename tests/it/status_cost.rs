//! The cost of `status`: a few index look-ups, also after one transaction has taken hundreds of thousands of
//! row numbers. Counted, not timed.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use aftercommit::log::{checkpoint, overview, read};

use crate::harness::{Database, TestResult, database};

const ROWS: u64 = 200_000;
/// The limits of index entries and blocks for one look. A full scan touches 200,000 and 3,000.
const ENTRIES: i64 = 5_000;
const BLOCKS: i64 = 1_500;

/// What this session has touched of the log so far, as (index entries, blocks).
async fn touched(connection: &mut PgConnection) -> TestResult<(i64, i64)> {
    Ok(sqlx::query_as(
        "select sum(pg_stat_get_xact_tuples_returned(i.indexrelid))::bigint,
                (sum(pg_stat_get_xact_blocks_fetched(i.indexrelid))
                 + sum(pg_stat_get_xact_blocks_fetched(i.indrelid)) / 2)::bigint
         from pg_index i join pg_inherits h on h.inhrelid = i.indrelid
         where h.inhparent = 'outbox.event'::regclass",
    )
    .fetch_one(connection)
    .await?)
}

/// Reads the overview as `aftercommit status` and the relay's monitor do, and asserts its cost.
async fn look(database: &Database) -> TestResult<overview::RelayOverview> {
    let mut connection = database.connect().await;
    read::prepare_session(&mut connection).await?;
    // The counters are the session's own, and those of this transaction at least.
    let mut tx = connection.begin().await?;
    let relays = overview::relays(&mut tx).await?;
    let (entries, blocks) = touched(&mut tx).await?;
    assert!(blocks > 0, "the counters count");
    assert!(entries < ENTRIES && blocks < BLOCKS, "{entries} index entries and {blocks} blocks");
    Ok(relays.into_iter().next().ok_or("no relay")?)
}

async fn append(connection: &mut PgConnection, rows: u64) -> TestResult {
    let sql = format!(
        "insert into outbox.event (topic, type, payload) select 't', 'T', '1' from generate_series(1, {rows})"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

#[tokio::test]
async fn a_look_costs_the_same_behind_a_large_open_rolled_back_or_committed_transaction() -> TestResult {
    let database = database().await;
    let mut relay = database.connect().await;
    read::prepare_session(&mut relay).await?;
    checkpoint::load_or_begin(&mut relay, "main").await?;
    assert_eq!(look(&database).await?.oldest_pending_at, None, "nothing is there");

    let mut large = database.connect().await;
    let mut writer = database.connect().await;
    for ended in ["rollback", "commit"] {
        sqlx::raw_sql("begin").execute(&mut large).await?;
        append(&mut large, ROWS).await?;
        let open = look(&database).await?;
        assert!(open.oldest_is_sampled && open.oldest_pending_at.is_none(), "{open:?}");
        sqlx::raw_sql(ended).execute(&mut large).await?;
        let after = look(&database).await?;
        assert_eq!(after.oldest_pending_at.is_some(), ended == "commit", "{after:?}");
    }
    append(&mut writer, 1).await?;
    // The rolled-back rows come first: the samples find the rows that wait after them.
    let behind = look(&database).await?;
    assert!(behind.oldest_is_sampled && behind.oldest_pending_at.is_some(), "{behind:?}");
    Ok(())
}

#[tokio::test]
async fn a_window_does_not_look_through_a_large_late_transaction_that_is_still_open() -> TestResult {
    let database = database().await;
    let mut relay = database.connect().await;
    read::prepare_session(&mut relay).await?;
    let position = checkpoint::load_or_begin(&mut relay, "main").await?;
    let mut large = database.connect().await;
    let mut open = large.begin().await?;
    append(&mut open, ROWS).await?;
    let mut writer = database.connect().await;
    append(&mut writer, 1).await?;
    // The window of the one event ends after the open transaction's rows, which are late ones from now on.
    let position = checkpoint::open(&mut relay, "main", &position).await?.ok_or("no event")?;
    let last = ROWS.cast_signed() + 1;
    let position = checkpoint::close_window(&mut relay, "main", &position, last, 1).await?;

    let mut counted = database.connect().await;
    read::prepare_session(&mut counted).await?;
    let mut tx = counted.begin().await?;
    assert!(checkpoint::open(&mut tx, "main", &position).await?.is_none());
    let (entries, blocks) = touched(&mut tx).await?;
    assert!(entries < ENTRIES && blocks < BLOCKS, "{entries} index entries and {blocks} blocks");
    tx.rollback().await?;

    open.commit().await?;
    let opened = checkpoint::open(&mut relay, "main", &position).await?;
    assert!(opened.is_some(), "late, not lost");
    assert!(look(&database).await?.oldest_pending_at.is_some());
    Ok(())
}
