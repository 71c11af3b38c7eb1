//! The arguments. `cargo test` passes the same arguments to every test program, so those of the usual test
//! runner are understood or ignored.

use std::time::Duration;

use crate::targets::Target;

/// How long the short form makes faults, as a part of the whole test suite.
const SHORT: Duration = Duration::from_secs(20);
/// The short form's seed: each run is the same.
const SEED: u64 = 1;

/// What to do.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) seed: u64,
    /// How long faults are made.
    pub(crate) length: Duration,
    /// Other servers than one Redis.
    pub(crate) target: Option<Target>,
    /// Print the plan and do nothing.
    pub(crate) plan: bool,
    /// Print each fault when it is made.
    pub(crate) verbose: bool,
    /// The arguments select other tests.
    pub(crate) skip: bool,
    /// List the tests.
    pub(crate) list: bool,
}

impl Arguments {
    /// Parses the arguments. The error says which one is wrong.
    pub(crate) fn read(mut given: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut read = Self {
            seed: SEED,
            length: SHORT,
            target: None,
            plan: false,
            verbose: false,
            skip: false,
            list: false,
        };
        let mut filters = Vec::new();
        while let Some(argument) = given.next() {
            match argument.as_str() {
                "--seed" => read.seed = number(&argument, given.next())?,
                "--minutes" => read.length = minutes(number(&argument, given.next())?)?,
                "--target" => read.target = target(given.next())?,
                "--short" => read.length = SHORT,
                "--plan" => read.plan = true,
                "--verbose" => read.verbose = true,
                "--list" => read.list = true,
                "--test-threads" | "--format" | "--color" | "--skip" | "--logfile" => drop(given.next()),
                flag if flag.starts_with('-') => {}
                filter => filters.push(filter.to_owned()),
            }
        }
        read.skip = !filters.is_empty() && !filters.iter().any(|filter| "chaos".contains(filter.as_str()));
        Ok(read)
    }
}

fn number<T: std::str::FromStr>(name: &str, value: Option<String>) -> Result<T, String> {
    let value = value.ok_or(format!("{name} wants a number behind it"))?;
    value.parse().map_err(|_| format!("{name} {value}: not a number"))
}

fn target(name: Option<String>) -> Result<Option<Target>, String> {
    match name.as_deref() {
        Some("single") => Ok(None),
        Some("sentinel") => Ok(Some(Target::Sentinel)),
        Some("cluster") => Ok(Some(Target::Cluster)),
        _ => Err("--target wants single, sentinel or cluster behind it".to_owned()),
    }
}

fn minutes(minutes: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(minutes * 60.0)
        .ok()
        .filter(|length| !length.is_zero())
        .ok_or(format!("--minutes {minutes}: not a length of time"))
}
