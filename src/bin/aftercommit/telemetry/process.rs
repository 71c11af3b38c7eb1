//! Metrics of the process's resources, read from `/proc` at each scrape. Empty on systems without `/proc`.

use std::fmt;
use std::fs;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// The kernel's unit of CPU time in `/proc`: `USER_HZ`, which is 100 on every architecture that this runs on.
const TICKS_A_SECOND: f64 = 100.0;

/// The metrics that Prometheus's own clients name `process_*`.
#[derive(Debug)]
pub(super) struct Collector;

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        if let Some(cpu) = cpu_seconds(&stat) {
            let counter = ConstCounter::new(cpu);
            let help = "CPU time used, user and system";
            let metric =
                encoder.encode_descriptor("process_cpu_seconds", help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_time(&text));
        let open_fds = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as f64);
        let gauges = [
            ("process_resident_memory_bytes", "Memory in RAM", bytes_of(&status, "VmRSS:")),
            ("process_virtual_memory_bytes", "Memory in the address space", bytes_of(&status, "VmSize:")),
            ("process_threads", "Threads", number_behind(&status, "Threads:")),
            ("process_open_fds", "Open file descriptors", open_fds),
            ("process_max_fds", "Limit on open file descriptors", number_behind(&limits, "Max open files")),
            (
                "process_start_time_seconds",
                "Start time, in seconds since 1970",
                boot.zip(start_ticks(&stat)).map(|(boot, ticks)| boot + ticks / TICKS_A_SECOND),
            ),
        ];
        for (name, help, number) in gauges {
            let Some(number) = number else { continue };
            let gauge = ConstGauge::new(number);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

/// The nth field of `/proc/self/stat`, counted as in `man 5 proc`. The second field is a name that may
/// contain blanks.
fn field(stat: &str, nth: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(nth - 3)?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((field(stat, 14)? + field(stat, 15)?) / TICKS_A_SECOND)
}

fn start_ticks(stat: &str) -> Option<f64> {
    field(stat, 22)
}

fn boot_time(stat: &str) -> Option<f64> {
    number_behind(stat, "btime")
}

fn bytes_of(status: &str, key: &str) -> Option<f64> {
    number_behind(status, key).map(|kilobytes| kilobytes * 1024.0)
}

/// The first number after a key at the beginning of a line. `None` for "unlimited".
fn number_behind(text: &str, key: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 4200 1 1";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(start_ticks(stat), Some(4200.0));
    }

    #[test]
    fn numbers_stand_behind_their_keys() {
        assert_eq!(bytes_of("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12288.0));
        let limits = "Max open files            1024                 4096                 files\n";
        assert_eq!(number_behind(limits, "Max open files"), Some(1024.0));
        assert_eq!(number_behind("Max open files  unlimited", "Max open files"), None);
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.0));
    }
}
