//! `aftercommit replay`: delivered events once more, or parked ones at last.

mod progress;

use std::num::NonZeroU32;

use anyhow::{Result, bail};
use serde_json::json;
use sqlx::PgConnection;

use aftercommit::event::Topic;
use aftercommit::log::overview;
use aftercommit::log::parked::{self, Action};
use aftercommit::ops::browse::{EventRow, Selection};
use aftercommit::ops::parked::{self as requests, Named};
use aftercommit::ops::replay::{self, Plan, Replay, ReplayStatus};
use aftercommit::ops::undelivered;
use aftercommit::ops::verdict::Verdict;
use aftercommit::pluralize::pluralize;

use super::confirm::Consent;
use super::events::{Filter, NamedEvents};
use super::output::{self, Output};
use super::parked::{How, described, hand_over};
use super::{WrongUsage, events};
use crate::config::Config;
use crate::lifecycle;
use progress::Progress;

/// Events that a dry run and a confirmation show.
const SAMPLE: u32 = 5;

/// What to replay, and how carefully.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  aftercommit replay --topic order:42 --since 2h --dry-run
  aftercommit replay 018f3c1e-0000-7000-8000-000000000001 \\
      --reason 'client bug'
  aftercommit replay --all --rate 500 --reason 'new search index' --yes
  aftercommit replay --resume 7
  aftercommit replay --undelivered --reason 'Redis permissions mended'

Copies of delivered events go the normal way, with new ids and the same event
id, marked by the header 'replay'. What is replayed is what was delivered when
it began; copies of earlier replays only with --include-replays. Stop it at any
moment: --resume goes on and repeats nothing.

An event that was not delivered is never copied: either it waits for the relay,
which delivers it by itself, or it is parked. --undelivered says how many wait
and why, and publishes the parked ones, in order and under their own ids.
--parked does only the latter; `aftercommit parked release` does it for single
topics, and up to an id."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Publish what was not delivered: parked events; and say what else waits.
    #[arg(long, conflicts_with_all = ["names", "event", "row", "event_type", "since", "until", "all", "rate"])]
    undelivered: bool,
    /// Publish parked events: what Redis refused, and what waits behind it.
    #[arg(long, conflicts_with_all = ["names", "event", "row", "event_type", "since", "until", "all", "rate"])]
    parked: bool,
    /// Go on with a replay that was interrupted.
    #[arg(long, value_name = "ID",
          conflicts_with_all = ["undelivered", "parked", "include_replays", "names", "event", "row",
                                "topic", "event_type", "since", "until", "all", "dry_run"])]
    resume: Option<i64>,
    #[command(flatten)]
    named: NamedEvents,
    #[command(flatten)]
    filter: Filter,
    /// Every delivered event that is still in the log.
    #[arg(long)]
    all: bool,
    /// Also the copies that earlier replays made.
    #[arg(long, conflicts_with_all = ["undelivered", "parked"])]
    include_replays: bool,
    /// Events a second at most.
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// Count, show the first ones, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
    /// How to print the data.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What else there is to do with replays.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List replays, newest first, and how far each is.
    #[command(after_help = "Example: aftercommit replay list --limit 5")]
    List {
        /// How many at most.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// How to print the data.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Runs the command.
pub(crate) async fn run(config: &Config, args: &Args) -> Result<()> {
    if let Some(Command::List { limit, output }) = args.command {
        return list(config, limit, output).await;
    }
    match args.resume {
        Some(id) => resume(config, args, id).await,
        None if args.undelivered => publish_undelivered(config, args).await,
        None if args.parked => publish_parked(config, args).await,
        None => copy(config, args).await,
    }
}

async fn copy(config: &Config, args: &Args) -> Result<()> {
    let named = args.named.selection()?;
    let selection = Selection {
        events: named.events,
        rows: named.rows,
        include_replays: args.include_replays,
        ..args.filter.selection()
    };
    if selection.is_everything() != args.all {
        bail!(WrongUsage(
            "say which events: their ids or rows, --topic, --type, --since or --until; or --all for every one, \
             and nothing beside it"
                .into()
        ));
    }
    if !args.dry_run {
        args.consent.needs_a_reason()?;
    }
    let mut connection = super::connect_for_lookups(config).await?;
    let plan = replay::plan(&mut connection, &config.relay.name, &selection).await?;
    if args.dry_run {
        return dry_run(&mut connection, &plan, args.output).await;
    }
    if plan.events == 0 {
        bail!(
            "no delivered event matches{}: `aftercommit events list` shows what there is, and in which state",
            if args.include_replays {
                ""
            } else {
                " (copies of earlier replays are left out: --include-replays)"
            }
        );
    }
    let topics = "to every client of their topics";
    args.consent.to(&format!("replay {} {topics}", pluralize(plan.events, "delivered event")))?;
    let replay = replay::begin(&mut connection, &plan, &args.consent.operator()?).await?;
    carry_on(&mut connection, replay, args).await
}

async fn dry_run(connection: &mut PgConnection, plan: &Plan, output: Output) -> Result<()> {
    let sample: Vec<EventRow> = replay::sample(connection, plan, SAMPLE).await?;
    if output == Output::Json {
        return output::json(&json!({ "events": plan.events, "dryRun": true, "sample": sample }));
    }
    output::line(&format!("{} would be replayed", pluralize(plan.events, "delivered event")));
    if !sample.is_empty() {
        output::line("");
        events::print_rows(&sample);
    }
    if plan.events > u64::from(SAMPLE) {
        note!("the first {SAMPLE} of them");
    }
    Ok(())
}

async fn resume(config: &Config, args: &Args, id: i64) -> Result<()> {
    let mut connection = super::connect_for_lookups(config).await?;
    let replay = replay::resume(&mut connection, id, &args.consent.operator()?).await?;
    carry_on(&mut connection, replay, args).await
}

/// Runs a replay to its end, or until a signal.
async fn carry_on(connection: &mut PgConnection, mut replay: Replay, args: &Args) -> Result<()> {
    let stop = lifecycle::shutdown_on_signal()?;
    let mut progress = Progress::begin(&replay);
    let ran = replay::run(connection, &mut replay, args.rate, &stop, |replay| progress.tell(replay)).await;
    progress.end();
    let done = pluralize(replay.copied, "event");
    let go_on = format!("go on with `aftercommit replay --resume {}`", replay.id);
    if let Err(error) = ran {
        bail!("{error}; {done} of {} replayed: {go_on}", replay.selected);
    }
    if args.output == Output::Json {
        output::json(&json!({ "replay": replay.id, "events": replay.copied, "missing": replay.missing,
            "dryRun": false, "standing": replay.standing }))?;
    }
    if replay.standing != ReplayStatus::Finished {
        bail!("stopped after {done} of {}: {go_on}", replay.selected);
    }
    if args.output == Output::Table {
        output::line(&format!("{done} replayed (replay {})", replay.id));
    }
    if replay.missing > 0 {
        let gone = pluralize(replay.missing, "selected event");
        note!("{gone} had left the log before the replay came to them: see [outbox] retention");
    }
    Ok(())
}

/// Publishes what is parked, and says what waits for the relay itself; an error if nobody delivers that.
async fn publish_undelivered(config: &Config, args: &Args) -> Result<()> {
    let mut connection = super::connect_for_lookups(config).await?;
    let relays = overview::relays(&mut connection).await?;
    let relay = relays.iter().find(|relay| relay.relay == config.relay.name);
    let Some(relay) = relay else {
        let waiting = undelivered::of_new_relay(&mut connection).await?;
        match waiting {
            Some(waiting) => {
                let waits = output::undelivered(&waiting);
                bail!("relay {} has never run here: {waits}: start `aftercommit relay`", config.relay.name)
            }
            None => return publish_parked(config, args).await,
        }
    };
    let waits = relay.oldest_pending_seconds.map(|age| {
        let events = pluralize(relay.backlog_at_most.max(1).cast_unsigned(), "event");
        format!("at most {events} wait for the relay, the oldest for {}", output::seconds(age))
    });
    let verdict = Verdict::of(relay, config.relay.ready_max_pending_seconds);
    publish_parked(config, args).await?;
    match (waits, verdict) {
        (Some(waits), Verdict::NoLeader) => bail!("{waits}, and none leads: start `aftercommit relay`"),
        (Some(waits), Verdict::Paused) => bail!("{waits}, which is paused: `aftercommit resume`"),
        (Some(waits), Verdict::Failing) => bail!("{waits}, which fails: `aftercommit status` says why"),
        (Some(waits), _) => note!("{waits}, which delivers them by itself"),
        (None, _) => {}
    }
    Ok(())
}

async fn publish_parked(config: &Config, args: &Args) -> Result<()> {
    if !args.dry_run {
        args.consent.needs_a_reason()?;
    }
    let mut connection = super::connect(config).await?;
    let relay = &config.relay.name;
    let topics: Vec<Topic> = match &args.filter.topic {
        Some(topic) => vec![Topic::new(topic.clone())?],
        None => parked::topics(&mut connection, relay).await?,
    };
    let mut named = Vec::new();
    for topic in &topics {
        named.extend(requests::name(&mut connection, relay, topic, None).await?);
    }
    if named.is_empty() || args.dry_run {
        return report_parked(args, &named);
    }
    args.consent.to(&format!("publish {}, in order", described(&named)))?;
    let how =
        How { action: Action::Release, consent: &args.consent, is_waited_for: true, output: args.output };
    hand_over(config, &mut connection, named, how).await
}

/// What would be published.
fn report_parked(args: &Args, named: &[Named]) -> Result<()> {
    let events = named.iter().map(|one| one.events).sum();
    if args.output == Output::Json {
        let topics: Vec<&Topic> = named.iter().map(|one| &one.topic).collect();
        return output::json(&json!({ "events": events, "dryRun": args.dry_run, "topics": topics }));
    }
    output::line(&format!("{} would be published", pluralize(events, "parked event")));
    for one in named.iter().take(SAMPLE as usize) {
        output::line(&format!(
            "  {}: {}, {} to {}",
            one.topic,
            pluralize(one.events, "event"),
            one.first,
            one.through
        ));
    }
    Ok(())
}

async fn list(config: &Config, limit: u32, output: Output) -> Result<()> {
    let mut connection = super::connect(config).await?;
    let replays = replay::list(&mut connection, limit).await?;
    if output == Output::Json {
        return output::json(&replays);
    }
    if replays.is_empty() {
        note!("nothing has been replayed");
        return Ok(());
    }
    output::table(
        ["ID", "STARTED", "STATE", "EVENTS", "REASON"],
        replays.iter().map(|one| {
            let missing = if one.missing > 0 { format!(", {} had left", one.missing) } else { String::new() };
            [
                one.id.to_string(),
                output::time(one.started_at),
                progress::word(one.standing).to_owned(),
                format!("{} of {}{missing}", one.copied, one.selected),
                one.reason.clone(),
            ]
        }),
    );
    if let Some(one) = replays.iter().find(|one| one.standing == ReplayStatus::Interrupted) {
        note!("go on with an interrupted one: `aftercommit replay --resume {}`", one.id);
    }
    Ok(())
}
