//! What a process costs: CPU time and memory, as the kernel counts them. Linux only.

use std::fs;
use std::iter::Sum;
use std::time::Duration;

/// Costs up to now.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) cpu: Duration,
    /// Resident bytes.
    pub(crate) memory: u64,
}

impl Cost {
    /// Of a process that runs; `None` where there is no `/proc`.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; after it are fields 3 and on.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let user: u64 = fields.nth(14 - 3)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let resident: u64 = fields.nth(24 - 16)?.parse().ok()?;
        let ticks = (user + system) as f64 / rustix::param::clock_ticks_per_second() as f64;
        Some(Self {
            cpu: Duration::from_secs_f64(ticks),
            memory: resident * rustix::param::page_size() as u64,
        })
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), |sum, one| Self {
            cpu: sum.cpu + one.cpu,
            memory: sum.memory + one.memory,
        })
    }
}
