//! Checks of Postgres.

use anyhow::Result;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use aftercommit::log::overview::{self, RelayOverview};
use aftercommit::log::{contradiction, contradictions, heartbeat, read};
use aftercommit::ops::undelivered::{self, Undelivered};
use aftercommit::ops::verdict::Verdict;
use aftercommit::outbox::schema;
use aftercommit::pluralize::pluralize;
use aftercommit::postgres::{self, SchemaError, State, shares_a_session};

use super::{Finding, Outcome, Scope, output, rights};
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
    let lacks_rights = match rights::examine(&mut connection, scope.roles()).await {
        Ok(found) => {
            findings.extend(found);
            findings.iter().any(|finding| finding.check == "privileges" && finding.verdict == Outcome::Wrong)
        }
        Err(error) => {
            findings.push(Finding::wrong(
                "privileges",
                format!("cannot be checked: {}", output::error_text(&error)),
                FIX,
            ));
            true
        }
    };
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
    findings.push(sequence(connection).await?);
    findings.push(sequence_is_ahead(connection).await?);
    findings.push(ids(connection).await?);
    findings.push(cluster(connection).await?);
    findings.push(clock(connection).await?);
    findings.push(rotation(connection).await?);
    findings.extend(rights::dangers(connection).await?);
    findings.extend(deliveries(config, connection).await?);
    Ok(())
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

/// Checks that the sequence is not behind: an event that gets an id below a position is never delivered.
async fn sequence_is_ahead(connection: &mut PgConnection) -> Result<Finding> {
    let row = sqlx::query(
        "select (select case when s.is_called then s.last_value else 0::bigint end
                 from outbox.event_id_seq s) as sequence,
                greatest((select max(greatest(p.high_id, p.after_id)) from outbox.position p),
                         (select max(e.id) from outbox.event e), 0::bigint) as used",
    )
    .fetch_one(connection)
    .await?;
    let (sequence, used): (i64, i64) = (row.try_get("sequence")?, row.try_get("used")?);
    Ok(Finding::must(
        "sequence",
        sequence >= used,
        format!("outbox.event_id_seq is at {sequence}, and ids up to {used} have been used"),
        "stop the writers and the relays, then run `aftercommit rebase`: events that get ids below that \
         would never be delivered",
    ))
}

/// Ids that stand twice at either end of the log, so that the check takes no longer for a long log. A sequence
/// that was set back gives the lowest ids again, or the newest ones.
async fn ids(connection: &mut PgConnection) -> Result<Finding> {
    let twice: Option<i64> = sqlx::query_scalar(
        "select min(twice.id)
         from (
           (select o.id from (select e.id from outbox.event e order by e.id limit 100000) o
            group by o.id having count(*) > 1)
           union all
           (select n.id from (select e.id from outbox.event e order by e.id desc limit 100000) n
            group by n.id having count(*) > 1)
         ) twice",
    )
    .fetch_one(connection)
    .await?;
    Ok(Finding::should(
        "ids",
        twice.is_none(),
        twice.map_or_else(
            || "no id stands twice in the log".to_owned(),
            |id| {
                format!(
                    "id {id} stands twice in outbox.event: a sequence was set back, or a row was written by \
                     hand"
                )
            },
        ),
        "stop the relays and run `aftercommit rebase`; if it finds nothing to do, both rows count as \
         delivered: see whether clients have received both",
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

async fn sequence(connection: &mut PgConnection) -> Result<Finding> {
    let cache: i64 = sqlx::query_scalar(
        "select seqcache from pg_sequence where seqrelid = 'outbox.event_id_seq'::regclass",
    )
    .fetch_one(connection)
    .await?;
    Ok(Finding::must(
        "sequence cache",
        cache == 1,
        format!("outbox.event_id_seq has cache {cache}"),
        "alter sequence outbox.event_id_seq cache 1: ids must be taken in the order of the appends",
    ))
}

async fn cluster(connection: &mut PgConnection) -> Result<Finding> {
    let foreign: Option<String> = sqlx::query_scalar(
        "select format('the log was made in cluster %s, database %s; this is %s, %s',
                       l.system_identifier, l.database_oid, c.system_identifier, d.oid)
         from outbox.log l cross join pg_control_system() c
         join pg_database d on d.datname = current_database()
         where (l.system_identifier, l.database_oid) <> (c.system_identifier, d.oid)",
    )
    .fetch_optional(connection)
    .await?;
    Ok(Finding::must(
        "identity",
        foreign.is_none(),
        foreign.unwrap_or_else(|| "the log was made in this database".to_owned()),
        "the log was restored, moved or copied: see `aftercommit help rebase`",
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

async fn rotation(connection: &mut PgConnection) -> Result<Finding> {
    let heard = heartbeat::processes(connection).await?;
    let blocked: Vec<String> =
        heard.into_iter().filter_map(|heard| heard.heartbeat.rotation_blocked).collect();
    let evidence = if blocked.is_empty() { "not blocked".to_owned() } else { blocked.join("; ") };
    Ok(Finding::should(
        "rotation",
        blocked.is_empty(),
        evidence,
        "end what holds the slot, or start the relay that has not delivered it: the log grows meanwhile",
    ))
}

/// Checks that each relay delivers. Other checks do not show a conflict or a pause.
async fn deliveries(config: &Config, connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let limit = config.relay.ready_max_pending_seconds;
    read::prepare_session(connection).await?;
    let mut relays = overview::relays(connection).await?;
    for relay in relays.iter_mut().filter(|relay| relay.contradiction.is_none()) {
        // The overview looks for cheap signs of a contradiction; doctor has the time to check all rows.
        let rows = contradictions::of_relay(connection, &relay.relay).await?;
        relay.contradiction = (!rows.is_empty()).then(|| contradiction::named(&rows));
    }
    let mut findings: Vec<Finding> = relays.iter().map(|relay| delivery(relay, limit)).collect();
    if !relays.iter().any(|relay| relay.relay == config.relay.name) {
        let waiting = undelivered::of_new_relay(connection).await?;
        findings.extend(waiting.map(|waiting| never_ran(&config.relay.name, &waiting, !relays.is_empty())));
    }
    Ok(findings)
}

/// The finding that the configured relay has never run while events wait. Perhaps another relay is meant.
fn never_ran(name: &str, waiting: &Undelivered, others: bool) -> Finding {
    const CHECK: &str = "deliveries";
    let evidence = format!("relay {name} has never run here: {}", output::undelivered(waiting));
    if others {
        return Finding::should(
            CHECK,
            false,
            evidence,
            "start it, or set AFTERCOMMIT_RELAY_NAME to the name of the relay that you mean",
        );
    }
    Finding::wrong(CHECK, evidence, "start one: `aftercommit relay`")
}

/// The number and age of waiting events: `at most 200 events wait, the oldest for 18.0 s`.
fn waits(relay: &RelayOverview) -> String {
    let Some(age) = relay.oldest_pending_seconds else { return "no waiting event is visible".to_owned() };
    let events = pluralize(relay.backlog_at_most.max(1).cast_unsigned(), "event");
    format!("at most {events} wait, the oldest for {}", output::seconds(age))
}

fn delivery(relay: &RelayOverview, limit: u64) -> Finding {
    const CHECK: &str = "deliveries";
    let verdict = Verdict::of(relay, limit);
    let error = relay.processes.iter().find_map(|heard| heard.heartbeat.error.clone());
    let error = error.or_else(|| {
        let rows = relay.contradiction.as_ref()?;
        Some(format!(
            "the log contradicts the position: {rows}; stop the relays and run `aftercommit rebase`"
        ))
    });
    let why = error.map_or(String::new(), |error| format!(": {error}"));
    let evidence = format!("relay {}: {verdict}{why}", relay.relay);
    match verdict {
        Verdict::Delivering => Finding::ok(CHECK, evidence),
        Verdict::Failing => {
            Finding::wrong(CHECK, evidence, "the message names what is wrong; see docs/runbook.md")
        }
        Verdict::Late => Finding::wrong(CHECK, evidence, "see what waits: `aftercommit status --watch`"),
        Verdict::NoLeader => {
            Finding::wrong(CHECK, format!("{evidence}: {}", waits(relay)), "start one: `aftercommit relay`")
        }
        Verdict::Paused => {
            Finding::should(CHECK, false, evidence, "run `aftercommit resume` once it may deliver")
        }
        Verdict::Parked => Finding::should(CHECK, false, evidence, "see why: `aftercommit parked list`"),
    }
}
