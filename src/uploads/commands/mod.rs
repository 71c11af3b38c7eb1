//! The commands: load, decide, save, append, commit. One transaction each, visible as such.

mod create;
mod resolve_photo;

pub(super) use create::{Order, create, order_bytes_max};
pub(super) use resolve_photo::{owned_by, resolve_photo};
