//! `aftercommit migrate`: applies the schema of the outbox and, if asked for, that of the upload application.

use anyhow::{Context, Result};
use sqlx::Connection;

use aftercommit::log;
use aftercommit::pluralize::pluralize;
use aftercommit::postgres::Schema;
use aftercommit::{outbox, uploads};

use crate::config::Config;
use crate::ops::output;

/// The schemas to apply.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
#[command(after_help = "Examples:
  DATABASE_URL=postgres://u:p@db:5432/app aftercommit migrate
  aftercommit migrate --print > V1__outbox.sql

Applies the schema `outbox`, and nothing else. The bundled upload application
has a schema of its own, `uploads`, which only it needs: --uploads applies it
too, and so does `aftercommit api` when it starts.

--print is for teams whose own tool applies all SQL. Afterwards, `aftercommit
migrate` finds the schema as if it had applied it.")]
pub(crate) struct Args {
    /// Apply the bundled upload application's schema as well.
    #[arg(long)]
    pub(crate) uploads: bool,
    /// Print the SQL for a database without the schema.
    #[arg(long)]
    pub(crate) print: bool,
}

/// Applies missing migrations, and prints their number.
pub(crate) async fn run(config: &Config, args: Args) -> Result<()> {
    let (log, redis) = (&config.outbox, &config.redis);
    log::rotate::check(log.retention_seconds, redis.history_ttl_seconds, log.rotation_seconds)?;
    if args.print {
        print(log.rotation_seconds, args.uploads);
        return Ok(());
    }
    apply(config, &outbox::schema::SCHEMA).await?;
    if args.uploads {
        apply(config, &uploads::schema::SCHEMA).await?;
    }
    let mut connection = config.database.connect("aftercommit migrate").await?;
    outbox::schema::set_rotation(&mut connection, config.outbox.rotation_seconds)
        .await
        .context("cannot set how often the log rotates")?;
    connection.close().await?;
    Ok(())
}

fn print(rotation_seconds: u32, uploads: bool) {
    output::text(&outbox::schema::SCHEMA.sql());
    output::text(&format!("\n{};\n", outbox::schema::rotation_sql(rotation_seconds)));
    if uploads {
        output::text(&format!("\n{}", uploads::schema::SCHEMA.sql()));
    }
}

async fn apply(config: &Config, schema: &Schema) -> Result<()> {
    // Each schema has a connection of its own: after an error it may still hold the migration lock, which
    // closing it releases.
    let mut connection = config.database.connect("aftercommit migrate").await?;
    let applied = schema.apply(&mut connection).await?;
    connection.close().await?;
    let what = match applied {
        0 => "up to date".to_owned(),
        n => format!("applied {}", pluralize(n as u64, "migration")),
    };
    note!("schema {}: {what}", schema.name);
    Ok(())
}
