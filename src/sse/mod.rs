//! From Redis to browsers: joining a topic without a hole, and fanning its events out to every connection.
//!
//! Guarantees: a client that continues after an id gets every later event of the topic once and in order, or an
//! `event: reset` that says it cannot be proven. Knows no Postgres and no application: which topics there are, who may
//! read them and how their events are named is told by whoever opens a stream.
//!
//! In the order of an event's way: `frame` gives it its bytes once, `topic` holds what one topic's clients share (all
//! of the ordering is there, and no I/O; what it hears too early waits in `heard`), `join` is the one procedure by which a
//! topic comes to stand at the end of its history, `hub` is all topics of a process, `open` is a request for a stream
//! (`later` one that nobody can decide now), `catch_up` brings a client to where its topic is (`pages` reads for all that
//! come together), `outlet` is one connection's queue (`flight` is what the connection has taken from it, `held` counts what all of them hold), `several` puts several topics into one of them, `connections` knows
//! all of them, and `admin` shows them.

mod admin;
mod catch_up;
mod connections;
mod cursor;
mod flight;
mod frame;
mod heard;
mod held;
mod history_page;
mod hub;
mod join;
mod later;
mod metrics;
mod naming;
mod open;
mod outlet;
mod pages;
mod patience;
mod recent;
mod settings;
mod several;
mod ticker;
mod topic;

pub use admin::admin;
pub use cursor::Cursor;
pub use hub::Hub;
pub use later::{come_back_later, when_full};
pub use metrics::Metrics;
pub use naming::Naming;
pub use open::{Start, StreamQuery, Topics, Wanted, open};
pub use settings::Settings;
pub use several::{ID_BYTES_MAX, Several, SeveralError, TOPICS_MAX};
