//! Why a client gets no stream, in the words of the `refused` event and of the metrics.

/// Why there is no place for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// The process has as many streams as it may have.
    Full,
    /// The user has as many as a user may have.
    User,
    /// The process has as many topics as it may have.
    Topics,
    /// The user has as many topics, in all of their streams, as a user may have.
    UserTopics,
    /// The process is ending its streams.
    Draining,
    /// Whether the user may have it cannot be told now.
    Unavailable,
}

impl Refusal {
    pub(crate) const ALL: [Self; 6] =
        [Self::Full, Self::User, Self::Topics, Self::UserTopics, Self::Draining, Self::Unavailable];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::User => "user_limit",
            Self::Topics => "topics_full",
            Self::UserTopics => "user_topics_limit",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
        }
    }
}
