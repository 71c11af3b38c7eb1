//! `aftercommit parked list|release|discard`: events that Redis refused, and what waits behind them.

use anyhow::{Result, bail};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use aftercommit::counted::counted;
use aftercommit::event::Topic;
use aftercommit::outbox::audit::{self, Operator};
use aftercommit::outbox::parked::{self, Wish};
use aftercommit::outbox::parked_topics::{self, ParkedTopic};

use super::confirm::Consent;
use super::output::{self, Output};
use crate::config::Config;

/// What to do with parked events.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the topics that have parked events, and why.
    #[command(after_help = "Example: aftercommit parked list --limit 5")]
    List {
        /// How many topics at most.
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// How to print the data.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Publish a topic's parked events in order, then let it flow.
    #[command(after_help = "Example:
  aftercommit parked release order:42 --reason 'Redis permissions mended'")]
    Release(Chosen),
    /// Give up a topic's parked events, then let it flow.
    #[command(after_help = "Example:
  aftercommit parked discard order:42 --reason 'a test left it there'")]
    Discard(Chosen),
}

/// Whose parked events.
#[derive(Debug, clap::Args)]
pub(crate) struct Chosen {
    /// Topics.
    #[arg(value_name = "TOPIC", required_unless_present = "all", conflicts_with = "all")]
    topics: Vec<String>,
    /// Every topic that has parked events.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    consent: Consent,
    /// How to print the data.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
pub(crate) async fn run(config: &Config, command: &Command) -> Result<()> {
    match command {
        Command::List { limit, output } => list(config, *limit, *output).await,
        Command::Release(chosen) => settle(config, chosen, Wish::Release).await,
        Command::Discard(chosen) => settle(config, chosen, Wish::Discard).await,
    }
}

async fn list(config: &Config, limit: u32, output: Output) -> Result<()> {
    let mut connection = super::connect(config).await?;
    let topics = parked_topics::list(&mut connection, &config.relay.name, limit).await?;
    if output == Output::Json {
        return output::json(&topics);
    }
    if topics.is_empty() {
        note!("nothing is parked for relay {}", config.relay.name);
        return Ok(());
    }
    output::table(["TOPIC", "EVENTS", "FIRST ID", "SINCE", "WISH", "WHY"], topics.iter().map(row));
    Ok(())
}

fn row(topic: &ParkedTopic) -> [String; 6] {
    [
        topic.topic.clone(),
        topic.events.to_string(),
        topic.first_id.clone(),
        output::time(topic.since),
        topic.wish.clone().unwrap_or_else(|| "-".to_owned()),
        topic.reason.clone(),
    ]
}

async fn settle(config: &Config, chosen: &Chosen, wish: Wish) -> Result<()> {
    let relay = &config.relay.name;
    let mut connection = super::connect(config).await?;
    let topics = if chosen.all {
        parked::topics(&mut connection, relay).await?
    } else {
        chosen.topics.iter().cloned().map(Topic::new).collect::<Result<_, _>>()?
    };
    let mut events = 0;
    for topic in &topics {
        let parked = parked::count(&mut connection, relay, topic).await?;
        if parked == 0 {
            bail!("nothing of topic '{topic}' is parked: `aftercommit parked list` shows what is");
        }
        events += parked;
    }
    let verb = match wish {
        Wish::Release => "publish, in order,",
        Wish::Discard => "give up, for good,",
    };
    let (parked, of) = (counted(events, "parked event"), counted(topics.len() as u64, "topic"));
    chosen.consent.to(&format!("{verb} {parked} of {of}"))?;
    let done = hand_over(&mut connection, relay, &topics, wish, &chosen.consent.operator()).await?;
    if chosen.output == Output::Json {
        return output::json(&json!({ "events": done, "topics": topics }));
    }
    output::line(&format!("{} handed to the relay", counted(done, "event")));
    Ok(())
}

/// Tells the relay what to do with topics' parked events, and writes that into the audit. Returns how many events.
pub(super) async fn hand_over(
    connection: &mut PgConnection,
    relay: &str,
    topics: &[Topic],
    wish: Wish,
    operator: &Operator,
) -> Result<u64> {
    let action = match wish {
        Wish::Release => "release",
        Wish::Discard => "discard",
    };
    let mut tx = connection.begin().await?;
    let mut wished = 0;
    for topic in topics {
        wished += parked::wish(&mut tx, relay, topic, wish).await?;
    }
    let what = json!({ "relay": relay, "topics": topics });
    audit::write(&mut tx, operator, action, &what, wished).await?;
    tx.commit().await?;
    super::ring(connection).await;
    Ok(wished)
}
