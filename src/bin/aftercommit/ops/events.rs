//! `aftercommit events list|show`: shows events of the log.

use std::fmt::Display;

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use aftercommit::ops::browse::{self, EventDetail, EventRow, EventState, Selection};
use aftercommit::ops::explain::{self, ByHand, Delivered, Explanation};

use super::WrongUsage;
use super::output::{self, Output};
use super::time;
use crate::config::Config;

/// Shown in place of a fact whose rows have been rotated.
const GONE: &str = "no longer known: the checkpoints of that time have been rotated";

/// The subcommands of `aftercommit events`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List events, newest first.
    #[command(after_help = "Example: aftercommit events list --topic upload-session:42 --since 2h")]
    List {
        #[command(flatten)]
        filter: Filter,
        /// Only events in this state.
        #[arg(long, value_enum)]
        state: Option<StateArg>,
        /// The largest number of events to show.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// How to print the data.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show an event in detail: every row with this event id, or one row.
    #[command(after_help = "Examples:
  aftercommit events show 018f3c1e-0000-7000-8000-000000000001
  aftercommit events show 42 --output json")]
    Show {
        #[command(flatten)]
        named: NamedEvents,
        /// How to print the data.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Names events one by one, in the same way for each command.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct NamedEvents {
    /// Event ids (UUIDs) or row numbers, as `events list` shows them.
    #[arg(value_name = "EVENT")]
    names: Vec<String>,
    /// An event id. May be given several times.
    #[arg(long, value_name = "UUID")]
    event: Vec<Uuid>,
    /// A row of the log. May be given several times.
    #[arg(long, value_name = "ROW")]
    row: Vec<i64>,
}

impl NamedEvents {
    /// The named events as a selection, which is empty if none is named.
    pub(super) fn selection(&self) -> Result<Selection> {
        let mut selection =
            Selection { events: self.event.clone(), rows: self.row.clone(), ..Selection::default() };
        for name in &self.names {
            match (name.parse::<i64>(), name.parse::<Uuid>()) {
                (Ok(row), _) => selection.rows.push(row),
                (_, Ok(id)) => selection.events.push(id),
                _ => bail!(WrongUsage(
                    format!(
                        "'{name}' is neither an event id (a UUID) nor a row's number: `aftercommit events \
                         list` shows the rows"
                    )
                    .into()
                )),
            }
        }
        Ok(selection)
    }
}

/// Selects events. An event must match every option that is given.
#[derive(Debug, clap::Args)]
pub(crate) struct Filter {
    /// Only this topic.
    #[arg(long)]
    pub(super) topic: Option<String>,
    /// Only this type.
    #[arg(long = "type", value_name = "TYPE")]
    pub(super) event_type: Option<String>,
    /// Only from this time on: RFC 3339, or 90s, 15m, 2h, 3d ago.
    #[arg(long, value_parser = time::parse, value_name = "TIME")]
    pub(super) since: Option<DateTime<Utc>>,
    /// Only before this time.
    #[arg(long, value_parser = time::parse, value_name = "TIME")]
    pub(super) until: Option<DateTime<Utc>>,
}

impl Filter {
    pub(super) fn selection(&self) -> Selection {
        Selection {
            topic: self.topic.clone(),
            event_type: self.event_type.clone(),
            since: self.since,
            until: self.until,
            ..Selection::default()
        }
    }
}

/// A state as the command line takes it.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum StateArg {
    Pending,
    Delivered,
    Parked,
}

impl From<StateArg> for EventState {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Pending => Self::Pending,
            StateArg::Delivered => Self::Delivered,
            StateArg::Parked => Self::Parked,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(config: &Config, command: &Command) -> Result<()> {
    match command {
        Command::List { filter, state, limit, output } => {
            let selection = Selection { state: state.map(EventState::from), ..filter.selection() };
            list(config, &selection, *limit, *output).await
        }
        Command::Show { named, output } => show(config, named, *output).await,
    }
}

async fn list(config: &Config, selection: &Selection, limit: u32, output: Output) -> Result<()> {
    let mut connection = super::connect(config).await?;
    let events = browse::list(&mut connection, &config.relay.name, selection, limit).await?;
    if output == Output::Json {
        return output::json(&events);
    }
    if events.is_empty() {
        note!("no events match");
        return Ok(());
    }
    print_rows(&events);
    if events.len() as u64 == u64::from(limit) {
        note!("only the newest {limit} are shown; use --limit for more");
    }
    Ok(())
}

/// Prints events as a table. It omits the event's id to leave room for the topic: `events show` accepts the
/// row number too.
pub(super) fn print_rows(events: &[EventRow]) {
    output::table(
        ["ROW", "STATE", "CREATED", "TYPE", "TOPIC"],
        events.iter().map(|e| {
            [
                e.id.to_string(),
                e.state.clone(),
                output::time(e.created_at),
                e.event_type.clone(),
                e.topic.clone(),
            ]
        }),
    );
}

async fn show(config: &Config, named: &NamedEvents, output: Output) -> Result<()> {
    const COPIES_SHOWN: u32 = 100;
    let selection = named.selection()?;
    if selection.is_everything() {
        bail!(WrongUsage("say which event: its id (a UUID) or its row's number".into()));
    }
    let mut connection = super::connect_for_lookups(config).await?;
    let relay = &config.relay.name;
    let found = browse::show(&mut connection, relay, &selection, COPIES_SHOWN).await?;
    if found.is_empty() {
        let rows = selection.rows.iter().map(ToString::to_string);
        let wanted: Vec<String> = rows.chain(selection.events.iter().map(ToString::to_string)).collect();
        bail!(
            "no event {} is in the log: it was never committed, or its slot has been rotated",
            wanted.join(", ")
        );
    }
    let mut shown = Vec::new();
    for detail in found {
        let explanation = explain::of(&mut connection, relay, &detail).await?;
        shown.push(Shown { detail, explanation });
    }
    if output == Output::Json {
        return output::json(&shown);
    }
    for (nth, one) in shown.iter().enumerate() {
        if nth > 0 {
            output::line("");
        }
        print_shown(one);
    }
    Ok(())
}

/// An event and its history, as JSON shows them.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    detail: EventDetail,
    #[serde(flatten)]
    explanation: Explanation,
}

fn print_shown(Shown { detail, explanation }: &Shown) {
    let say = |name: &str, text: &str| output::named(name, text, 13);
    let row = &detail.row;
    say("event", &row.event_id.to_string());
    let copy = explanation.copy_of.map_or(String::new(), |original| format!(", a copy of row {original}"));
    say("row", &format!("{}{copy}", row.id));
    say("topic", &row.topic);
    say("type", &row.event_type);
    let since = detail.since.map_or(String::new(), |at| format!(" since {}", output::time(at)));
    say("state", &format!("{}{since}", row.state));
    if let Some(reason) = &explanation.waits_because {
        say("because", reason);
    }
    say(
        "appended",
        &format!("{}, transaction {}, committed", output::time(row.created_at), detail.transaction),
    );
    print_delivery(detail, explanation);
    if !explanation.copies.is_empty() {
        let rows: Vec<String> = explanation.copies.iter().map(ToString::to_string).collect();
        say("replayed", &format!("as row {}", rows.join(", ")));
    }
    if let Some(headers) = &detail.headers {
        exactly("headers", headers);
    }
    exactly("payload", &detail.payload);
}

/// Prints JSON in one line, so that it can be copied.
fn exactly(name: &str, json: &impl Display) {
    output::line(&format!("{name:<12} {json}"));
}

fn print_delivery(detail: &EventDetail, explanation: &Explanation) {
    let say = |name: &str, text: &str| output::named(name, text, 13);
    let is_pending = detail.row.state == EventState::Pending.as_str();
    match &explanation.window {
        Some(window) => {
            let at = output::time(window.opened_at);
            say("window", &format!("opened {at} by checkpoint {}", window.checkpoint));
            say("", &format!("from {} to {}", window.lower, window.upper));
        }
        None if is_pending => say("window", "none yet"),
        None => say("window", GONE),
    }
    if is_pending {
        return;
    }
    print_set_aside(explanation);
    let is_parked_for_good = explanation.parked.is_some() && explanation.delivered.is_none();
    match &explanation.delivered {
        Some(Delivered { checkpoint, at, after_seconds }) => {
            let by = checkpoint.map_or(String::new(), |n| format!(" by checkpoint {n}"));
            say(
                "delivered",
                &format!("{}{by}, after {}", output::time(*at), output::seconds(*after_seconds)),
            );
        }
        None if is_parked_for_good => {}
        None => say("delivered", GONE),
    }
    say("stream id", explanation.stream_id.as_deref().unwrap_or(GONE));
}

/// Prints when and why the event was parked, and what an operator did about it.
fn print_set_aside(explanation: &Explanation) {
    let say = |name: &str, text: &str| output::named(name, text, 13);
    let Some(parked) = &explanation.parked else { return };
    let by = parked.checkpoint.map_or(String::new(), |n| format!(" by checkpoint {n}"));
    say("parked", &format!("{}{by}", output::time(parked.at)));
    say("", &parked.because);
    if let Some(first) = &parked.behind {
        say("behind", &format!("{first}: `aftercommit parked list` shows why"));
    }
    for (name, done) in [("released", &explanation.released), ("discarded", &explanation.discarded)] {
        if let Some(ByHand { at, who, reason }) = done {
            say(name, &format!("{} by {who}", output::time(*at)));
            say("", reason);
        }
    }
}
