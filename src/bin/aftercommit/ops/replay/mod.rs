//! `aftercommit replay`: delivered events once more, or parked ones at last.

mod progress;

use std::num::NonZeroU32;

use anyhow::{Result, bail};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use aftercommit::counted::counted;
use aftercommit::event::Topic;
use aftercommit::outbox::browse::{EventRow, EventState, Selection};
use aftercommit::outbox::parked::{self, Wish};
use aftercommit::outbox::replay::{self, Plan, Replay, Standing};

use super::confirm::Consent;
use super::events::Filter;
use super::output::{self, Output};
use super::parked::hand_over;
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
  aftercommit replay --event 018f3c1e-0000-7000-8000-000000000001 \\
      --reason 'client bug'
  aftercommit replay --all --rate 500 --reason 'new search index' --yes
  aftercommit replay --resume 7
  aftercommit replay --parked --reason 'Redis permissions mended'

Copies of delivered events go the normal way, with new ids and the same event
id, marked by the header 'replay'. What is replayed is what was delivered when
it began. Stop it at any moment: --resume goes on and repeats nothing."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Publish parked events: what Redis refused, and what waits behind it.
    #[arg(long, alias = "undelivered", conflicts_with_all = ["event", "row", "event_type", "since", "until", "all", "rate"])]
    parked: bool,
    /// Go on with a replay that was interrupted.
    #[arg(long, value_name = "ID",
          conflicts_with_all = ["parked", "event", "row", "topic", "event_type", "since", "until", "all", "dry_run"])]
    resume: Option<i64>,
    /// Only these event ids. May be given several times.
    #[arg(long, value_name = "UUID")]
    event: Vec<Uuid>,
    /// Only these rows of the log. May be given several times.
    #[arg(long, value_name = "ROW")]
    row: Vec<i64>,
    #[command(flatten)]
    filter: Filter,
    /// Every delivered event that is still in the log.
    #[arg(long)]
    all: bool,
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
        None if args.parked => publish_parked(config, args).await,
        None => copy(config, args).await,
    }
}

async fn copy(config: &Config, args: &Args) -> Result<()> {
    let selection =
        Selection { events: args.event.clone(), rows: args.row.clone(), ..args.filter.selection() };
    if selection.is_everything() != args.all {
        bail!(WrongUsage(
            "say which events: --event, --row, --topic, --type, --since or --until; or --all for every one, and nothing beside it".into()
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
            "no delivered event matches: `aftercommit events list` shows what there is, and in which state"
        );
    }
    let topics = "to every client of their topics";
    args.consent.to(&format!("replay {} {topics}", counted(plan.events, "delivered event")))?;
    let replay = replay::begin(&mut connection, &plan, &args.consent.operator()).await?;
    carry_on(&mut connection, replay, args).await
}

async fn dry_run(connection: &mut PgConnection, plan: &Plan, output: Output) -> Result<()> {
    let sample: Vec<EventRow> = replay::sample(connection, plan, SAMPLE).await?;
    if output == Output::Json {
        return output::json(&json!({ "events": plan.events, "dryRun": true, "sample": sample }));
    }
    output::line(&format!("{} would be replayed", counted(plan.events, "delivered event")));
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
    let replay = replay::resume(&mut connection, id, &args.consent.operator()).await?;
    carry_on(&mut connection, replay, args).await
}

/// Runs a replay to its end, or until a signal.
async fn carry_on(connection: &mut PgConnection, mut replay: Replay, args: &Args) -> Result<()> {
    let stop = lifecycle::shutdown_on_signal()?;
    let mut progress = Progress::begin(&replay);
    let ran = replay::run(connection, &mut replay, args.rate, &stop, |replay| progress.tell(replay)).await;
    progress.end();
    let done = counted(replay.copied, "event");
    let go_on = format!("go on with `aftercommit replay --resume {}`", replay.id);
    if let Err(error) = ran {
        bail!("{error}; {done} of {} replayed: {go_on}", replay.selected);
    }
    if args.output == Output::Json {
        output::json(&json!({ "replay": replay.id, "events": replay.copied, "missing": replay.missing,
            "dryRun": false, "standing": replay.standing }))?;
    }
    if replay.standing != Standing::Finished {
        bail!("stopped after {done} of {}: {go_on}", replay.selected);
    }
    if args.output == Output::Table {
        output::line(&format!("{done} replayed (replay {})", replay.id));
    }
    if replay.missing > 0 {
        let gone = counted(replay.missing, "selected event");
        note!("{gone} had left the log before the replay came to them: see [outbox] retention");
    }
    Ok(())
}

async fn publish_parked(config: &Config, args: &Args) -> Result<()> {
    if !args.dry_run {
        args.consent.needs_a_reason()?;
    }
    let mut connection = super::connect(config).await?;
    let relay = &config.relay.name;
    let selection = Selection { state: Some(EventState::Parked), ..args.filter.selection() };
    let topics: Vec<Topic> = match &selection.topic {
        Some(topic) => vec![Topic::new(topic.clone())?],
        None => parked::topics(&mut connection, relay).await?,
    };
    let mut events = 0;
    for topic in &topics {
        events += parked::count(&mut connection, relay, topic).await?;
    }
    if events == 0 || args.dry_run {
        return report_parked(args, "would be published", events, &topics);
    }
    let of = counted(topics.len() as u64, "topic");
    args.consent.to(&format!("publish {} of {of}, in order", counted(events, "parked event")))?;
    let operator = args.consent.operator();
    let wished = hand_over(&mut connection, relay, &topics, Wish::Release, &operator).await?;
    report_parked(args, "handed to the relay", wished, &topics)
}

fn report_parked(args: &Args, what: &str, events: u64, topics: &[Topic]) -> Result<()> {
    if args.output == Output::Json {
        return output::json(&json!({ "events": events, "dryRun": args.dry_run, "topics": topics }));
    }
    output::line(&format!("{} {what}", counted(events, "parked event")));
    for topic in topics.iter().take(SAMPLE as usize) {
        output::line(&format!("  {topic}"));
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
    if let Some(one) = replays.iter().find(|one| one.standing == Standing::Interrupted) {
        note!("go on with an interrupted one: `aftercommit replay --resume {}`", one.id);
    }
    Ok(())
}
