//! A schema that this crate owns in another's database: applies its migrations, and tells whether they are
//! applied.
//!
//! Each schema holds its own migration table, so that it does not interfere with other schemas' migrations.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, PgConnection};

use super::error_text;

/// The oldest Postgres that has the functions which the schemas use, as `server_version_num`.
const OLDEST: i32 = 130_000;

/// A schema and the migrations that make it.
#[derive(Debug)]
pub struct Schema {
    /// The schema's name. It becomes part of SQL text, so it must be a literal.
    pub name: &'static str,
    /// Its migrations in order.
    pub migrator: &'static Migrator,
    /// The command that applies them, for messages.
    pub command: &'static str,
}

/// How a database's schema compares with this binary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The schema is missing.
    Missing,
    /// Some migrations are missing.
    Behind {
        /// The newest migration applied.
        applied: i64,
        /// The newest migration that this binary knows.
        known: i64,
    },
    /// The schema is at this binary's version.
    Current {
        /// The newest migration.
        version: i64,
    },
    /// A newer binary has migrated the schema, and has kept everything that this binary uses.
    Serves {
        /// The newest migration applied.
        applied: i64,
        /// The newest migration that this binary knows.
        known: i64,
    },
    /// A newer binary has migrated the schema, and has removed something that this binary uses.
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
    #[error("the schema '{schema}' is missing in this database: run `{command}`")]
    Missing {
        /// The schema.
        schema: &'static str,
        /// The command that applies it.
        command: &'static str,
    },
    /// See [`State::Behind`].
    #[error("the schema '{schema}' is at version {applied} and this binary needs {known}: run `{command}`")]
    Behind {
        /// The schema.
        schema: &'static str,
        /// The command that brings it up to date.
        command: &'static str,
        /// The newest migration applied.
        applied: i64,
        /// The newest migration that this binary knows.
        known: i64,
    },
    /// See [`State::Ahead`].
    #[error(
        "the schema '{schema}' is at version {applied}, newer than this binary knows ({known}): run the \
         aftercommit that migrated it, or a newer one"
    )]
    Ahead {
        /// The schema.
        schema: &'static str,
        /// The newest migration applied.
        applied: i64,
        /// The newest migration that this binary knows.
        known: i64,
    },
    /// The role may not ask whether a newer schema serves this binary.
    #[error(
        "the schema '{schema}' is at version {applied}, newer than this binary knows ({known}), and this \
         user may not ask whether it serves it: grant execute on function {schema}.serves_from()"
    )]
    NotAllowed {
        /// The schema.
        schema: &'static str,
        /// The newest migration applied.
        applied: i64,
        /// The newest migration that this binary knows.
        known: i64,
    },
    /// The server is older than the schemas allow.
    #[error("this server is PostgreSQL {0}, and version 13 is the oldest that works: upgrade the server")]
    OldServer(String),
    /// The database has the encoding SQL_ASCII, under which text may be anything.
    #[error(
        "this database has the encoding SQL_ASCII, so its text may be anything and cannot be delivered: \
         create one with `encoding 'UTF8' template template0` (any other encoding than SQL_ASCII does)"
    )]
    Encoding,
    /// A migration failed, and was rolled back.
    #[error("migrating the schema '{schema}' failed: {source}")]
    Migrate {
        /// The schema.
        schema: &'static str,
        /// The cause.
        source: MigrateError,
    },
    /// Postgres failed, or the connection broke.
    #[error("Postgres: {}", error_text(.0))]
    Database(#[from] sqlx::Error),
}

impl Schema {
    /// Applies the missing migrations and returns their number. Many hosts may call it at once: they take
    /// turns by a lock.
    ///
    /// Call it on a connection of its own and close that afterwards: after an error the connection may still
    /// hold the lock.
    ///
    /// # Errors
    /// Returns [`SchemaError::OldServer`] if the server is older than PostgreSQL 13,
    /// [`SchemaError::Ahead`] if a newer binary has removed something that this one uses,
    /// [`SchemaError::NotAllowed`] if the role may not ask for that, [`SchemaError::Encoding`] if the
    /// database has the encoding SQL_ASCII, [`SchemaError::Migrate`] if a migration fails, and
    /// [`SchemaError::Database`] if Postgres fails otherwise.
    pub async fn apply(&self, connection: &mut PgConnection) -> Result<usize, SchemaError> {
        let before = self.state(connection).await?;
        match before {
            State::Ahead { applied, known } => {
                return Err(SchemaError::Ahead { schema: self.name, applied, known });
            }
            State::Current { .. } | State::Serves { .. } => return Ok(0),
            State::Missing | State::Behind { .. } => {}
        }
        let encoding = "select pg_catalog.getdatabaseencoding()::text";
        if sqlx::query_scalar::<_, String>(encoding).fetch_one(&mut *connection).await? == "SQL_ASCII" {
            return Err(SchemaError::Encoding);
        }
        // Else each run after the first would report that the schema and the table of migrations exist.
        sqlx::raw_sql("set client_min_messages = warning").execute(&mut *connection).await?;
        let mut migrator = Migrator::with_migrations(self.migrator.migrations.to_vec());
        migrator.dangerous_set_table_name(self.table());
        migrator.create_schema(self.name);
        match migrator.run(&mut *connection).await {
            Ok(()) => {}
            // A newer binary was faster, and has applied migrations that this one does not know.
            Err(MigrateError::VersionMissing(_)) => return self.check(connection).await.map(|_| 0),
            Err(source) => return Err(SchemaError::Migrate { schema: self.name, source }),
        }
        let had = match before {
            State::Behind { applied, .. } => applied,
            _ => 0,
        };
        Ok(self.migrator.iter().filter(|m| m.version > had).count())
    }

    /// The SQL that makes the schema in a database that does not have it, for tools that apply SQL themselves.
    /// It is one transaction, and notes its migrations as [`Schema::apply`] does.
    pub fn sql(&self) -> String {
        let table = self.table();
        let mut sql = format!(
            "begin;\ncreate schema {};\ncreate table {table} (\n  version bigint primary key,\n  \
             description text not null,\n  installed_on timestamptz not null default now(),\n  success boolean \
             not null,\n  checksum bytea not null,\n  execution_time bigint not null\n);\n\n",
            self.name
        );
        for migration in self.migrator.iter() {
            let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
            sql.push_str(&format!(
                "{}\ninsert into {table} (version, description, success, checksum, execution_time)\n\
                 values ({}, '{}', true, '\\x{checksum}', 0);\n",
                migration.sql.as_str(),
                migration.version,
                migration.description.replace('\'', "''"),
            ));
        }
        sql + "commit;\n"
    }

    /// Checks that this binary can work with the schema, and returns the schema's state.
    ///
    /// # Errors
    /// Returns [`SchemaError::Missing`], [`SchemaError::Behind`] or [`SchemaError::Ahead`] for the states of
    /// those names, and else fails as [`Schema::state`].
    pub async fn check(&self, connection: &mut PgConnection) -> Result<State, SchemaError> {
        let schema = self.name;
        match self.state(connection).await? {
            fit @ (State::Current { .. } | State::Serves { .. }) => Ok(fit),
            State::Missing => Err(SchemaError::Missing { schema, command: self.command }),
            State::Behind { applied, known } => {
                Err(SchemaError::Behind { schema, command: self.command, applied, known })
            }
            State::Ahead { applied, known } => Err(SchemaError::Ahead { schema, applied, known }),
        }
    }

    /// Compares the database's schema with this binary's migrations.
    ///
    /// # Errors
    /// Returns [`SchemaError::OldServer`] if the server is older than PostgreSQL 13,
    /// [`SchemaError::NotAllowed`] if the schema is newer and the role may not ask whether it serves this
    /// binary, and [`SchemaError::Database`] if Postgres refuses a statement or the connection breaks.
    pub async fn state(&self, connection: &mut PgConnection) -> Result<State, SchemaError> {
        check_version(connection).await?;
        let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(self.table())
            .fetch_one(&mut *connection)
            .await?;
        if !exists {
            return Ok(State::Missing);
        }
        let table = self.table();
        let newest = format!("select max(version) from {table} where success");
        let applied: Option<i64> =
            sqlx::query_scalar(AssertSqlSafe(newest)).fetch_one(&mut *connection).await?;
        let Some(applied) = applied else { return Ok(State::Missing) };
        let known = self.migrator.iter().map(|m| m.version).max().unwrap_or(0);
        Ok(match applied.cmp(&known) {
            std::cmp::Ordering::Less => State::Behind { applied, known },
            std::cmp::Ordering::Equal => State::Current { version: known },
            std::cmp::Ordering::Greater if self.serves(connection, applied, known).await? => {
                State::Serves { applied, known }
            }
            std::cmp::Ordering::Greater => State::Ahead { applied, known },
        })
    }

    /// Whether a binary that knows the schema up to version `known` works with the newer schema. Only the
    /// newest migration knows, so the schema is asked. A schema without `serves_from()` makes no
    /// compatibility promise.
    async fn serves(
        &self,
        connection: &mut PgConnection,
        applied: i64,
        known: i64,
    ) -> Result<bool, SchemaError> {
        let function = format!("{}.serves_from()", self.name);
        let may_ask: Option<bool> =
            sqlx::query_scalar("select has_function_privilege(to_regprocedure($1), 'execute')")
                .bind(&function)
                .fetch_one(&mut *connection)
                .await?;
        match may_ask {
            None => return Ok(false),
            Some(false) => return Err(SchemaError::NotAllowed { schema: self.name, applied, known }),
            Some(true) => {}
        }
        let from: i64 =
            sqlx::query_scalar(AssertSqlSafe(format!("select {function}"))).fetch_one(connection).await?;
        Ok(from <= known)
    }

    fn table(&self) -> String {
        format!("{}.migration", self.name)
    }
}

/// Checks that the server is new enough for the schemas.
///
/// # Errors
/// Returns [`SchemaError::OldServer`] if it is older than PostgreSQL 13, and [`SchemaError::Database`] if
/// Postgres refuses the statement or the connection breaks.
pub async fn check_version(connection: &mut PgConnection) -> Result<(), SchemaError> {
    let (number, version): (i32, String) = sqlx::query_as(
        "select pg_catalog.current_setting('server_version_num')::int4,
                pg_catalog.current_setting('server_version')",
    )
    .fetch_one(connection)
    .await?;
    if number < OLDEST { Err(SchemaError::OldServer(version)) } else { Ok(()) }
}
