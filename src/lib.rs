//! aftercommit: what a Postgres transaction committed, every client sees, once, in order, within milliseconds.
//!
//! ```text
//!  your transaction          Postgres           relay            Redis              SSE server      browser
//!  state change + append ──▶ outbox.event ──▶ step, in order ──▶ history + live ──▶ fan-out ──────▶ EventSource
//! ```
//!
//! The modules stand in the order of that flow, and each may use only those above it:
//!
//! - [`event`]: the value that travels. No I/O.
//! - [`address`]: what of a server's address may be shown. No I/O.
//! - [`postgres`]: how a process connects to Postgres.
//! - [`outbox`]: what a writer needs: append in its transaction, the bell after its commit.
//! - [`log`]: how the relay reads the log: windows, checkpoints, rotation, parked events. Knows no Redis and no HTTP.
//! - [`ops`]: what an operator looks at and does by hand, for the command line and the page alike.
//! - [`relay`]: moves the log to a sink, in order. Knows neither Redis nor HTTP, never reads payloads.
//! - [`redis`]: the one place that knows Redis keys, the publishing script and the envelope.
//! - [`counted`]: a number with what it counts, as people write it.
//! - [`printable`]: text from outside, made safe to show.
//! - [`trace`]: spans of an event's way, where they are asked for.
//! - [`http`], [`auth`]: what every HTTP server here shares; who a token speaks for.
//! - [`sse`]: Redis to browsers: joining, fan-out, connections. Knows no Postgres and no application.
//! - [`streams`]: streams of any topic, allowed by the token; tickets. Knows no application.
//! - [`console`]: the operator's page, served by the relay's own port.
//! - [`uploads`]: the bundled application and first user of all the rest.
//! - [`local`]: private Postgres and Redis servers for `aftercommit dev` and for tests.
//!
//! An application that only writes events needs `event` and `outbox` alone: `default-features = false`.

pub mod address;
pub mod event;
pub mod outbox;
pub mod postgres;

#[cfg(feature = "server")]
pub mod auth;
pub mod backoff;
#[cfg(feature = "server")]
pub mod console;
#[cfg(feature = "server")]
mod failpoint;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod local;
#[cfg(feature = "server")]
pub mod log;
#[cfg(feature = "server")]
pub mod ops;
#[cfg(feature = "server")]
pub mod pluralize;
#[cfg(feature = "server")]
pub mod printable;
#[cfg(feature = "server")]
pub mod redis;
#[cfg(feature = "server")]
pub mod relay;
#[cfg(feature = "server")]
pub mod sse;
#[cfg(feature = "server")]
pub mod streams;
#[cfg(feature = "server")]
pub mod trace;
#[cfg(feature = "server")]
pub mod uploads;
