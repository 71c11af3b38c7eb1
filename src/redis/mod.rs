//! The one place that knows Redis: keys, the publishing script, the envelope, histories and subscriptions.
//!
//! Must know no Postgres, no HTTP and no application. The crate of the same name is written `::redis` here.

mod cluster;
mod connect;
mod connect_error;
pub mod continuity;
mod endpoint;
pub mod envelope;
mod error_text;
pub mod history;
mod kept_times;
pub mod keys;
mod links;
mod login;
mod publisher;
mod rehearsal;
mod reply_codes;
pub mod rights;
mod sentinel;
mod settings;
mod slot_map;
mod slots;
pub mod subscriber;
mod target;
mod tls;

pub use cluster::Primary;
pub use connect_error::ConnectError;
pub use error_text::error_text;
pub use history::History;
pub use publisher::{FORMAT, Publisher};
pub use rehearsal::rehearse;
pub use sentinel::{SentinelAnswer, SentinelError};
pub use settings::{Settings, history_kept};
pub use subscriber::Subscriber;
pub use tls::TlsError;
