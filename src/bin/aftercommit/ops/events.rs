//! `aftercommit events list|show`: looking at what is in the log.

use anyhow::{Result, bail};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use aftercommit::outbox::browse::{self, EventDetail, EventRow, EventState, Selection};

use super::output::{self, Output};
use super::time;
use crate::config::Config;

/// What to look at.
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
        /// How many at most.
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// How to print the data.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Show all that is known of an event: every row with this identity, or one row.
    Show {
        /// An event id (UUID), or a row's number.
        event: String,
        /// How to print the data.
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Which events are meant. Every part that is given must match.
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
        Command::Show { event, output } => show(config, event, *output).await,
    }
}

async fn list(config: &Config, selection: &Selection, limit: u32, output: Output) -> Result<()> {
    let mut connection = super::connect(config).await?;
    let events = browse::list(&mut connection, &config.relay.name, selection, limit).await?;
    if output == Output::Json {
        return output::json(&events);
    }
    if events.is_empty() {
        eprintln!("no events match");
        return Ok(());
    }
    print_rows(&events);
    if events.len() as u64 == u64::from(limit) {
        eprintln!("the newest {limit}; more with --limit");
    }
    Ok(())
}

/// Prints events as a table. The event's id is left out: the row's number serves `events show` as well, and leaves room
/// for the topic.
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

async fn show(config: &Config, event: &str, output: Output) -> Result<()> {
    const COPIES_SHOWN: u32 = 100;
    let selection = match (event.parse::<i64>(), event.parse::<Uuid>()) {
        (Ok(row), _) => Selection { rows: vec![row], ..Selection::default() },
        (_, Ok(id)) => Selection { events: vec![id], ..Selection::default() },
        _ => bail!(
            "'{event}' is neither an event id (a UUID) nor a row's number: `aftercommit events list` shows both"
        ),
    };
    let mut connection = super::connect(config).await?;
    let found = browse::show(&mut connection, &config.relay.name, &selection, COPIES_SHOWN).await?;
    if found.is_empty() {
        bail!("no event {event} is in the log: it was never committed, or its slot has been rotated");
    }
    if output == Output::Json {
        return output::json(&found);
    }
    for detail in &found {
        print_detail(detail);
    }
    Ok(())
}

fn print_detail(detail: &EventDetail) {
    let row = &detail.row;
    let since = detail.since.map_or(String::new(), |at| format!(" since {}", output::time(at)));
    output::line(&format!("event        {}", row.event_id));
    output::line(&format!("row          {}", row.id));
    output::line(&format!("topic        {}", row.topic));
    output::line(&format!("type         {}", row.event_type));
    output::line(&format!("state        {}{since}", row.state));
    if let Some(reason) = &detail.parked_because {
        output::line(&format!("because      {reason}"));
    }
    output::line(&format!("created      {}", output::time(row.created_at)));
    output::line(&format!("transaction  {}", detail.transaction));
    if let Some(headers) = &detail.headers {
        output::line(&format!("headers      {headers}"));
    }
    output::line(&format!("payload      {}", detail.payload));
    output::line("");
}
