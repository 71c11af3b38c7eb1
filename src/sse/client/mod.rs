//! One client: whether there is room for it, where it begins, and how it comes to the end of its topics.

pub(crate) mod admin;
pub(crate) mod admission;
pub(crate) mod catch_up;
mod history_feed;
pub(crate) mod open;
mod opening;
pub(crate) mod retry_later;
