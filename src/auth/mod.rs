//! Who a token speaks for: checking JWTs, and issuing them for trying out.
//!
//! The algorithm is fixed by configuration, never by the token. `exp` and `sub` are required.

mod jwks;
mod listener;
mod settings;
mod tickets;
mod user;
mod verifier;

pub use listener::Listener;
pub use settings::{Algorithm, Settings};
pub use tickets::TICKET_TOPICS_MAX;
pub use user::User;
pub use verifier::{AuthError, SECRET_BYTES_MIN, Verifier, examine, issue, issue_with, problems};
