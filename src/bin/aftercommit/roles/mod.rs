//! The roles that the binary plays: each file wires one process.

pub(crate) mod api;
pub(crate) mod dev;
mod preflight;
pub(crate) mod relay;
pub(crate) mod sse;

use std::time::Duration;

use aftercommit::http::Check;
use aftercommit::trace;

use crate::ops::output::error_text;

/// How long one check of readiness may take.
const CHECK_LIMIT: Duration = Duration::from_secs(2);

/// A check of readiness that is given up after a while.
async fn check<T, E: Into<anyhow::Error>>(
    name: &'static str,
    asked: impl Future<Output = Result<T, E>>,
) -> Check {
    match tokio::time::timeout(CHECK_LIMIT, asked).await {
        Ok(Ok(_)) => Check::of(name, Ok::<_, String>("ok")),
        Ok(Err(error)) => Check::of(name, Err::<String, _>(error_text(&error.into()))),
        Err(_elapsed) => {
            Check::of(name, Err::<String, _>(format!("no answer within {} s", CHECK_LIMIT.as_secs())))
        }
    }
}

/// That no spans are sent, where they should be.
fn traces() -> Option<Check> {
    trace::failure().map(|reason| Check::of("traces", Err::<String, _>(reason)))
}
