//! The accounts of our processes: Postgres roles with the rights that `aftercommit grants` prints, and Redis
//! users with those of `docs/redis.md`. Faults revoke their rights and grant them again.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::harness::{Settings, cli};
use crate::kinds::{Grant, Right};

/// The password of all of them: nobody else reaches these servers.
const PASSWORD: &str = "chaos";
const ROLES: [&str; 5] = ["writer", "relay", "sse", "operator", "rebase"];
/// The rights of the users in `docs/redis.md`.
const RELAY_RULES: &str =
    "~aftercommit:* &* +@read +@write +@pubsub +@scripting +@connection +wait +info +time";
const SSE_RULES: &str = "~aftercommit:* &* +@read +subscribe +unsubscribe +multi +exec +@connection +info";

/// A user of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Relay,
    Sse,
}

impl User {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Sse => "sse",
        }
    }

    fn rules(self) -> &'static str {
        match self {
            Self::Relay => RELAY_RULES,
            Self::Sse => SSE_RULES,
        }
    }

    /// Its line in Redis's configuration.
    pub(crate) fn configured(self) -> (String, String) {
        ("user".to_owned(), format!("{} on >{PASSWORD} {}", self.name(), self.rules()))
    }

    /// The command that gives it all its rights again.
    pub(crate) fn given_back(self) -> Vec<String> {
        let text = format!("acl setuser {} reset on >{PASSWORD} {}", self.name(), self.rules());
        text.split(' ').map(str::to_owned).collect()
    }

    /// The command that takes a right from it.
    pub(crate) fn taken(self, right: Right) -> Vec<String> {
        let rule = match right {
            Right::Write => "-@write",
            Right::Scripts => "-@scripting",
            Right::Read => "-@read",
            Right::Subscribe => "-@pubsub",
            Right::Keys => "resetkeys",
            Right::SignIn => "off",
        };
        ["acl", "setuser", self.name(), rule].map(str::to_owned).into()
    }

    /// The address of a Redis for this user, from the one that its owner has.
    pub(crate) fn url(self, owners: &str) -> String {
        let (_, place) = owners.split_once('@').expect("a password");
        format!("redis://{}:{PASSWORD}@{place}", self.name())
    }
}

/// Makes the roles.
pub(crate) async fn make(owner: &mut PgConnection) {
    for role in ROLES {
        execute(owner, &format!("create role chaos_{role} login password '{PASSWORD}'")).await;
    }
    execute(owner, &granted().await).await;
}

/// The SQL that gives all of them what they need, as it is printed. As often as wanted.
pub(crate) async fn granted() -> String {
    let names = ROLES.map(|role| (format!("--{role}"), format!("chaos_{role}")));
    let mut arguments = vec!["grants"];
    arguments.extend(names.iter().flat_map(|(flag, name)| [flag.as_str(), name.as_str()]));
    let output = cli(&Settings::default(), &arguments).await;
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("SQL")
}

/// Takes something from the relays.
pub(crate) fn revoked(grant: Grant) -> &'static str {
    match grant {
        Grant::Schema => "revoke usage on schema outbox from chaos_relay",
        Grant::ReadEvents => "revoke select on outbox.event from chaos_relay",
        Grant::WriteCheckpoints => "revoke insert on outbox.checkpoint from chaos_relay",
        Grant::Parked => "revoke all on outbox.parked from chaos_relay",
        Grant::Functions => "revoke execute on all functions in schema outbox from chaos_relay",
    }
}

/// A role's address, from the owner's.
pub(crate) fn url(owners: &str, role: &str) -> String {
    let (_, place) = owners.split_once('@').expect("a user");
    format!("postgres://chaos_{role}:{PASSWORD}@{place}")
}

async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}
