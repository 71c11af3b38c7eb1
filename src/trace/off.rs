//! The same as `otlp`, for builds without it: no spans.

use super::{Settings, TraceError};
use crate::event::{EventId, Topic, TraceParent};

/// No span.
#[derive(Debug, Default)]
pub struct Span(());

impl Span {
    /// Nowhere.
    pub fn place(&self) -> Option<TraceParent> {
        None
    }

    /// Nothing.
    pub fn answered(&mut self, _status: u16) {}

    /// Nothing.
    pub fn failed(&mut self, _class: &'static str) {}
}

/// What nothing is sent by.
#[derive(Debug)]
pub struct Exporter;

impl Exporter {
    /// Nothing.
    pub fn end(self) {}
}

/// Refuses where traces are asked for.
///
/// # Errors
/// [`TraceError::NotBuilt`].
pub fn start(settings: &Settings, _role: &str) -> Result<Option<Exporter>, TraceError> {
    super::check(settings).map(|()| None)
}

/// Nothing.
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
