//! What an operator does by hand, one use case a file: the change, its audit row, and what became of it.
//!
//! The command line and the operator's page both call it, so that both do the same and neither has SQL of its own.

pub mod parked;
pub mod rights;
