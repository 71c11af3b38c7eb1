//! Which `event:` name a topic's events carry. The application decides. A topic has one rule, because its
//! frames are shared.

/// The `event:` name of a topic's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// The event's type.
    OfType,
    /// Always this.
    Fixed(&'static str),
}
