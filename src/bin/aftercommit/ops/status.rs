//! `aftercommit status`: shows on one screen the state of each relay, and whether Redis and the SSE server
//! answer.

use std::time::Duration;

use anyhow::Result;
use chrono::Utc;
use serde::Serialize;
use sqlx::PgConnection;

use aftercommit::log::overview::{self, RelayOverview};
use aftercommit::ops::undelivered::{self, Undelivered};
use aftercommit::ops::verdict::Verdict;
use aftercommit::pluralize::pluralize;

use super::output::{self, Output};
use super::probe::{self, Answer};
use crate::config::Config;

/// The output options.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  aftercommit status
  aftercommit status --watch
  aftercommit status --output json | jq '.relays[].oldestPendingSeconds'")]
pub(crate) struct Args {
    /// Repeat every SECONDS seconds until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
    /// How to print the data.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The content of the screen.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    relays: Vec<Judged>,
    /// The events that wait, if no relay has ever run.
    #[serde(skip_serializing_if = "Option::is_none")]
    undelivered: Option<Undelivered>,
    /// The reason for an empty list of relays, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_relay: Option<String>,
    redis: Answer,
    sse: Answer,
}

/// A relay and the verdict on it.
#[derive(Debug, Serialize)]
struct Judged {
    verdict: Verdict,
    #[serde(flatten)]
    relay: RelayOverview,
}

/// Prints the status once, or until it is interrupted.
pub(crate) async fn run(config: &Config, args: &Args) -> Result<()> {
    let mut connection = super::connect_for_lookups(config).await?;
    loop {
        let status = look(config, &mut connection).await?;
        if args.watch.is_some() && args.output == Output::Table {
            output::clear();
        }
        match args.output {
            Output::Json => output::json(&status)?,
            Output::Table => print(&status),
        }
        if output::reader_is_gone() {
            return Ok(());
        }
        let Some(seconds) = args.watch else { return Ok(()) };
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
        }
    }
}

async fn look(config: &Config, connection: &mut PgConnection) -> Result<Status> {
    let (relays, redis, sse) = tokio::join!(
        overview::relays(connection),
        probe::redis(&config.redis),
        probe::readiness(&config.sse.listen)
    );
    let limit = config.relay.ready_max_pending_seconds;
    let judge = |relay| Judged { verdict: Verdict::of(&relay, limit), relay };
    let relays: Vec<Judged> = relays?.into_iter().map(judge).collect();
    let (mut waiting, mut no_relay) = (None, None);
    if relays.is_empty() {
        waiting = undelivered::of_new_relay(connection).await?;
        no_relay = Some(super::no_relay(connection).await?);
    }
    Ok(Status { relays, undelivered: waiting, no_relay, redis, sse })
}

fn print(status: &Status) {
    if let Some(none) = &status.no_relay {
        output::line(none);
    }
    // While Redis is away, the relays and the SSE server report the same as this probe.
    let away = (!status.redis.ok).then_some(("redis", status.redis.says.as_str()));
    let once = |text: &str| output::without_repetitions(text, away);
    for Judged { relay, verdict } in &status.relays {
        print_relay(relay, *verdict, once);
    }
    output::named("redis", &status.redis.to_string(), 7);
    output::named("sse", &once(&status.sse.to_string()), 7);
}

/// Prints a relay. `once` shortens an error that stands elsewhere on the screen.
fn print_relay(relay: &RelayOverview, verdict: Verdict, once: impl Fn(&str) -> String) {
    let say = |name: &str, text: &str| output::named(&format!("  {name}"), text, 13);
    output::line(&format!("relay {}: {verdict}", relay.relay));
    if let Some(pause) = &relay.paused {
        say("paused", &format!("{} by {}: {}", output::ago(pause.since), pause.who, pause.reason));
    }
    let session = relay.leader.as_deref().map_or(String::new(), |leader| format!(" (Postgres {leader})"));
    let leading = relay.leading();
    let leader = match (leading, &relay.leader) {
        (_, None) => "none: start one with `aftercommit relay`".to_owned(),
        (Some(heard), _) => {
            let asleep = heard.heartbeat.asleep_seconds.map_or("", |_| ", asleep after a silence");
            format!("{}{session}{asleep}", heard.heartbeat.process)
        }
        (None, Some(_)) => format!("unknown{session}"),
    };
    say("leader", &leader);
    let standing_by = relay.processes.iter().filter(|heard| heard.heartbeat.role == "standby").count();
    say("standby", &standing_by.to_string());
    say("position", &format!("{}, moved {}", relay.last_id, output::ago(relay.moved_at)));
    say("waiting", &waiting(relay));
    say(
        "rate",
        &leading.map_or_else(|| "-".to_owned(), |heard| format!("{:.0} events/s", heard.heartbeat.rate)),
    );
    for heard in &relay.processes {
        if let Some(error) = &heard.heartbeat.error {
            let age = output::seconds((Utc::now() - heard.at).as_seconds_f64());
            say("error", &format!("{} ({age} ago): {}", heard.heartbeat.process, once(error)));
        }
    }
    if let Some(rows) = &relay.contradiction {
        say(
            "log",
            &format!("CONTRADICTS the position: {rows}; stop the relays and run `aftercommit rebase`"),
        );
    }
    say("parked", &parked(relay));
    let blocked = leading.and_then(|heard| heard.heartbeat.rotation_blocked.clone());
    say("rotation", &blocked.map_or_else(|| "not blocked".to_owned(), |by| format!("BLOCKED: {by}")));
}

fn waiting(relay: &RelayOverview) -> String {
    let at_most = pluralize(relay.backlog_at_most.max(1).cast_unsigned(), "event");
    match (relay.oldest_pending_seconds.map(output::seconds), relay.oldest_is_sampled) {
        (Some(age), false) => format!("at most {at_most}, the oldest for {age}"),
        (Some(age), true) => format!("at most {at_most}, the oldest for {age} or longer"),
        (None, false) => "nothing".to_owned(),
        (None, true) => {
            let rows = pluralize(relay.backlog_at_most.cast_unsigned(), "row");
            format!("nothing seen; {rows} of open or rolled-back transactions")
        }
    }
}

fn parked(relay: &RelayOverview) -> String {
    match (relay.parked_events, relay.parked_topics) {
        (0, _) => "nothing".to_owned(),
        (events, topics) => {
            let [events, topics] =
                [(events, "event"), (topics, "topic")].map(|(n, what)| pluralize(n.cast_unsigned(), what));
            format!("{events}, {topics} held: `aftercommit parked list`")
        }
    }
}
