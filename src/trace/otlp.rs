//! OpenTelemetry spans, sent in batches as OTLP over HTTP by a thread of the exporter.

use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::global::{BoxedSpan, BoxedTracer};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample};

use super::{Settings, TraceError};
use crate::event::{EventId, Topic, TraceParent};

/// The time limit of an answer of the collector, and of sending the last spans when the process ends.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The most links of one span, above the number of events of one script call.
const LINKS: u32 = 1024;

static TRACER: OnceLock<BoxedTracer> = OnceLock::new();
static FAILURE: OnceLock<String> = OnceLock::new();

/// A span that ends when it is dropped, or none.
#[derive(Debug, Default)]
pub struct Span(Option<BoxedSpan>);

impl Span {
    /// Returns the span's place in its trace, if the trace is recorded.
    pub fn place(&self) -> Option<TraceParent> {
        let context = self.0.as_ref()?.span_context();
        context.is_sampled().then(|| TraceParent {
            trace_id: u128::from_be_bytes(context.trace_id().to_bytes()),
            span_id: u64::from_be_bytes(context.span_id().to_bytes()),
            is_sampled: true,
        })
    }

    /// Records the status that answered the request.
    pub fn answered(&mut self, status: u16) {
        let Some(span) = &mut self.0 else { return };
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            span.set_status(Status::error(""));
        }
    }

    /// Records that the operation failed with an error of this class.
    pub fn failed(&mut self, class: &'static str) {
        let Some(span) = &mut self.0 else { return };
        span.set_attribute(KeyValue::new("error.type", class));
        span.set_status(Status::error(class));
    }
}

/// The exporter. [`Exporter::end`] sends the last spans.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Sends the remaining spans, within a few seconds. Blocks, so it must not run within a runtime.
    pub fn end(self) {
        if let Err(error) = self.0.shutdown_with_timeout(TIMEOUT) {
            tracing::warn!(%error, "the last spans may not have reached the collector");
        }
    }
}

/// Starts tracing in this process if the settings name a collector. Call it once, and not within a runtime.
///
/// # Errors
/// Fails as [`super::check`]. Returns [`TraceError::Endpoint`] if the exporter cannot be made, and
/// [`TraceError::Started`] on the second call.
pub fn start(settings: &Settings, role: &str) -> Result<Option<Exporter>, TraceError> {
    let Settings { otlp_endpoint, sample_ratio } = settings;
    super::check(settings)?;
    if otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let client = match client_for(otlp_endpoint) {
        Ok(client) => client,
        Err(error) => {
            let reason = format!("no spans are sent: {}", without_certificates(&error));
            tracing::warn!("{reason}");
            FAILURE.get_or_init(|| reason);
            return Ok(None);
        }
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", otlp_endpoint.trim_end_matches('/')))
        .with_timeout(TIMEOUT)
        .build()
        .map_err(|error| TraceError::Endpoint { reason: error.to_string() })?;
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(*sample_ratio)));
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(ByLinks(sampler))
        .with_max_links_per_span(LINKS)
        .with_resource(Resource::builder().with_service_name(format!("aftercommit-{role}")).build())
        .build();
    let tracer = BoxedTracer::new(Box::new(provider.tracer("aftercommit")));
    TRACER.set(tracer).map_err(|_| TraceError::Started)?;
    Ok(Some(Exporter(provider)))
}

/// Returns why no spans are sent although the settings name a collector. The process works without them.
pub fn failure() -> Option<&'static str> {
    FAILURE.get().map(String::as_str)
}

/// Plain HTTP needs no CA certificates, so they may be missing.
fn client_for(endpoint: &str) -> reqwest::Result<reqwest::blocking::Client> {
    let builder = reqwest::blocking::Client::builder().timeout(TIMEOUT);
    let is_plain = endpoint.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    if is_plain { builder.tls_certs_only([]).build() } else { builder.build() }
}

fn without_certificates(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    format!(
        "there are no CA certificates to check the https of [telemetry] otlp_endpoint by ({cause}): install \
         the package ca-certificates, or name a file of them in SSL_CERT_FILE, and start this process again"
    )
}

/// A sampler that records spans with a link to a recorded trace, and asks the inner sampler about the others.
#[derive(Debug, Clone)]
struct ByLinks(Sampler);

impl ShouldSample for ByLinks {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        if links.iter().any(|link| link.span_context.is_sampled()) {
            return SamplingResult {
                decision: SamplingDecision::RecordAndSample,
                attributes: Vec::new(),
                trace_state: TraceState::NONE,
            };
        }
        self.0.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

pub(super) fn is_on() -> bool {
    TRACER.get().is_some()
}

pub(super) fn request(parent: Option<TraceParent>, method: &str, route: &str) -> Span {
    let context = match parent {
        Some(parent) => Context::new().with_remote_span_context(context_of(parent)),
        None => Context::new(),
    };
    let attributes = [
        KeyValue::new("http.request.method", method.to_owned()),
        KeyValue::new("http.route", route.to_owned()),
    ];
    begin(SpanBuilder::from_name(format!("{method} {route}")), SpanKind::Server, attributes, &context)
}

pub(super) fn publish(traces: &[TraceParent], events: usize) -> Span {
    if traces.is_empty() {
        return Span::default();
    }
    let links = traces.iter().map(|trace| Link::with_context(context_of(*trace))).collect();
    let attributes = [
        KeyValue::new("messaging.system", "redis"),
        KeyValue::new("messaging.operation.name", "publish"),
        KeyValue::new("messaging.operation.type", "send"),
        KeyValue::new("messaging.batch.message_count", i64::try_from(events).unwrap_or(i64::MAX)),
    ];
    let builder = SpanBuilder::from_name("publish").with_links(links);
    begin(builder, SpanKind::Producer, attributes, &Context::new())
}

pub(super) fn deliver(trace: TraceParent, topic: &Topic, event: EventId) -> Span {
    let attributes = [
        KeyValue::new("messaging.system", "redis"),
        KeyValue::new("messaging.operation.name", "deliver"),
        KeyValue::new("messaging.operation.type", "process"),
        KeyValue::new("messaging.destination.name", topic.to_string()),
        KeyValue::new("messaging.message.id", event.to_string()),
    ];
    let builder = SpanBuilder::from_name("deliver").with_links(vec![Link::with_context(context_of(trace))]);
    begin(builder, SpanKind::Consumer, attributes, &Context::new())
}

fn begin<const N: usize>(
    builder: SpanBuilder,
    kind: SpanKind,
    attributes: [KeyValue; N],
    context: &Context,
) -> Span {
    let Some(tracer) = TRACER.get() else { return Span::default() };
    let builder = builder.with_kind(kind).with_attributes(attributes);
    Span(Some(tracer.build_with_context(builder, context)))
}

fn context_of(trace: TraceParent) -> SpanContext {
    let flags = if trace.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    let is_remote = true;
    SpanContext::new(
        TraceId::from(trace.trace_id),
        SpanId::from(trace.span_id),
        flags,
        is_remote,
        TraceState::NONE,
    )
}
