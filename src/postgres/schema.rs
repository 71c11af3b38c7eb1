//! A schema that this crate owns in somebody's database: applying its migrations, and telling whether they are there.
//!
//! Each schema keeps its own migration table inside itself, so that it disturbs nobody else's.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, PgConnection};

use super::said;

/// A schema and the migrations that make it.
#[derive(Debug)]
pub struct Schema {
    /// The schema's name. Part of SQL text, so never anything but a literal.
    pub name: &'static str,
    /// Its migrations in order.
    pub migrator: &'static Migrator,
}

/// How a database's schema compares with this binary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is not there.
    Missing,
    /// Migrations are missing.
    Behind {
        /// The newest migration applied.
        applied: i64,
        /// The newest migration that this binary knows.
        known: i64,
    },
    /// It is as this binary wants it.
    Current {
        /// The newest migration.
        version: i64,
    },
    /// A newer binary has migrated it, and left to this one all that it uses.
    Serves {
        /// The newest migration applied.
        applied: i64,
        /// The newest migration that this binary knows.
        known: i64,
    },
    /// A newer binary has migrated it, and taken away something that this one uses.
    Ahead {
        /// The newest migration applied.
        applied: i64,
        /// The newest migration that this binary knows.
        known: i64,
    },
}

/// Why a schema cannot be used or migrated.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// See [`State::Missing`].
    #[error("the schema '{0}' is missing in this database: run `aftercommit migrate`")]
    Missing(&'static str),
    /// See [`State::Behind`].
    #[error(
        "the schema '{schema}' is at version {applied} and this binary needs {known}: run `aftercommit migrate`"
    )]
    Behind {
        /// The schema.
        schema: &'static str,
        /// The newest migration applied.
        applied: i64,
        /// The newest migration that this binary knows.
        known: i64,
    },
    /// See [`State::Ahead`].
    #[error(
        "the schema '{schema}' is at version {applied}, newer than this binary knows ({known}): run the aftercommit that \
         migrated it, or a newer one"
    )]
    Ahead {
        /// The schema.
        schema: &'static str,
        /// The newest migration applied.
        applied: i64,
        /// The newest migration that this binary knows.
        known: i64,
    },
    /// A migration failed; nothing of it remains.
    #[error("migrating the schema '{schema}' failed: {source}")]
    Migrate {
        /// The schema.
        schema: &'static str,
        /// The cause.
        source: MigrateError,
    },
    /// Postgres failed.
    #[error("Postgres: {}", said(.0))]
    Database(#[from] sqlx::Error),
}

impl Schema {
    /// Applies what is missing and returns how many migrations that were. Safe to run from many hosts at once: a lock
    /// lets them follow each other.
    ///
    /// Give it a connection of its own and close it afterwards: after an error it may still hold that lock.
    ///
    /// # Errors
    /// [`SchemaError::Ahead`], [`SchemaError::Migrate`], [`SchemaError::Database`].
    pub async fn apply(&self, connection: &mut PgConnection) -> Result<usize, SchemaError> {
        let before = self.state(connection).await?;
        match before {
            State::Ahead { applied, known } => {
                return Err(SchemaError::Ahead { schema: self.name, applied, known });
            }
            State::Current { .. } | State::Serves { .. } => return Ok(0),
            State::Missing | State::Behind { .. } => {}
        }
        // Or each run after the first would report that the schema and the table of migrations are there already.
        sqlx::raw_sql("set client_min_messages = warning").execute(&mut *connection).await?;
        let mut migrator = Migrator::with_migrations(self.migrator.migrations.to_vec());
        migrator.dangerous_set_table_name(self.table());
        migrator.create_schema(self.name);
        migrator
            .run(&mut *connection)
            .await
            .map_err(|source| SchemaError::Migrate { schema: self.name, source })?;
        let had = match before {
            State::Behind { applied, .. } => applied,
            _ => 0,
        };
        Ok(self.migrator.iter().filter(|m| m.version > had).count())
    }

    /// Makes sure that this binary can work with the schema, and returns how it found it.
    ///
    /// # Errors
    /// [`SchemaError::Missing`], [`SchemaError::Behind`], [`SchemaError::Ahead`], [`SchemaError::Database`].
    pub async fn check(&self, connection: &mut PgConnection) -> Result<State, SchemaError> {
        let schema = self.name;
        match self.state(connection).await? {
            fit @ (State::Current { .. } | State::Serves { .. }) => Ok(fit),
            State::Missing => Err(SchemaError::Missing(schema)),
            State::Behind { applied, known } => Err(SchemaError::Behind { schema, applied, known }),
            State::Ahead { applied, known } => Err(SchemaError::Ahead { schema, applied, known }),
        }
    }

    /// Compares the database's schema with this binary's.
    ///
    /// # Errors
    /// Postgres's.
    pub async fn state(&self, connection: &mut PgConnection) -> Result<State, sqlx::Error> {
        let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(self.table())
            .fetch_one(&mut *connection)
            .await?;
        if !exists {
            return Ok(State::Missing);
        }
        let newest = format!("select max(version) from {} where success", self.table());
        let applied: Option<i64> =
            sqlx::query_scalar(AssertSqlSafe(newest)).fetch_one(&mut *connection).await?;
        let Some(applied) = applied else { return Ok(State::Missing) };
        let known = self.migrator.iter().map(|m| m.version).max().unwrap_or(0);
        Ok(match applied.cmp(&known) {
            std::cmp::Ordering::Less => State::Behind { applied, known },
            std::cmp::Ordering::Equal => State::Current { version: known },
            std::cmp::Ordering::Greater if self.serves_from(connection).await? <= known => {
                State::Serves { applied, known }
            }
            std::cmp::Ordering::Greater => State::Ahead { applied, known },
        })
    }

    /// The oldest version such that a binary which knows it works with the schema as it is now. Asked of the schema, as only
    /// its newest migration can know.
    async fn serves_from(&self, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let asked = format!("select {}.serves_from()", self.name);
        sqlx::query_scalar(AssertSqlSafe(asked)).fetch_one(connection).await
    }

    fn table(&self) -> String {
        format!("{}.migration", self.name)
    }
}
