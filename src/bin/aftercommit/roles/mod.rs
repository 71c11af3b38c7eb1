//! The roles that the binary plays: each file wires one process.

pub(crate) mod api;
pub(crate) mod dev;
pub(crate) mod relay;
pub(crate) mod sse;
