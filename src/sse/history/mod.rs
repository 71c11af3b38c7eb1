//! Reads a topic's history: page by page, to bring a topic to the end of it, and to see that it is there.
//! Gives nothing to clients itself.

pub(crate) mod foreign;
pub(crate) mod join;
pub(crate) mod log_of_redis;
pub(crate) mod read;
pub(crate) mod repair_wait;
pub(crate) mod verify;
