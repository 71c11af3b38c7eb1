//! The rights that each role needs in Postgres, and no others. `aftercommit grants` prints them, and
//! `aftercommit doctor` compares the database with them ([`super::held_rights`]). There is one list, so that
//! both say the same.

use std::collections::BTreeSet;
use std::fmt;

/// Who works with the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// An application that appends events.
    Writer,
    /// `aftercommit relay`; with a console, its operators' rights as well.
    Relay,
    /// `aftercommit sse`.
    Sse,
    /// The ops commands, but for `rebase`, and the console.
    Operator,
    /// The bundled upload application, `aftercommit api`.
    Api,
    /// `aftercommit rebase`, which writes to the whole log: beside the operator's rights, and not for every
    /// day.
    Rebase,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Writer => "writer",
            Self::Relay => "relay",
            Self::Sse => "sse",
            Self::Operator => "operator",
            Self::Api => "api",
            Self::Rebase => "rebase",
        })
    }
}

/// The kind of object that a right is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The database that holds the log.
    Database,
    /// A schema.
    Schema,
    /// A table or a view.
    Table,
    /// A sequence.
    Sequence,
    /// A function with the types of its arguments.
    Function,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "database",
            Self::Schema => "schema",
            Self::Table => "table",
            Self::Sequence => "sequence",
            Self::Function => "function",
        })
    }
}

/// One right: a privilege on an object, or on some of a table's columns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The kind of its object.
    pub kind: Kind,
    /// Its schema.
    pub schema: &'static str,
    /// Its name; a function's with its arguments. Empty for the schema itself, and for a database whose name
    /// is not known.
    pub object: String,
    /// As SQL calls it: `select`.
    pub privilege: &'static str,
    /// The columns, with commas between; empty for the whole table.
    pub columns: &'static str,
}

impl fmt::Display for Right {
    /// As it stands in a `grant`: `insert (topic, type) on table outbox.event`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.privilege)?;
        if !self.columns.is_empty() {
            write!(f, " ({})", self.columns)?;
        }
        if self.kind == Kind::Database {
            let name = if self.object.is_empty() { "of the log" } else { &self.object };
            return write!(f, " on database {name}");
        }
        write!(f, " on {} {}", self.kind, self.schema)?;
        if self.object.is_empty() { Ok(()) } else { write!(f, ".{}", self.object) }
    }
}

/// The functions that append, the lock and the token beside them: all that a writer has.
const APPENDING: [&str; 6] = [
    "append(text, text, json, jsonb, uuid)",
    "append(text, text, jsonb, jsonb, uuid)",
    "append(text, text, text, jsonb, uuid)",
    "append_all(text[], text[], json[], jsonb[], uuid[])",
    "lock_topic(text)",
    "resume_token()",
];
/// The functions that every role that reads positions calls.
const READING: [&str; 9] = [
    "serves_from()",
    "rotation_seconds()",
    "contradictions(xid8, bigint, bigint)",
    "signs_of_contradiction(xid8, bigint, bigint)",
    "has_more(pg_snapshot, xid8, bigint)",
    "ended_since(pg_snapshot, xid8)",
    "is_delivered(bigint, xid8, bigint, pg_snapshot, bigint, pg_snapshot)",
    "delivered_in(text, xid8, bigint)",
    "delivered_at(text, xid8, bigint)",
];
const WINDOW: &str = "window_rows(pg_snapshot, xid8, bigint, pg_snapshot, bigint, bigint)";
const SLOT_AFTER: &str = "slot_after(smallint, timestamp with time zone)";
const BYTES_OF: &str = "bytes_of(json, jsonb)";
const SLOT_AT: &str = "slot_at(timestamp with time zone)";
/// The columns that a copy of an event is given. The log sets the other columns of a row.
const COPIED: &str = "event_id, topic, type, payload, headers, bytes";
const EVENT_SLOTS: u8 = 8;
const CHECKPOINT_SLOTS: u8 = 16;

/// The roles that may work with the log every day.
pub const EVERYDAY: [Role; 5] = [Role::Writer, Role::Relay, Role::Sse, Role::Operator, Role::Api];

/// The rights of a role.
pub fn of(role: Role) -> Vec<Right> {
    let mut list = List(BTreeSet::new());
    match role {
        Role::Writer => list.writer(),
        Role::Relay => list.relay(),
        Role::Sse => list.sse(),
        Role::Operator => list.operator(),
        Role::Api => list.api(),
        Role::Rebase => list.rebase(),
    }
    list.0.into_iter().collect()
}

struct List(BTreeSet<Right>);

impl List {
    fn add(
        &mut self,
        kind: Kind,
        schema: &'static str,
        object: &str,
        privilege: &'static str,
        columns: &'static str,
    ) {
        self.0.insert(Right { kind, schema, object: object.to_owned(), privilege, columns });
    }

    fn usage(&mut self, schema: &'static str) {
        self.add(Kind::Schema, schema, "", "usage", "");
    }

    fn execute(&mut self, functions: &[&str]) {
        for function in functions {
            self.add(Kind::Function, "outbox", function, "execute", "");
        }
    }

    fn table(&mut self, name: &str, privileges: &[&'static str]) {
        for privilege in privileges {
            self.add(Kind::Table, "outbox", name, privilege, "");
        }
    }

    /// Everything that tells where the log and its relays are.
    fn reads(&mut self) {
        self.usage("outbox");
        let tables =
            ["migration", "log", "event", "relay", "checkpoint", "position", "parked", "delivered_before"];
        for table in tables.into_iter().chain(["pause", "heartbeat"]) {
            self.table(table, &["select"]);
        }
        self.add(Kind::Sequence, "outbox", "event_id_seq", "select", "");
        self.execute(&READING);
        self.execute(&[WINDOW]);
    }

    fn writer(&mut self) {
        self.usage("outbox");
        self.execute(&APPENDING);
    }

    fn relay(&mut self) {
        self.reads();
        self.table("relay", &["insert"]);
        self.add(Kind::Table, "outbox", "relay", "update", "lead_key, lacks_events");
        self.table("checkpoint", &["insert"]);
        self.table("parked", &["insert", "update", "delete"]);
        self.table("heartbeat", &["insert", "update", "delete"]);
        self.table("delivered_before", &["delete"]);
        // Rotation looks at slots one by one, and empties them.
        let slots = (0..EVENT_SLOTS).map(|slot| format!("event_{slot}"));
        for slot in slots.chain((0..CHECKPOINT_SLOTS).map(|slot| format!("checkpoint_{slot}"))) {
            self.table(&slot, &["select", "truncate"]);
        }
        self.execute(&[SLOT_AFTER, SLOT_AT]);
    }

    fn sse(&mut self) {
        self.usage("outbox");
        self.table("log", &["select"]);
        self.table("revocation", &["select"]);
        self.usage("uploads");
        self.add(Kind::Table, "uploads", "session", "select", "");
    }

    fn operator(&mut self) {
        self.reads();
        self.table("event_status", &["select"]);
        self.table("audit", &["select", "insert"]);
        self.table("pause", &["insert", "delete"]);
        // A second revocation of the same moves the first one's time.
        self.table("revocation", &["select", "insert", "update"]);
        self.add(Kind::Table, "outbox", "parked", "update", "requested");
        self.table("replay", &["select", "insert", "update"]);
        // A replay appends copies, whose xid, id, slot and time are the log's own.
        self.add(Kind::Table, "outbox", "event", "insert", COPIED);
        self.add(Kind::Sequence, "outbox", "event_id_seq", "usage", "");
        self.execute(&[SLOT_AT, BYTES_OF]);
    }

    fn api(&mut self) {
        self.writer();
        self.table("migration", &["select"]);
        self.table("revocation", &["select"]);
        self.execute(&["serves_from()"]);
        self.usage("uploads");
        self.add(Kind::Table, "uploads", "migration", "select", "");
        for table in ["session", "photo"] {
            for privilege in ["select", "insert", "update"] {
                self.add(Kind::Table, "uploads", table, privilege, "");
            }
        }
        self.add(Kind::Function, "uploads", "serves_from()", "execute", "");
    }

    fn rebase(&mut self) {
        self.operator();
        // A temporary table lists the rows that get new ids.
        self.add(Kind::Database, "outbox", "", "temporary", "");
        self.table("event", &["update"]);
        self.table("checkpoint", &["insert", "update", "delete"]);
        self.table("relay", &["update"]);
        self.table("log", &["update"]);
        self.table("delivered_before", &["insert"]);
        // Rows that contradict the position get new ids.
        self.add(Kind::Table, "outbox", "parked", "update", "id");
        self.add(Kind::Table, "outbox", "parked", "update", "may_have_arrived");
        // A move by logical replication leaves sequences behind.
        for sequence in ["event_id_seq", "audit_id_seq", "replay_id_seq"] {
            self.add(Kind::Sequence, "outbox", sequence, "select", "");
            self.add(Kind::Sequence, "outbox", sequence, "update", "");
        }
        self.execute(&[SLOT_AFTER]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_may_append_and_nothing_else() {
        let rights: Vec<String> = of(Role::Writer).iter().map(ToString::to_string).collect();
        assert_eq!(
            rights,
            [
                "usage on schema outbox",
                "execute on function outbox.append(text, text, json, jsonb, uuid)",
                "execute on function outbox.append(text, text, jsonb, jsonb, uuid)",
                "execute on function outbox.append(text, text, text, jsonb, uuid)",
                "execute on function outbox.append_all(text[], text[], json[], jsonb[], uuid[])",
                "execute on function outbox.lock_topic(text)",
                "execute on function outbox.resume_token()",
            ]
        );
    }

    #[test]
    fn nobody_but_a_rebase_may_change_rows_of_the_log() {
        for role in EVERYDAY {
            let changes = of(role).into_iter().find(|right| {
                let is_log = right.object == "event" || right.object.starts_with("event_0");
                is_log
                    && (["update", "delete"].contains(&right.privilege)
                        || right.privilege == "insert" && right.columns.is_empty())
            });
            assert_eq!(changes, None, "{role}");
        }
    }
}
