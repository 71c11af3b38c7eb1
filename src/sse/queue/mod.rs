//! The way of bytes to the clients: a bounded queue for each connection, the bytes in flight behind it, and
//! the budget of bytes for all of them. Must not know topics' order.

mod block_queue;
pub(crate) mod byte_budget;
pub(crate) mod connections;
mod in_flight;
pub(crate) mod send_queue;
pub(crate) mod stream_body;
