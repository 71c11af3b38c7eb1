//! The protocol as small models, explored to the last state within their bounds.

mod explore;
mod log;
mod sink;
