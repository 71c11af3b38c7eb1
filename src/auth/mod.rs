//! Who a token speaks for: checking JWTs, and issuing them for trying out.
//!
//! The algorithm is fixed by configuration, never by the token. `exp` and `sub` are required.

mod claims;
mod error;
mod jwks;
mod listener;
mod settings;
mod tickets;
mod user;
mod user_id;
mod verifier;

pub use error::AuthError;
pub use listener::Listener;
pub use settings::{Algorithm, SECRET_BYTES_MIN, Settings, TOKEN_BYTES_MAX};
pub use tickets::{TICKET_BYTES_MAX, TICKET_TOPICS_MAX};
pub use user::User;
pub use user_id::{UserId, UserIdError};
pub use verifier::{Verifier, examine, issue, issue_with, problems};
