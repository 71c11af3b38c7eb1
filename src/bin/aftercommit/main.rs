//! The `aftercommit` binary: composition only.
fn main() {}
