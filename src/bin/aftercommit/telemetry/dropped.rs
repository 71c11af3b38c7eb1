//! The metric of log lines that could not be written.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;

use super::stderr;

/// Reads the queue's count at each scrape.
#[derive(Debug)]
pub(super) struct Collector;

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counter = ConstCounter::new(stderr().dropped());
        let help = "Log lines dropped because stderr did not accept them";
        let metric =
            encoder.encode_descriptor("aftercommit_log_lines_dropped", help, None, counter.metric_type())?;
        counter.encode(metric)
    }
}
