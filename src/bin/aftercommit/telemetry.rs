//! What a process tells of itself: logs, as text or JSON lines on stderr, so that stdout holds data only; and the metrics
//! that every process has.

mod process;

use std::io::IsTerminal;

use anyhow::{Context, Result};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};

/// Sets up logging for the process.
pub(crate) fn init(settings: &LogSettings) -> Result<()> {
    let filter = EnvFilter::try_new(&settings.level)
        .with_context(|| format!("log.level '{}' is not a level or a list of directives", settings.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let set = match settings.format {
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("cannot set up logging: {error}"))
}

/// A registry with what every process tells: which build it is, and what it costs the machine.
pub(crate) fn registry(role: &'static str) -> Registry {
    let mut registry = Registry::default();
    let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("role", role)]);
    registry.register("aftercommit_build", "The version that runs, and as what", build);
    registry.register_collector(Box::new(process::Collector));
    registry
}
