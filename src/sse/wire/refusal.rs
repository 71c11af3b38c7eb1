//! Why a client gets no stream, as the `refused` event and the metrics name it.

/// Why a client gets no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// The process has reached its limit of streams.
    Full,
    /// The user has reached the limit of streams.
    User,
    /// The process has reached its limit of topics.
    Topics,
    /// The user has reached the limit of topics in all of their streams.
    UserTopics,
    /// The process is ending its streams.
    Draining,
    /// Whether the user may have the stream cannot be decided now.
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
