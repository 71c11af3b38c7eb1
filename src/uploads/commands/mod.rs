//! The commands: load, decide, save, append, commit. One transaction each, visible as such.

mod create;
mod settle;

pub(super) use create::{Order, create, order_bytes_max};
pub(super) use settle::{owned_by, settle};
