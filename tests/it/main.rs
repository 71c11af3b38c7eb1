//! Every test that needs real servers, in the order of the pipeline. The plumbing is in `harness`.

#[path = "../harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the plumbing of all tests; the campaign needs more of it")]
mod harness;

mod outbox_log;
mod rotation;

mod crash_points;
mod outages;
mod pooler;
mod postgres_failures;
mod rebase;
mod relay_delivery;
mod relay_failures;
mod relay_leadership;
mod relay_repair;

mod sse_access;
mod sse_streams;
mod uploads;

mod commands;
mod metrics;
mod operators;
mod readiness;
mod stories;
mod systemd;
mod tracing;
