//! Spans of an event's way: the request that appended it, the script call that published it, and the fan-out
//! that delivered it to clients.
//!
//! An event carries its trace (`event::TraceParent`) in the row's headers and in the envelope. An operation
//! on many events is one span with links to their traces, as messaging conventions ask for. There is no span
//! if none of these traces is recorded. Without a collector (before [`start`]), each call costs one read of
//! an empty cell.

#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(feature = "otlp")]
mod otlp;

#[cfg(not(feature = "otlp"))]
pub use off::{Exporter, Span, failure, start};
#[cfg(feature = "otlp")]
pub use otlp::{Exporter, Span, failure, start};

#[cfg(not(feature = "otlp"))]
use off as tracer;
#[cfg(feature = "otlp")]
use otlp as tracer;

use serde::Deserialize;

use crate::address;
use crate::event::{EventId, Topic, TraceParent};

/// The `[telemetry]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The collector's address, such as `http://127.0.0.1:4318`. Empty means no traces.
    pub otlp_endpoint: String,
    /// The share, from 0 to 1, of requests without a trace of their own that begin a recorded one.
    pub sample_ratio: f64,
}

/// Why tracing could not start.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// This binary was built without the feature `otlp`.
    #[error(
        "this binary was built without traces: build it with the feature otlp, or empty [telemetry] \
         otlp_endpoint"
    )]
    NotBuilt,
    /// The address is malformed, or a client for it could not be made.
    #[error(
        "cannot send traces to [telemetry] otlp_endpoint: {reason} (name a collector such as \
         http://127.0.0.1:4318)"
    )]
    Endpoint {
        /// The reason, in words.
        reason: String,
    },
    /// The ratio is not from 0 to 1.
    #[error("[telemetry] sample_ratio is {0}: it has to be from 0 to 1")]
    Ratio(f64),
    /// [`start`] was called twice.
    #[error("traces have been started already")]
    Started,
}

/// Checks the settings.
///
/// # Errors
/// Returns [`TraceError::Ratio`] if the ratio is not from 0 to 1, [`TraceError::NotBuilt`] if the settings
/// name a collector and this binary has no `otlp`, and [`TraceError::Endpoint`] if its address is malformed
/// or carries a user, a query or a fragment.
pub fn check(settings: &Settings) -> Result<(), TraceError> {
    let Settings { otlp_endpoint, sample_ratio, .. } = settings;
    if !(0.0..=1.0).contains(sample_ratio) {
        return Err(TraceError::Ratio(*sample_ratio));
    }
    if otlp_endpoint.is_empty() {
        return Ok(());
    }
    if cfg!(not(feature = "otlp")) {
        return Err(TraceError::NotBuilt);
    }
    let endpoint = |reason: String| TraceError::Endpoint { reason };
    address::check(otlp_endpoint, &["http", "https"], "http://host:port or https://host:port")
        .map_err(|error| endpoint(format!("it {error}")))?;
    if !address::is_bare(otlp_endpoint) {
        let reason = "it has a user, a query or a fragment; headers for the collector go into \
                      OTEL_EXPORTER_OTLP_HEADERS";
        return Err(endpoint(reason.to_owned()));
    }
    Ok(())
}

/// Whether this process records spans.
pub fn is_on() -> bool {
    tracer::is_on()
}

/// Begins the span of a request, within the request's own trace or in a new one. `route` is the route's
/// pattern, not the path.
pub fn request(parent: Option<TraceParent>, method: &str, route: &str) -> Span {
    if is_on() { tracer::request(parent, method, route) } else { Span::default() }
}

/// Begins the span of a call that publishes `events` events, with links to the recorded ones among their
/// traces.
pub fn publish(traces: impl Iterator<Item = TraceParent>, events: usize) -> Span {
    if is_on() { tracer::publish(&distinct(traces), events) } else { Span::default() }
}

/// Begins the span of one event's fan-out to clients, with a link to its trace.
pub fn deliver(trace: Option<&str>, topic: &Topic, event: EventId) -> Span {
    match trace.filter(|_| is_on()).and_then(|text| text.parse().ok()) {
        Some(trace) => tracer::deliver(trace, topic, event),
        None => Span::default(),
    }
}

/// Returns the recorded traces. The events of one transaction are neighbours, and their trace is linked once.
fn distinct(traces: impl Iterator<Item = TraceParent>) -> Vec<TraceParent> {
    let mut recorded: Vec<TraceParent> = traces.filter(|trace| trace.is_sampled).collect();
    recorded.dedup();
    recorded
}
