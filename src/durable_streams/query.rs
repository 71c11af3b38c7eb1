//! The query of a read.

use super::body::Form;
use super::offset::Offset;
use crate::http::Problem;

/// How a reader is given events that are not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Live {
    /// `long-poll`: one answer, once there are some.
    LongPoll,
    /// `sse`: a stream of events.
    EventStream,
}

/// The parameters of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadQuery {
    pub(super) offset: Offset,
    pub(super) live: Option<Live>,
    /// The newest `Stream-Cursor` that the client was given.
    pub(super) cursor: Option<u64>,
    pub(super) form: Form,
}

impl ReadQuery {
    /// Reads the parameters. Those that this server does not know are ignored.
    ///
    /// # Errors
    /// 400 for a value that a parameter cannot have, for two offsets, and for a live read without one.
    pub(super) fn of(pairs: &[(String, String)]) -> Result<Self, Problem> {
        let all = |name: &str| -> Vec<&str> {
            pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
        };
        let live = match all("live").last() {
            None => None,
            Some(&"long-poll") => Some(Live::LongPoll),
            Some(&"sse") => Some(Live::EventStream),
            Some(_) => return Err(Problem::bad_request("live must be 'long-poll' or 'sse'")),
        };
        let offset = match (all("offset").as_slice(), live) {
            ([], None) => Offset::Beginning,
            ([], Some(_)) => {
                return Err(Problem::bad_request("a live read needs an offset: -1 for the first one"));
            }
            ([offset], _) => {
                Offset::parse(offset).map_err(|error| Problem::bad_request(error.to_string()))?
            }
            _ => return Err(Problem::bad_request("send exactly one offset")),
        };
        let form = match all("data").last() {
            None | Some(&"json") => Form::Json,
            Some(&"text") => Form::Text,
            Some(_) => return Err(Problem::bad_request("data is 'json' (the default) or 'text'")),
        };
        // A cursor that this server did not give says nothing.
        let cursor = all("cursor").last().and_then(|cursor| cursor.parse().ok());
        Ok(Self { offset, live, cursor, form })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(pairs: &[(&str, &str)]) -> Result<ReadQuery, Problem> {
        let owned = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        ReadQuery::of(&owned.collect::<Vec<_>>())
    }

    #[test]
    fn a_read_begins_at_the_first_event_and_other_parameters_do_not_matter() {
        let read = asked(&[("x", "y"), ("cursor", "z"), ("ticket", "t")]).expect("a read");
        let plain = ReadQuery { offset: Offset::Beginning, live: None, cursor: None, form: Form::Json };
        assert_eq!(read, plain);
        let live = [("offset", "now"), ("live", "sse"), ("cursor", "7"), ("data", "text")];
        let live = asked(&live).expect("a read");
        assert_eq!(live.live, Some(Live::EventStream));
        assert_eq!((live.offset, live.cursor, live.form), (Offset::Now, Some(7), Form::Text));
    }

    #[test]
    fn a_value_that_a_parameter_cannot_have_is_refused() {
        for bad in [
            &[("offset", "")][..],
            &[("offset", "-1"), ("offset", "-1")],
            &[("live", "long-poll")],
            &[("offset", "now"), ("live", "yes")],
            &[("data", "html")],
        ] {
            assert!(asked(bad).is_err(), "{bad:?}");
        }
    }
}
