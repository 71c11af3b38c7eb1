//! The way of bytes to the clients: a bounded queue for each connection, the list of those that have something
//! to write, and the budget of bytes for all of them. Must not know topics' order.

mod block_queue;
pub(crate) mod byte_budget;
mod newest;
pub(crate) mod open_streams;
pub(crate) mod ready_list;
pub(crate) mod send_queue;
