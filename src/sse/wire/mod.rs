//! The text of a stream, and the ids with which clients continue. Pure: no I/O, no waiting.

pub(crate) mod cursor;
pub(crate) mod frame;
pub(crate) mod multi_topic;
pub(crate) mod naming;
pub(crate) mod query;
pub(crate) mod refusal;
pub(crate) mod resume;
pub(crate) mod start;
mod text;
