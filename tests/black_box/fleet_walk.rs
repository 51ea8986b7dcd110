//! Two nodes walk documents of every kind that changes through move, flush, expiry, pause and the death of Redis: neither
//! ever goes back to what was before, and soon both have what is current.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::common::client::Headers;
use crate::common::clock::Clock;
use crate::common::fleet;
use crate::common::image::Manifest;
use crate::common::pull::{get_manifest, head_manifest};
use crate::common::redis::Redis;
use crate::common::registry::Registry;
use crate::common::{Proxy, Reply, Upstream, eventually, run_for};

const LIMIT: Duration = Duration::from_secs(120);
/// Times that everything moves on, at most.
const VERSIONS: usize = 12;
/// How long both nodes are asked after each step.
const WATCHED: Duration = Duration::from_millis(1200);
const SOON: Duration = Duration::from_secs(10);

/// Documents that say which version of them they are, by remote and path. A registry's tag is asked for by both methods.
const DOCUMENTS: [(&str, &str); 5] = [
    ("files", "live/page"),
    ("py", "simple/pkg/"),
    ("npm", "plain"),
    ("charts", "index.yaml"),
    ("rpms", "os/repodata/repomd.xml"),
];
const KINDS: usize = DOCUMENTS.len() + 2;

struct Site {
    up: Upstream,
    registry: Registry,
    images: Vec<Manifest>,
    version: Arc<AtomicUsize>,
}

impl Site {
    async fn start() -> Site {
        let (up, registry) = tokio::join!(Upstream::start(), Registry::start());
        let images: Vec<Manifest> = (0..VERSIONS)
            .map(|version| Manifest::docker_image(&format!("app{version}"), "amd64"))
            .collect();
        for image in &images {
            registry.store("team/app", image);
        }
        let version = Arc::new(AtomicUsize::new(0));
        let pages = [
            ("/live/page", "text/plain", "{v}"),
            (
                "/simple/pkg/",
                "text/html",
                "<html><body><a href=\"/files/{v}.tar.gz\">{v}.tar.gz</a></body></html>",
            ),
            (
                "/plain",
                "application/json",
                "{\"name\":\"plain\",\"description\":\"{v}\",\"versions\":{}}",
            ),
            (
                "/charts/index.yaml",
                "application/yaml",
                "apiVersion: v1\nentries: {}\ngenerated: {v}\n",
            ),
            (
                "/os/repodata/repomd.xml",
                "application/xml",
                "<repomd xmlns=\"urn:repo\"><revision>{v}</revision></repomd>",
            ),
        ];
        for (path, content_type, text) in pages {
            let version = Arc::clone(&version);
            up.on(path, move |_| {
                let said = format!("version-{}-", version.load(SeqCst));
                Reply::ok(text.replace("{v}", &said)).content_type(content_type)
            });
        }
        let site = Site {
            up,
            registry,
            images,
            version,
        };
        site.registry.tag("team/app", "v1", &site.images[0].digest);
        site
    }

    fn remotes(&self, ttl: u64) -> String {
        let cache = format!("cache: {{mutable_ttl: {ttl}, negative_ttl: 1}}");
        format!(
            "files:\n  base_url: {0}\n  mutable_patterns: [\"^live/\"]\n  {cache}\npy:\n  base_url: {0}\n  package: pypi\n  \
             {cache}\nnpm:\n  base_url: {0}\n  package: npm\n  mutable_patterns: [\"^plain\"]\n  {cache}\ncharts:\n  base_url: {0}/charts\n  \
             package: helm\n  {cache}\nrpms:\n  base_url: {0}\n  package: rpm\n  {cache}\n{1}",
            self.up.base(),
            self.registry.remote("hub", &cache)
        )
    }

    /// Everything moves on; to which version.
    fn moves(&self) -> usize {
        let version = self.version.fetch_add(1, SeqCst) + 1;
        self.registry.tag("team/app", "v1", &self.images[version].digest);
        version
    }

    /// The version of each kind that `node` serves.
    async fn versions(&self, node: &Proxy) -> [usize; KINDS] {
        let mut versions = [0; KINDS];
        for (index, (remote, path)) in DOCUMENTS.into_iter().enumerate() {
            let text = node.fetch(remote, path).await.ok().text();
            let said = text.split("version-").nth(1).and_then(|rest| rest.split('-').next());
            versions[index] = said.and_then(|said| said.parse().ok()).expect("a version");
        }
        let tags = [
            get_manifest(node, "hub/team/app", "v1").await.ok(),
            head_manifest(node, "hub/team/app", "v1").await.ok(),
        ];
        for (index, tag) in tags.iter().enumerate() {
            let digest = tag.must("docker-content-digest");
            let found = self.images.iter().position(|image| image.digest == digest);
            versions[DOCUMENTS.len() + index] = found.expect("a version");
        }
        versions
    }
}

/// What each node has shown last.
struct Walk<'a> {
    site: &'a Site,
    shown: [[usize; KINDS]; 2],
    step: String,
}

impl Walk<'_> {
    async fn look(&mut self, nodes: &[Proxy; 2], node: usize) -> [usize; KINDS] {
        let versions = self.site.versions(&nodes[node]).await;
        for (kind, (before, now)) in self.shown[node].iter().zip(versions).enumerate() {
            assert!(
                now >= *before,
                "{}: kind {kind} on node {node} went from {before} to {now}",
                self.step
            );
        }
        self.shown[node] = versions;
        versions
    }

    /// Both are asked for a while, and in the end both have `version`.
    async fn both_come_to(&mut self, nodes: &[Proxy; 2], version: usize) {
        let end = Instant::now() + WATCHED;
        let mut last = [[0; KINDS]; 2];
        while Instant::now() < end {
            for node in [0, 1] {
                last[node] = self.look(nodes, node).await;
            }
        }
        let step = self.step.clone();
        eventually(SOON, &format!("{step}: both have {version}"), async || {
            last == [[version; KINDS]; 2] || {
                for node in [0, 1] {
                    last[node] = self.look(nodes, node).await;
                }
                false
            }
        })
        .await;
    }
}

async fn flush(node: &Proxy, mode: &str) {
    let request = format!("{{\"mode\": \"{mode}\"}}");
    node.request("PUT", "/cache/flush", &[], request.as_bytes()).await.ok();
}

async fn start(site: &Site, redis: &Redis, ttl: u64) -> [Proxy; 2] {
    let settings = || {
        let settings = Proxy::settings().remotes(&site.remotes(ttl));
        fleet::reachable(fleet::with_redis(settings, &redis.url())).start()
    };
    let nodes: [Proxy; 2] = tokio::join!(settings(), settings()).into();
    for node in &nodes {
        fleet::ready(node).await;
    }
    nodes
}

#[test]
fn no_node_goes_back_through_moves_flushes_pauses_and_the_death_of_redis() {
    run_for(LIMIT, async {
        let (site, mut redis) = tokio::join!(Site::start(), Redis::start());
        let nodes = start(&site, &redis, 600).await;
        let mut walk = Walk {
            site: &site,
            shown: [[0; KINDS]; 2],
            step: "the beginning".to_owned(),
        };
        walk.both_come_to(&nodes, 0).await;
        for (by, mode) in [(0, "expire"), (1, "delete"), (1, "expire")] {
            let version = site.moves();
            walk.step = format!("a flush by node {by}, {mode}");
            flush(&nodes[by], mode).await;
            assert_eq!(walk.look(&nodes, by).await, [version; KINDS], "{}", walk.step);
            walk.both_come_to(&nodes, version).await;
        }
        for mode in ["expire", "delete"] {
            walk.step = format!("a pause of node 1 during a flush, {mode}");
            nodes[1].pause();
            let version = site.moves();
            flush(&nodes[0], mode).await;
            assert_eq!(walk.look(&nodes, 0).await, [version; KINDS], "{}", walk.step);
            nodes[1].resume();
            walk.both_come_to(&nodes, version).await;
        }
        walk.step = "the death of Redis after a flush".to_owned();
        let version = site.moves();
        flush(&nodes[0], "expire").await;
        assert_eq!(walk.look(&nodes, 0).await, [version; KINDS], "{}", walk.step);
        eventually(SOON, "node 1 has it", async || {
            walk.look(&nodes, 1).await == [version; KINDS]
        })
        .await;
        redis.kill();
        walk.both_come_to(&nodes, version).await;
        walk.step = "a flush without Redis".to_owned();
        let version = site.moves();
        flush(&nodes[1], "expire").await;
        assert_eq!(walk.look(&nodes, 1).await, [version; KINDS], "{}", walk.step);
        walk.look(&nodes, 0).await;
        walk.step = "Redis is back, empty".to_owned();
        redis.launch().await;
        for node in &nodes {
            fleet::ready(node).await;
        }
        walk.both_come_to(&nodes, version).await;
    });
}

#[test]
fn clocks_that_are_apart_are_said_and_flushes_take_all_the_same() {
    run_for(LIMIT, async {
        let (site, redis) = tokio::join!(Site::start(), Redis::start());
        let clock = Clock::new();
        let settings = |seconds: i64| {
            let settings = Proxy::settings().remotes(&site.remotes(600));
            let settings = fleet::reachable(fleet::with_redis(settings, &redis.url()));
            let env = clock.env(seconds).into_iter();
            env.fold(settings, |settings, (name, value)| settings.env(name, value))
                .start()
        };
        let nodes: [Proxy; 2] = tokio::join!(settings(60), settings(-60)).into();
        for (node, ahead) in nodes.iter().zip([-60.0, 60.0]) {
            let mut redis = serde_json::Value::Null;
            eventually(SOON, "it is said", async || {
                redis = node.request("GET", "/health", &[], b"").await.ok().json()["dependencies"]["redis"].clone();
                redis["detail"].to_string().contains("clock")
            })
            .await;
            let near = |said: f64| (said - ahead).abs() < 1.0;
            assert!(redis["clock_ahead_seconds"].as_f64().is_some_and(near), "{redis}");
            assert_eq!(redis["status"], "degraded", "{redis}");
            let metric = node.metric("artifactapi_dependency_clock_ahead_seconds", &["redis"]);
            assert!(near(metric.await));
            node.wait_for_log("the clocks of this machine and of a dependency differ")
                .await;
        }
        let mut walk = Walk {
            site: &site,
            shown: [[0; KINDS]; 2],
            step: "the beginning".to_owned(),
        };
        walk.both_come_to(&nodes, 0).await;
        for (by, mode) in [(0, "expire"), (1, "delete"), (0, "delete"), (1, "expire")] {
            let version = site.moves();
            walk.step = format!("a flush by node {by}, {mode}");
            flush(&nodes[by], mode).await;
            assert_eq!(walk.look(&nodes, by).await, [version; KINDS], "{}", walk.step);
            walk.both_come_to(&nodes, version).await;
        }
    });
}

#[test]
fn no_node_goes_back_when_what_it_has_expires() {
    run_for(LIMIT, async {
        let (site, mut redis) = tokio::join!(Site::start(), Redis::start());
        let nodes = start(&site, &redis, 1).await;
        let mut walk = Walk {
            site: &site,
            shown: [[0; KINDS]; 2],
            step: "the beginning".to_owned(),
        };
        walk.both_come_to(&nodes, 0).await;
        for step in ["expiry", "expiry again", "expiry without Redis"] {
            walk.step = step.to_owned();
            if step == "expiry without Redis" {
                redis.kill();
            }
            let version = site.moves();
            walk.both_come_to(&nodes, version).await;
        }
    });
}
