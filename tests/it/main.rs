//! Every test that needs real servers, in the order of the pipeline. The plumbing is in `harness`.

#[path = "../harness/mod.rs"]
mod harness;

mod crash_points;
mod outbox_log;
mod postgres_failures;
mod relay_delivery;
mod relay_failures;
mod relay_leadership;
mod relay_repair;
mod sse_access;
mod sse_streams;
mod uploads;

mod commands;
mod stories;
