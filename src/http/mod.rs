//! What every HTTP server here shares: errors as problem details, checked extractors, health and metrics, the accept loop.
//!
//! Knows no application, no Postgres and no Redis.

mod bearer;
mod cors;
mod extract;
mod health;
mod operator;
mod problem;
mod serve;
mod trace;
mod within;

pub use bearer::bearer;
pub use cors::{OriginError, Origins, cors};
pub use extract::{Json, Path, Query};
pub use health::{Check, Readiness, operations};
pub use operator::{
    OPERATOR_TOKEN_BYTES_MIN, OperatorGate, OperatorSettings, ShortOperatorToken, operators_only,
};
pub use problem::Problem;
pub use serve::{Connection, Limits, no_route, serve};
pub use trace::{RequestTrace, traced};
pub use within::within;
