//! The way of bytes to the clients: a queue for each, what it has taken and not yet read, and the bytes that all of them
//! hold. Knows nothing of topics' order.

pub(crate) mod byte_budget;
pub(crate) mod connections;
pub(crate) mod in_flight;
pub(crate) mod send_queue;
