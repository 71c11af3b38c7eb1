//! The answers of the publishing script other than OK, as errors that say what to do.

use super::server::Server;
use super::{FORMAT, Publisher};
use crate::event::Topic;
use crate::redis::reply_codes;
use crate::relay::PublishError;
use crate::relay::failure::Remedy;

impl Publisher {
    /// Turns an answer other than OK into an error about the event at index `at`, which is of `topic`.
    pub(super) fn refusal(
        &self,
        server: usize,
        at: usize,
        topic: Option<&Topic>,
        verdict: &str,
        detail: &str,
    ) -> PublishError {
        let server = &self.servers[server];
        let key = topic.map_or_else(|| server.top_key.clone(), |topic| self.keys.history(topic));
        match verdict {
            "GAP" => PublishError::Forgot { reached: detail.to_owned() },
            "FORMAT" => self.other_format(server, detail),
            "FOREIGN" => self.foreign(server, detail),
            "RELAY" => self.other_relay(server, detail),
            "AHEAD" => PublishError::Stop(format!(
                "Redis is at {detail}, of a later epoch than Postgres: Postgres was restored from a backup. \
                 Run `aftercommit rebase`"
            )),
            "OTHER" => PublishError::Stop(format!(
                "another event stands under the number of this one ({detail}): a relay of this log publishes \
                 from another Postgres, such as a standby that was promoted beside its primary, or a clone. \
                 Stop one of the two; then run `aftercommit rebase`, or `aftercommit rebase --copy` for a clone \
                 that lives on"
            )),
            "CONFLICT" => PublishError::Poison {
                at,
                reason: format!(
                    "another entry stands in {key} at or above the number of this event ({detail}), which no \
                     relay of this log wrote: delete or rename that key"
                ),
            },
            _ => {
                let failure = reply_codes::classify(detail);
                let reason =
                    if detail.contains(&key) { detail.to_owned() } else { format!("{detail} ({key})") };
                if verdict == "ERROR" && failure.remedy == Remedy::SetAside {
                    return PublishError::Poison { at, reason: format!("{reason}{}", advice(failure.class)) };
                }
                PublishError::retry(failure, format!("{}: {reason}", server.name()))
            }
        }
    }

    pub(super) fn foreign(&self, server: &Server, log: &str) -> PublishError {
        PublishError::Stop(format!(
            "the keys of this Redis belong to another log ({} names {log}; this log is {}): two logs cannot \
             share them. Give one of the two services a namespace of its own ([redis] namespace, for its \
             relay and its sse processes), or another Redis. If this database replaces that log for good, \
             delete that key",
            server.log_key, self.log
        ))
    }

    pub(super) fn other_relay(&self, server: &Server, relay: &str) -> PublishError {
        PublishError::Stop(format!(
            "the keys of this Redis belong to the relay {relay} of this log ({} names it), and this one is \
             called {}: each numbers the events in its own way. Set [relay] name to {relay}, or give this relay \
             a namespace of its own ([redis] namespace, for its sse processes too)",
            server.log_key, self.relay
        ))
    }

    pub(super) fn other_format(&self, server: &Server, format: &str) -> PublishError {
        PublishError::Stop(format!(
            "the keys of this Redis have format {format}, and this aftercommit knows format {FORMAT}: run \
             the version of aftercommit that wrote them, or a later one (see {})",
            server.log_key
        ))
    }
}

/// Advice to an operator for an event that is refused with an error of this class.
fn advice(class: &str) -> &'static str {
    match class {
        "wrongtype" => ": another program uses this key; delete or rename it",
        "noperm" => ": give the relay's Redis user this right",
        "toolarge" => ": raise Redis's limit",
        _ => "",
    }
}
