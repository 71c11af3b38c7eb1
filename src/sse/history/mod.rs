//! Reads a topic's history page by page, brings a topic to the end of its history, and checks later that the
//! topic is still there. Gives nothing to clients itself.

pub(crate) mod foreign;
pub(crate) mod join;
pub(crate) mod log_of_redis;
pub(crate) mod read;
pub(crate) mod repair_wait;
pub(crate) mod verify;
