//! The user that a token stands for: checks JWTs, and issues them for trying out.
//!
//! The algorithm is fixed by configuration, never by the token. `exp` and `sub` are required. Beyond a
//! token's own `subscribe` claim, this part must not decide what a user may read or change: the application
//! does.

mod claims;
mod error;
mod jwks;
mod listener;
mod revocations;
mod settings;
mod tickets;
mod user;
mod user_id;
mod verifier;

pub use error::AuthError;
pub use listener::Listener;
pub use revocations::{Credential, Revocations, Revoked, TokenMark};
pub use settings::{Algorithm, SECRET_BYTES_MIN, Settings, TOKEN_BYTES_MAX};
pub use tickets::{TICKET_BYTES_MAX, TICKET_TOPICS_MAX};
pub use user::User;
pub use user_id::{UserId, UserIdError};
pub use verifier::{Verifier, examine, issue, issue_with, problems};
