//! Shared by every HTTP server here: problem details, extractors, health and metrics, the operators' gate,
//! the accept loop.
//!
//! Must not know any application, Postgres or Redis.

mod attempts;
mod bearer;
mod body;
mod connection;
mod connection_limiter;
mod cors;
mod extract;
mod health;
mod log_limiter;
mod metrics;
mod operator;
mod page;
mod problem;
mod proxies;
mod refusal;
mod request_timeout;
mod serve;
mod settings;
mod takeover;
mod trace;

pub use bearer::bearer;
pub use connection::{Connection, Limits};
pub use cors::{OriginError, Origins, cors};
pub use extract::{Json, Path, Query};
pub use health::{Check, Readiness, operations};
pub use metrics::Metrics;
pub use operator::{
    OPERATOR_TOKEN_BYTES_MIN, OperatorGate, OperatorRefusal, OperatorSettings, ShortOperatorToken,
    operators_only,
};
pub use page::{guard_page, is_same_origin};
pub use problem::Problem;
pub use proxies::{ProxyError, TrustedProxies};
pub use request_timeout::{REQUEST_TIMEOUT, request_timeout};
pub use serve::{AcceptTicks, RESERVED_CONNECTIONS, Server, no_route};
pub use settings::Settings;
pub use takeover::{Lease, TakenSocket, Takeover};
pub use trace::{RequestTrace, traced};
