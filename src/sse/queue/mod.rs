//! The way of bytes to the clients: a bounded queue for each connection, the list of the connections that
//! have something to write, and the budget of bytes for all of them. Must not know the order of a topic's
//! events.

mod block_queue;
pub(crate) mod byte_budget;
mod newest;
pub(crate) mod open_streams;
pub(crate) mod ready_list;
pub(crate) mod send_queue;
