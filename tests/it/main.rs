//! Every test that needs real servers, in the order of the pipeline. The plumbing is in `harness`.

#[path = "../harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the plumbing of all tests; the campaign needs more of it")]
mod harness;

mod append_door;
mod log_contradictions;
mod log_trust;
mod outbox_log;
mod rotation;
mod status_cost;

mod crash_points;
mod outages;
mod pooler;
mod postgres_failures;
mod rebase;
mod relay_delivery;
mod relay_failures;
mod relay_leadership;
mod relay_repair;

mod load_client;
mod sse_access;
mod sse_browser;
mod sse_keys;
mod sse_limits;
mod sse_outages;
mod sse_owners;
mod sse_peers;
mod sse_proxies;
mod sse_repair;
mod sse_several;
mod sse_streams;
mod sse_tokens;
mod uploads;

mod cli_screens;
mod commands;
mod console;
mod console_access;
mod console_pictures;
mod metrics;
mod operators;
mod prometheus;
mod readiness;
mod relay_port;
mod replays;
mod stories;
mod systemd;
mod tracing;
mod upgrades;
