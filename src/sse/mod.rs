//! From Redis to browsers: joining a topic without a hole, and fanning its events out to every connection.
//!
//! Guarantees: a client that continues after an id gets every later event of the topic once and in order, or
//! an `event: reset` that says it cannot be proven. Knows no Postgres and no application: the caller that
//! opens a stream decides which topics there are, who may read them and how their events are named.
//!
//! From the bottom up: `wire` is the text of a stream and its ids; `queue` holds the bytes of one client;
//! `sockets` has the threads that write them; `topic` is the state that the clients of one topic share,
//! with all of the ordering and no I/O; `shared` is the state of all streams of the process; `history`
//! reads a topic's history and brings a topic to its end; `client` admits one client and brings it to the
//! end of its topics; `ticker` does the periodic work; `hub` receives the messages of Redis and runs the
//! rest; `reader` reads topics page by page, for readers that keep their own place.

mod client;
#[cfg(fuzzing)]
pub mod fuzzed;
mod history;
mod hub;
mod metrics;
mod queue;
mod reader;
mod settings;
mod shared;
mod sockets;
mod ticker;
mod topic;
mod wire;

pub use client::admin::admin;
pub use client::open::{StreamGrant, Topics, open};
pub use client::retry_later::{refuse_when_full, retry_later};
pub use hub::Hub;
pub use metrics::Metrics;
pub use reader::{TopicReader, Watch};
pub use settings::Settings;
pub use topic::event_page::{EventPage, PageError};
pub use wire::cursor::Cursor;
pub use wire::multi_topic::{ID_BYTES_MAX, MultiTopic, MultiTopicError, TOPICS_MAX};
pub use wire::naming::Naming;
pub use wire::query::{Keep, QueryError, StreamQuery};
pub use wire::start::Start;
