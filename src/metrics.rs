//! Counters for Prometheus. Label values are bounded: remotes come from the configuration, the rest is a fixed set. What
//! belongs to no remote, an unknown one included, has an empty `remote`.

mod register;
mod sampled;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{
    CounterVec, Encoder, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Registry, TextEncoder, proto,
};

use register::Register;
use sampled::Sampled;
pub use sampled::{BucketSamples, FleetSamples, Samples};

/// Upper bounds of the buckets for whole requests, in seconds: from a hit in memory to a large file over a slow line.
const REQUEST_BUCKETS: &[f64] = &[
    0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0,
];
/// Upper bounds of the buckets for the first byte from upstream, in seconds.
const UPSTREAM_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The label that says which remote.
const REMOTE: &str = "remote";

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    response_bytes: IntCounterVec,
    request_seconds: HistogramVec,
    hit_seconds: Histogram,
    fills: IntCounterVec,
    collapsed: IntCounterVec,
    failed_fills: IntCounterVec,
    wrong_digests: IntCounterVec,
    changed: IntCounterVec,
    held: IntCounterVec,
    held_if_enforced: IntCounterVec,
    failed_views: IntCounter,
    escaped_links: IntCounter,
    upstream_responses: IntCounterVec,
    upstream_seconds: HistogramVec,
    upstream_bytes: IntCounterVec,
    upstream_failures: IntCounterVec,
    upstream_unasked: IntCounterVec,
    upstream_delayed: CounterVec,
    evictions: IntCounter,
    evicted_bytes: IntCounter,
    rate_limit: IntGaugeVec,
    rate_limit_left: IntGaugeVec,
    shared: IntCounterVec,
    sampled: Sampled,
    /// Two that take over at once would count twice.
    rendering: Mutex<()>,
}

/// The series of one remote that are counted in often, so that their names are looked up once.
#[derive(Debug)]
pub struct RemoteSeries {
    hits: IntCounter,
    hit_bytes: IntCounter,
    upstream_seconds: Histogram,
    upstream_bytes: IntCounter,
}

/// Where a remote keeps its series.
pub type SeriesSlot = OnceLock<Arc<RemoteSeries>>;

/// A request that was answered.
#[derive(Debug)]
pub struct Answered<'a> {
    /// Empty: of no remote.
    pub remote: &'a str,
    /// 0: nothing was answered.
    pub status: u16,
    /// How the cache came into it.
    pub cache: &'static str,
    /// Where an artifact's body came from.
    pub source: Option<&'static str>,
    /// Bytes of that body.
    pub sent: u64,
    /// From the request's head to the answer's end.
    pub took: Duration,
}

/// Why upstream gave no answer that could be used, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    TimedOut,
    Unreachable,
    /// All places for fetches were taken for too long.
    Busy,
    /// What it answered cannot be an answer.
    Refused,
}

impl FailureKind {
    const ALL: [FailureKind; 4] = [
        FailureKind::TimedOut,
        FailureKind::Unreachable,
        FailureKind::Busy,
        FailureKind::Refused,
    ];

    fn label(self) -> &'static str {
        match self {
            FailureKind::TimedOut => "timeout",
            FailureKind::Unreachable => "unreachable",
            FailureKind::Busy => "busy",
            FailureKind::Refused => "refused",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let register = Register(&registry);
        let by_remote = |name: &str, help: &str| register.counters(name, help, &[REMOTE]);
        let request_seconds = register.histograms(
            "artifactapi_request_duration_seconds",
            "Time from a request's head to the end of its answer, by how the cache came into it.",
            "cache",
            REQUEST_BUCKETS,
        );
        let build = register.gauges("artifactapi_build_info", "The version that runs.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Metrics {
            requests: register.counters(
                "artifactapi_requests_total",
                "Requests answered, by remote, status (000: the client left before) and how the cache came into it.",
                &[REMOTE, "status", "cache"],
            ),
            response_bytes: register.counters(
                "artifactapi_response_bytes_total",
                "Body bytes of artifact responses, by where they came from.",
                &[REMOTE, "source"],
            ),
            hit_seconds: request_seconds.with_label_values(&["hit"]),
            request_seconds,
            fills: by_remote("artifactapi_fills_total", "Fetches that were started."),
            collapsed: by_remote("artifactapi_collapsed_total", "Requests that joined a fetch under way."),
            failed_fills: by_remote(
                "artifactapi_fill_failures_total",
                "Fetches that ended early or with a wrong body.",
            ),
            wrong_digests: by_remote(
                "artifactapi_digest_mismatches_total",
                "Bodies from upstream that had another digest than they must have.",
            ),
            changed: by_remote(
                "artifactapi_changed_artifacts_total",
                "Immutable paths that upstream had other content for than before.",
            ),
            held: by_remote(
                "artifactapi_quarantined_total",
                "Requests for artifacts that are held back because they are new.",
            ),
            held_if_enforced: by_remote(
                "artifactapi_quarantine_observed_total",
                "Requests for artifacts that would be held back, and are served because quarantine only observes.",
            ),
            failed_views: register.counter(
                "artifactapi_rewrite_failures_total",
                "Documents that could not be rewritten.",
            ),
            escaped_links: register.counter(
                "artifactapi_escaped_links_total",
                "Links in rewritten documents that still name an upstream because they could not be read.",
            ),
            upstream_responses: register.counters(
                "artifactapi_upstream_responses_total",
                "Answers of upstream by status, redirects and challenges included.",
                &[REMOTE, "status"],
            ),
            upstream_seconds: register.histograms(
                "artifactapi_upstream_response_seconds",
                "Time from a question sent to upstream to the head of its answer.",
                REMOTE,
                UPSTREAM_BUCKETS,
            ),
            upstream_bytes: by_remote(
                "artifactapi_upstream_received_bytes_total",
                "Bytes of bodies that came from upstream.",
            ),
            upstream_failures: register.counters(
                "artifactapi_upstream_failures_total",
                "Questions that upstream gave no usable answer to.",
                &[REMOTE, "kind"],
            ),
            upstream_unasked: by_remote(
                "artifactapi_upstream_unasked_total",
                "Questions that upstream was not asked because its host was known to be away.",
            ),
            upstream_delayed: register.real_counters(
                "artifactapi_upstream_delay_seconds_total",
                "Time that questions and bodies waited because of a remote's cap.",
                &[REMOTE, "cap"],
            ),
            evictions: register.counter(
                "artifactapi_evictions_total",
                "Objects removed because space was short.",
            ),
            evicted_bytes: register.counter("artifactapi_evicted_bytes_total", "Bytes that eviction freed."),
            rate_limit: register.gauges(
                "artifactapi_upstream_ratelimit_limit",
                "Requests that upstream allows in its period, as it last said.",
                &[REMOTE],
            ),
            rate_limit_left: register.gauges(
                "artifactapi_upstream_ratelimit_remaining",
                "Requests that upstream still allows in its period, as it last said.",
                &[REMOTE],
            ),
            shared: register.counters(
                "artifactapi_shared_total",
                "Objects that came from the bucket or from another node instead of from upstream, and transfers between \
                 nodes that were taken up elsewhere.",
                &["from"],
            ),
            sampled: Sampled::new(register),
            rendering: Mutex::default(),
            registry,
        }
    }

    /// The series of the remote of this name, which keeps them in `slot`.
    pub fn series<'a>(&self, remote: &str, slot: &'a SeriesSlot) -> &'a RemoteSeries {
        slot.get_or_init(|| {
            Arc::new(RemoteSeries {
                hits: self.requests.with_label_values(&[remote, "200", "hit"]),
                hit_bytes: self.response_bytes.with_label_values(&[remote, "cache"]),
                upstream_seconds: self.upstream_seconds.with_label_values(&[remote]),
                upstream_bytes: self.upstream_bytes.with_label_values(&[remote]),
            })
        })
    }

    /// A plain hit was answered, which most requests are.
    pub fn hit(&self, series: &RemoteSeries, sent: u64, took: Duration) {
        self.hit_seconds.observe(took.as_secs_f64());
        series.hits.inc();
        series.hit_bytes.inc_by(sent);
    }

    /// Any request was answered.
    pub fn request(&self, answered: &Answered<'_>) {
        let &Answered {
            remote, status, cache, ..
        } = answered;
        self.request_seconds
            .with_label_values(&[cache])
            .observe(answered.took.as_secs_f64());
        let mut buffer = [0; 3];
        self.requests
            .with_label_values(&[remote, digits(status, &mut buffer), cache])
            .inc();
        if let Some(source) = answered.source {
            let bytes = self.response_bytes.with_label_values(&[remote, source]);
            bytes.inc_by(answered.sent);
        }
    }

    /// A fetch was begun, or joined.
    pub fn flight(&self, remote: &str, joined: bool) {
        let counter = if joined { &self.collapsed } else { &self.fills };
        counter.with_label_values(&[remote]).inc();
    }
    pub fn fill_failed(&self, remote: &str) {
        self.failed_fills.with_label_values(&[remote]).inc();
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

    /// Upstream answered a question by `status`, so long after it was sent.
    pub fn upstream_answered(&self, remote: &str, series: &RemoteSeries, status: u16, took: Duration) {
        series.upstream_seconds.observe(took.as_secs_f64());
        let mut buffer = [0; 3];
        let status = digits(status, &mut buffer);
        self.upstream_responses.with_label_values(&[remote, status]).inc();
    }

    /// A piece of a body came from upstream.
    pub fn upstream_sent(&self, series: &RemoteSeries, bytes: u64) {
        series.upstream_bytes.inc_by(bytes);
    }

    pub fn upstream_failed(&self, remote: &str, kind: FailureKind) {
        self.upstream_failures.with_label_values(&[remote, kind.label()]).inc();
    }
    /// Upstream was not asked, because its host is away.
    pub fn upstream_unasked(&self, remote: &str) {
        self.upstream_unasked.with_label_values(&[remote]).inc();
    }
    /// Something waited because of the cap on `requests` or `bytes`.
    pub fn upstream_delayed(&self, remote: &str, cap: &'static str, wait: Duration) {
        let delayed = self.upstream_delayed.with_label_values(&[remote, cap]);
        delayed.inc_by(wait.as_secs_f64());
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
        let _one_at_a_time = self.rendering.lock();
        self.sampled.take_over(&self.registry, samples);
        self.begin(&samples.remotes);
        let mut families = self.registry.gather();
        end(&mut families, &samples.remotes);
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Lets what is to be watched begin at 0: of a series that begins at 1, Prometheus sees no increase.
    fn begin(&self, remotes: &[String]) {
        let rare = [
            &self.wrong_digests,
            &self.changed,
            &self.held,
            &self.held_if_enforced,
            &self.failed_fills,
            &self.fills,
            &self.collapsed,
            &self.upstream_unasked,
        ];
        for remote in remotes {
            for counter in rare {
                counter.with_label_values(&[remote]);
            }
            for kind in FailureKind::ALL {
                self.upstream_failures
                    .with_label_values(&[remote.as_str(), kind.label()]);
            }
        }
    }
}

/// Ends the series of remotes that are not configured any more: a request that was under way may have counted in them since.
fn end(families: &mut Vec<proto::MetricFamily>, remotes: &[String]) {
    let is_known = |metric: &proto::Metric| {
        let remote = metric.get_label().iter().find(|label| label.name() == REMOTE);
        remote.is_none_or(|remote| remote.value().is_empty() || remotes.iter().any(|known| known == remote.value()))
    };
    for family in families.iter_mut() {
        let kept: Vec<proto::Metric> = family.take_metric().into_iter().filter(is_known).collect();
        family.set_metric(kept);
    }
    // A family without series cannot be written.
    families.retain(|family| !family.get_metric().is_empty());
}

fn digits(status: u16, buffer: &mut [u8; 3]) -> &str {
    for (index, power) in [100, 10, 1].into_iter().enumerate() {
        buffer[index] = b'0' + u8::try_from(status / power % 10).unwrap_or(0);
    }
    std::str::from_utf8(buffer).unwrap_or("000")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(remotes: &[&str]) -> Samples {
        Samples {
            remotes: remotes.iter().map(|name| (*name).to_owned()).collect(),
            ..Samples::default()
        }
    }

    #[test]
    fn the_series_of_a_removed_remote_end() {
        let metrics = Metrics::new();
        let slot = SeriesSlot::new();
        metrics.hit(metrics.series("gone", &slot), 7, Duration::from_micros(50));
        metrics.hit(metrics.series("gone", &slot), 7, Duration::from_micros(50));
        let hits = r#"artifactapi_requests_total{cache="hit",remote="gone",status="200"} 2"#;
        assert!(metrics.render(&samples(&["gone", "kept"])).contains(hits));
        let text = metrics.render(&samples(&["kept"]));
        assert!(!text.contains("gone") && text.contains(r#"remote="kept""#), "{text}");
        // What has no remote stays.
        metrics.request(&Answered {
            remote: "",
            status: 404,
            cache: "none",
            source: None,
            sent: 0,
            took: Duration::ZERO,
        });
        let text = metrics.render(&samples(&[]));
        assert!(
            text.contains(r#"artifactapi_requests_total{cache="none",remote="",status="404"} 1"#),
            "{text}"
        );
        // A remote that comes back goes on where it was.
        assert!(metrics.render(&samples(&["gone"])).contains(hits));
    }

    #[test]
    fn what_is_watched_begins_at_zero() {
        let text = Metrics::new().render(&samples(&["a"]));
        for line in [
            r#"artifactapi_digest_mismatches_total{remote="a"} 0"#,
            r#"artifactapi_upstream_failures_total{kind="timeout",remote="a"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
