//! The protocol as small models, explored to the last state within their bounds. No server, no clock, no I/O.
//!
//! Two models, as one of everything could not be explored: [`log`] from a writer's transaction to the
//! numbers that the sink is offered, [`sink`] from the log's position to a reader. Each has its rules as
//! flags, and for each rule a mutant: the exploration must find the property that breaks without it, and
//! prints the shortest run of actions that breaks it.

mod explore;
mod log;
mod sink;
