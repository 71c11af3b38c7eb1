//! Checks of rights in Postgres: missing rights, excessive rights, and rows that are hidden from a role.

use anyhow::Result;
use sqlx::PgConnection;

use aftercommit::ops::held_rights;
use aftercommit::ops::rights::Role;

use super::Finding;

/// The largest number of rights that are named. Further ones are counted.
const NAMED: usize = 5;
/// The largest number of rights that are granted one by one: a role that lacks more lacks all.
const SINGLE_GRANTS: usize = 2;

/// The rights that these roles need and this connection's user lacks.
pub(super) async fn examine(connection: &mut PgConnection, roles: &[Role]) -> Result<Vec<Finding>> {
    let user: String = sqlx::query_scalar("select current_user::text").fetch_one(&mut *connection).await?;
    let mut findings = Vec::new();
    for role in roles {
        let missing = held_rights::missing(connection, *role).await?;
        findings.push(if missing.is_empty() {
            Finding::ok("privileges", format!("{user} has all rights that the role {role} needs"))
        } else {
            let named: Vec<String> = missing.iter().take(NAMED).map(|right| format!("{right}")).collect();
            let more = missing.len().saturating_sub(NAMED);
            let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
            Finding::wrong(
                "privileges",
                format!("{user} lacks rights that the role {role} needs: {}{rest}", named.join(", ")),
                format!("as the owner of the schema: {}", mend(&missing, *role, &user)),
            )
        });
    }
    findings.push(hidden_rows(connection).await?);
    Ok(findings)
}

/// Grants a few rights one by one, and otherwise all of the role.
fn mend(missing: &[impl std::fmt::Display], role: Role, user: &str) -> String {
    let all = format!("`aftercommit grants --{role} {user} | psql`");
    if missing.len() > SINGLE_GRANTS {
        return all;
    }
    let grants = missing.iter().map(|right| format!("`grant {right} to {};`", quoted(user)));
    format!("{all}, or {}", grants.collect::<Vec<_>>().join(" "))
}

fn quoted(user: &str) -> String {
    format!("\"{}\"", user.replace('"', "\"\""))
}

/// Row level security on tables of the log. It hides rows silently.
async fn hidden_rows(connection: &mut PgConnection) -> Result<Finding> {
    let tables: Option<String> = sqlx::query_scalar(
        "select string_agg(c.relname::text, ', ' order by c.relname)
         from pg_catalog.pg_class c
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'outbox'
         where c.relkind in ('r', 'p') and c.relrowsecurity",
    )
    .fetch_one(connection)
    .await?;
    let Some(tables) = tables else { return Ok(Finding::ok("row level security", "off for the log")) };
    let first = tables.split(", ").next().unwrap_or_default();
    Ok(Finding::wrong(
        "row level security",
        format!(
            "on for {tables}: other roles than the owner see no rows there, and so lose events or miss a \
             pause"
        ),
        format!("switch it off for each: alter table outbox.{first} disable row level security"),
    ))
}

/// Excessive rights of others on the log, and places where others could create objects that the log's
/// functions would call.
pub(super) async fn dangers(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let rights = held_rights::excessive(connection).await?;
    let is_writable: bool = sqlx::query_scalar(
        "select exists (
           select from pg_catalog.pg_namespace n cross join lateral pg_catalog.aclexplode(n.nspacl) a
           where n.nspname = 'public' and a.grantee = 0::oid and a.privilege_type = 'CREATE')",
    )
    .fetch_one(connection)
    .await?;
    let evidence = if rights.is_empty() {
        "only those that `aftercommit grants` gives".to_owned()
    } else {
        rights.join(", ")
    };
    Ok(vec![
        Finding::should(
            "rights on the log",
            rights.is_empty(),
            evidence,
            "revoke them: a role that sets a row's id or removes rows can stop every topic. Writers need \
             only outbox.append: aftercommit grants --writer",
        ),
        Finding::should(
            "schema public",
            !is_writable,
            if is_writable {
                "every role may create objects in it"
            } else {
                "only some roles may create objects in it"
            },
            "revoke create on schema public from public: a function that others create there runs with the \
             rights of its caller",
        ),
    ])
}
