//! `outbox.append`, the only door to the log: what it takes, what it refuses and how it says so.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use aftercommit::event::{RESERVED_TYPES, Topic};
use aftercommit::log::{Position, checkpoint, read};
use aftercommit::outbox::{self, AppendError};

use crate::harness::{Database, TestResult, database, new_event};
use crate::log_trust::Guest;

pub(crate) async fn execute(admin: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(admin).await.expect(sql);
}

#[tokio::test]
async fn append_takes_every_form_of_a_payload() -> TestResult {
    let database = database().await;
    let mut connection = database.connect().await;
    for payload in ["'{\"n\":1}'", "'{ }'::json", "'{ }'::jsonb", "'[1]'::text", "'null'", "'\"x\"'::varchar"]
    {
        for rest in ["", ", '{\"h\":1}'", ", null, gen_random_uuid()"] {
            execute(&mut connection, &format!("select outbox.append('t', 'T', {payload}{rest})")).await;
        }
    }
    execute(&mut connection, "select outbox.append(topic => 't', type => 'T', payload => '1')").await;
    sqlx::query("select outbox.append($1, $2, $3)")
        .bind("t")
        .bind("T")
        .bind("{ \"bound\": 1 }")
        .execute(&mut connection)
        .await?;
    execute(
        &mut connection,
        "select outbox.append_all(array['t', 't'], array['T', 'T'], array['1', '{\"all\": 1}']::json[]);
         select outbox.append_all('{}', '{}', '{}')",
    )
    .await;
    let kept: Vec<String> = sqlx::query_scalar("select distinct payload::text from outbox.event order by 1")
        .fetch_all(&mut connection)
        .await?;
    for expected in ["{\"n\":1}", "{ }", "{}", "{ \"bound\": 1 }", "{\"all\": 1}"] {
        assert!(kept.iter().any(|payload| payload == expected), "{expected}: {kept:?}");
    }
    Ok(())
}

#[tokio::test]
async fn append_refuses_by_one_sentence_that_names_the_rule_and_quotes_no_payload() -> TestResult {
    let database = database().await;
    let mut connection = database.connect().await;
    let long = "x".repeat(201);
    let large = "x".repeat(1_048_575);
    let mut refused = vec![
        ("'a b', 'T', '\"secret\"'".to_owned(), "a topic has 1 to 200 characters"),
        (format!("'{long}', 'T', '\"secret\"'"), "a topic has 1 to 200 characters"),
        ("'customer/ana', 'T', '\"secret\"'".to_owned(), "refuses the topic 'customer/ana': a topic has"),
        ("'t', 'a b?', '\"secret\"'".to_owned(), "refuses the type 'a b?': a type has"),
        ("e'a\\nb\\u001b[1m\\u00e9', 'T', '\"secret\"'".to_owned(), "the topic 'a?b?[1m?':"),
        ("'', 'T', '\"secret\"'".to_owned(), "a topic has 1 to 200 characters"),
        ("'.', 'T', '\"secret\"'".to_owned(), "neither . nor .."),
        ("'..', 'T', '\"secret\"'".to_owned(), "neither . nor .."),
        ("'t', 'a:b', '\"secret\"'".to_owned(), "a type has 1 to 100 characters"),
        ("'t', 'T', '{\"secret\"'".to_owned(), "it is not JSON"),
        (format!("'t', 'T', '\"{large}\"'"), "at most 1048576"),
        ("'t', 'T', '\"secret\"', '[]'".to_owned(), "headers are a JSON object"),
        (
            format!("'t', 'T', '\"secret\"', '{{\"h\":\"{}\"}}'", "x".repeat(16_384)),
            "headers have at most 16384",
        ),
        ("null, 'T', '\"secret\"'".to_owned(), "never null"),
        ("'t', null, '\"secret\"'".to_owned(), "never null"),
        ("'t', 'T', null".to_owned(), "never null"),
        ("'t', 'T', '\"secret\"', null, null".to_owned(), "never null"),
    ];
    refused.extend(
        RESERVED_TYPES
            .map(|name| (format!("'t', '{name}', '\"secret\"'"), "use reset, refused, token_expired")),
    );
    for (arguments, rule) in refused {
        let sql = AssertSqlSafe(format!("select outbox.append({arguments})"));
        let error = sqlx::raw_sql(sql).execute(&mut connection).await.expect_err("a refusal");
        let error = error.as_database_error().ok_or("not an error of Postgres")?;
        let told = error.downcast_ref::<sqlx::postgres::PgDatabaseError>();
        assert!(told.message().contains(rule), "{}", told.message());
        assert_eq!(told.code(), "23514");
        assert!(told.detail().is_none() && !told.message().contains("secret"), "{told:?}");
    }
    for arrays in [
        "array['t', null], array['T', 'T'], array['1', '2']::json[]",
        "array['t', 't'], array['T'], array['1', '2']::json[]",
        "array['t', 't'], array['T', 'T'], array['1']::json[]",
        "array['t', 't'], array['T', 'T'], array['1', '2']::json[], null, array[gen_random_uuid()]",
    ] {
        let sql = AssertSqlSafe(format!("select outbox.append_all({arrays})"));
        let error = sqlx::raw_sql(sql).execute(&mut connection).await.expect_err("a refusal");
        let error = error.as_database_error().ok_or("not an error of Postgres")?;
        let told = error.downcast_ref::<sqlx::postgres::PgDatabaseError>();
        assert!(told.message().contains("never null") && told.detail().is_none(), "{told:?}");
    }
    let headers = [("h".to_owned(), Value::String("x".repeat(16_384)))].into_iter().collect();
    let event = new_event(&Topic::new("t")?, "T", &1).with_headers(headers);
    let error = outbox::append_all(&mut connection, &[event]).await.expect_err("too many headers");
    assert!(
        matches!(error, AppendError::Refused { .. }) && error.to_string().contains("headers have"),
        "{error}"
    );
    let rows: i64 =
        sqlx::query_scalar("select count(*) from outbox.event").fetch_one(&mut connection).await?;
    assert_eq!(rows, 0);
    Ok(())
}

#[tokio::test]
async fn a_writer_may_append_and_nothing_else() -> TestResult {
    let database = database().await;
    let mut admin = database.connect().await;
    let guest = Guest::new(&database).await?;
    let grants = format!(
        "grant usage on schema outbox to {0};
         grant execute on function outbox.append(text, text, json, jsonb, uuid),
           outbox.append(text, text, jsonb, jsonb, uuid),
           outbox.append(text, text, text, jsonb, uuid), outbox.append_all to {0}",
        guest.role
    );
    execute(&mut admin, &grants).await;
    let mut writer = guest.connect().await;
    let event = new_event(&Topic::new("t")?, "T", &1);
    outbox::append(&mut writer, &event).await?;
    outbox::append_all(&mut writer, &[event.clone(), event]).await?;
    execute(&mut writer, "select outbox.append('t', 'T', '{}'); select outbox.append('t', 'T', '{}'::jsonb)")
        .await;
    for forbidden in [
        "insert into outbox.event (topic, type, payload) values ('t', 'T', '1')",
        "insert into outbox.event (id, topic, type, payload) values (1, 't', 'T', '1')",
        "select * from outbox.event",
        "select nextval('outbox.event_id_seq')",
        "select setval('outbox.event_id_seq', 1)",
        "update outbox.log set format = 2",
        "select outbox.rotation_seconds()",
    ] {
        let error = sqlx::raw_sql(forbidden).execute(&mut writer).await.expect_err(forbidden);
        let code = error.as_database_error().and_then(|error| error.code()).map(String::from);
        assert_eq!(code.as_deref(), Some("42501"), "{forbidden}: {error}");
    }
    writer.close().await?;
    guest.leave(&mut admin).await;
    Ok(())
}

#[tokio::test]
async fn headers_count_in_a_batch_and_their_size_is_known_without_them() -> TestResult {
    let database = database().await;
    let (mut connection, position) = window_of(&database, 8, 10_000).await?;
    let limit = read::Limit { events: 100, bytes: 25_000 };
    let chunk = read::batch(&mut connection, "main", &position, 0, limit).await?;
    assert_eq!((chunk.rows.len(), chunk.is_last), (3, false));
    let all = read::Limit { events: 8, bytes: u64::MAX };
    let chunk = read::batch(&mut connection, "main", &position, 0, all).await?;
    assert_eq!((chunk.rows.len(), chunk.is_last), (8, true), "the query says that nothing follows");
    let sizes: Vec<i32> =
        sqlx::query_scalar("select distinct bytes from outbox.event").fetch_all(&mut connection).await?;
    assert_eq!(sizes, [10_010]);
    Ok(())
}

/// A prepared session and an open window of `events` with headers of `bytes`.
pub(crate) async fn window_of(
    database: &Database,
    events: usize,
    bytes: usize,
) -> TestResult<(PgConnection, Position)> {
    let mut connection = database.connect().await;
    read::prepare_session(&mut connection).await?;
    let begun = checkpoint::load_or_begin(&mut connection, "main").await?;
    for _ in 0..events {
        let sql =
            format!("select outbox.append('t', 'T', '1', jsonb_build_object('h', repeat('x', {bytes})))");
        execute(&mut connection, &sql).await;
    }
    let opened = checkpoint::open(&mut connection, "main", &begun).await?;
    Ok((connection, opened.ok_or("no window")?))
}
