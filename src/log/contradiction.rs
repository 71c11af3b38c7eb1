//! Rows that contradict a position: ids only grow, unless somebody interferes. The relay finds such rows
//! before they are lost, names them, and stops; a rebase repairs them.
//!
//! `outbox.append` keeps ids growing, and the reading rule needs that. An owner of the log can break it by
//! accident: with `truncate outbox.event restart identity` between two tests, or with `setval` after a
//! restore.

use std::fmt;

/// The number of rows that a message names.
const NAMED: usize = 3;
/// What is wrong with a row: see `outbox.contradictions` in the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Appended after everything that is delivered, but with an id in the delivered range.
    Behind,
    /// The id is above the sequence's last value.
    Above,
    /// The row's transaction has not begun.
    Unborn,
    /// Another row has the same id.
    Twice,
    /// No row: the sequence stands at this id, below the highest delivered id.
    Sequence,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Behind => "appended after all that is delivered, with an id that is delivered",
            Self::Above => "an id that the sequence outbox.event_id_seq has not come to",
            Self::Unborn => "an xid of a transaction that has not begun",
            Self::Twice => "another row has the same id",
            Self::Sequence => "where the sequence outbox.event_id_seq stands, below what is delivered",
        })
    }
}

/// A row that contradicts a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contradiction {
    /// The row's id.
    pub id: i64,
    /// What is wrong with it.
    pub cause: Cause,
}

impl Contradiction {
    pub(crate) fn of(id: i64, cause: &str) -> Self {
        let cause = match cause {
            "above" => Cause::Above,
            "unborn" => Cause::Unborn,
            "twice" => Cause::Twice,
            "sequence" => Cause::Sequence,
            _ => Cause::Behind,
        };
        Self { id, cause }
    }
}

/// Names the first rows and their causes, for a message.
pub fn named(rows: &[Contradiction]) -> String {
    let mut text = rows
        .iter()
        .take(NAMED)
        .map(|row| match row.cause {
            Cause::Sequence => format!("id {} ({})", row.id, row.cause),
            cause => format!("row {} ({cause})", row.id),
        })
        .collect::<Vec<_>>()
        .join(", ");
    if rows.len() > NAMED {
        text.push_str(" and others");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_first_rows_and_says_that_there_are_more() {
        let rows: Vec<_> = (1..=5).map(|id| Contradiction::of(id, "above")).collect();
        let text = named(&rows);
        assert!(text.starts_with("row 1 (an id that") && text.ends_with("and others"), "{text}");
        assert!(!named(&rows[..1]).contains("others"));
    }
}
