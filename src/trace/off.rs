//! The interface of `otlp` for builds without that feature: no spans.

use super::{Settings, TraceError};
use crate::event::{EventId, Topic, TraceParent};

/// A span that records nothing.
#[derive(Debug, Default)]
pub struct Span(());

impl Span {
    /// Returns `None`: there is no span.
    pub fn place(&self) -> Option<TraceParent> {
        None
    }

    /// Does nothing.
    pub fn answered(&mut self, _status: u16) {}

    /// Does nothing.
    pub fn failed(&mut self, _class: &'static str) {}
}

/// No-op exporter for builds without `otlp`.
#[derive(Debug)]
pub struct Exporter;

impl Exporter {
    /// Does nothing.
    pub fn end(self) {}
}

/// Starts nothing, and refuses settings that name a collector.
///
/// # Errors
/// Returns [`TraceError::NotBuilt`] if the settings name a collector, and else fails as [`super::check`].
pub fn start(settings: &Settings, _role: &str) -> Result<Option<Exporter>, TraceError> {
    super::check(settings).map(|()| None)
}

/// Does nothing.
pub fn failure() -> Option<&'static str> {
    None
}

pub(super) fn is_on() -> bool {
    false
}

pub(super) fn request(_parent: Option<TraceParent>, _method: &str, _route: &str) -> Span {
    Span::default()
}

pub(super) fn publish(_traces: &[TraceParent], _events: usize) -> Span {
    Span::default()
}

pub(super) fn deliver(_trace: TraceParent, _topic: &Topic, _event: EventId) -> Span {
    Span::default()
}
