//! The rights that each role needs in Redis, as rules of its ACL.

use super::keys::Keys;

/// A user of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedisRole {
    /// Publishes events. A rebase needs the same rights, because it claims an epoch.
    Relay,
    /// Reads histories and subscribes.
    Sse,
    /// Reads the facts that `status`, `doctor` and `rebase --dry-run` show.
    Operator,
}

/// Every connection.
const ANY: &str = "+ping +info +role";
/// Reading histories, and the losses that repairs have recorded.
const READING: &str = "+xrange +xrevrange +pttl +hget +hmget";
/// The publishing script: it runs with its user's rights. `del` removes the keys of the doctor's rehearsal,
/// and in a cluster the tops that are left over after slots have moved.
const PUBLISHING: &str = "+eval +evalsha +script|load +time +hset +xadd +set +expire +publish +wait +del";
/// Subscriptions. A topic's absence is read in a transaction.
const SUBSCRIBING: &str = "+subscribe +unsubscribe +multi +exec";

/// The further commands for a cluster: its slots, and sharded pub/sub, which Redis before 7.0 does not know.
const SLOTS: &str = "+cluster|slots +cluster|nodes";
const SHARDED_PUBLISHING: &str = "+spublish";
/// In the middle of a slot's move, its histories are read where they are by now (`asking`).
const SHARDED_SUBSCRIBING: &str = "+ssubscribe +sunsubscribe +asking";
const SHARDED_READING: &str = "+asking";

/// Returns the rules of a user with this role, for `ACL SETUSER`. They replace the user's other rules, and
/// leave its passwords.
///
/// Keys and channels are those of the namespace. Without one, a public channel may have any name.
pub fn rules(role: RedisRole, names: &Keys, is_of_cluster: bool) -> String {
    let (keys, public) = names.patterns();
    let (channels, commands, sharded) = match role {
        RedisRole::Relay => {
            (format!(" &{keys} &{public}"), format!("{READING} {PUBLISHING}"), SHARDED_PUBLISHING)
        }
        RedisRole::Sse => {
            (format!(" &{keys} &{public}"), format!("{READING} {SUBSCRIBING}"), SHARDED_SUBSCRIBING)
        }
        RedisRole::Operator => (String::new(), format!("{READING} +config|get"), SHARDED_READING),
    };
    let of_cluster = if is_of_cluster { format!(" {SLOTS} {sharded}") } else { String::new() };
    let rules = format!("on resetkeys resetchannels -@all ~{keys}{channels} {ANY} {commands}{of_cluster}");
    rules.trim_end().to_owned()
}
