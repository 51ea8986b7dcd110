//! Making metrics and registering them. Both fail only for names that are wrong or there twice, which the first start shows.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// Makes metrics of a registry.
#[derive(Clone, Copy)]
pub(super) struct Register<'a>(pub &'a Registry);

impl Register<'_> {
    pub(super) fn counter(self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub(super) fn counters(self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// Of fractions.
    pub(super) fn real_counters(self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.add(CounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauge(self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    pub(super) fn gauges(self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// Of a fraction.
    pub(super) fn real_gauge(self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    /// Of fractions.
    pub(super) fn real_gauges(self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn histograms(self, name: &str, help: &str, label: &str, buckets: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.add(HistogramVec::new(options, &[label]))
    }

    fn add<C: Collector + Clone + 'static>(self, made: prometheus::Result<C>) -> C {
        let made = made.unwrap_or_else(|error| unreachable!("a metric's name is a constant: {error}"));
        if let Err(error) = self.0.register(Box::new(made.clone())) {
            tracing::error!(%error, "a metric is not exported");
        }
        made
    }
}
