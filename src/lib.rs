//! aftercommit: every client sees the events that a Postgres transaction committed, once, in order, within
//! milliseconds.
//!
//! ```text
//!  your transaction          Postgres         relay              Redis              SSE server  browser
//!  state change + append ──▶ outbox.event ──▶ step, in order ──▶ history + live ──▶ fan-out ──▶ EventSource
//! ```
//!
//! The modules are listed in the order of that flow. A module uses only those above it:
//!
//! - [`address`]: the parts of a server's address that may be shown. No I/O.
//! - [`certificates`]: PEM files, and why a server's certificate is refused.
//! - [`event`]: the value that travels. No I/O.
//! - [`pluralize`]: a number with its noun, as people write it.
//! - [`printable`]: text from outside, made safe for terminals and logs.
//! - [`postgres`]: how a process connects to Postgres.
//! - [`trace`]: spans of an event's way, off without a collector.
//! - [`outbox`]: the writer's API: append in the transaction, ring the bell after the commit.
//! - [`log`]: reading the log: windows, checkpoints, rotation, parked events. Knows no Redis and no HTTP.
//! - [`ops`]: the operator's use cases, for the command line and the page alike.
//! - [`relay`]: moves the log to a sink, in order. Knows neither Redis nor HTTP, never reads payloads.
//! - [`redis`]: the one place that knows Redis keys, the publishing script and the envelope.
//! - [`http`], [`auth`]: the parts that all HTTP servers share; the user that a token stands for.
//! - [`sse`]: Redis to browsers: joining, fan-out, connections. Knows no Postgres and no application.
//! - [`revocations`]: keeps each server's list of revoked credentials as Postgres has it.
//! - [`streams`]: streams of any topic, allowed by the token; tickets. Knows no application.
//! - [`durable_streams`]: topics by the Durable Streams protocol, to be read. Knows no application.
//! - [`console`]: the operator's page, served by the relay's own port.
//! - [`uploads`]: the bundled application and first user of all the rest.
//! - [`live`]: the live page of `aftercommit dev`.
//! - [`local`]: private Postgres and Redis servers for `aftercommit dev` and for tests.
//!
//! An application that only writes events needs `event` and `outbox`: set `default-features = false`.

pub mod address;
pub mod certificates;
pub mod event;
pub mod outbox;
pub mod password_command;
pub mod postgres;

#[cfg(feature = "server")]
pub mod auth;
pub mod backoff;
#[cfg(feature = "server")]
pub mod console;
#[cfg(feature = "server")]
pub mod durable_streams;
#[cfg(feature = "server")]
mod failpoint;
#[cfg(feature = "server")]
mod generations;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod live;
#[cfg(feature = "server")]
pub mod local;
#[cfg(feature = "server")]
pub mod log;
#[cfg(feature = "server")]
pub mod ops;
#[cfg(feature = "server")]
pub mod pluralize;
pub mod printable;
#[cfg(feature = "server")]
pub mod redis;
#[cfg(feature = "server")]
pub mod relay;
#[cfg(feature = "server")]
pub mod revocations;
#[cfg(feature = "server")]
pub mod sse;
#[cfg(feature = "server")]
pub mod streams;
#[cfg(feature = "server")]
pub mod trace;
#[cfg(feature = "server")]
pub mod uploads;
