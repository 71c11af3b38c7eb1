//! `aftercommit rebase`: a new lineage of numbers for a log whose Postgres was restored or moved.

use std::collections::HashMap;

use anyhow::Result;
use serde_json::json;
use sqlx::PgConnection;

use aftercommit::event::{EventId, StreamId, Topic};
use aftercommit::log::contradiction::{self, Contradiction};
use aftercommit::log::identity;
use aftercommit::ops::rebase::{Home, Lineage, Pending, Rebase};
use aftercommit::pluralize::pluralize;
use aftercommit::redis::{History, Publisher};
use aftercommit::relay::{Batch, PublishMode, Reached, Sink};

use super::confirm::Consent;
use super::output::{self, Output};
use crate::config::Config;

/// Pending events that are looked up at once.
const PAGE: i64 = 10_000;

/// How carefully.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  aftercommit rebase --dry-run
  aftercommit rebase --reason 'restored from the backup of 02:00' --yes
  aftercommit rebase --copy --reason 'staging, cloned from production' --yes

Stop every relay of the log first. Needed after Postgres was restored from a
backup, failed over with a loss of commits, or was moved or copied to another
database; the relay says so. New events get numbers of a higher epoch, so that
clients see them as new, and events that Redis has already are not published
again. A Redis that was restored or emptied needs no rebase: the relay repairs
it.

Needed as well where the log contradicts its positions (the sequence of its ids
was set back, or rows were written by hand): what is not delivered gets new ids
in order.

With --copy the log becomes one of its own: for a clone that shall live beside
its original. On the same Redis it needs a [redis] namespace of its own.")]
pub(crate) struct Args {
    /// Say what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Give the log an identity of its own: it is a clone beside its original.
    #[arg(long)]
    copy: bool,
    #[command(flatten)]
    consent: Consent,
    /// How to print the data.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// What a rebase finds.
struct Findings {
    home: Home,
    /// Where Postgres is.
    position: StreamId,
    /// Where Redis is.
    reached: Option<Reached>,
    /// Events that the position does not know to be delivered.
    pending: u64,
    /// How many of these Redis has.
    told: u64,
    /// Rows that the log's positions cannot stand beside.
    contradictions: Vec<Contradiction>,
    /// Whether the log is to become one of its own.
    is_copy: bool,
    /// Whether a rebase for another relay has changed the log since.
    since_another: bool,
}

impl Findings {
    /// Above every number that was ever given.
    fn new_epoch(&self) -> u64 {
        self.position.epoch.max(self.reached.map_or(0, |reached| reached.id.epoch)) + 1
    }

    /// Whether the log gets a new lineage, and its numbers go on in another epoch. A log that only
    /// contradicts its positions needs one too: rows that get new ids can come in another order than the one
    /// in which they were published, and rows that get another transaction are new to resume tokens that have
    /// seen them.
    fn is_needed(&self) -> bool {
        self.is_copy
            || self.since_another
            || self.home == Home::Other
            || !self.contradictions.is_empty()
            || self.reached.is_some_and(|reached| reached.id > self.position)
    }

    /// Events that clients have seen and this Postgres knows nothing of, where that can be said.
    fn lost(&self) -> Option<u64> {
        let reached = self.reached.filter(|reached| reached.id.epoch == self.position.epoch)?;
        Some(reached.id.seq.saturating_sub(self.position.seq).saturating_sub(self.told))
    }
}

/// Runs the command.
pub(crate) async fn run(config: &Config, args: &Args) -> Result<()> {
    let mut connection = super::connect(config).await?;
    let found = look(config, args, &mut connection).await?;
    if args.dry_run || !found.is_needed() {
        return report(config, args, &found, false);
    }
    let operator = args.consent.operator()?;
    say(&found);
    args.consent.to(&format!("rebase relay '{}' to epoch {}", config.relay.name, found.new_epoch()))?;
    // Looked at once more, now under the lock under which it is changed.
    let (found, rebase) = find(config, args, &mut connection, Purpose::Change).await?;
    if !found.is_needed() {
        return report(config, args, &found, false);
    }
    let lineage = Lineage { epoch: found.new_epoch(), is_copy: found.is_copy };
    let findings = json!({
        "relay": config.relay.name, "database": home(found.home), "from": found.position.to_string(),
        "redis": found.reached.map(|reached| reached.id.to_string()),
        "epoch": lineage.epoch,
        "copy": found.is_copy, "contradicted": !found.contradictions.is_empty(),
    });
    rebase.finish(lineage, &operator, &findings).await?;
    report(config, args, &found, true)
}

async fn look(config: &Config, args: &Args, connection: &mut PgConnection) -> Result<Findings> {
    // The transaction of the look ends here.
    find(config, args, connection, Purpose::Look).await.map(|(found, _dropped)| found)
}

/// What the findings are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To be shown.
    Look,
    /// To change the log, which is locked for it.
    Change,
}

/// Begins a rebase and finds out what Redis knows of the events that Postgres takes for pending.
async fn find<'c>(
    config: &Config,
    args: &Args,
    connection: &'c mut PgConnection,
    purpose: Purpose,
) -> Result<(Findings, Rebase<'c>)> {
    let log = identity::of(connection).await?.id;
    let mut rebase = match purpose {
        Purpose::Look => Rebase::look(connection, &config.relay.name).await?,
        Purpose::Change => Rebase::begin(connection, &config.relay.name).await?,
    };
    let mut sink = Publisher::new(config.redis.clone(), &config.relay.name, 1);
    sink.begin_lead(log);
    // The Redis of a copy is the one of its original, or holds nothing yet.
    let servers = if args.copy { Vec::new() } else { sink.reached().await? };
    let furthest = servers.iter().flatten().max_by_key(|reached| reached.id).copied();
    let from = rebase.position();
    let position = StreamId::new(from.epoch, from.next_seq - 1);
    let mut found = Findings {
        home: rebase.home(),
        position,
        reached: furthest,
        pending: rebase.appended_since_the_move(),
        told: 0,
        contradictions: rebase.contradictions().to_vec(),
        is_copy: args.copy,
        since_another: rebase.is_needed_since_another(),
    };
    // The keys of a copy are of a namespace of its own, which the relay claims: nothing of it is there.
    if !args.copy && purpose == Purpose::Change && found.is_needed() {
        // A Redis that is behind the position has forgotten events which cannot be given again in the new
        // epoch.
        let lacks = |reached: &Option<Reached>| reached.is_none_or(|reached| reached.id < position);
        let is_behind = position.seq > 0 && servers.iter().any(lacks);
        claim(&mut sink, found.new_epoch(), is_behind).await?;
    }
    find_told(config, &mut rebase, &mut found).await?;
    Ok((found, rebase))
}

/// Counts the events that Postgres takes for pending, and looks for them in Redis.
async fn find_told(config: &Config, rebase: &mut Rebase<'_>, found: &mut Findings) -> Result<()> {
    let history = History::new(config.redis.clone());
    let mut seen = Seen { history, after: found.position, topics: HashMap::new() };
    let mut last = None;
    loop {
        let page = rebase.pending(last.as_ref(), PAGE).await?;
        if page.is_empty() {
            return Ok(());
        }
        found.pending += page.len() as u64;
        let told = if found.is_copy { Vec::new() } else { seen.of(&page).await? };
        rebase.delivered_before(&told).await?;
        found.told += told.len() as u64;
        last = page.into_iter().next_back();
    }
}

/// Claims the new epoch in Redis before its histories are read: a relay that was frozen while it led, and
/// wakes up now, is refused there from here on. If the rebase fails after this, the relay says that Redis is
/// of a later epoch, and the rebase is to be run again.
async fn claim(sink: &mut Publisher, epoch: u64, has_lost: bool) -> Result<()> {
    let (first, lost) = (StreamId::new(epoch, 1), has_lost.then(|| StreamId::new(epoch, 0)));
    let nothing = Batch { mode: PublishMode::Restore, deliveries: &[], first, through: None, lost };
    Ok(sink.publish(nothing).await?)
}

/// The events that histories hold after the position, by topic.
struct Seen {
    history: History,
    after: StreamId,
    topics: HashMap<Topic, HashMap<EventId, u32>>,
}

impl Seen {
    /// The rows whose events have been told. Each entry of a history stands for one row: a replay's copy has
    /// the same identity as the original and counts for itself.
    async fn of(&mut self, pending: &[Pending]) -> Result<Vec<Pending>> {
        let mut told = Vec::new();
        for event in pending {
            let Pending { event_id, topic: Some(topic), .. } = event else { continue };
            if !self.topics.contains_key(topic) {
                let mut counts = HashMap::new();
                for event_id in self.history.uuids_after(topic, self.after).await? {
                    *counts.entry(event_id).or_insert(0) += 1;
                }
                self.topics.insert(topic.clone(), counts);
            }
            let left = self.topics.get_mut(topic).and_then(|counts| counts.get_mut(event_id));
            if let Some(left) = left.filter(|left| **left > 0) {
                *left -= 1;
                told.push(event.clone());
            }
        }
        Ok(told)
    }
}

fn home(home: Home) -> &'static str {
    match home {
        Home::Same => "same",
        Home::Other => "other",
    }
}

fn report(config: &Config, args: &Args, found: &Findings, done: bool) -> Result<()> {
    if args.output == Output::Json {
        return output::json(&json!({
            "relay": config.relay.name, "needed": found.is_needed(), "done": done,
            "database": home(found.home), "position": found.position.to_string(),
            "redis": found.reached.map(|reached| reached.id.to_string()), "epoch": found.new_epoch(),
            "pending": found.pending, "told": found.told, "lost": found.lost(),
            "copy": found.is_copy, "contradictions": found.contradictions.len(),
        }));
    }
    if !found.is_needed() {
        output::line("nothing to rebase: Postgres and Redis belong together");
        return Ok(());
    }
    if !done {
        say(found);
    }
    let verb = if done { "rebased" } else { "would be rebased" };
    output::line(&format!("relay {}: {verb} to epoch {}", config.relay.name, found.new_epoch()));
    if done {
        output::line("start the relay again");
    }
    Ok(())
}

/// The findings, for a person who has to decide.
fn say(found: &Findings) {
    let redis = found.reached.map_or("nothing".to_owned(), |reached| reached.id.to_string());
    let what = match found.home {
        Home::Same if found.reached.is_some_and(|reached| reached.id > found.position) => {
            "the database in which the log was made, which went back"
        }
        Home::Same => "the database in which the log was made",
        Home::Other => "another database: every row gets a number of this one",
    };
    note!("Postgres    {what}");
    if found.since_another {
        note!("log         changed by a rebase for another relay, which has not looked at this one's Redis");
    }
    if found.is_copy {
        note!("identity    a new one: on the Redis of its original it needs a [redis] namespace of its own");
    }
    if !found.contradictions.is_empty() {
        let rows = contradiction::named(&found.contradictions);
        note!("contradicts {rows}: what is not delivered gets new ids, in order");
    }
    note!("position    Postgres {}, Redis {redis}", found.position);
    note!(
        "pending     {}, {} of them in Redis already: not published again",
        pluralize(found.pending, "event"),
        found.told
    );
    if let Some(lost @ 1..) = found.lost() {
        let lost = pluralize(lost, "event");
        note!("lost        {lost} that clients have seen and Postgres no longer has");
    }
}
