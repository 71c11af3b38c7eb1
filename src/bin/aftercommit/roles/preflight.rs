//! Checks before a process serves. An error that only a person can fix ends the process at once, with a
//! sentence. A server that is away is waited for.

use anyhow::Result;
use sqlx::Connection;

use aftercommit::postgres::{self, ConnectError, Schema, SchemaError};
use aftercommit::redis;

/// Checks Postgres's address, login and schemas, if it answers at all.
pub(super) async fn postgres(settings: &postgres::Settings, role: &str, schemas: &[&Schema]) -> Result<()> {
    let mut connection = match settings.connect(role).await {
        Ok(connection) => connection,
        Err(error) if is_away(&error) => {
            tracing::warn!(%error, "starting without Postgres; trying again until it is there");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    for schema in schemas {
        match schema.check(&mut connection).await {
            Err(SchemaError::Database(error)) if !is_for_a_person(&error) => {
                tracing::warn!(
                    error = postgres::error_text(&error),
                    "Postgres went away at the start; trying again"
                );
                return Ok(());
            }
            checked => {
                checked?;
            }
        }
    }
    // The result of closing does not matter: the connection is not used again.
    drop(connection.close().await);
    Ok(())
}

/// Applies the schema that only this process uses, if it is missing and Postgres answers.
pub(super) async fn apply(settings: &postgres::Settings, role: &str, schema: &Schema) -> Result<()> {
    let mut connection = match settings.connect(role).await {
        Ok(connection) => connection,
        // The check of Postgres before this one has logged it.
        Err(error) if is_away(&error) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let Err(missing @ (SchemaError::Missing { .. } | SchemaError::Behind { .. })) =
        schema.check(&mut connection).await
    else {
        // The check of all schemas reports every other problem.
        return postgres(settings, role, &[schema]).await;
    };
    // A user without the right to create a schema learns which command a user with that right must run.
    let applied = schema
        .apply(&mut connection)
        .await
        .map_err(|error| anyhow::Error::new(missing).context(format!("this user may not do it: {error}")))?;
    drop(connection.close().await);
    tracing::info!(schema = schema.name, migrations = applied, "applied the schema");
    Ok(())
}

/// Checks Redis's address and login, if it answers at all.
pub(super) async fn redis(settings: &redis::Settings) -> Result<()> {
    match settings.look_up().await {
        Ok(()) => Ok(()),
        Err(redis::ConnectError::Refused { address, source, .. })
            if source.is_io_error() || source.is_timeout() || source.is_connection_dropped() =>
        {
            tracing::warn!(
                %address,
                error = redis::error_text(&source),
                "starting without Redis; trying again until it is there"
            );
            Ok(())
        }
        Err(redis::ConnectError::Undecided(source))
            if !matches!(source.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM")) =>
        {
            let error = redis::error_text(&source);
            tracing::warn!(%error, "starting without Redis; trying again until it answers");
            Ok(())
        }
        Err(
            error @ (redis::ConnectError::Sentinels(
                redis::SentinelError::Silent(_) | redis::SentinelError::Unknown(_),
            )
            | redis::ConnectError::NotPrimary { .. }
            | redis::ConnectError::NoSlots(_)
            | redis::ConnectError::Password(_)),
        ) => {
            tracing::warn!(%error, "starting without Redis; trying again until it is there");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether waiting may help. A refused login or a missing database needs a person.
fn is_away(error: &ConnectError) -> bool {
    match error {
        ConnectError::NoUrl
        | ConnectError::Url(_)
        | ConnectError::Hosts
        | ConnectError::WantsAStandby
        | ConnectError::Parameter { .. }
        | ConnectError::Tls(_)
        | ConnectError::TwoPasswords
        | ConnectError::Pooled { .. } => false,
        // The program may ask a server that is away.
        ConnectError::Timeout { .. } | ConnectError::NoPrimary { .. } | ConnectError::Password(_) => true,
        ConnectError::Refused { source, .. } => !is_for_a_person(source) && !postgres::is_tls(source),
    }
}

fn is_for_a_person(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("28P01" | "28000" | "3D000" | "42501"))
}
