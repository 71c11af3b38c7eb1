//! Failpoints: places between two effects where a test can stop a process to kill it.
//!
//! `FAILPOINT=batch_published@3` stops the process when it reaches that place for the third time. The process
//! logs that it has stopped, and the test kills it. `FAILPOINT=panic:keys_wanted` makes it panic there
//! instead. Release builds have no failpoints.

/// Stops here for ever if the environment names this place.
#[cfg(debug_assertions)]
pub(crate) async fn reach(place: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The place that the environment names, and at which pass it stops.
    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let wanted = WANTED.get_or_init(|| {
        let named = std::env::var("FAILPOINT").ok()?;
        let (name, nth) = named.split_once('@').unwrap_or((&named, "1"));
        Some((name.to_owned(), nth.parse().unwrap_or(1)))
    });
    let Some((name, nth)) = wanted else { return };
    let (panics, name) = name.strip_prefix("panic:").map_or((false, name.as_str()), |name| (true, name));
    if name == place && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *nth {
        assert!(!panics, "as FAILPOINT asks for at {place}");
        tracing::warn!(failpoint = place, "stopped at a failpoint, waiting to be killed");
        std::future::pending::<()>().await;
    }
}

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
#[inline]
pub(crate) async fn reach(_place: &'static str) {}
