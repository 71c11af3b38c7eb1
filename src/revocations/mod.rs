//! Puts people out: keeps a server's list of revoked credentials as Postgres has it, and takes operators'
//! revocations over HTTP.
//!
//! Guarantee: once a server has read a revocation, it admits nobody whom it names. A server that has not read
//! the list once admits nobody. While Postgres is away it keeps the list that it has.
//!
//! - `watch`: listens for revocations, reads the list, and hands it on.
//! - `admin`: `POST /admin/revoke`.

mod admin;
mod watch;

pub use admin::admin;
pub use watch::Watch;
