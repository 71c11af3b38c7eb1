//! Reading a topic's history: page by page, and to bring a topic to stand at its end.

pub(crate) mod backoff;
pub(crate) mod join;
pub(crate) mod read;
