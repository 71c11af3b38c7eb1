//! What roles may do in Postgres: too little, too much, and rows that are hidden from them.

use anyhow::Result;
use sqlx::PgConnection;

use aftercommit::ops::rights::{self, Role};

use super::Finding;

/// The rights that are named one by one; more are counted.
const NAMED: usize = 12;

/// What these roles need and this connection's user does not have.
pub(super) async fn examine(connection: &mut PgConnection, roles: &[Role]) -> Result<Vec<Finding>> {
    let user: String = sqlx::query_scalar("select current_user::text").fetch_one(&mut *connection).await?;
    let mut findings = Vec::new();
    for role in roles {
        let missing = rights::missing(connection, *role).await?;
        findings.push(if missing.is_empty() {
            Finding::ok("privileges", format!("{user} may do all that a role {role} does"))
        } else {
            let named: Vec<String> = missing.iter().take(NAMED).map(|right| format!("{right}")).collect();
            let more = missing.len().saturating_sub(NAMED);
            let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
            let grants: Vec<String> = missing
                .iter()
                .take(NAMED)
                .map(|right| format!("grant {right} to {};", quoted(&user)))
                .collect();
            Finding::wrong(
                "privileges",
                format!("{user} lacks what a role {role} needs: {}{rest}", named.join(", ")),
                format!(
                    "as the owner of the schema: aftercommit grants --{role} {user} | psql; or {}",
                    grants.join(" ")
                ),
            )
        });
    }
    findings.push(hidden_rows(connection).await?);
    Ok(findings)
}

fn quoted(user: &str) -> String {
    format!("\"{}\"", user.replace('"', "\"\""))
}

/// Row level security on tables of the log. It hides rows where an error would be right.
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
            "on for {tables}: roles other than the owner see no rows there, and lose events or miss a pause"
        ),
        format!("switch it off for each: alter table outbox.{first} disable row level security"),
    ))
}

/// What others may do to the log, and where they may plant what the log's functions could call.
pub(super) async fn dangers(connection: &mut PgConnection) -> Result<Vec<Finding>> {
    let rights = rights::dangerous(connection).await?;
    let is_writable: bool = sqlx::query_scalar(
        "select exists (
           select from pg_catalog.pg_namespace n cross join lateral pg_catalog.aclexplode(n.nspacl) a
           where n.nspname = 'public' and a.grantee = 0::oid and a.privilege_type = 'CREATE')",
    )
    .fetch_one(connection)
    .await?;
    let evidence = if rights.is_empty() { "none but those of grants".to_owned() } else { rights.join(", ") };
    Ok(vec![
        Finding::should(
            "rights on the log",
            rights.is_empty(),
            evidence,
            "revoke them: who sets a row's id or takes rows away stops every topic. Writers need outbox.append alone: aftercommit grants --writer",
        ),
        Finding::should(
            "schema public",
            !is_writable,
            if is_writable {
                "every role may create objects in it"
            } else {
                "not everybody may create objects in it"
            },
            "revoke create on schema public from public: what others plant there runs with the rights of whoever calls it",
        ),
    ])
}
