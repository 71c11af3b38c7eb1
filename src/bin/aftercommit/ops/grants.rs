//! `aftercommit grants`: prints the SQL, or the ACL of Redis, that grants each role the rights it needs, and
//! no others.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, bail};

use aftercommit::ops::rights::{self, Kind, Right, Role};
use aftercommit::redis::keys::{Keys, is_namespace};
use aftercommit::redis::rights::{self as redis_rights, RedisRole};

use super::{WrongUsage, output};

/// The largest length of a role's name in Postgres, in bytes. Longer names are cut off.
const NAME_BYTES_MAX: usize = 63;

/// The roles.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  aftercommit grants --writer app --relay relay --sse sse --operator ops |
      psql \"$DATABASE_URL\"
  aftercommit grants --writer orders --writer invoices
  aftercommit grants --redis --relay relay --sse sse --operator ops |
      redis-cli -u \"$REDIS_URL\"

Prints SQL for the schema's owner to run; it can be run again at any time. It
revokes all rights on the log from PUBLIC and grants each role the rights it
needs: a writer may append, and no more. The roles must exist and have the right
to connect. Name a role several times if it does several jobs: a relay that
serves the console is an operator too. `aftercommit doctor --role relay` checks
the result. Grant the right to rebase only for a rebase, and revoke it then.

With --redis, it prints one ACL SETUSER a user of Redis: each replaces the
user's rights and leaves its passwords. Writers need none. Keep the users with
ACL SAVE or CONFIG REWRITE. With --cluster, run the lines on all of its servers.")]
pub(crate) struct Args {
    /// Applications that append events.
    #[arg(long, value_name = "ROLE")]
    writer: Vec<String>,
    /// Relays.
    #[arg(long, value_name = "ROLE")]
    relay: Vec<String>,
    /// SSE servers.
    #[arg(long, value_name = "ROLE")]
    sse: Vec<String>,
    /// Operators: every command but rebase, and the console.
    #[arg(long, value_name = "ROLE")]
    operator: Vec<String>,
    /// The bundled upload application.
    #[arg(long, value_name = "ROLE")]
    api: Vec<String>,
    /// Operators who may rebase: it writes to the whole log.
    #[arg(long, value_name = "ROLE")]
    rebase: Vec<String>,
    /// Print the rights in Redis instead of those in Postgres.
    #[arg(long)]
    redis: bool,
    /// With --redis: the value of [redis] namespace.
    #[arg(long, value_name = "NAME", default_value = "", requires = "redis", hide_default_value = true)]
    namespace: String,
    /// With --redis: the rights in a cluster.
    #[arg(long, requires = "redis")]
    cluster: bool,
}

impl Args {
    fn roles(&self) -> [(Role, &[String]); 6] {
        [
            (Role::Writer, &self.writer),
            (Role::Relay, &self.relay),
            (Role::Sse, &self.sse),
            (Role::Operator, &self.operator),
            (Role::Api, &self.api),
            (Role::Rebase, &self.rebase),
        ]
    }
}

/// Prints the SQL, or the ACL.
pub(crate) fn run(args: &Args) -> Result<()> {
    let roles = args.roles();
    if roles.iter().all(|(_, names)| names.is_empty()) {
        bail!(WrongUsage(
            "name at least one role: --writer, --relay, --sse, --operator, --api or --rebase".into()
        ));
    }
    if args.redis {
        output::text(&acl(args)?);
        return Ok(());
    }
    let mut sql = String::from(
        "-- The rights that each role of aftercommit needs, and no others. Run it as the owner \
         of the schema.\n\
         begin;\n\
         revoke all on schema outbox from public;\n\
         revoke all on all tables in schema outbox from public;\n\
         revoke all on all sequences in schema outbox from public;\n\
         revoke all on all functions in schema outbox from public;\n",
    );
    for (role, names) in roles {
        for name in names {
            grant(&mut sql, role, name)?;
        }
    }
    sql.push_str("commit;\n");
    output::text(&sql);
    Ok(())
}

/// One command for each user of Redis.
fn acl(args: &Args) -> Result<String> {
    if !args.writer.is_empty() || !args.api.is_empty() {
        bail!(WrongUsage("writers and the api need no rights in Redis: leave --writer and --api out".into()));
    }
    if !is_namespace(&args.namespace) {
        let why = format!("'{}' is not a namespace: use at most 60 of A-Z a-z 0-9 . _ -", args.namespace);
        bail!(WrongUsage(why.into()));
    }
    let names = Keys::new(&args.namespace);
    let mut acl = String::new();
    for (role, users) in [
        (RedisRole::Relay, &args.relay),
        (RedisRole::Sse, &args.sse),
        (RedisRole::Operator, &args.operator),
        // It claims an epoch, as a relay does.
        (RedisRole::Relay, &args.rebase),
    ] {
        for user in users {
            if user.is_empty() || !user.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'".contains(&byte))
            {
                let why =
                    format!("'{user}' is not a user of Redis: use letters, digits and signs but quotes");
                bail!(WrongUsage(why.into()));
            }
            writeln!(acl, "ACL SETUSER {user} {}", redis_rights::rules(role, &names, args.cluster))?;
        }
    }
    Ok(acl)
}

/// A role's name, quoted for SQL.
fn quoted(name: &str) -> Result<String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let why = format!(
            "'{name}' is not a role's name: use 1 to {NAME_BYTES_MAX} bytes, without control characters"
        );
        bail!(WrongUsage(why.into()));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

fn grant(sql: &mut String, role: Role, raw: &str) -> Result<()> {
    let name = &quoted(raw)?;
    let (of_database, of_schemas): (Vec<Right>, Vec<Right>) =
        rights::of(role).into_iter().partition(|right| right.kind == Kind::Database);
    let (of_log, of_others): (Vec<Right>, Vec<Right>) =
        of_schemas.into_iter().partition(|right| right.schema == "outbox");
    writeln!(sql, "\n-- {role}: {name}")?;
    for line in lines(&of_log, name) {
        writeln!(sql, "{line}")?;
    }
    for right in of_database {
        grant_on_database(sql, right.privilege, raw)?;
    }
    if of_others.is_empty() {
        return Ok(());
    }
    let tag = tag(name);
    writeln!(sql, "do {tag} begin\n  -- The schema of the bundled application, if there is one.")?;
    writeln!(sql, "  if to_regnamespace('uploads') is not null then")?;
    for line in lines(&of_others, name) {
        writeln!(sql, "    {line}")?;
    }
    writeln!(sql, "  end if;\nend {tag};")?;
    Ok(())
}

/// A right on the database in which the SQL is run. It is granted only where it is missing: every role has it
/// unless somebody has taken it from PUBLIC, and the schema's owner need not own the database.
fn grant_on_database(sql: &mut String, privilege: &str, raw: &str) -> Result<()> {
    let (tag, role) = (tag(raw), raw.replace('\'', "''"));
    writeln!(
        sql,
        "do {tag} begin\n  \
           if not has_database_privilege('{role}', current_database(), '{privilege}') then\n    \
             execute format('grant {privilege} on database %I to %I', current_database(), '{role}');\n  \
           end if;\nend {tag};"
    )?;
    Ok(())
}

/// One statement for each object, with all rights on it.
fn lines(rights: &[Right], name: &str) -> Vec<String> {
    let mut objects: BTreeMap<(Kind, &str, &str), Vec<String>> = BTreeMap::new();
    for right in rights {
        let on = objects.entry((right.kind, right.schema, &right.object)).or_default();
        let columns = if right.columns.is_empty() { String::new() } else { format!(" ({})", right.columns) };
        on.push(format!("{}{columns}", right.privilege));
    }
    let statement = |((kind, schema, object), privileges): (&(Kind, &str, &str), &Vec<String>)| {
        let dot = if object.is_empty() { "" } else { "." };
        format!("grant {} on {kind} {schema}{dot}{object} to {name};", privileges.join(", "))
    };
    objects.iter().map(statement).collect()
}

/// A dollar-quoting tag that does not occur in the text.
fn tag(text: &str) -> String {
    let mut tag = "$grants$".to_owned();
    while text.contains(&tag) {
        tag.insert(1, '_');
    }
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_quoted_whatever_it_holds() {
        assert_eq!(quoted("app").expect("a name"), "\"app\"");
        assert_eq!(quoted("we\"ird; drop").expect("a name"), "\"we\"\"ird; drop\"");
        assert!(quoted("").is_err() && quoted(&"x".repeat(64)).is_err() && quoted("a\nb").is_err());
        assert_eq!(tag("$grants$$_grants$"), "$__grants$");
    }

    #[test]
    fn privileges_on_one_object_stand_in_one_statement() {
        let lines = lines(&rights::of(Role::Operator), "\"ops\"");
        let has = |line: &str| assert!(lines.iter().any(|known| known == line), "{line}: {lines:#?}");
        has("grant usage on schema outbox to \"ops\";");
        has("grant insert (event_id, topic, type, payload, headers, bytes), \
             select on table outbox.event to \"ops\";");
        has("grant select, update (requested) on table outbox.parked to \"ops\";");
    }
}
