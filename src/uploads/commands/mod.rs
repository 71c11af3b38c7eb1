//! The commands: load, decide, save, append, commit. One transaction each, visible as such.

mod create;
mod settle;

pub(super) use create::{Order, create};
pub(super) use settle::{owned_by, settle};
