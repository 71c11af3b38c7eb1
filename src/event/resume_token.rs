//! A resume token: which events a reader's snapshot saw. Parses the text of `outbox.resume_token()` and
//! decides about single events. Pure.
//!
//! The text has fields with `~` between them: the version `1`; the log's identity (32 hexadecimal digits);
//! the time of the read (milliseconds since 1970); `xmin`; `xmax` minus `xmin`; the transactions between
//! these two; the reader's own transaction, if it has written; and then the name and the epoch of each relay.
//!
//! The transactions between `xmin` and `xmax` are a letter and numbers with `.` between them, each the
//! distance from the number before it, the first from `xmin`. `r`: these were running, and the others had
//! ended. `s`: the reader saw events of these, and of no others. `u`: that is not known.

use std::num::ParseIntError;

use uuid::Uuid;

use super::{LogId, StreamId};

/// The longest token, in bytes. A token of a thousand running transactions has a third of it.
const BYTES_MAX: usize = 16 * 1024;
/// The most relays of a log in a token.
const RELAYS_MAX: usize = 64;

/// The text is no token that `outbox.resume_token()` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a resume token: pass the text of outbox.resume_token() unchanged")]
pub struct NotAResumeToken;

/// Which events a reader's snapshot saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeToken {
    /// The log that was read.
    pub log: LogId,
    /// A time at or before the read, in milliseconds since 1970.
    pub taken_ms: u64,
    xmin: u64,
    xmax: u64,
    between: Between,
    own: Option<u64>,
    epochs: Vec<(String, u64)>,
}

/// The transactions from `xmin` up to `xmax`. The lists are sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Between {
    /// These had not ended.
    Running(Vec<u64>),
    /// These are the only ones whose events were seen.
    Seen(Vec<u64>),
    Unknown,
}

/// Whether the reader saw an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The state that was read holds it.
    Yes,
    /// It was committed after the read.
    No,
    /// The token, or the event, does not say.
    Unknown,
    /// The log was rebased after the read, so the event's transaction means nothing to the token.
    Rebased,
}

impl ResumeToken {
    /// Reads a token.
    ///
    /// # Errors
    /// Returns [`NotAResumeToken`] if `outbox.resume_token()` did not make the text.
    pub fn parse(text: &str) -> Result<Self, NotAResumeToken> {
        if text.len() > BYTES_MAX {
            return Err(NotAResumeToken);
        }
        let mut fields = text.split('~');
        let mut next = || fields.next().ok_or(NotAResumeToken);
        if next()? != "1" {
            return Err(NotAResumeToken);
        }
        let log = next()?;
        let log = if log.len() == 32 { Uuid::try_parse(log).ok() } else { None }.ok_or(NotAResumeToken)?;
        let taken_ms = number(next()?)?;
        let xmin = number(next()?)?;
        let xmax = xmin.checked_add(number(next()?)?).ok_or(NotAResumeToken)?;
        let between = between(next()?, xmin, xmax)?;
        let own = match next()? {
            "" => None,
            own => Some(number(own)?),
        };
        let mut epochs = Vec::new();
        while let Some(relay) = fields.next() {
            epochs.push((relay.to_owned(), number(fields.next().ok_or(NotAResumeToken)?)?));
            if epochs.len() > RELAYS_MAX {
                return Err(NotAResumeToken);
            }
        }
        Ok(Self { log, taken_ms, xmin, xmax, between, own, epochs })
    }

    /// Returns the epoch of this relay at the read. A relay that had never run begins with 1. If the log had
    /// one relay, it is that one, whatever its name.
    pub fn epoch_of(&self, relay: &str) -> u64 {
        match self.epochs.as_slice() {
            [(_, epoch)] => *epoch,
            epochs => epochs.iter().find(|(name, _)| name == relay).map_or(1, |(_, epoch)| *epoch),
        }
    }

    /// Whether the reader saw the event with this id and transaction. `epoch` is that of the event's relay at
    /// the read.
    ///
    /// An event of an earlier epoch was delivered before the log was rebased, and so before the read. If the
    /// rebase followed a loss, the event may be lost in Postgres; then the reader's state does not hold it,
    /// and must not be given it.
    pub fn sees(&self, epoch: u64, id: StreamId, xid: Option<u64>) -> Seen {
        match (id.epoch.cmp(&epoch), xid) {
            (std::cmp::Ordering::Less, _) => Seen::Yes,
            (std::cmp::Ordering::Greater, _) => Seen::Rebased,
            (std::cmp::Ordering::Equal, None) => Seen::Unknown,
            (std::cmp::Ordering::Equal, Some(xid)) => self.sees_transaction(xid),
        }
    }

    fn sees_transaction(&self, xid: u64) -> Seen {
        let is_seen = |is_seen| if is_seen { Seen::Yes } else { Seen::No };
        if xid < self.xmin || self.own == Some(xid) {
            return Seen::Yes;
        }
        if xid >= self.xmax {
            return Seen::No;
        }
        match &self.between {
            Between::Running(running) => is_seen(running.binary_search(&xid).is_err()),
            Between::Seen(seen) => is_seen(seen.binary_search(&xid).is_ok()),
            Between::Unknown => Seen::Unknown,
        }
    }
}

fn between(field: &str, xmin: u64, xmax: u64) -> Result<Between, NotAResumeToken> {
    match field.split_at_checked(1) {
        Some(("u", "")) => Ok(Between::Unknown),
        Some(("r", list)) => Ok(Between::Running(transactions(list, xmin, xmax)?)),
        Some(("s", list)) => Ok(Between::Seen(transactions(list, xmin, xmax)?)),
        _ => Err(NotAResumeToken),
    }
}

fn transactions(list: &str, xmin: u64, xmax: u64) -> Result<Vec<u64>, NotAResumeToken> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let mut last = xmin;
    list.split('.')
        .map(|distance| {
            last = last.checked_add(number(distance)?).filter(|xid| *xid < xmax).ok_or(NotAResumeToken)?;
            Ok(last)
        })
        .collect()
}

/// Reads a number of digits alone: `u64::from_str` accepts a leading '+'.
fn number(digits: &str) -> Result<u64, NotAResumeToken> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NotAResumeToken);
    }
    digits.parse().map_err(|_error: ParseIntError| NotAResumeToken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "018f3c1e000070008000000000000001";

    fn token(between: &str, own: &str, epochs: &str) -> ResumeToken {
        let text = format!("1~{LOG}~1700000000000~100~20~{between}~{own}{epochs}");
        ResumeToken::parse(&text).expect(&text)
    }

    fn seen(token: &ResumeToken, xids: &[u64]) -> Vec<Seen> {
        xids.iter().map(|xid| token.sees(1, StreamId::new(1, 7), Some(*xid))).collect()
    }

    #[test]
    fn a_snapshot_sees_what_had_ended_and_nothing_that_was_running_or_came_later() {
        let running = token("r5.3", "", "~main~1");
        assert_eq!(
            seen(&running, &[99, 100, 105, 106, 108, 119, 120, 500]),
            [Seen::Yes, Seen::Yes, Seen::No, Seen::Yes, Seen::No, Seen::Yes, Seen::No, Seen::No]
        );
        assert_eq!(seen(&token("r0", "", ""), &[99, 100, 101]), [Seen::Yes, Seen::No, Seen::Yes]);
        assert_eq!(seen(&token("r", "", ""), &[100, 119, 120]), [Seen::Yes, Seen::Yes, Seen::No]);
    }

    #[test]
    fn a_standby_names_the_transactions_that_it_saw_or_says_that_it_cannot() {
        let standby = token("s5.3", "", "~main~1");
        assert_eq!(
            seen(&standby, &[99, 100, 105, 108, 119, 120]),
            [Seen::Yes, Seen::No, Seen::Yes, Seen::Yes, Seen::No, Seen::No]
        );
        assert_eq!(seen(&token("u", "", ""), &[99, 110, 120]), [Seen::Yes, Seen::Unknown, Seen::No]);
    }

    #[test]
    fn the_readers_own_writes_are_seen() {
        assert_eq!(seen(&token("r5", "105", ""), &[105]), [Seen::Yes]);
        assert_eq!(seen(&token("r", "200", ""), &[199, 200]), [Seen::No, Seen::Yes]);
    }

    #[test]
    fn an_event_of_another_epoch_is_older_than_the_read_or_of_a_rebased_log() {
        let token = token("r", "", "~eu~2~main~4");
        assert_eq!((token.epoch_of("main"), token.epoch_of("eu"), token.epoch_of("new")), (4, 2, 1));
        assert_eq!(token.sees(4, StreamId::new(3, 9), Some(500)), Seen::Yes);
        assert_eq!(token.sees(4, StreamId::new(5, 1), Some(3)), Seen::Rebased);
        assert_eq!(token.sees(4, StreamId::new(4, 1), None), Seen::Unknown);
        assert_eq!(super::tests::token("r", "", "~main~4").epoch_of("eu"), 4, "there is only this one");
    }

    #[test]
    fn what_the_function_did_not_make_is_refused() {
        let good = format!("1~{LOG}~17~100~20~r5.3~~main~1");
        assert!(ResumeToken::parse(&good).is_ok());
        for bad in [
            String::new(),
            "null".to_owned(),
            good.replacen('1', "2", 1),
            good.replace(LOG, "018f3c1e-0000-7000-8000-000000000001"),
            good.replace("~17~", "~-17~"),
            good.replace("~17~", "~+17~"),
            good.replace("r5.3", ""),
            good.replace("r5.3", "x5.3"),
            good.replace("r5.3", "r5."),
            good.replace("r5.3", "r5.15"),
            good.replace("r5.3", "u5"),
            good.replace("r5.3", "ä"),
            good.replace("~main~1", "~main"),
            good.replace("~100~", "~18446744073709551615~"),
            good.replace("r5.3", &format!("r{}", "0.".repeat(BYTES_MAX))),
        ] {
            assert_eq!(ResumeToken::parse(&bad), Err(NotAResumeToken), "{bad}");
        }
    }
}
