//! The streams of the SSE server, in the numbers that its `/metrics` has.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;

/// The streams of an SSE server. Counts are of the time since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Streams {
    /// Open streams.
    pub open: u64,
    /// Streams that it holds at most.
    pub limit: u64,
    /// Topics in use.
    pub topics: u64,
    /// Streams refused, by reason; only reasons that occurred.
    pub refused: BTreeMap<String, u64>,
    /// Streams cut off because their client read too slowly.
    pub slow: u64,
}

impl Streams {
    /// Reads them from metrics in Prometheus' text form; `None` if these are not an SSE server's.
    pub fn of_metrics(text: &str) -> Option<Self> {
        let mut streams = Self::default();
        let mut is_of_sse = false;
        for (name, labels, value) in text.lines().filter_map(sample) {
            match name {
                "aftercommit_sse_connections" => (streams.open, is_of_sse) = (value, true),
                "aftercommit_sse_connections_limit" => streams.limit = value,
                "aftercommit_sse_topics" => streams.topics = value,
                // The slowest are also cut off where all streams together hold too much.
                "aftercommit_sse_slow_closes_total" | "aftercommit_sse_relief_closes_total" => {
                    streams.slow += value;
                }
                "aftercommit_sse_refused_total" if value > 0 => {
                    let reason = labels.strip_prefix("reason=\"").and_then(|text| text.strip_suffix('"'));
                    streams.refused.insert(reason.unwrap_or("unknown").to_owned(), value);
                }
                _ => {}
            }
        }
        is_of_sse.then_some(streams)
    }
}

/// A line of metrics as name, labels and value; `None` for comments and for fractions.
fn sample(line: &str) -> Option<(&str, &str, u64)> {
    let (key, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    match key.split_once('{') {
        Some((name, labels)) => Some((name, labels.strip_suffix('}')?, value)),
        None => Some((key, "", value)),
    }
}

type Look = dyn Fn() -> Pin<Box<dyn Future<Output = Option<Streams>> + Send>> + Send + Sync;

/// Asks the SSE server for its streams.
#[derive(Clone)]
pub struct StreamsProbe(Arc<Look>);

impl fmt::Debug for StreamsProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamsProbe")
    }
}

impl StreamsProbe {
    /// `look` answers `None` if the server does not, and must limit its own waiting.
    pub fn new<F>(look: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Option<Streams>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(look())))
    }

    /// Asks now.
    pub(super) async fn look(&self) -> Option<Streams> {
        self.0().await
    }
}

#[cfg(test)]
mod tests {
    use super::Streams;

    #[test]
    fn the_numbers_of_the_streams_are_read_from_metrics_and_nothing_from_other_metrics() {
        let metrics = "# HELP aftercommit_sse_connections Open streams.\n# TYPE aftercommit_sse_connections gauge\n\
             aftercommit_sse_connections 12\naftercommit_sse_connections_limit 10000\n\
             aftercommit_sse_topics 3\naftercommit_sse_slow_closes_total 2\n\
             aftercommit_sse_relief_closes_total 1\naftercommit_sse_refused_total{reason=\"full\"} 4\n\
             aftercommit_sse_refused_total{reason=\"draining\"} 0\n\
             aftercommit_sse_commit_to_client_seconds_sum 1.5\n# EOF\n";
        let refused = [("full".to_owned(), 4)].into();
        let expected = Streams { open: 12, limit: 10_000, topics: 3, refused, slow: 3 };
        assert_eq!(Streams::of_metrics(metrics), Some(expected));
        assert_eq!(Streams::of_metrics("aftercommit_relay_leading 1\n# EOF\n"), None);
        assert_eq!(Streams::of_metrics(""), None);
    }
}
