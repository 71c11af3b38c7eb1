//! The `aftercommit` binary: composition only. This file lists all processes and commands.

#[macro_use]
mod telemetry;

mod cli_files;
mod config;
mod healthcheck;
mod lifecycle;
mod migrate;
mod open_files;
mod ops;
mod roles;
mod show_config;
mod systemd;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use aftercommit::trace;

use ops::pause::Wanted;

/// The exit code for wrong usage, which the command line's parser uses too.
const WRONG_USAGE: u8 = 2;

/// A transactional outbox relay: Postgres to Redis to browsers, once, in order.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  aftercommit dev
  aftercommit migrate && aftercommit relay
  aftercommit status --watch
  aftercommit help replay"
)]
struct Cli {
    /// A file with settings that differ from the defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the upload application's API.
    #[command(after_help = "Example: AFTERCOMMIT_API_LISTEN=0.0.0.0:8080 aftercommit api")]
    Api,
    /// Deliver the outbox to Redis, in order; or list the relays.
    #[command(after_help = "Examples:
  aftercommit relay
  AFTERCOMMIT_RELAY_NAME=search aftercommit relay
  aftercommit relay list")]
    Relay {
        #[command(subcommand)]
        command: Option<ops::relays::Command>,
    },
    /// Serve event streams to browsers.
    #[command(after_help = "Example: AFTERCOMMIT_SSE_LISTEN=127.0.0.1:9001 aftercommit sse")]
    Sse,
    /// Run everything in one process, with a private Postgres and Redis.
    Dev(roles::dev::Args),
    /// Apply the database schema. Safe to run from many hosts at once.
    Migrate(migrate::Args),
    /// Print a token for trying out.
    Token(token::Args),
    /// Check or show the configuration.
    #[command(subcommand, after_help = "Example: aftercommit config show --defaults")]
    Config(show_config::Command),
    /// Show the state of each relay, of Redis and of the SSE server.
    Status(ops::status::Args),
    /// Check for common mistakes, and say how to fix them.
    Doctor(ops::doctor::Args),
    /// Print the SQL or Redis ACL that grants each role the rights it needs.
    Grants(ops::grants::Args),
    /// Look at events in the log.
    #[command(subcommand, after_help = "Example: aftercommit events list --state pending")]
    Events(ops::events::Command),
    /// Deliver events once more, or publish parked events.
    Replay(ops::replay::Args),
    /// List, release or discard parked events.
    #[command(subcommand, after_help = "Example: aftercommit parked list")]
    Parked(ops::parked::Command),
    /// Stop a relay's deliveries until resume.
    Pause(ops::pause::Args),
    /// Let a paused relay deliver again.
    Resume(ops::pause::Args),
    /// Put someone out: end streams and refuse tokens issued before.
    Revoke(ops::revoke::Args),
    /// Show what operators did, and why.
    Audit(ops::audit::Args),
    /// Ask the processes of this host whether they are ready.
    #[command(
        hide = true,
        after_help = "Example: AFTERCOMMIT_SSE_LISTEN=0.0.0.0:8081 aftercommit healthcheck"
    )]
    Healthcheck,
    /// Print the completions of a shell.
    #[command(
        hide = true,
        after_help = "Example: aftercommit completions bash > /etc/bash_completion.d/aftercommit"
    )]
    Completions(cli_files::Completions),
    /// Write a man page for each command.
    #[command(hide = true, after_help = "Example: aftercommit man --dir /usr/local/share/man/man1")]
    Man(cli_files::Man),
    /// Give the log new numbers after Postgres was restored or moved.
    Rebase(ops::rebase::Args),
}

fn main() -> ExitCode {
    telemetry::end_the_process_by_panics();
    let code = match Cli::try_parse() {
        Ok(cli) => start(cli),
        Err(error) => help(&error),
    };
    telemetry::flush();
    code
}

/// Prints the parser's message: a help on stdout, or a mistake in the command line on stderr.
fn help(error: &clap::Error) -> ExitCode {
    // A reader that stops early (`--help | head`) is no failure.
    let failed = error.print().is_err_and(|error| error.kind() != std::io::ErrorKind::BrokenPipe);
    match u8::try_from(error.exit_code()) {
        Ok(0) if failed => ExitCode::FAILURE,
        Ok(code) => ExitCode::from(code),
        Err(_) => ExitCode::from(WRONG_USAGE),
    }
}

fn start(cli: Cli) -> ExitCode {
    // Two crypto back ends in one build would panic at the first TLS handshake, unless the used one is named.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        telemetry::say_failure("a TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            telemetry::say_failure(&ops::output::error_text(&error));
            if error.is::<ops::WrongUsage>() { ExitCode::from(WRONG_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Command::Config(command) = &cli.command {
        return show_config::run(command, cli.config.as_deref());
    }
    match &cli.command {
        Command::Completions(args) => return cli_files::completions(&mut Cli::command(), args),
        Command::Man(args) => return cli_files::man(Cli::command(), args),
        Command::Grants(args) => return ops::grants::run(args),
        _ => {}
    }
    let config = config::Config::load(cli.config.as_deref())?;
    telemetry::init(&config.log, role_of(&cli.command).is_some())?;
    // Short commands make no spans, and a wrong address of the collector must not stop an operator from using
    // them.
    let exporter = match role_of(&cli.command) {
        Some(role) => trace::start(&config.telemetry, role)?,
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        lifecycle::survive_full_files()?;
        Box::pin(execute(cli.command, config)).await
    });
    // All roles have had their grace time. A thread stuck in a blocking call must not delay the exit.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    if let Some(exporter) = exporter {
        exporter.end();
    }
    result
}

/// The role under which a long-running process appears in traces. `None` for short commands.
fn role_of(command: &Command) -> Option<&'static str> {
    match command {
        Command::Api => Some("api"),
        Command::Relay { command: None } => Some("relay"),
        Command::Sse => Some("sse"),
        Command::Dev(_) => Some("dev"),
        _ => None,
    }
}

async fn execute(command: Command, config: config::Config) -> anyhow::Result<()> {
    match command {
        Command::Api => roles::api::run(config).await,
        Command::Relay { command: None } => roles::relay::run(config).await,
        Command::Relay { command: Some(command) } => ops::relays::run(&config, &command).await,
        Command::Sse => roles::sse::run(config).await,
        Command::Dev(args) => roles::dev::run(config, args).await,
        Command::Migrate(args) => migrate::run(&config, args).await,
        Command::Token(args) => token::run(&config, &args),
        // Handled above, because these need no runtime.
        Command::Config(_) | Command::Completions(_) | Command::Man(_) | Command::Grants(_) => Ok(()),
        Command::Status(args) => ops::status::run(&config, &args).await,
        Command::Doctor(args) => ops::doctor::run(&config, &args).await,
        Command::Events(command) => ops::events::run(&config, &command).await,
        Command::Replay(args) => ops::replay::run(&config, &args).await,
        Command::Parked(command) => ops::parked::run(&config, &command).await,
        Command::Pause(args) => ops::pause::run(&config, &args, Wanted::Paused).await,
        Command::Resume(args) => ops::pause::run(&config, &args, Wanted::Running).await,
        Command::Revoke(args) => ops::revoke::run(&config, args).await,
        Command::Audit(args) => ops::audit::run(&config, &args).await,
        Command::Healthcheck => healthcheck::run(&config).await,
        Command::Rebase(args) => ops::rebase::run(&config, &args).await,
    }
}
