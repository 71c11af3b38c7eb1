//! Which `event:` name a topic's events carry. The application decides; one rule a topic, as frames are
//! shared.

/// The `event:` name of a topic's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// The event's type.
    OfType,
    /// Always this.
    Fixed(&'static str),
}
