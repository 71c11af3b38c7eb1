//! Places to die: between any two effects, a process can be told to stop and wait for its kill.
//!
//! `FAILPOINT=batch_published@3` stops the process for good when it comes to that place for the third time,
//! and says so in its log; the test that asked for it then kills the process. With `FAILPOINT=panic:keys_wanted` it panics
//! there instead. In release builds there is nothing of it.

/// Stops here for ever if the environment names this place.
#[cfg(debug_assertions)]
pub(crate) async fn reach(place: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The place that the environment names, and how often it is passed before.
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

/// Nothing, in release builds.
#[cfg(not(debug_assertions))]
#[inline]
pub(crate) async fn reach(_place: &'static str) {}
