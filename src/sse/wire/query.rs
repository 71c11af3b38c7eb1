//! The query of a stream's URL.

use serde::Deserialize;

use super::start::Start;

/// The query of a stream's URL.
///
/// Where a parameter occurs more than once the last one counts: clients that reconnect by themselves append
/// theirs. Other parameters are ignored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(try_from = "Vec<(String, String)>")]
pub struct StreamQuery {
    /// `lastEventId`: continue after this id. For a first connection: a browser that reconnects sends the same
    /// URL again, and the header with its newest id then wins.
    pub last_event_id: Option<String>,
    /// `resume`, the text of `outbox.resume_token()`: leave out the events that the page's state holds, and
    /// begin with the first one that it does not.
    pub resume: Option<String>,
    /// `from`, where a first connection begins: `latest` (the default), `last` or `earliest`.
    pub from: Option<Start>,
    /// `keep`, for a client that does not keep up: `all` events (the default) or the `newest`; and `skipped`,
    /// how the page is told of the others: by a `comment` (the default) or an `event`.
    pub keep: Keep,
    /// `data`, how a payload that is a JSON string is sent: as `json` (the default) or as its `text`.
    pub is_text: bool,
}

/// Which events a client gets that does not keep up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keep {
    /// All. A client that lags too far is cut off, and comes back for the rest.
    #[default]
    All,
    /// The newest of each topic and type. With `tells` an event says how many others were left out.
    Newest {
        /// Whether there is such an event.
        tells: bool,
    },
}

/// A parameter of the query has a value that it cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// `from`.
    #[error("from is 'latest' (the default), 'last' or 'earliest'")]
    From,
    /// `keep`.
    #[error("keep is 'all' (the default) or 'newest'")]
    Keep,
    /// `skipped`.
    #[error("skipped is 'comment' (the default) or 'event'")]
    Skipped,
    /// `data`.
    #[error("data is 'json' (the default) or 'text'")]
    Data,
}

impl TryFrom<Vec<(String, String)>> for StreamQuery {
    type Error = QueryError;

    fn try_from(pairs: Vec<(String, String)>) -> Result<Self, QueryError> {
        // The last value of each parameter.
        let last =
            |name: &str| pairs.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let from = match last("from") {
            None => None,
            Some("latest") => Some(Start::Latest),
            Some("last") => Some(Start::Last),
            Some("earliest") => Some(Start::Earliest),
            Some(_) => return Err(QueryError::From),
        };
        let keeps_newest = one_of(last("keep"), ["all", "newest"]).ok_or(QueryError::Keep)?;
        let tells = one_of(last("skipped"), ["comment", "event"]).ok_or(QueryError::Skipped)?;
        let is_text = one_of(last("data"), ["json", "text"]).ok_or(QueryError::Data)?;
        Ok(Self {
            last_event_id: last("lastEventId").map(str::to_owned),
            resume: last("resume").map(str::to_owned),
            from,
            keep: if keeps_newest { Keep::Newest { tells } } else { Keep::All },
            is_text,
        })
    }
}

/// Whether the value is the second word; `None` if it is neither. Without a value it is the first.
fn one_of(value: Option<&str>, [first, second]: [&str; 2]) -> Option<bool> {
    match value {
        None => Some(false),
        Some(value) if value == first => Some(false),
        Some(value) if value == second => Some(true),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Result<StreamQuery, QueryError> {
        let owned = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        StreamQuery::try_from(owned.collect::<Vec<_>>())
    }

    #[test]
    fn the_last_value_of_a_parameter_counts_and_unknown_parameters_do_not() {
        let asked =
            query(&[("lastEventId", "1-1"), ("x", "y"), ("lastEventId", "1-2"), ("skipped", "event")]);
        let asked = asked.expect("a query");
        assert_eq!((asked.last_event_id.as_deref(), asked.keep), (Some("1-2"), Keep::All));
        let asked = query(&[("keep", "newest"), ("skipped", "event"), ("data", "text")]).expect("a query");
        assert_eq!((asked.keep, asked.is_text), (Keep::Newest { tells: true }, true));
    }

    #[test]
    fn a_value_that_a_parameter_cannot_have_is_refused_with_those_that_it_can() {
        for (name, refused) in [
            ("from", QueryError::From),
            ("keep", QueryError::Keep),
            ("skipped", QueryError::Skipped),
            ("data", QueryError::Data),
        ] {
            assert_eq!(query(&[(name, "x")]).expect_err("no such value"), refused);
        }
    }
}
