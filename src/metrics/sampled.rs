//! What is counted and measured elsewhere, and taken over when the metrics are asked for.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::register::Register;
use crate::breaker::Standing;

/// What is true at the moment that the metrics are asked for. Counts are since the start.
#[derive(Debug, Default)]
pub struct Samples {
    /// Successful loads of the configuration.
    pub generation: u64,
    /// Whether the last reload took effect.
    pub reloaded: bool,
    /// The names of the remotes that are configured.
    pub remotes: Vec<String>,
    /// Requests that are being answered.
    pub in_flight: u64,
    /// Fetches that run, and those that wait for a place.
    pub fetches: [u64; 2],
    /// How what stands behind this node fares.
    pub dependencies: Vec<Standing>,
    /// Whether the disk takes what is to be stored.
    pub disk_takes: bool,
    /// Bytes that a tier holds and may hold: which, how many of both.
    pub tiers: [(&'static str, u64, u64); 2],
    pub memory_objects: u64,
    pub growing_objects: u64,
    /// How much of this round the scrubber has done, from 0 to 1.
    pub scrub_progress: f64,
    pub scrub_rounds: u64,
    /// What the catalogue is yet to be told, and what it never will be.
    pub catalogue_queue: u64,
    pub catalogue_dropped: u64,
    /// Times that something could not be stored.
    pub unstored: u64,
    /// Stored files found damaged or unreadable.
    pub lost: u64,
    /// Files that the scrubber has compared with their digests, and their bytes.
    pub scrubbed_objects: u64,
    pub scrubbed_bytes: u64,
    /// Lines of the access log that were not written.
    pub log_dropped: u64,
    /// `None`: no bucket is configured.
    pub bucket: Option<BucketSamples>,
    /// `None`: this node is alone.
    pub fleet: Option<FleetSamples>,
    /// Other nodes by URL, and whether this one can read from them.
    pub nodes: BTreeMap<String, bool>,
    /// Upstream hosts that are not asked for now; a bounded number.
    pub upstreams_away: Vec<String>,
}

/// Of a bucket.
#[derive(Debug)]
pub struct BucketSamples {
    /// Whether it takes uploads, when it answers.
    pub takes: bool,
    /// What waits to be done, and how often.
    pub queue: [(&'static str, u64); 2],
    /// Of the uploads that wait.
    pub queue_bytes: u64,
    /// How long the first of them has waited.
    pub oldest_seconds: u64,
    /// What was done, and how often.
    pub done: [(&'static str, u64); 6],
    pub uploaded_bytes: u64,
}

/// Of what goes between nodes.
#[derive(Debug)]
pub struct FleetSamples {
    /// By kind.
    pub done: [(&'static str, u64); 5],
    /// News of others that this node has not read yet.
    pub behind: u64,
    /// What this node has not said yet.
    pub queue: u64,
    /// Whether it hears the others.
    pub listening: bool,
}

/// A counter, and where it is kept.
type Taken = (IntCounterVec, fn(&Standing) -> u64);

/// Their metrics.
pub(super) struct Sampled {
    generation: IntGauge,
    reloaded: IntGauge,
    in_flight: IntGauge,
    fetches: IntGaugeVec,
    tier_bytes: IntGaugeVec,
    tier_limit_bytes: IntGaugeVec,
    memory_objects: IntGauge,
    growing_objects: IntGauge,
    scrub_progress: Gauge,
    scrub_rounds: IntCounter,
    catalogue_queue: IntGauge,
    catalogue_dropped: IntCounter,
    unstored: IntCounter,
    lost: IntCounter,
    scrubbed_objects: IntCounter,
    scrubbed_bytes: IntCounter,
    log_dropped: IntCounter,
    dependency_up: IntGaugeVec,
    dependency_counts: [Taken; 3],
    dependency_clock: GaugeVec,
    /// Made for those who have one: 0 would say that it is in trouble.
    bucket: OnceLock<Bucket>,
    fleet: OnceLock<Fleet>,
    node_reachable: IntGaugeVec,
    upstream_away: IntGaugeVec,
}

struct Bucket {
    takes: IntGauge,
    queue: IntGaugeVec,
    queue_bytes: IntGauge,
    oldest: IntGauge,
    counts: IntCounterVec,
    uploaded_bytes: IntCounter,
}

struct Fleet {
    counts: IntCounterVec,
    behind: IntGauge,
    queue: IntGauge,
    listening: IntGauge,
}

impl Sampled {
    pub(super) fn new(register: Register<'_>) -> Self {
        let of_dependency = |name: &str, help: &str| register.counters(name, help, &["dependency"]);
        Sampled {
            generation: register.gauge(
                "artifactapi_config_generation",
                "Counts successful loads of the configuration.",
            ),
            reloaded: register.gauge(
                "artifactapi_config_last_reload_successful",
                "Whether the last reload of the configuration took effect.",
            ),
            in_flight: register.gauge("artifactapi_requests_in_flight", "Requests that are being answered."),
            fetches: register.gauges(
                "artifactapi_upstream_fetches",
                "Fetches from upstream that run, and those that wait for a place.",
                &["state"],
            ),
            tier_bytes: register.gauges("artifactapi_tier_bytes", "Bytes that a tier holds.", &["tier"]),
            tier_limit_bytes: register.gauges(
                "artifactapi_tier_limit_bytes",
                "Bytes that a tier may hold.",
                &["tier"],
            ),
            memory_objects: register.gauge("artifactapi_memory_objects", "Objects in memory."),
            growing_objects: register.gauge("artifactapi_growing_objects", "Objects whose body is arriving."),
            scrub_progress: register.real_gauge(
                "artifactapi_scrub_progress_ratio",
                "How much of this round the scrubber has done.",
            ),
            scrub_rounds: register.counter("artifactapi_scrub_rounds_total", "Rounds that the scrubber has ended."),
            catalogue_queue: register.gauge(
                "artifactapi_catalogue_queue_length",
                "Changes that the catalogue is yet to be told.",
            ),
            catalogue_dropped: register.counter(
                "artifactapi_catalogue_dropped_total",
                "Changes that the catalogue was never told, because too many waited.",
            ),
            unstored: register.counter(
                "artifactapi_store_failures_total",
                "Times that something could not be stored.",
            ),
            lost: register.counter(
                "artifactapi_damaged_objects_total",
                "Stored files found damaged or unreadable, and dropped.",
            ),
            scrubbed_objects: register.counter(
                "artifactapi_scrubbed_objects_total",
                "Stored files compared with their digests by the scrubber.",
            ),
            scrubbed_bytes: register.counter("artifactapi_scrubbed_bytes_total", "Bytes that the scrubber has read."),
            log_dropped: register.counter(
                "artifactapi_access_log_dropped_total",
                "Lines of the access log that were not written, because it could not be written to fast enough or at all.",
            ),
            dependency_up: register.gauges(
                "artifactapi_dependency_up",
                "Whether what stands behind this node answers; 0: its breaker is open, and it is not asked.",
                &["dependency"],
            ),
            dependency_counts: [
                (
                    of_dependency("artifactapi_dependency_calls_total", "Calls of dependencies."),
                    |standing| standing.calls,
                ),
                (
                    of_dependency(
                        "artifactapi_dependency_failures_total",
                        "Calls of dependencies that failed or took too long, and outages found by other means.",
                    ),
                    |standing| standing.failures,
                ),
                (
                    of_dependency(
                        "artifactapi_dependency_skipped_total",
                        "Calls that were not made because the dependency was known to be away.",
                    ),
                    |standing| standing.skipped,
                ),
            ],
            dependency_clock: register.real_gauges(
                "artifactapi_dependency_clock_ahead_seconds",
                "By how much a dependency's clock is ahead of this machine's.",
                &["dependency"],
            ),
            bucket: OnceLock::new(),
            fleet: OnceLock::new(),
            node_reachable: register.gauges(
                "artifactapi_node_reachable",
                "Whether this node can read from another one.",
                &["node"],
            ),
            upstream_away: register.gauges(
                "artifactapi_upstream_away",
                "Upstream hosts that did not answer and are not asked until a probe finds that they do.",
                &["host"],
            ),
        }
    }

    pub(super) fn take_over(&self, registry: &Registry, samples: &Samples) {
        set(&self.generation, samples.generation);
        set(&self.reloaded, u64::from(samples.reloaded));
        set(&self.in_flight, samples.in_flight);
        for (state, fetches) in ["running", "waiting"].into_iter().zip(samples.fetches) {
            set(&self.fetches.with_label_values(&[state]), fetches);
        }
        for (tier, bytes, limit) in samples.tiers {
            set(&self.tier_bytes.with_label_values(&[tier]), bytes);
            set(&self.tier_limit_bytes.with_label_values(&[tier]), limit);
        }
        set(&self.memory_objects, samples.memory_objects);
        set(&self.growing_objects, samples.growing_objects);
        self.scrub_progress.set(samples.scrub_progress);
        raise(&self.scrub_rounds, samples.scrub_rounds);
        set(&self.catalogue_queue, samples.catalogue_queue);
        raise(&self.catalogue_dropped, samples.catalogue_dropped);
        raise(&self.unstored, samples.unstored);
        raise(&self.lost, samples.lost);
        raise(&self.scrubbed_objects, samples.scrubbed_objects);
        raise(&self.scrubbed_bytes, samples.scrubbed_bytes);
        raise(&self.log_dropped, samples.log_dropped);
        let disk = self.dependency_up.with_label_values(&["disk"]);
        disk.set(i64::from(samples.disk_takes));
        for standing in &samples.dependencies {
            self.dependency(registry, standing);
        }
        let register = Register(registry);
        if let Some(samples) = &samples.bucket {
            self.bucket.get_or_init(|| Bucket::new(register)).take_over(samples);
        }
        if let Some(samples) = &samples.fleet {
            self.fleet.get_or_init(|| Fleet::new(register)).take_over(samples);
        }
        self.node_reachable.reset();
        for (url, reachable) in &samples.nodes {
            let node = self.node_reachable.with_label_values(&[url]);
            node.set(i64::from(*reachable));
        }
        self.upstream_away.reset();
        for host in &samples.upstreams_away {
            self.upstream_away.with_label_values(&[host]).set(1);
        }
    }

    fn dependency(&self, registry: &Registry, standing: &Standing) {
        let up = self.dependency_up.with_label_values(&[standing.name]);
        up.set(i64::from(standing.healthy));
        for (counter, of) in &self.dependency_counts {
            raise(&counter.with_label_values(&[standing.name]), of(standing));
        }
        if let Some(ahead) = standing.clock_ahead {
            let clock = self.dependency_clock.with_label_values(&[standing.name]);
            clock.set(ahead as f64 / 1e6);
        }
        // The breaker keeps it; from the second time on it is known.
        let _ = registry.register(Box::new(standing.seconds.clone()));
    }
}

impl Bucket {
    fn new(register: Register<'_>) -> Self {
        Bucket {
            takes: register.gauge(
                "artifactapi_bucket_takes_uploads",
                "Whether the last upload to S3 was not refused for all objects (a full bucket, a missing permission).",
            ),
            queue: register.gauges(
                "artifactapi_bucket_queue_length",
                "What waits to be done in S3.",
                &["what"],
            ),
            queue_bytes: register.gauge(
                "artifactapi_bucket_queue_bytes",
                "Bytes of the objects that wait to be uploaded to S3.",
            ),
            oldest: register.gauge(
                "artifactapi_bucket_queue_oldest_seconds",
                "How long the first of the objects has waited that are to be uploaded to S3.",
            ),
            counts: register.counters("artifactapi_bucket_total", "What was done in S3.", &["what"]),
            uploaded_bytes: register.counter("artifactapi_bucket_uploaded_bytes_total", "Bytes uploaded to S3."),
        }
    }

    fn take_over(&self, samples: &BucketSamples) {
        self.takes.set(i64::from(samples.takes));
        for (what, value) in samples.queue {
            set(&self.queue.with_label_values(&[what]), value);
        }
        set(&self.queue_bytes, samples.queue_bytes);
        set(&self.oldest, samples.oldest_seconds);
        for (what, value) in samples.done {
            raise(&self.counts.with_label_values(&[what]), value);
        }
        raise(&self.uploaded_bytes, samples.uploaded_bytes);
    }
}

impl Fleet {
    fn new(register: Register<'_>) -> Self {
        Fleet {
            counts: register.counters(
                "artifactapi_fleet_total",
                "What went between nodes through Redis.",
                &["what"],
            ),
            behind: register.gauge(
                "artifactapi_fleet_news_behind",
                "News of other nodes that this one has not read yet.",
            ),
            queue: register.gauge(
                "artifactapi_fleet_queue_length",
                "What this node has not told the others yet.",
            ),
            listening: register.gauge(
                "artifactapi_fleet_listening",
                "Whether this node hears the news of the others.",
            ),
        }
    }

    fn take_over(&self, samples: &FleetSamples) {
        for (what, value) in samples.done {
            raise(&self.counts.with_label_values(&[what]), value);
        }
        set(&self.behind, samples.behind);
        set(&self.queue, samples.queue);
        self.listening.set(i64::from(samples.listening));
    }
}

/// Sets a gauge.
fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Brings a counter up to what is counted elsewhere. One at a time.
fn raise(counter: &IntCounter, value: u64) {
    counter.inc_by(value.saturating_sub(counter.get()));
}
