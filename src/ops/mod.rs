//! What an operator looks at and does by hand, one use case a file: the change, its audit row, and what
//! became of it.
//!
//! The command line and the operator's page both call it, so that both do the same and neither has SQL of its
//! own.

pub mod audit;
pub mod browse;
pub mod explain;
pub mod parked;
pub mod parked_topics;
pub mod pause;
pub mod rebase;
pub mod relays;
mod renumber;
pub mod replay;
mod replay_sql;
pub mod revoke;
pub mod rights;
pub mod undelivered;
pub mod verdict;
