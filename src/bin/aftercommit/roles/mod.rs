//! The roles of the binary. Each file wires one process together; it must not contain logic of its own.

pub(crate) mod api;
pub(crate) mod dev;
mod preflight;
pub(crate) mod relay;
pub(crate) mod sse;

use std::time::Duration;

use aftercommit::http::Check;
use aftercommit::trace;

use crate::ops::output::error_text;

/// The time limit of one readiness check.
const CHECK_LIMIT: Duration = Duration::from_secs(2);

/// Runs a readiness check with a time limit.
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

/// A failing check if spans cannot be sent to the collector.
fn traces() -> Option<Check> {
    trace::failure().map(|reason| Check::of("traces", Err::<String, _>(reason)))
}
