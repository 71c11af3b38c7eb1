//! The one table of failures of Redis and Postgres, and their remedies. Pure.
//!
//! A relay loses events if it takes an error reply for a delivery. It stalls if it takes a passing failure
//! for a fatal one. It reorders events if it tries the rest of a batch after an error in its middle. So every
//! error has one of these classes, an unknown error is tried again, and an event counts as delivered only
//! after a reply that says so.

/// The relay's remedy for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Publish the same events again after a wait: the server or the connection failed, and time may mend it.
    Again,
    /// Set the event aside: the server refuses it for a reason of its own, and always would.
    SetAside,
    /// Make a new session with Postgres, after a wait.
    NewSession,
    /// Deliver nothing until a person has changed something. The relay still retries, so that no restart is
    /// needed.
    Person,
}

/// A class of failures and its remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The class's name in metrics, one of a fixed set.
    pub class: &'static str,
    /// The remedy.
    pub remedy: Remedy,
}

const fn failure(class: &'static str, remedy: Remedy) -> Failure {
    Failure { class, remedy }
}

/// No connection, or a broken one.
pub const CONNECTION: Failure = failure("connection", Remedy::Again);
/// No answer in time: it is unknown how much has arrived.
pub const TIMEOUT: Failure = failure("timeout", Remedy::Again);
/// The sink refuses one event for a reason of its own.
pub const REFUSED: Failure = failure("refused", Remedy::SetAside);
/// Redis and Postgres do not belong together.
pub const CONFLICT: Failure = failure("conflict", Remedy::Person);
/// Redis lacks published events; they are restored.
pub const FORGOT: Failure = failure("forgot", Remedy::Again);
/// Another relay wrote the next position.
pub const FENCED: Failure = failure("fenced", Remedy::Again);
/// The server shows another position than the relay has written. A new session may find the primary.
pub const STALE_READER: Failure = failure("stalereader", Remedy::NewSession);
/// The Postgres server takes no writes. A new session may find the new primary.
pub const READ_ONLY: Failure = failure("readonly", Remedy::NewSession);

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

/// Errors by a part of their text: the replies of Redis 7.0 within a script instead of NOPERM, and values
/// that are too large.
const REDIS_TEXTS: [(&str, Failure); 6] = [
    ("to run the", failure("auth", Remedy::Again)),
    ("can't run this command", failure("auth", Remedy::Again)),
    ("can't access at least one of the keys", failure("noperm", Remedy::SetAside)),
    ("can't publish to the channel", failure("noperm", Remedy::SetAside)),
    ("string exceeds maximum allowed size", failure("toolarge", Remedy::SetAside)),
    ("too big", failure("toolarge", Remedy::SetAside)),
];

/// Classifies an error reply of Redis by its text, which begins with the code.
pub fn of_redis(reply: &str) -> Failure {
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

/// Classifies an error of Postgres by its SQLSTATE; `None` means that a connection failed or broke.
pub fn of_postgres(sqlstate: Option<&str>) -> Failure {
    let Some(code) = sqlstate else { return failure("connection", Remedy::NewSession) };
    match code {
        "40001" => failure("serialization", Remedy::NewSession),
        "40P01" => failure("deadlock", Remedy::NewSession),
        "55P03" => failure("locktimeout", Remedy::NewSession),
        "57014" => failure("statementtimeout", Remedy::NewSession),
        // Administrator shutdown, crash of another session, starting up.
        "57P01" | "57P02" => failure("shutdown", Remedy::NewSession),
        "57P03" => failure("startingup", Remedy::NewSession),
        "57P05" | "25P03" => failure("idletimeout", Remedy::NewSession),
        "25006" => READ_ONLY,
        "53300" => failure("toomanyconnections", Remedy::NewSession),
        // A database that does not accept connections at present.
        "55000" => failure("refusing", Remedy::NewSession),
        "53100" => failure("diskfull", Remedy::NewSession),
        "53200" => failure("outofmemory", Remedy::NewSession),
        // Login, database, privilege, schema.
        "28P01" | "28000" | "3D000" | "42501" => failure("auth", Remedy::Person),
        "42P01" | "42883" | "42703" | "3F000" => failure("schema", Remedy::Person),
        code if code.starts_with("08") => failure("connection", Remedy::NewSession),
        _ => failure("other", Remedy::NewSession),
    }
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
            assert_eq!(of_redis(reply).remedy, Remedy::Again, "{reply}");
        }
        assert_eq!(of_redis("-READONLY x").class, "readonly");
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
            assert_eq!(of_redis(reply).remedy, Remedy::SetAside, "{reply}");
        }
    }

    #[test]
    fn a_command_that_the_relay_may_not_run_at_all_is_not_the_events_fault() {
        let replies = [
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "ERR The user executing the script can't run this command or subcommand",
        ];
        for reply in replies {
            assert_eq!(of_redis(reply), failure("auth", Remedy::Again), "{reply}");
        }
    }

    #[test]
    fn what_time_may_mend_in_postgres_gets_a_new_session_and_the_rest_a_person() {
        for code in ["40001", "40P01", "57P01", "57P03", "25006", "55P03", "53300", "53100", "08006", "XX000"]
        {
            assert_eq!(of_postgres(Some(code)).remedy, Remedy::NewSession, "{code}");
        }
        assert_eq!(of_postgres(None).remedy, Remedy::NewSession);
        for code in ["28P01", "3D000", "42501", "42P01"] {
            assert_eq!(of_postgres(Some(code)).remedy, Remedy::Person, "{code}");
        }
    }
}
