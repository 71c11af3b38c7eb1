//! Every test that needs real servers, in the order of the pipeline. The plumbing is in `harness`.

mod harness;

mod outbox_log;
mod relay_delivery;
mod sse_streams;
mod uploads;

mod commands;
mod stories;
