//! The one place that knows Redis: keys, the publishing script, the envelope, histories and subscriptions.
//!
//! Must know no Postgres, no HTTP and no application. The crate of the same name is written `::redis` here.

mod connect;
pub mod continuity;
pub mod delivered_uuids;
pub mod envelope;
mod error_text;
pub mod history;
pub mod keys;
mod login;
mod publisher;
mod refusal;
mod rehearsal;
mod reply_codes;
pub mod rights;
mod sentinel;
mod settings;
pub mod subscriber;
mod tls;
mod topic_heads;

pub use connect::ConnectError;
pub use error_text::error_text;
pub use history::History;
pub use publisher::{FORMAT, Publisher};
pub use rehearsal::rehearse;
pub use sentinel::SentinelError;
pub use settings::Settings;
pub use subscriber::Subscriber;
pub use tls::TlsError;
