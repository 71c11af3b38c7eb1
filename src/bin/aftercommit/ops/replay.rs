//! `aftercommit replay`: delivered events once more, or parked ones at last.

use anyhow::{Result, bail};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use aftercommit::event::Topic;
use aftercommit::outbox::browse::{self, EventState, Selection};
use aftercommit::outbox::parked::{self, Wish};
use aftercommit::outbox::replay;

use super::confirm::Consent;
use super::events::Filter;
use super::output::{self, Output};
use super::parked::hand_over;
use crate::config::Config;

/// Events that a dry run and a confirmation show.
const SAMPLE: u32 = 5;

/// What to replay, and how carefully.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  aftercommit replay --topic upload-session:42 --since 2h --dry-run
  aftercommit replay --event 018f3c1e-0000-7000-8000-000000000001 --reason 'client bug' --yes
  aftercommit replay --undelivered --reason 'Redis permissions mended'

Copies of delivered events go the normal way, with new ids and the same event id. Parked events
are published in order, then their topics flow again.")]
pub(crate) struct Args {
    /// Publish parked events: what Redis refused, and what waits behind it.
    #[arg(long, conflicts_with_all = ["event", "event_type", "since", "until", "all"])]
    undelivered: bool,
    /// Only these event ids. May be given several times.
    #[arg(long, value_name = "UUID")]
    event: Vec<Uuid>,
    #[command(flatten)]
    filter: Filter,
    /// Every delivered event that is still in the log.
    #[arg(long)]
    all: bool,
    /// Say what would be replayed, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
    /// How to print the data.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
pub(crate) async fn run(config: &Config, args: &Args) -> Result<()> {
    let mut connection = super::connect(config).await?;
    if args.undelivered {
        release(config, args, &mut connection).await
    } else {
        copy(config, args, &mut connection).await
    }
}

async fn copy(config: &Config, args: &Args, connection: &mut PgConnection) -> Result<()> {
    let relay = &config.relay.name;
    let selection = Selection { events: args.event.clone(), ..args.filter.selection() };
    if selection.is_everything() != args.all {
        bail!(
            "say which events: --event, --topic, --type, --since or --until; or --all for every one, and nothing beside it"
        );
    }
    let count = replay::count(connection, relay, &selection).await?;
    if count == 0 || args.dry_run {
        let sample = Selection { state: Some(EventState::Delivered), ..selection };
        let sample = browse::list(connection, relay, &sample, SAMPLE).await?;
        return report(args, "would be replayed", count.cast_unsigned(), &json!(sample));
    }
    args.consent.to(&format!("replay {count} delivered events to every client of their topics"))?;
    let done = replay::replay(connection, relay, &selection, &args.consent.operator()).await?;
    super::ring(connection).await;
    report(args, "replayed", done, &json!([]))
}

async fn release(config: &Config, args: &Args, connection: &mut PgConnection) -> Result<()> {
    let relay = &config.relay.name;
    let selection = Selection { state: Some(EventState::Parked), ..args.filter.selection() };
    let topics: Vec<Topic> = match &selection.topic {
        Some(topic) => vec![Topic::new(topic.clone())?],
        None => parked::topics(connection, relay).await?,
    };
    let mut events = 0;
    for topic in &topics {
        events += parked::count(connection, relay, topic).await?;
    }
    if events == 0 || args.dry_run {
        return report(args, "would be published", events, &json!(topics));
    }
    args.consent.to(&format!("publish {events} parked events of {} topics, in order", topics.len()))?;
    let operator = args.consent.operator();
    let wished = hand_over(connection, relay, &topics, Wish::Release, &operator).await?;
    report(args, "handed to the relay", wished, &json!([]))
}

fn report(args: &Args, what: &str, events: u64, sample: &serde_json::Value) -> Result<()> {
    if args.output == Output::Json {
        return output::json(&json!({ "events": events, "dryRun": args.dry_run, "sample": sample }));
    }
    output::line(&format!("{events} {} {what}", if events == 1 { "event" } else { "events" }));
    for one in sample.as_array().into_iter().flatten() {
        output::line(&format!("  {one}"));
    }
    Ok(())
}
