//! The one table of Redis's error replies, and the relay's remedy for each. Pure.

use crate::relay::failure::{Failure, Remedy, failure};

/// Redis's errors by their code, which is the first word.
const REDIS: [(&str, Failure); 20] = [
    // The server takes no writes in its role or state. A new connection may find another server.
    ("LOADING", failure("loading", Remedy::Again)),
    ("READONLY", failure("readonly", Remedy::Again)),
    ("MASTERDOWN", failure("masterdown", Remedy::Again)),
    ("CLUSTERDOWN", failure("clusterdown", Remedy::Again)),
    ("MOVED", failure("moved", Remedy::Again)),
    ("ASK", failure("moved", Remedy::Again)),
    ("TRYAGAIN", failure("tryagain", Remedy::Again)),
    ("CROSSSLOT", failure("crossslot", Remedy::Again)),
    // The server takes no writes at the moment.
    ("OOM", failure("oom", Remedy::Again)),
    ("NOREPLICAS", failure("noreplicas", Remedy::Again)),
    ("MISCONF", failure("misconf", Remedy::Again)),
    ("BUSY", failure("busy", Remedy::Again)),
    ("UNKILLABLE", failure("busy", Remedy::Again)),
    // The server does not know our script, because it restarted. The next call sends the script.
    ("NOSCRIPT", failure("noscript", Remedy::Again)),
    ("EXECABORT", failure("execabort", Remedy::Again)),
    // Login and general permissions. A person must fix these in Redis, so the relay keeps trying.
    ("NOAUTH", failure("auth", Remedy::Again)),
    ("WRONGPASS", failure("auth", Remedy::Again)),
    ("NOPROTO", failure("auth", Remedy::Again)),
    // Errors about one event: its key has another type, or its key or channel is forbidden.
    ("WRONGTYPE", failure("wrongtype", Remedy::SetAside)),
    ("NOPERM", failure("noperm", Remedy::SetAside)),
];

/// Errors by a part of their text: the replies within a script instead of MOVED, and instead of NOPERM in
/// Redis 7.0; and values that are too large.
const REDIS_TEXTS: [(&str, Failure); 8] = [
    // A script's words for MOVED and CLUSTERDOWN.
    ("a non local key in a cluster node", failure("moved", Remedy::Again)),
    ("while the cluster is down", failure("clusterdown", Remedy::Again)),
    ("to run the", failure("auth", Remedy::Again)),
    ("can't run this command", failure("auth", Remedy::Again)),
    ("can't access at least one of the keys", failure("noperm", Remedy::SetAside)),
    ("can't publish to the channel", failure("noperm", Remedy::SetAside)),
    ("string exceeds maximum allowed size", failure("toolarge", Remedy::SetAside)),
    ("too big", failure("toolarge", Remedy::SetAside)),
];

/// Whether an error with this code says that another server of the cluster has the slot, or none at present.
pub(super) fn is_about_slots(code: &str) -> bool {
    matches!(code, "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN")
}

/// Whether failures of this class are about a slot that its server refuses.
pub(super) fn is_class_of_slots(class: &str) -> bool {
    matches!(class, "moved" | "tryagain")
}

/// Classifies an error reply of Redis by its text, which begins with the code.
pub(super) fn classify(reply: &str) -> Failure {
    let reply = reply.trim_start_matches('-');
    let permission = reply.starts_with("NOPERM") || reply.starts_with("ERR ");
    if let Some((_, failure)) = REDIS_TEXTS.iter().find(|(text, _)| permission && reply.contains(text)) {
        return *failure;
    }
    let code = reply.split([' ', ':']).next().unwrap_or_default();
    REDIS
        .iter()
        .find(|(known, _)| *known == code)
        .map_or(failure("other", Remedy::Again), |(_, failure)| *failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_the_server_is_tried_again() {
        let replies = [
            "LOADING Redis is loading the dataset in memory",
            "READONLY You can't write against a read only replica.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            "CLUSTERDOWN The cluster is down",
            "MOVED 3999 127.0.0.1:6381",
            "ASK 3999 127.0.0.1:6381",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "NOREPLICAS Not enough good replicas to write.",
            "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to \
             disk.",
            "NOAUTH Authentication required.",
            "NOSCRIPT No matching script.",
            "BUSY Redis is busy running a script.",
            "EXECABORT Transaction discarded because of previous errors.",
            "ERR something that nobody thought of",
            "",
        ];
        for reply in replies {
            assert_eq!(classify(reply).remedy, Remedy::Again, "{reply}");
        }
        assert_eq!(classify("-READONLY x").class, "readonly");
    }

    #[test]
    fn an_error_about_one_key_or_channel_sets_the_event_aside() {
        let replies = [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "NOPERM this user has no permissions to access one of the keys used as arguments",
            "NOPERM this user has no permissions to access one of the channels used as arguments",
            "ERR The user executing the script can't access at least one of the keys mentioned in the \
             command arguments",
            "ERR The user executing the script can't publish to the channel mentioned in the command",
        ];
        for reply in replies {
            assert_eq!(classify(reply).remedy, Remedy::SetAside, "{reply}");
        }
    }

    #[test]
    fn a_command_that_the_relay_may_not_run_at_all_is_not_the_events_fault() {
        let replies = [
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "ERR The user executing the script can't run this command or subcommand",
        ];
        for reply in replies {
            assert_eq!(classify(reply), failure("auth", Remedy::Again), "{reply}");
        }
    }
}
