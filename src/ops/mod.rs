//! The use cases of an operator, one a file. A use case that changes something makes the change, writes its
//! audit row and reports the result.
//!
//! The command line and the operator's page both call it, so that both do the same and neither has SQL of its
//! own.

pub mod audit;
pub mod browse;
pub mod explain;
pub mod held_rights;
mod lineage;
mod log_lock;
mod moved;
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
