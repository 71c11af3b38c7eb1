//! What the clients of one topic share. All of the ordering is here, and no I/O.

pub(crate) mod attach;
pub(crate) mod event_page;
pub(crate) mod pages;
pub(crate) mod pending;
pub(crate) mod recent;
pub(crate) mod shared_topic;
pub(crate) mod state;
