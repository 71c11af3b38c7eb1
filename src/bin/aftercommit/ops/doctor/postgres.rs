//! Checks of Postgres.

use anyhow::Result;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use aftercommit::outbox::schema;
use aftercommit::postgres::{self, SchemaError, State, shares_a_session};

use super::{Finding, Outcome, Scope, log, output, rights};
use crate::config::Config;

/// The largest difference of clocks, in seconds. A larger one makes ages and times in the log misleading.
const SKEW_MAX: f64 = 2.0;

const FIX: &str = "see [database] in the configuration; the message names what is wrong";

/// Checks Postgres. Reports transactions that are open for longer than `open_for` seconds.
pub(super) async fn examine(config: &Config, scope: Scope, open_for: u32) -> Vec<Finding> {
    let connecting = config.database.connect("aftercommit doctor");
    let mut connection = match connecting.await {
        Ok(connection) => connection,
        Err(error) => return vec![Finding::wrong("postgres", error.to_string(), FIX)],
    };
    let mut findings =
        vec![Finding::ok("postgres", format!("answers, {}", transport(&mut connection).await))];
    // On an older server the other checks fail for reasons that say nothing of the version.
    if let Err(error) = postgres::check_version(&mut connection).await {
        findings.push(Finding::wrong("postgres version", error.to_string(), fix_of(&error)));
        return findings;
    }
    match encoding(&mut connection).await {
        Ok(found) => findings.push(found),
        Err(error) => findings.push(Finding::wrong("encoding", output::error_text(&error), FIX)),
    }
    // Rights come first: without them the other checks cannot run.
    let privileges = privileges(&mut connection, scope).await;
    let lacks_rights = privileges.iter().any(|finding| finding.verdict == Outcome::Wrong);
    findings.extend(privileges);
    if lacks_rights || !scope.reads_the_log() {
        return findings;
    }
    match schema::SCHEMA.check(&mut connection).await {
        Ok(state) => findings.push(version(state)),
        Err(error) => {
            findings.push(Finding::wrong("schema", error.to_string(), fix_of(&error)));
            return findings;
        }
    }
    if let Err(error) = look(config, open_for, &mut connection, &mut findings).await {
        findings.push(Finding::wrong(
            "postgres",
            format!("a check failed: {}", output::error_text(&error)),
            FIX,
        ));
    }
    findings
}

async fn privileges(connection: &mut PgConnection, scope: Scope) -> Vec<Finding> {
    rights::examine(connection, scope.roles()).await.unwrap_or_else(|error| {
        let evidence = format!("cannot be checked: {}", output::error_text(&error));
        vec![Finding::wrong("privileges", evidence, FIX)]
    })
}

/// How the connection reaches the server, in words, as the server sees it.
async fn transport(connection: &mut PgConnection) -> String {
    let sql = "select s.version from pg_catalog.pg_stat_ssl s where s.pid = pg_catalog.pg_backend_pid()";
    match sqlx::query_scalar::<_, Option<String>>(sql).fetch_optional(connection).await {
        Ok(Some(Some(version))) => format!("by TLS ({version})"),
        Ok(_) => "without TLS".to_owned(),
        Err(error) => format!("and does not say how it is reached: {error}"),
    }
}

fn fix_of(error: &SchemaError) -> &'static str {
    match error {
        SchemaError::Ahead { .. } => "run the newer aftercommit: this one is older than the schema",
        SchemaError::Missing { .. } | SchemaError::Behind { .. } => {
            "run `aftercommit migrate` of this version"
        }
        SchemaError::OldServer(_) => "upgrade to PostgreSQL 13 or later",
        SchemaError::NotAllowed { .. } => "run the command that the evidence names, as the schema's owner",
        SchemaError::Encoding | SchemaError::Migrate { .. } | SchemaError::Database(_) => FIX,
    }
}

/// The version of a schema that this binary can use.
fn version(state: State) -> Finding {
    let evidence = match state {
        State::Serves { applied, known } => {
            format!("version {applied}, which also works for this binary, whose version is {known}")
        }
        _ => "the version that this binary knows".to_owned(),
    };
    let is_current = matches!(state, State::Current { .. });
    Finding::should(
        "schema",
        is_current,
        evidence,
        "finish the upgrade: restart the processes of the old version",
    )
}

async fn look(
    config: &Config,
    open_for: u32,
    connection: &mut PgConnection,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    findings.extend(server(connection).await?);
    findings.push(pooler(config, connection).await?);
    findings.extend(applications(config, connection).await?);
    findings.push(transactions(connection, open_for).await?);
    findings.push(prepared(connection, open_for).await?);
    findings.push(clock(connection).await?);
    findings.extend(rights::dangers(connection).await?);
    log::look(config, connection, findings).await
}

async fn server(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let row = sqlx::query(
        "select current_setting('server_version') as version,
                current_setting('fsync') = 'on' and current_setting('full_page_writes') = 'on' as is_durable,
                pg_is_in_recovery() as is_standby, current_setting('max_connections')::bigint as room,
                (select count(*) from pg_stat_activity where backend_type = 'client backend') as used",
    )
    .fetch_one(connection)
    .await?;
    let version: String = row.try_get("version")?;
    let (used, room): (i64, i64) = (row.try_get("used")?, row.try_get("room")?);
    Ok(vec![
        Finding::ok("postgres version", version),
        Finding::must(
            "postgres durability",
            row.try_get("is_durable")?,
            "fsync and full_page_writes",
            "switch fsync and full_page_writes on: without them committed events can be lost",
        ),
        Finding::must(
            "postgres role",
            !row.try_get::<bool, _>("is_standby")?,
            "takes writes",
            "point DATABASE_URL at the primary: this server is a standby",
        ),
        Finding::should(
            "connections",
            used * 10 < room * 9,
            format!("{used} of {room} in use"),
            "raise max_connections, or lower [database] max_connections",
        ),
    ])
}

async fn encoding(connection: &mut PgConnection) -> Result<Finding> {
    let encoding: String =
        sqlx::query_scalar("select pg_catalog.getdatabaseencoding()::text").fetch_one(connection).await?;
    Ok(Finding::must(
        "encoding",
        encoding != "SQL_ASCII",
        encoding,
        "move the data into a database with encoding UTF8: this one accepts bytes that are not text, and one \
         such row stops its topic",
    ))
}

async fn pooler(config: &Config, connection: &mut PgConnection) -> Result<Finding> {
    let mut other = config.database.connect("aftercommit doctor, a second session").await?;
    Ok(Finding::must(
        "pooler",
        !shares_a_session(connection, &mut other).await?,
        "each connection has its own session",
        "set [database] direct_url to the address of Postgres itself: a pooler that shares sessions breaks the \
         relay's lock and LISTEN",
    ))
}

/// Whether the address of applications leads to the same log, where they have one of their own.
async fn applications(config: &Config, connection: &mut PgConnection) -> Result<Option<Finding>> {
    const CHECK: &str = "direct_url";
    const FIX: &str = "set [database] url and direct_url to the same database: what applications append at \
                       url is not delivered";
    let mut of_applications = match config.database.connect_as_application().await {
        Ok(None) => return Ok(None),
        Ok(Some(connection)) => connection,
        Err(error) => return Ok(Some(Finding::wrong(CHECK, format!("[database] url: {error}"), FIX))),
    };
    // The simple protocol, because a pooler may not know prepared statements.
    let id = "select id::text from outbox.log";
    let theirs = sqlx::raw_sql(id).fetch_one(&mut of_applications).await.and_then(|row| row.try_get(0));
    let theirs: Option<String> = theirs.ok();
    let ours: String = sqlx::query_scalar(id).fetch_one(connection).await?;
    let is_same = theirs.as_ref() == Some(&ours);
    let evidence = if is_same { "url leads to the same log" } else { "url leads to another log, or to none" };
    Ok(Some(Finding::must(CHECK, is_same, evidence, FIX)))
}

async fn transactions(connection: &mut PgConnection, open_for: u32) -> Result<Finding> {
    let open: Option<String> = sqlx::query_scalar(
        "select string_agg(format('pid %s (%s, %s) open for %s: %s', pid,
                                  coalesce(nullif(application_name, ''), 'unnamed'), state,
                                  date_trunc('second', clock_timestamp() - xact_start), left(query, 60)),
                           '; ')
         from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid()
           and xact_start < clock_timestamp() - make_interval(secs => $1)",
    )
    .bind(f64::from(open_for))
    .fetch_one(connection)
    .await?;
    Ok(Finding::should(
        "long transactions",
        open.is_none(),
        open.unwrap_or_else(|| format!("none is open for longer than {open_for} s")),
        "end it in its application, or with select pg_terminate_backend(pid); \
         set idle_in_transaction_session_timeout",
    ))
}

async fn prepared(connection: &mut PgConnection, open_for: u32) -> Result<Finding> {
    let forgotten: Option<String> = sqlx::query_scalar(
        "select string_agg(format('%L of %s since %s', gid, owner, date_trunc('second', prepared)), '; ')
         from pg_prepared_xacts
         where database = current_database() and prepared < clock_timestamp() - make_interval(secs => $1)",
    )
    .bind(f64::from(open_for))
    .fetch_one(connection)
    .await?;
    Ok(Finding::should(
        "prepared transactions",
        forgotten.is_none(),
        forgotten.unwrap_or_else(|| format!("none is older than {open_for} s")),
        "COMMIT PREPARED or ROLLBACK PREPARED it: until then its events and rotation wait",
    ))
}

async fn clock(connection: &mut PgConnection) -> Result<Finding> {
    let before = Utc::now();
    let there: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(connection).await?;
    let here = before + (Utc::now() - before) / 2;
    let skew = (there - here).as_seconds_f64();
    Ok(Finding::should(
        "clock skew",
        skew.abs() <= SKEW_MAX,
        format!("Postgres's clock is {skew:+.3} s from this machine's"),
        "synchronize both clocks by NTP: ages and times depend on them",
    ))
}
