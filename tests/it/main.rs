//! Every test that needs real servers, in the order of the pipeline. The plumbing is in `harness`.

#[path = "../harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the plumbing of all tests; the campaign needs more of it")]
mod harness;

mod append_door;
mod log_contradictions;
mod log_functions;
mod log_servers;
mod log_trust;
mod outbox_log;
mod postgres_version;
mod rotation;
mod rotation_rules;
mod sql_against_schema;
mod status_cost;

mod cluster_stage;
mod crash_points;
mod faulty_sink;
mod history_proof;
mod isolation;
mod outages;
mod pooler;
mod postgres_failures;
mod postgres_hosts;
mod postgres_tls;
mod rebase;
mod rebase_moves;
mod redis_addresses;
mod redis_cluster;
mod redis_cluster_slots;
mod redis_rights;
mod redis_sentinels;
mod relay_arrivals;
mod relay_chunks;
mod relay_delivery;
mod relay_failures;
mod relay_leadership;
mod relay_repair;
mod relay_sleep;
mod relay_steps;
mod rotating_passwords;

mod durable_streams;
mod load_client;
mod revoke;
mod sse_access;
mod sse_browser;
mod sse_keys;
mod sse_limits;
#[cfg(target_os = "linux")]
mod sse_memory;
mod sse_multi_topic;
mod sse_newest;
mod sse_outages;
mod sse_owners;
mod sse_peers;
mod sse_proxies;
mod sse_repair;
mod sse_requests;
mod sse_sockets;
mod sse_streams;
mod sse_tokens;
mod sse_users;
mod uploads;

mod cli_screens;
mod commands;
mod configuration;
mod console;
mod console_access;
mod console_pictures;
mod console_shows;
mod console_tabs;
mod dev;
mod doctor_redis;
mod door;
mod escapes;
mod grants;
mod live_page;
mod metrics;
mod operator_gate;
mod operators;
mod parked_requests;
mod process_ends;
mod prometheus;
mod readiness;
mod relay_port;
mod replays;
mod resume_tokens;
mod resume_truth;
mod silence;
mod stories;
mod systemd;
mod tracing;
mod upgrades;
