//! Counters for Prometheus. Label values are bounded: remotes come from the configuration, the rest is a fixed set.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus::{
    CounterVec, Encoder, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::breaker::Standing;

/// A counter, and where it is kept.
type Taken = (IntCounterVec, fn(&Standing) -> u64);

/// What is counted and measured elsewhere, as of the moment that the metrics are asked for. Counts are since the start.
#[derive(Debug)]
pub struct Samples {
    /// Successful loads of the configuration.
    pub generation: u64,
    /// Whether the last reload took effect.
    pub reloaded: bool,
    /// How what stands behind this node fares.
    pub dependencies: Vec<Standing>,
    /// Whether the disk takes what is to be stored.
    pub disk_takes: bool,
    /// Sizes of tiers and queues: which, what of it, how much.
    pub tiers: Vec<(&'static str, &'static str, u64)>,
    /// Times that something could not be stored.
    pub unstored: u64,
    /// Stored files found damaged or unreadable.
    pub lost: u64,
    /// Files that the scrubber has compared with their digests, and their bytes.
    pub scrubbed_objects: u64,
    pub scrubbed_bytes: u64,
    /// `None`: no bucket is configured.
    pub bucket: Option<BucketSamples>,
    /// What went between nodes, by kind. `None`: this node is alone.
    pub fleet: Option<[(&'static str, u64); 5]>,
    /// Other nodes by URL, and whether this one can read from them.
    pub nodes: BTreeMap<String, bool>,
}

/// Of a bucket.
#[derive(Debug)]
pub struct BucketSamples {
    /// Whether it takes uploads, when it answers.
    pub takes: bool,
    /// What waits to be done, and how much of it.
    pub waiting: [(&'static str, u64); 4],
    /// What was done, and how often.
    pub done: [(&'static str, u64); 7],
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    response_bytes: IntCounterVec,
    seconds: Histogram,
    flights: IntCounter,
    collapsed: IntCounter,
    failed_fills: IntCounter,
    wrong_digests: IntCounterVec,
    changed: IntCounterVec,
    held: IntCounterVec,
    held_if_enforced: IntCounterVec,
    failed_views: IntCounter,
    escaped_links: IntCounter,
    upstream_failures: IntCounterVec,
    evictions: IntCounter,
    evicted_bytes: IntCounter,
    unstored: IntCounter,
    lost: IntCounter,
    scrubbed_objects: IntCounter,
    scrubbed_bytes: IntCounter,
    rate_limit: IntGaugeVec,
    rate_limit_left: IntGaugeVec,
    gauges: IntGaugeVec,
    dependency_up: IntGaugeVec,
    dependency_counts: Vec<Taken>,
    dependency_seconds: CounterVec,
    dependency_clock: GaugeVec,
    bucket: IntGaugeVec,
    bucket_takes: IntGauge,
    node_reachable: IntGaugeVec,
    bucket_counts: IntCounterVec,
    fleet_counts: IntCounterVec,
    shared: IntCounterVec,
    generation: IntGauge,
    reloaded: IntGauge,
    hits: ArcSwap<HashMap<String, Arc<(IntCounter, IntCounter)>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help));
        let vector = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str| register(&registry, IntGaugeVec::new(Opts::new(name, help), &["remote"]));
        let seconds = HistogramOpts::new(
            "artifactapi_request_seconds",
            "Time from a request's head to its answer's end.",
        )
        .buckets(vec![
            0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0,
        ]);
        let build = register(
            &registry,
            IntGaugeVec::new(
                Opts::new("artifactapi_build_info", "The version that runs."),
                &["version"],
            ),
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let of_dependency = |name: &str, help: &str| vector(name, help, &["dependency"]);
        Metrics {
            dependency_up: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "artifactapi_dependency_up",
                        "Whether what stands behind this node answers.",
                    ),
                    &["dependency"],
                ),
            ),
            dependency_counts: vec![
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
            dependency_clock: register(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "artifactapi_dependency_clock_ahead_seconds",
                        "By how much a dependency's clock is ahead of this machine's.",
                    ),
                    &["dependency"],
                ),
            ),
            dependency_seconds: register(
                &registry,
                CounterVec::new(
                    Opts::new(
                        "artifactapi_dependency_answer_seconds_total",
                        "Time spent in calls of dependencies that were answered.",
                    ),
                    &["dependency"],
                ),
            ),
            bucket: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("artifactapi_bucket_waiting", "What waits to be done in S3."),
                    &["what"],
                ),
            ),
            node_reachable: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "artifactapi_node_reachable",
                        "Whether this node can read from another one.",
                    ),
                    &["node"],
                ),
            ),
            bucket_takes: register(
                &registry,
                IntGauge::new(
                    "artifactapi_bucket_takes_uploads",
                    "Whether the last upload to S3 was not refused for all objects (a full bucket, a missing permission).",
                ),
            ),
            bucket_counts: vector("artifactapi_bucket_total", "What was done in S3.", &["what"]),
            fleet_counts: vector(
                "artifactapi_fleet_total",
                "What went between nodes through Redis.",
                &["what"],
            ),
            shared: vector(
                "artifactapi_shared_total",
                "Objects that came from the bucket or from another node instead of from upstream, and transfers between \
                 nodes that were taken up elsewhere.",
                &["from"],
            ),
            requests: vector(
                "artifactapi_requests_total",
                "Requests answered.",
                &["remote", "status", "cache"],
            ),
            response_bytes: vector(
                "artifactapi_response_bytes_total",
                "Body bytes of artifact responses, by where they came from.",
                &["remote", "source"],
            ),
            seconds: register(&registry, Histogram::with_opts(seconds)),
            flights: counter("artifactapi_fills_total", "Fetches from upstream that were started."),
            collapsed: counter("artifactapi_collapsed_total", "Requests that joined a fetch under way."),
            failed_fills: counter(
                "artifactapi_fill_failures_total",
                "Fetches that ended early or with a wrong body.",
            ),
            wrong_digests: vector(
                "artifactapi_digest_mismatches_total",
                "Bodies from upstream that had another digest than they must have.",
                &["remote"],
            ),
            changed: vector(
                "artifactapi_changed_artifacts_total",
                "Immutable paths that upstream had other content for than before.",
                &["remote"],
            ),
            held: vector(
                "artifactapi_quarantined_total",
                "Requests for artifacts that are held back because they are new.",
                &["remote"],
            ),
            held_if_enforced: vector(
                "artifactapi_quarantine_observed_total",
                "Requests for artifacts that would be held back, and are served because quarantine only observes.",
                &["remote"],
            ),
            failed_views: counter(
                "artifactapi_rewrite_failures_total",
                "Documents that could not be rewritten.",
            ),
            escaped_links: counter(
                "artifactapi_escaped_links_total",
                "Links in rewritten documents that still name an upstream because they could not be read.",
            ),
            upstream_failures: vector(
                "artifactapi_upstream_failures_total",
                "Upstreams not reached.",
                &["remote"],
            ),
            evictions: counter(
                "artifactapi_evictions_total",
                "Objects removed because space was short.",
            ),
            evicted_bytes: counter("artifactapi_evicted_bytes_total", "Bytes that eviction freed."),
            unstored: counter(
                "artifactapi_store_failures_total",
                "Times that something could not be stored.",
            ),
            lost: counter(
                "artifactapi_damaged_objects_total",
                "Stored files found damaged or unreadable, and dropped.",
            ),
            scrubbed_objects: counter(
                "artifactapi_scrubbed_objects_total",
                "Stored files compared with their digests by the scrubber.",
            ),
            scrubbed_bytes: counter("artifactapi_scrubbed_bytes_total", "Bytes that the scrubber has read."),
            rate_limit: gauge(
                "artifactapi_upstream_ratelimit_limit",
                "Requests that upstream allows in its period, as it last said.",
            ),
            rate_limit_left: gauge(
                "artifactapi_upstream_ratelimit_remaining",
                "Requests that upstream still allows in its period, as it last said.",
            ),
            gauges: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("artifactapi_tier", "Size of the tiers and queues."),
                    &["tier", "what"],
                ),
            ),
            generation: register(
                &registry,
                IntGauge::new(
                    "artifactapi_config_generation",
                    "Counts successful loads of the configuration.",
                ),
            ),
            reloaded: register(
                &registry,
                IntGauge::new(
                    "artifactapi_config_last_reload_successful",
                    "Whether the last reload of the configuration took effect.",
                ),
            ),
            hits: ArcSwap::default(),
            registry,
        }
    }

    pub fn request(
        &self,
        remote: &str,
        status: u16,
        cache: &str,
        source: Option<&'static str>,
        sent: u64,
        took: Duration,
    ) {
        self.seconds.observe(took.as_secs_f64());
        if let (200, "hit", Some("cache")) = (status, cache, source) {
            let hits = self.hits(remote);
            hits.0.inc();
            hits.1.inc_by(sent);
            return;
        }
        let mut buffer = [0; 3];
        self.requests
            .with_label_values(&[remote, digits(status, &mut buffer), cache])
            .inc();
        if let Some(source) = source {
            self.response_bytes.with_label_values(&[remote, source]).inc_by(sent);
        }
    }

    /// The counters of plain hits, which are most of all requests: looked up by name once.
    fn hits(&self, remote: &str) -> Arc<(IntCounter, IntCounter)> {
        if let Some(hits) = self.hits.load().get(remote) {
            return Arc::clone(hits);
        }
        let hits = Arc::new((
            self.requests.with_label_values(&[remote, "200", "hit"]),
            self.response_bytes.with_label_values(&[remote, "cache"]),
        ));
        self.hits.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.insert(remote.to_owned(), Arc::clone(&hits));
            known
        });
        hits
    }

    pub fn flight(&self, joined: bool) {
        if joined {
            self.collapsed.inc()
        } else {
            self.flights.inc()
        }
    }
    pub fn fill_failed(&self) {
        self.failed_fills.inc();
    }
    pub fn wrong_digest(&self, remote: &str) {
        self.wrong_digests.with_label_values(&[remote]).inc();
    }
    pub fn changed(&self, remote: &str) {
        self.changed.with_label_values(&[remote]).inc();
    }
    pub fn held(&self, remote: &str) {
        self.held.with_label_values(&[remote]).inc();
    }
    /// What would be held was served.
    pub fn observed(&self, remote: &str) {
        self.held_if_enforced.with_label_values(&[remote]).inc();
    }
    /// What upstream says of its limit on requests.
    pub fn rate_limit(&self, remote: &str, limit: Option<i64>, left: Option<i64>) {
        for (gauge, value) in [(&self.rate_limit, limit), (&self.rate_limit_left, left)] {
            if let Some(value) = value {
                gauge.with_label_values(&[remote]).set(value);
            }
        }
    }
    pub fn view_failed(&self) {
        self.failed_views.inc();
    }
    pub fn escaped_links(&self, links: u64) {
        self.escaped_links.inc_by(links);
    }
    pub fn upstream_failed(&self, remote: &str) {
        self.upstream_failures.with_label_values(&[remote]).inc();
    }
    pub fn evicted(&self, bytes: u64) {
        self.evictions.inc();
        self.evicted_bytes.inc_by(bytes);
    }

    /// An object came from elsewhere than upstream, or a transfer was taken up elsewhere.
    pub fn shared(&self, from: &'static str) {
        self.shared.with_label_values(&[from]).inc();
    }

    /// The text that Prometheus reads, with `samples` as of now.
    pub fn render(&self, samples: &Samples) -> String {
        self.take_over(samples);
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn take_over(&self, samples: &Samples) {
        for standing in &samples.dependencies {
            let up = self.dependency_up.with_label_values(&[standing.name]);
            up.set(i64::from(standing.healthy));
            for (counter, of) in &self.dependency_counts {
                raise(&counter.with_label_values(&[standing.name]), of(standing));
            }
            if let Some(ahead) = standing.clock_ahead {
                let clock = self.dependency_clock.with_label_values(&[standing.name]);
                clock.set(ahead as f64 / 1e6);
            }
            let seconds = self.dependency_seconds.with_label_values(&[standing.name]);
            seconds.inc_by((standing.answered.as_secs_f64() - seconds.get()).max(0.0));
        }
        let up = self.dependency_up.with_label_values(&["disk"]);
        up.set(i64::from(samples.disk_takes));
        for (tier, what, value) in &samples.tiers {
            set(&self.gauges.with_label_values(&[tier, what]), *value);
        }
        raise(&self.unstored, samples.unstored);
        raise(&self.lost, samples.lost);
        raise(&self.scrubbed_objects, samples.scrubbed_objects);
        raise(&self.scrubbed_bytes, samples.scrubbed_bytes);
        if let Some(bucket) = &samples.bucket {
            self.bucket_takes.set(i64::from(bucket.takes));
            for (what, value) in bucket.waiting {
                set(&self.bucket.with_label_values(&[what]), value);
            }
            for (what, value) in bucket.done {
                raise(&self.bucket_counts.with_label_values(&[what]), value);
            }
        }
        for (what, value) in samples.fleet.iter().flatten() {
            raise(&self.fleet_counts.with_label_values(&[what]), *value);
        }
        self.node_reachable.reset();
        for (url, reachable) in &samples.nodes {
            let node = self.node_reachable.with_label_values(&[url]);
            node.set(i64::from(*reachable));
        }
        set(&self.generation, samples.generation);
        set(&self.reloaded, u64::from(samples.reloaded));
    }
}

/// Sets a gauge.
fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Brings a counter up to what is counted elsewhere.
fn raise(counter: &IntCounter, value: u64) {
    counter.inc_by(value.saturating_sub(counter.get()));
}

/// Registers what was made. Both steps fail only for names that are wrong or there twice, which the first start shows.
fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let made = made.unwrap_or_else(|error| unreachable!("a metric's name is a constant: {error}"));
    if let Err(error) = registry.register(Box::new(made.clone())) {
        tracing::error!(%error, "a metric is not exported");
    }
    made
}

fn digits(status: u16, buffer: &mut [u8; 3]) -> &str {
    for (index, power) in [100, 10, 1].into_iter().enumerate() {
        buffer[index] = b'0' + u8::try_from(status / power % 10).unwrap_or(0);
    }
    std::str::from_utf8(buffer).unwrap_or("000")
}
