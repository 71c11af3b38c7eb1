//! Percentiles of durations in buckets of fixed size: recording is an addition, and no value is off by more
//! than 1 %.

use std::time::Duration;

/// Buckets for each power of two, as a power of two.
const FINE_BITS: u32 = 7;
const FINE: u64 = 1 << FINE_BITS;
/// Enough for microseconds up to 2^40, twelve days.
const BUCKETS: usize = ((40 - FINE_BITS as usize) + 1) << FINE_BITS;

/// How often each duration occurred.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), total: 0, max: Duration::ZERO }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket_of(micros).min(BUCKETS - 1)] += 1;
        self.total += 1;
        self.max = self.max.max(duration);
    }

    pub(crate) fn count(&self) -> u64 {
        self.total
    }

    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// The duration that this part of all (0 to 1) did not exceed; zero if there are none.
    pub(crate) fn at(&self, part: f64) -> Duration {
        let wanted = (part * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_micros(highest_of(bucket)).min(self.max);
            }
        }
        self.max
    }
}

/// Values below two times [`FINE`] have a bucket each; above, each power of two has [`FINE`] of them.
fn bucket_of(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(FINE_BITS + 1);
    usize::try_from(u64::from(shift) * FINE + (value >> shift)).unwrap_or(usize::MAX)
}

/// The highest value that falls into a bucket: percentiles are rounded up, never down.
fn highest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / FINE).saturating_sub(1);
    ((bucket - shift * FINE + 1) << shift) - 1
}
