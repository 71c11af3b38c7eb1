//! `aftercommit parked list|release|discard`: events that Redis refused, and the events that wait behind
//! them.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;
use sqlx::{Connection, PgConnection};

use aftercommit::event::{StreamId, Topic};
use aftercommit::log::parked::{self, Action};
use aftercommit::log::{overview, read};
use aftercommit::ops::parked::{self as requests, Named, Outcome};
use aftercommit::ops::parked_topics::{self, ParkedTopic};
use aftercommit::ops::relays;
use aftercommit::pluralize::pluralize;

use super::confirm::Consent;
use super::output::{self, Output};
use crate::config::Config;

/// How long a command waits for the relay to carry out what it was asked for.
const OUTCOME_LIMIT: Duration = Duration::from_secs(15);

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
    #[command(after_help = "Examples:
  aftercommit parked release order:42 --reason 'Redis permissions mended'
  aftercommit parked release order:42 --through 1-102

Mend first what Redis refused: `aftercommit parked list` says what that was.
The request is about the events that are parked at the moment of the command, or
up to --through. Later events of the topic only wait behind them: they follow at
once. Waits for the relay, and says how it ended; exits with 1 if Redis has
refused an event again or no relay has taken it up.")]
    Release(Chosen),
    /// Give up a topic's parked events, then let it flow.
    #[command(after_help = "Examples:
  aftercommit parked discard order:42 --reason 'a test left it there'
  aftercommit parked discard order:42 --through 1-102

Clients never get a discarded event. An event that clients may have received is
refused: release it, or say --may-have-arrived. `parked list` tells how many.
The request is about the events that are parked at the moment of the command, or
up to --through, and never about events that are parked later: these only wait
behind them, and are published then.")]
    Discard(Discarded),
}

/// Which events to give up.
#[derive(Debug, clap::Args)]
pub(crate) struct Discarded {
    #[command(flatten)]
    chosen: Chosen,
    /// Also events that clients may have received.
    #[arg(long)]
    may_have_arrived: bool,
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
    /// Only up to this id, as `parked list` shows it. For one topic.
    #[arg(long, value_name = "EPOCH-SEQ", conflicts_with = "all")]
    through: Option<StreamId>,
    /// Hand it to the relay, and do not wait for what becomes of it.
    #[arg(long)]
    no_wait: bool,
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
        Command::Release(chosen) => request(config, chosen, Action::Release).await,
        Command::Discard(Discarded { chosen, may_have_arrived: true }) => {
            request(config, chosen, Action::DiscardArrived).await
        }
        Command::Discard(Discarded { chosen, .. }) => request(config, chosen, Action::Discard).await,
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
    topics.iter().for_each(print);
    if let Some(first) = topics.iter().find(|topic| topic.requested.is_none()) {
        note!(
            "mend what Redis refused, then release (or discard):\n  aftercommit parked release {0} --through {1}",
            first.topic,
            first.last_id
        );
    }
    Ok(())
}

/// Prints a topic on lines of its own: what Redis said fits no column.
fn print(topic: &ParkedTopic) {
    let say = |text: &str| output::paragraph(&format!("  {text}"), 4, None);
    output::line(&topic.topic);
    let events = pluralize(topic.events.cast_unsigned(), "event");
    let ids = match topic.first_id == topic.last_id {
        true => topic.first_id.clone(),
        false => format!("{} to {}", topic.first_id, topic.last_id),
    };
    say(&format!("{events}, {ids}, since {}", output::time(topic.since)));
    if let Ok(events @ 1..) = u64::try_from(topic.may_have_arrived) {
        say(&format!("clients may have received {}", pluralize(events, "event")));
    }
    say(&format!("refused: {}", topic.reason));
    if let Some(requested) = &topic.requested {
        let action = requested.split('_').next().unwrap_or(requested);
        say(&format!("{action} requested, and not done yet"));
    }
}

async fn request(config: &Config, chosen: &Chosen, action: Action) -> Result<()> {
    if chosen.through.is_some() && chosen.topics.len() > 1 {
        bail!(super::WrongUsage("--through names an id of one topic: give one topic".into()));
    }
    let mut connection = super::connect(config).await?;
    let topics = if chosen.all {
        parked::topics(&mut connection, &config.relay.name).await?
    } else {
        chosen.topics.iter().cloned().map(Topic::new).collect::<Result<_, _>>()?
    };
    let named = name(&mut connection, &config.relay.name, &topics, chosen.through).await?;
    let verb = match action {
        Action::Release => "publish, in order,",
        Action::Discard | Action::DiscardArrived => "give up, for good,",
    };
    chosen.consent.to(&format!("{verb} {}", described(&named)))?;
    let how = How { action, consent: &chosen.consent, is_waited_for: !chosen.no_wait, output: chosen.output };
    hand_over(config, &mut connection, named, how).await
}

/// What is parked of these topics now.
pub(super) async fn name(
    connection: &mut PgConnection,
    relay: &str,
    topics: &[Topic],
    through: Option<StreamId>,
) -> Result<Vec<Named>> {
    let mut named = Vec::new();
    for topic in topics {
        match requests::name(connection, relay, topic, through).await? {
            Some(one) => named.push(one),
            None => {
                let up_to = through.map_or(String::new(), |id| format!(" up to {id}"));
                bail!("nothing of topic '{topic}' is parked{up_to}: `aftercommit parked list` shows what is");
            }
        }
    }
    Ok(named)
}

/// `2 parked events of 1 topic (1-101 to 1-102)`.
pub(super) fn described(named: &[Named]) -> String {
    let events = pluralize(named.iter().map(|one| one.events).sum(), "parked event");
    let of = pluralize(named.len() as u64, "topic");
    match named {
        [one] if one.first == one.through => format!("{events} of {of} ({})", one.through),
        [one] => format!("{events} of {of} ({} to {})", one.first, one.through),
        _ => format!("{events} of {of}"),
    }
}

/// How a request is made.
pub(super) struct How<'a> {
    pub(super) action: Action,
    pub(super) consent: &'a Consent,
    pub(super) is_waited_for: bool,
    pub(super) output: Output,
}

/// Tells the relay what to do with parked events, writes that into the audit, and says what became of it.
pub(super) async fn hand_over(
    config: &Config,
    connection: &mut PgConnection,
    named: Vec<Named>,
    how: How<'_>,
) -> Result<()> {
    let operator = how.consent.operator()?;
    let mut tx = connection.begin().await?;
    let request = requests::request(&mut tx, &config.relay.name, named, how.action, &operator).await?;
    tx.commit().await?;
    relays::wake(connection).await;
    let limit = if how.is_waited_for { OUTCOME_LIMIT } else { Duration::ZERO };
    let outcomes = requests::wait(connection, &request, limit).await?;
    let events: u64 = outcomes.iter().map(|outcome| outcome.named).sum();
    match how.output {
        Output::Json => output::json(&json!({ "events": events, "topics": outcomes }))?,
        Output::Table if how.is_waited_for => {
            outcomes.iter().for_each(|outcome| output::line(&outcome.says()));
        }
        Output::Table => output::line(&format!("{} handed to the relay", pluralize(events, "event"))),
    }
    if how.is_waited_for { judge(config, connection, &outcomes).await } else { Ok(()) }
}

/// An error unless everything was done.
async fn judge(config: &Config, connection: &mut PgConnection, outcomes: &[Outcome]) -> Result<()> {
    let total = |count: fn(&Outcome) -> u64| outcomes.iter().map(count).sum::<u64>();
    let (waiting, refused) = (total(|outcome| outcome.waiting), total(|outcome| outcome.refused));
    if refused > 0 {
        let events = pluralize(refused, "event");
        bail!(
            "{events} refused again, and parked as before: mend what is said above, then release once more"
        );
    }
    if waiting > 0 {
        let (events, seconds) = (pluralize(waiting, "event"), OUTCOME_LIMIT.as_secs());
        let why = why_not(config, connection).await?;
        bail!(
            "the relay has not dealt with {events} within {seconds} s{why}; it will, unless it is told \
             otherwise"
        );
    }
    Ok(())
}

/// What keeps a relay from doing what it is asked, as far as the log shows it.
async fn why_not(config: &Config, connection: &mut PgConnection) -> Result<&'static str> {
    read::prepare_session(connection).await?;
    let relays = overview::relays(connection).await?;
    let relay = relays.iter().find(|relay| relay.relay == config.relay.name);
    Ok(match relay {
        None => ", as none has ever run: start `aftercommit relay`",
        Some(relay) if relay.leader.is_none() => ", as none leads: start `aftercommit relay`",
        Some(relay) if relay.paused.is_some() => ", as it is paused: `aftercommit resume`",
        Some(_) => ": see `aftercommit status`",
    })
}
