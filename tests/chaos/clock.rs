//! The clocks of our processes, where libfaketime is installed: set forward and back while they run.

use std::path::{Path, PathBuf};

use crate::harness::Settings;

/// The paths at which distributions install libfaketime.
const PLACES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The one clock of all our processes.
#[derive(Debug)]
pub(crate) struct Clock {
    faketime: &'static str,
    file: PathBuf,
}

impl Clock {
    /// A correct clock; `None` if libfaketime is not installed.
    pub(crate) fn find(directory: &Path) -> Option<Self> {
        let faketime = PLACES.into_iter().find(|place| Path::new(place).exists())?;
        let clock = Self { faketime, file: directory.join("clock") };
        clock.set(0);
        Some(clock)
    }

    /// The environment variables that give a process this clock. The monotonic clock stays unchanged, as when
    /// a real clock is set.
    pub(crate) fn of(&self, settings: Settings) -> Settings {
        settings
            .set("LD_PRELOAD", self.faketime)
            .set("FAKETIME_TIMESTAMP_FILE", self.file.to_string_lossy())
            .set("FAKETIME_CACHE_DURATION", "1")
            .set("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .set("DONT_FAKE_MONOTONIC", "1")
    }

    /// Sets the clock off by this many seconds.
    pub(crate) fn set(&self, seconds: i64) {
        // In one step: a process that reads the file must not find half of it.
        let fresh = self.file.with_extension("new");
        std::fs::write(&fresh, format!("{seconds:+}\n")).expect("a file");
        std::fs::rename(fresh, &self.file).expect("a file");
    }
}
