//! Spans of an event's way: the request that appended it, the script call that published it, the server that gave it to
//! its clients.
//!
//! An event carries its trace along (`event::TraceParent`), through the row's headers and the envelope. What is done for
//! many events at once is a span of its own with links to theirs, as messaging conventions ask for, and there is none where
//! no event of them is of a recorded trace. Until [`start`] each call here is one look at an empty cell.

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
    /// The collector's address, such as `http://127.0.0.1:4318`; empty for no traces.
    pub otlp_endpoint: String,
    /// The part of requests without a trace of their own that begin a recorded one, from 0 to 1.
    pub sample_ratio: f64,
    /// `service.name` of the spans; `-api`, `-relay` and `-sse` are added to it.
    pub service_name: String,
}

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// This binary cannot.
    #[error(
        "this binary was built without traces: build it with the feature otlp, or empty [telemetry] otlp_endpoint"
    )]
    NotBuilt,
    /// The address, or the client for it.
    #[error(
        "cannot send traces to [telemetry] otlp_endpoint: {reason} (name a collector such as http://127.0.0.1:4318)"
    )]
    Endpoint {
        /// What the exporter says.
        reason: String,
    },
    /// A ratio that is none.
    #[error("[telemetry] sample_ratio is {0}: it has to be from 0 to 1")]
    Ratio(f64),
    /// Called twice.
    #[error("traces have been started already")]
    Started,
}

/// Whether traces can be sent as these settings say.
///
/// # Errors
/// [`TraceError::Ratio`], [`TraceError::Endpoint`] and [`TraceError::NotBuilt`].
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
        let reason = "it has a user, a query or a fragment; what a collector wants to know of its clients goes into \
                      OTEL_EXPORTER_OTLP_HEADERS";
        return Err(endpoint(reason.to_owned()));
    }
    Ok(())
}

/// Whether spans are recorded at all.
pub fn is_on() -> bool {
    tracer::is_on()
}

/// The span of a request, as part of the trace that it came with, or at the head of a new one. `route` is the route's
/// pattern, not the path.
pub fn request(parent: Option<TraceParent>, method: &str, route: &str) -> Span {
    if is_on() { tracer::request(parent, method, route) } else { Span::default() }
}

/// The span of a call that publishes so many events, linked to those of them that are of recorded traces.
pub fn publish(traces: impl Iterator<Item = TraceParent>, events: usize) -> Span {
    if is_on() { tracer::publish(&distinct(traces), events) } else { Span::default() }
}

/// The span of giving one event to its clients, linked to the trace that it was appended in.
pub fn deliver(trace: Option<&str>, topic: &Topic, event: EventId) -> Span {
    match trace.filter(|_| is_on()).and_then(|text| text.parse().ok()) {
        Some(trace) => tracer::deliver(trace, topic, event),
        None => Span::default(),
    }
}

/// The recorded ones; those of one transaction stand behind each other, and are linked once.
fn distinct(traces: impl Iterator<Item = TraceParent>) -> Vec<TraceParent> {
    let mut recorded: Vec<TraceParent> = traces.filter(|trace| trace.is_sampled).collect();
    recorded.dedup();
    recorded
}
