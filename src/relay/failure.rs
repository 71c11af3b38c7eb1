//! The classes of failures and their remedies, and the table of Postgres's errors. Pure. The sink has the
//! table of its own server's errors.
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

pub(crate) const fn failure(class: &'static str, remedy: Remedy) -> Failure {
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
