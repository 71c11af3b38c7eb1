//! The rights that the database's roles have: those that one of ours lacks, and those that nobody needs.

use sqlx::{PgConnection, Row};

use super::rights::{EVERYDAY, Kind, Right, Role, of};
use crate::log::Error;

/// Returns the rights of a role that this connection's user does not have. A right on an object that does not
/// exist, such as the schema of an application that is not installed, does not count as missing.
///
/// # Errors
/// [`Error`].
pub async fn missing(connection: &mut PgConnection, role: Role) -> Result<Vec<Right>, Error> {
    let rights = of(role);
    let columns: Vec<&str> = rights.iter().map(|right| right.columns).collect();
    let text = |of: fn(&Right) -> String| rights.iter().map(of).collect::<Vec<String>>();
    // Looked up in the catalogs: casts to regclass fail for a user who may not look into the schema.
    let rows = sqlx::query(
        "select needed.nth, pg_catalog.quote_ident(pg_catalog.current_database()) as database
         from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) with ordinality
                needed (kind, schema, object, privilege, columns, nth)
         join pg_catalog.pg_namespace n on n.nspname = needed.schema::name
         left join pg_catalog.pg_class c
           on needed.kind in ('table', 'sequence') and c.relnamespace = n.oid
             and c.relname = needed.object::name
         left join pg_catalog.pg_proc p
           on needed.kind = 'function' and p.pronamespace = n.oid
           and pg_catalog.format('%s(%s)', p.proname, pg_catalog.oidvectortypes(p.proargtypes))
               = needed.object
         where not case
           when needed.kind = 'database'
             then pg_catalog.has_database_privilege(pg_catalog.current_database(), needed.privilege)
           when needed.kind = 'schema' then pg_catalog.has_schema_privilege(n.oid, needed.privilege)
           when needed.kind = 'sequence'
             then coalesce(pg_catalog.has_sequence_privilege(c.oid, needed.privilege), true)
           when needed.kind = 'function'
             then coalesce(pg_catalog.has_function_privilege(p.oid, needed.privilege), true)
           when needed.columns = ''
             then coalesce(pg_catalog.has_table_privilege(c.oid, needed.privilege), true)
           else coalesce((
             select pg_catalog.bool_and(pg_catalog.has_column_privilege(c.oid, a.attnum, needed.privilege))
             from pg_catalog.pg_attribute a
             where a.attrelid = c.oid
               and a.attname = any (pg_catalog.string_to_array(needed.columns, ', ')::name[])), true)
         end
         order by needed.nth",
    )
    .bind(text(|right| right.kind.to_string()))
    .bind(text(|right| right.schema.to_owned()))
    .bind(text(|right| right.object.clone()))
    .bind(text(|right| right.privilege.to_owned()))
    .bind(columns)
    .fetch_all(connection)
    .await?;
    let mut missing = Vec::new();
    for row in rows {
        let nth: i64 = row.try_get("nth")?;
        let Some(right) = usize::try_from(nth - 1).ok().and_then(|nth| rights.get(nth)) else { continue };
        let mut right = right.clone();
        if right.kind == Kind::Database {
            right.object = row.try_get("database")?;
        }
        missing.push(right);
    }
    Ok(missing)
}

/// Returns the rights to change the log's tables and sequences, or to put something into its schema, that a
/// role other than the owner has and no role of ours needs every day. One line each.
///
/// # Errors
/// [`Error`].
pub async fn excessive(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    let needed: Vec<[String; 3]> = EVERYDAY.into_iter().flat_map(of).flat_map(by_column).collect();
    let part = |nth: usize| needed.iter().map(|right| right[nth].as_str()).collect::<Vec<_>>();
    let found = sqlx::query_scalar(
        "select pg_catalog.format('%s %s on outbox.%I', coalesce(r.rolname::text, 'PUBLIC'),
                                  pg_catalog.lower(granted.privilege_type), c.relname)
         from pg_catalog.pg_class c
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'outbox'
         cross join lateral (
           select a.grantee, a.privilege_type, '' as part from pg_catalog.aclexplode(c.relacl) a
           union all
           select a.grantee, a.privilege_type, at.attname::text
           from pg_catalog.pg_attribute at cross join lateral pg_catalog.aclexplode(at.attacl) a
           where at.attrelid = c.oid
         ) granted
         left join pg_catalog.pg_roles r on r.oid = granted.grantee
         where granted.grantee <> c.relowner
           and granted.privilege_type in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')
           and not exists (
             select from unnest($1::text[], $2::text[], $3::text[]) needed (object, privilege, part)
             where needed.object = c.relname and needed.privilege = pg_catalog.lower(granted.privilege_type)
               and needed.part in ('', granted.part))
         union
         select pg_catalog.format('%s create in the schema outbox', coalesce(r.rolname::text, 'PUBLIC'))
         from pg_catalog.pg_namespace n cross join lateral pg_catalog.aclexplode(n.nspacl) a
         left join pg_catalog.pg_roles r on r.oid = a.grantee
         where n.nspname = 'outbox' and a.privilege_type = 'CREATE' and a.grantee <> n.nspowner
         order by 1",
    )
    .bind(part(0))
    .bind(part(1))
    .bind(part(2))
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// The object, the privilege, and each column that a right on the log is about; an empty column for all.
fn by_column(right: Right) -> Vec<[String; 3]> {
    let is_of_the_log = right.schema == "outbox" && matches!(right.kind, Kind::Table | Kind::Sequence);
    let columns = right.columns.split(", ").filter(|_| is_of_the_log);
    columns.map(|column| [right.object.clone(), right.privilege.to_owned(), column.to_owned()]).collect()
}
