//! Checks of the log: its identity, its ids, its rotation, and whether each relay delivers.

use anyhow::Result;
use sqlx::{PgConnection, Row};

use aftercommit::log::overview::{self, RelayOverview};
use aftercommit::log::{contradiction, contradictions, heartbeat, read};
use aftercommit::ops::undelivered::{self, Undelivered};
use aftercommit::ops::verdict::Verdict;
use aftercommit::pluralize::pluralize;

use super::{Finding, output};
use crate::config::Config;

/// Makes all checks. What was found before a check failed is among the findings.
pub(super) async fn look(
    config: &Config,
    connection: &mut PgConnection,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    findings.push(identity(connection).await?);
    findings.push(sequence(connection).await?);
    findings.push(sequence_is_ahead(connection).await?);
    findings.push(ids(connection).await?);
    findings.push(rotation(connection).await?);
    findings.extend(deliveries(config, connection).await?);
    Ok(())
}

async fn identity(connection: &mut PgConnection) -> Result<Finding> {
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
