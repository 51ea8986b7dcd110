//! Redis, S3 and PostgreSQL in trouble: away when a node starts, killed, hung or slow in the middle of traffic. Downloads go
//! on, nothing is lost, and everything heals by itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common::client::Headers;
use crate::common::fleet::{self, BUCKET};
use crate::common::link::Link;
use crate::common::postgres::Postgres;
use crate::common::redis::Redis;
use crate::common::s3::{self, Kind, S3Server};
use crate::common::server::{Settings, at};
use crate::common::{File, Pattern, Proxy, Reply, Response, Upstream, eventually, get, run_for};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(110);
/// For what has to come about by itself.
const SOON: Duration = Duration::from_secs(20);
/// No answer takes longer, whatever is in trouble; mostly it is milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
const MB: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Service {
    Redis,
    S3,
    Postgres,
}
use Service::{Postgres as Database, Redis as Fleet, S3 as Bucket};

const ALL: [Service; 3] = [Fleet, Bucket, Database];

impl Service {
    /// The name in `/health` and `/metrics`.
    fn name(self) -> &'static str {
        match self {
            Fleet => "redis",
            Bucket => "s3",
            Database => "postgres",
        }
    }
}

/// What happens to a service.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    Killed,
    /// SIGSTOP: it takes connections and says nothing.
    Paused,
    /// The network swallows everything.
    Stalled,
    /// The network refuses.
    Cut,
    /// Each piece takes 300 ms, in both directions.
    Slow,
}
use Trouble::{Cut, Killed, Paused, Slow, Stalled};

/// All services, each behind a link, so that nodes find them at one address whatever happens; and an upstream.
struct Site {
    redis: Redis,
    s3: S3Server,
    postgres: Postgres,
    links: [Link; 3],
    up: Upstream,
    troubles: Vec<(Service, Trouble)>,
}

impl Site {
    async fn start() -> Site {
        // It ends with the thread that starts it: that must not be one of the pool.
        let postgres = Postgres::start();
        let (redis, s3, up) = tokio::join!(Redis::start(), S3Server::start(Kind::Minio), Upstream::start());
        let addresses = [redis.address, s3.address, ([127, 0, 0, 1], postgres.port()).into()];
        let [redis_link, s3_link, postgres_link] = addresses;
        let links = tokio::join!(
            Link::start(redis_link),
            Link::start(s3_link),
            Link::start(postgres_link)
        );
        up.fallback(|seen| Reply::ok(seen.path.clone()));
        up.on("/live/page", |_| Reply::ok(millis().to_string()));
        Site {
            redis,
            s3,
            postgres,
            links: links.into(),
            up,
            troubles: Vec::new(),
        }
    }

    fn link(&self, service: Service) -> &Link {
        &self.links[service as usize]
    }

    /// A node that shares everything, before it is started.
    fn settings(&self) -> Settings {
        self.settings_with(&ALL)
    }

    /// A node that shares some.
    fn settings_with(&self, services: &[Service]) -> Settings {
        let remotes = format!(
            "files: {{base_url: '{}', mutable_patterns: ['^live/'], check_mutable_updates: true, cache: {{mutable_ttl: 1}}}}",
            self.up.base()
        );
        let mut settings = fleet::reachable(Proxy::settings().remotes(&remotes));
        for service in services {
            let address = self.link(*service).address;
            let env = match service {
                Fleet => vec![("REDIS_URL", format!("redis://{address}"))],
                Bucket => s3::env(address, BUCKET),
                Database => self.postgres.env().into(),
            };
            for (name, value) in env {
                let value = if name == "DBPORT" {
                    address.port().to_string()
                } else {
                    value
                };
                settings = settings.env(name, value);
            }
        }
        settings
    }

    async fn nodes(&self) -> [Proxy; 2] {
        let nodes = tokio::join!(self.settings().start(), self.settings().start());
        let nodes: [Proxy; 2] = nodes.into();
        for node in &nodes {
            fleet::ready(node).await;
        }
        nodes
    }

    fn strike(&mut self, service: Service, trouble: Trouble) {
        self.troubles.push((service, trouble));
        let link = self.link(service);
        match (trouble, service) {
            (Killed, Fleet) => self.redis.kill(),
            (Killed, Bucket) => self.s3.kill(),
            (Killed, Database) => self.postgres.kill(),
            (Paused, Fleet) => self.redis.pause(),
            (Paused, Bucket) => self.s3.pause(),
            (Paused, Database) => self.postgres.pause(),
            (Stalled, _) => link.stall(),
            (Cut, _) => link.cut(),
            (Slow, _) => link.delay(Duration::from_millis(300)),
        }
    }

    /// All is well again; Redis, if it was killed, has lost everything.
    async fn heal(&mut self) {
        for (service, trouble) in std::mem::take(&mut self.troubles) {
            match (trouble, service) {
                (Killed, Fleet) => self.redis.launch().await,
                (Killed, Bucket) => self.s3.launch().await,
                (Killed, Database) => self.postgres.launch(),
                (Paused, Fleet) => self.redis.resume(),
                (Paused, Bucket) => self.s3.resume(),
                (Paused, Database) => self.postgres.resume(),
                (Stalled | Cut | Slow, _) => self.link(service).restore(),
            }
        }
    }

    /// The paths that are in the bucket.
    async fn in_bucket(&self) -> BTreeSet<String> {
        let names = s3::names(&self.s3.client(BUCKET)).await;
        let path = |name: String| Some(name.strip_prefix("artifactapi/files/")?.split_once('!')?.0.to_owned());
        names.into_iter().filter_map(path).collect()
    }

    /// Waits until these paths are listed and in the bucket, and nothing waits any more.
    async fn nothing_is_lost(&self, nodes: &[Proxy], paths: &BTreeSet<String>) {
        for node in nodes {
            fleet::ready(node).await;
            fleet::settled(node).await;
        }
        let kept = self.in_bucket().await;
        assert_eq!(
            paths.difference(&kept).next(),
            None,
            "not in the bucket, of {}",
            kept.len()
        );
        for node in nodes {
            eventually(SOON, "everything is listed", async || {
                paths.is_subset(&listed(node).await)
            })
            .await;
        }
    }
}

fn millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a time after 1970").as_millis() as u64
}

async fn list(node: &Proxy, query: &str) -> Response {
    node.request("GET", &format!("/api/v1/artifacts?remote=files&{query}"), &[], b"")
        .await
}

/// Paths that are listed, if the list can be had.
async fn listed(node: &Proxy) -> BTreeSet<String> {
    let (mut paths, mut next) = (BTreeSet::new(), String::new());
    loop {
        let answer = list(node, &format!("limit=1000{next}")).await;
        if answer.status != 200 {
            return paths;
        }
        let page = answer.json();
        let artifacts = page["artifacts"].as_array().expect("a list");
        paths.extend(
            artifacts
                .iter()
                .map(|artifact| artifact["path"].as_str().expect("a path").to_owned()),
        );
        match page["next"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => return paths,
        }
    }
}

/// Waits until a node says, in `/health` and `/health/ready`, which services are in trouble and why; all others are well.
async fn says_degraded(node: &Proxy, services: &[Service]) {
    let mut said = Value::Null;
    let right = async {
        loop {
            said = node.request("GET", "/health/ready", &[], b"").await.ok().json();
            let also = node.request("GET", "/health", &[], b"").await.ok().json();
            let fits = |service: &Service| {
                let how = [&said, &also].map(|health| &health["dependencies"][service.name()]);
                how.iter().all(|how| match services.contains(service) {
                    true => how["status"] == "degraded" && how["detail"].as_str().is_some_and(|why| why.len() > 5),
                    false => how["status"] == "ok" && how["detail"].is_null(),
                })
            };
            let overall = if services.is_empty() { "ok" } else { "degraded" };
            if ALL.iter().all(fits) && said["status"] == overall {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(SOON, right).await.is_err() {
        panic!("{services:?} should be degraded, and nothing else: {said}");
    }
    for service in ALL {
        let of = [format!("dependency=\"{}\"", service.name())];
        let of = [of[0].as_str()];
        let up = node.metric("artifactapi_dependency_up", &of).await;
        assert_eq!(up, f64::from(!services.contains(&service)), "{service:?}");
        if services.contains(&service) {
            assert!(node.metric("artifactapi_dependency_failures_total", &of).await >= 1.0);
        }
    }
}

/// Fetches what `fallback` answers.
async fn fetch(node: SocketAddr, path: &str) -> Response {
    let answer = within(path, get(node, &at("files", path))).await.ok();
    assert_eq!(answer.text(), format!("/{path}"));
    answer
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("{what} took longer than {PATIENCE:?}"))
}

/// Clients of some nodes at once, until it is ended: what is new, what is stored, and what changes all the time.
struct Traffic {
    rounds: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<BTreeSet<String>>,
}

impl Traffic {
    async fn start(name: &str, nodes: &[Proxy]) -> Traffic {
        let nodes: Vec<SocketAddr> = nodes.iter().map(Proxy::address).collect();
        let (rounds, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (rounds.clone(), stop.clone());
        let name = name.to_owned();
        let task = tokio::spawn(async move {
            let mut fetched = BTreeSet::new();
            while !stopped.load(Relaxed) {
                let round = counted.load(Relaxed);
                let path = format!("{name}/{round:05}");
                futures_util::future::join_all(nodes.iter().map(|node| one_round(*node, &path))).await;
                fetched.insert(path);
                counted.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            fetched
        });
        let traffic = Traffic { rounds, stop, task };
        traffic.goes_on(5).await;
        traffic
    }

    /// Waits for some more rounds.
    async fn goes_on(&self, rounds: usize) {
        let before = self.rounds.load(Relaxed);
        eventually(SOON, "clients are served", async || {
            self.task.is_finished() || self.rounds.load(Relaxed) >= before + rounds
        })
        .await;
        assert!(!self.task.is_finished(), "a client was not served");
    }

    /// What was fetched.
    async fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Relaxed);
        self.task.await.expect("all clients were served")
    }
}

async fn one_round(node: SocketAddr, path: &str) {
    fetch(node, path).await;
    fetch(node, "stored").await;
    let page = within("live/page", get(node, &at("files", "live/page"))).await.ok();
    let written: u64 = page.text().parse().expect("a time");
    let age = Duration::from_millis(millis() - written);
    assert!(
        age < Duration::from_secs(1) + PATIENCE,
        "a page of {age:?} ago: {:?}",
        page.headers
    );
}

fn at_the_start(service: Service) {
    run_for(LIMIT, async {
        let mut site = Site::start().await;
        let other = site.settings().start().await;
        fleet::ready(&other).await;
        for trouble in [Killed, Paused, Stalled] {
            site.strike(service, trouble);
            let started = Instant::now();
            let node = site.settings().start().await;
            assert!(
                started.elapsed() < Duration::from_secs(5),
                "{trouble:?}: {:?}",
                started.elapsed()
            );
            let path = format!("{trouble:?}/early");
            assert_eq!(fetch(node.address(), &path).await.source(), "remote");
            node.until_cached("files", &path).await;
            if service == Database {
                within("a list", list(&node, "")).await.expect(503).must("retry-after");
            }
            says_degraded(&node, &[service]).await;
            site.heal().await;
            says_degraded(&node, &[]).await;
            let paths = [path.clone()].into();
            site.nothing_is_lost(std::slice::from_ref(&node), &paths).await;
            // They work together from now on.
            site.up.switch_off().await;
            assert_eq!(fetch(other.address(), &path).await.source(), "cache");
            site.up.switch_on().await;
            let body = json!({"prefix": path}).to_string();
            let flushed = node.request("PUT", "/cache/flush", &[], body.as_bytes()).await.ok();
            assert_eq!(flushed.json()["deleted"], 1);
            eventually(SOON, "the other node hears of the flush", async || {
                fetch(other.address(), &path).await.source() == "remote"
            })
            .await;
        }
    });
}

#[test]
fn redis_is_away_at_the_start() {
    at_the_start(Fleet);
}

#[test]
fn s3_is_away_at_the_start() {
    at_the_start(Bucket);
}

#[test]
fn postgres_is_away_at_the_start() {
    at_the_start(Database);
}

fn in_the_middle_of_traffic(service: Service) {
    run_for(LIMIT, async {
        let mut site = Site::start().await;
        let nodes = site.nodes().await;
        let traffic = Traffic::start("cold", &nodes).await;
        for trouble in [Killed, Paused, Stalled, Cut] {
            site.strike(service, trouble);
            for node in &nodes {
                says_degraded(node, &[service]).await;
            }
            traffic.goes_on(20).await;
            if service == Database {
                within("a list", list(&nodes[0], ""))
                    .await
                    .expect(503)
                    .must("retry-after");
            }
            let of = format!("dependency=\"{}\"", service.name());
            assert!(nodes[0].metric("artifactapi_dependency_skipped_total", &[&of]).await >= 1.0);
            site.heal().await;
            for node in &nodes {
                says_degraded(node, &[]).await;
            }
            traffic.goes_on(5).await;
        }
        let paths = traffic.end().await;
        site.nothing_is_lost(&nodes, &paths).await;
        // A node that knows nothing has all of it.
        site.up.switch_off().await;
        let new = site.settings().start().await;
        fleet::ready(&new).await;
        for path in paths.iter().step_by(paths.len() / 20) {
            assert_eq!(fetch(new.address(), path).await.source(), "cache");
        }
    });
}

#[test]
fn redis_goes_in_the_middle_of_traffic() {
    in_the_middle_of_traffic(Fleet);
}

#[test]
fn s3_goes_in_the_middle_of_traffic() {
    in_the_middle_of_traffic(Bucket);
}

#[test]
fn postgres_goes_in_the_middle_of_traffic() {
    in_the_middle_of_traffic(Database);
}

#[test]
fn all_three_hang_at_once() {
    run_for(LIMIT, async {
        let mut site = Site::start().await;
        let nodes = site.nodes().await;
        let traffic = Traffic::start("cold", &nodes).await;
        for trouble in [Stalled, Killed] {
            for service in ALL {
                site.strike(service, trouble);
            }
            for node in &nodes {
                says_degraded(node, &ALL).await;
            }
            traffic.goes_on(20).await;
            // One that starts now serves too.
            let started = Instant::now();
            let new = site.settings().start().await;
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
            fetch(new.address(), "stored").await;
            says_degraded(&new, &ALL).await;
            site.heal().await;
            for node in nodes.iter().chain([&new]) {
                says_degraded(node, &[]).await;
            }
            traffic.goes_on(5).await;
        }
        let paths = traffic.end().await;
        site.nothing_is_lost(&nodes, &paths).await;
    });
}

#[test]
fn a_node_that_stood_still_blames_nobody() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        up.fallback(|seen| Reply::ok(seen.path.clone()));
        let settings = Proxy::settings().remotes(&format!("files: {{base_url: '{}'}}", up.base()));
        let node = fleet::with_redis(settings, &redis.url()).start().await;
        fleet::ready(&node).await;
        let address = node.address();
        let asking = tokio::spawn(async move {
            for n in 0.. {
                get(address, &at("files", &format!("cold/{n}"))).await.ok();
            }
        });
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            node.pause();
            tokio::time::sleep(Duration::from_millis(1200)).await;
            node.resume();
        }
        let of = ["dependency=\"redis\""];
        let failures = node.metric("artifactapi_dependency_failures_total", &of).await;
        assert!(failures <= 1.0, "{failures} outages of a Redis that is well");
        assert!(node.metric("artifactapi_dependency_calls_total", &of).await > 20.0);
        asking.abort();
    });
}

#[test]
fn slow_services_cost_time_and_nothing_else() {
    run_for(LIMIT, async {
        let mut site = Site::start().await;
        let nodes = site.nodes().await;
        let mut paths = BTreeSet::new();
        for slow in [&[Fleet][..], &[Bucket], &[Database], &ALL] {
            for service in slow {
                site.strike(*service, Slow);
            }
            let traffic = Traffic::start(&format!("{slow:?}").replace(['[', ']', ',', ' '], ""), &nodes).await;
            paths.extend(traffic.end().await);
            if slow == [Database] {
                // For this one may have to wait, or try again.
                let answer = list(&nodes[0], "limit=10").await;
                assert!(
                    answer.status == 200 || answer.header("retry-after").is_some(),
                    "{answer:?}"
                );
            }
            site.heal().await;
        }
        site.nothing_is_lost(&nodes, &paths).await;
    });
}

/// Only who asks first waits for a service that hangs.
#[test]
fn nobody_waits_for_what_hangs() {
    run_for(LIMIT, async {
        let mut site = Site::start().await;
        let node = site.settings().start().await;
        fleet::ready(&node).await;
        for (service, trouble, limit) in [
            (Fleet, Paused, 50),
            (Fleet, Stalled, 50),
            (Bucket, Paused, 1000),
            (Bucket, Stalled, 1000),
            (Database, Paused, 0),
        ] {
            let of = format!("dependency=\"{}\"", service.name());
            let skipped = async || node.metric("artifactapi_dependency_skipped_total", &[&of]).await;
            let before = skipped().await;
            site.strike(service, trouble);
            let mut taken = Vec::new();
            for n in 0..20 {
                let began = Instant::now();
                fetch(node.address(), &format!("{service:?}/{trouble:?}/{n}")).await;
                taken.push(began.elapsed());
            }
            let all: Duration = taken.iter().sum();
            // Twenty requests take some milliseconds each on an idle machine.
            let most = Duration::from_millis(limit + 3000);
            assert!(all < most, "{service:?} {trouble:?}: {all:?}, {taken:?}");
            assert!(service == Database || skipped().await >= before + 10.0);
            site.heal().await;
            says_degraded(&node, &[]).await;
        }
    });
}

/// A node brings bodies from S3, which goes away in their middle.
fn in_the_middle_of_a_body(services: &[Service]) {
    run_for(LIMIT, async {
        let mut site = Site::start().await;
        let whole = Pattern::new(7, 12 * MB);
        for trouble in [Cut, Stalled] {
            for path in ["whole", "part", "lost"] {
                let file = File::new(whole).etag("\"v1\"").content_type("text/plain");
                site.up.file(&format!("/{trouble:?}/{path}"), file);
            }
            let path = |name: &str| at("files", &format!("{trouble:?}/{name}"));
            let (one, two) = tokio::join!(
                site.settings_with(services).start(),
                site.settings_with(services).start()
            );
            fleet::ready(&one).await;
            fleet::ready(&two).await;
            for name in ["whole", "part", "lost"] {
                get(one.address(), &path(name)).await.ok();
            }
            fleet::settled(&one).await;
            // Nobody else has it then.
            drop(one);
            site.up.forget();

            site.link(Bucket).delay(Duration::from_millis(20));
            let mut clients = Vec::new();
            for (name, range) in [("whole", None), ("part", Some("bytes=2000000-11999998"))] {
                let mut client = two.connect().await;
                let headers: Vec<_> = range.iter().map(|range| ("range", *range)).collect();
                client.send("GET", &path(name), &headers, b"").await;
                let head = client.read_head("GET").await;
                assert_eq!(head.status, if range.is_some() { 206 } else { 200 });
                assert_eq!(head.source(), "cache", "{:?}", head.headers);
                let begun = client.read_body_until(MB as usize).await;
                clients.push((
                    client,
                    begun,
                    if range.is_some() {
                        whole.slice(2 * MB, 12 * MB - 1)
                    } else {
                        whole
                    },
                ));
            }
            assert_eq!(site.up.total(), 0);
            site.strike(Bucket, trouble);
            for (client, begun, body) in &mut clients {
                assert!(body.matches(0, begun));
                let rest = client.read_body().await;
                assert!(
                    client.is_complete(),
                    "{trouble:?}: {} of {}",
                    begun.len() + rest.len(),
                    body.whole().len()
                );
                assert!(body.matches(begun.len() as u64, &rest));
                assert_eq!((begun.len() + rest.len()) as u64, body.whole().len() as u64);
            }
            two.until_cached("files", &format!("{trouble:?}/whole")).await;
            site.heal().await;
            fleet::ready(&two).await;

            // Where upstream cannot help, what is cut is seen to be cut.
            site.link(Bucket).delay(Duration::from_millis(20));
            let mut client = two.connect().await;
            client.send("GET", &path("lost"), &[], b"").await;
            assert_eq!(client.read_head("GET").await.status, 200);
            client.read_body_until(MB as usize).await;
            site.up.switch_off().await;
            site.strike(Bucket, trouble);
            client.read_body().await;
            assert!(!client.is_complete());
            site.up.switch_on().await;
            site.heal().await;
        }
    });
}

#[test]
fn a_body_that_s3_does_not_finish_is_taken_up_from_upstream() {
    in_the_middle_of_a_body(&[Bucket, Fleet]);
}

#[test]
fn a_body_that_s3_does_not_finish_is_taken_up_from_upstream_without_redis() {
    in_the_middle_of_a_body(&[Bucket]);
}

#[test]
fn a_flush_made_without_redis_reaches_the_other_node() {
    run_for(LIMIT, async {
        let mut site = Site::start().await;
        let [mut a, b] = site.nodes().await;
        for (trouble, restart) in [(Killed, "none"), (Stalled, "stop"), (Cut, "kill"), (Killed, "kill")] {
            let path = format!("{trouble:?}-{restart}");
            site.up.file(&format!("/{path}"), File::new("old"));
            for node in [&a, &b] {
                assert_eq!(node.fetch("files", &path).await.ok().text(), "old");
                fleet::settled(node).await;
            }
            site.strike(Fleet, trouble);
            let body = json!({"prefix": path}).to_string();
            let flushed = a.request("PUT", "/cache/flush", &[], body.as_bytes());
            assert_eq!(within("a flush", flushed).await.ok().json()["deleted"], 1);
            site.up.file(&format!("/{path}"), File::new("new"));
            match restart {
                "stop" => a.restart().await,
                "kill" => {
                    a.kill();
                    a.launch().await;
                }
                _ => {}
            }
            assert_eq!(a.fetch("files", &path).await.ok().text(), "new", "{path}");
            site.heal().await;
            eventually(SOON, "the other node hears of it", async || {
                b.fetch("files", &path).await.ok().text() == "new"
            })
            .await;
            for node in [&a, &b] {
                fleet::ready(node).await;
                fleet::settled(node).await;
                assert_eq!(node.fetch("files", &path).await.ok().text(), "new");
            }
        }
    });
}

#[test]
fn uploads_outlast_an_outage_and_a_crash() {
    run_for(LIMIT, async {
        let mut site = Site::start().await;
        let [mut a, b] = site.nodes().await;
        let large = Pattern::new(5, 40 * MB);
        for trouble in [Cut, Stalled] {
            let large_path = format!("{trouble:?}/large");
            site.up.file(&format!("/{large_path}"), File::new(large));
            let mut paths = BTreeSet::from([large_path.clone()]);
            // One upload has begun when S3 goes.
            site.link(Bucket).delay(Duration::from_millis(5));
            let before = site.link(Bucket).bytes();
            a.fetch("files", &large_path).await.ok();
            eventually(SOON, "it is being uploaded", async || {
                site.link(Bucket).bytes() > before + 2 * MB
            })
            .await;
            site.strike(Bucket, trouble);
            for n in 0..10 {
                let path = format!("{trouble:?}/{n}");
                fetch(a.address(), &path).await;
                a.until_cached("files", &path).await;
                paths.insert(path);
            }
            says_degraded(&a, &[Bucket]).await;
            a.kill();
            a.launch().await;
            says_degraded(&a, &[Bucket]).await;
            assert!(a.metric("artifactapi_bucket_queue_length", &["uploads"]).await >= 11.0);
            site.link(Bucket).restore();
            site.heal().await;
            site.nothing_is_lost(std::slice::from_ref(&a), &paths).await;
            site.up.switch_off().await;
            for path in paths.iter().filter(|path| **path != large_path) {
                assert_eq!(fetch(b.address(), path).await.source(), "cache");
            }
            let mut client = b.connect().await;
            client.send("GET", &at("files", &large_path), &[], b"").await;
            assert_eq!(client.read_head("GET").await.source(), "cache");
            assert_eq!(client.read_pattern(large).await, 40 * MB);
            site.up.switch_on().await;
        }
    });
}

#[test]
fn a_full_disk_loses_no_upload() {
    run_for(LIMIT, async {
        let mut site = Site::start().await;
        let conf = "cache: {disk_bytes: 12MB, disk_min_free: 0%, memory_bytes: 1MB}\n";
        let (node, other) = tokio::join!(site.settings().conf(conf).start(), site.settings().start());
        fleet::ready(&node).await;
        fleet::ready(&other).await;
        let body = |n: u64| Pattern::new(n, MB);
        site.up.under("/full/", move |seen| {
            let name = seen.path.rsplit('/').next().and_then(|name| name.parse().ok());
            File::new(body(name.expect("a number"))).reply(seen)
        });
        let fetch = async |node: &Proxy, n: u64| {
            let target = at("files", &format!("full/{n}"));
            let answer = within("a download", get(node.address(), &target)).await.ok();
            assert!(body(n).matches(0, &answer.body) && answer.body.len() as u64 == MB);
            answer
        };
        for n in 0..20 {
            fetch(&node, n).await;
        }
        fleet::settled(&node).await;
        site.strike(Bucket, Cut);
        for n in 20..50 {
            fetch(&node, n).await;
        }
        says_degraded_with_a_full_disk(&node).await;
        let waiting = node.metric("artifactapi_bucket_queue_length", &["uploads"]).await;
        assert!((8.0..=12.0).contains(&waiting), "{waiting} wait");
        site.heal().await;
        fleet::settled(&node).await;
        let stored = site.in_bucket().await.len();
        assert_eq!(stored as f64, 20.0 + waiting);
        // Space is to be had again.
        for n in 50..55 {
            fetch(&node, n).await;
        }
        fleet::settled(&node).await;
        assert_eq!(site.in_bucket().await.len(), stored + 5);
        site.up.switch_off().await;
        for path in site.in_bucket().await {
            let n = path.strip_prefix("full/").and_then(|n| n.parse().ok());
            assert_eq!(fetch(&other, n.expect("one of them")).await.source(), "cache");
        }
    });
}

async fn says_degraded_with_a_full_disk(node: &Proxy) {
    let health = node.request("GET", "/health/ready", &[], b"").await.ok().json();
    for dependency in ["disk", "s3"] {
        assert_eq!(health["dependencies"][dependency]["status"], "degraded", "{health}");
    }
}

#[test]
fn what_was_fetched_without_postgres_is_listed_after_a_restart() {
    run_for(LIMIT, async {
        let mut site = Site::start().await;
        let [mut a, b] = site.nodes().await;
        for (trouble, kill) in [(Cut, false), (Stalled, true)] {
            site.strike(Database, trouble);
            says_degraded(&a, &[Database]).await;
            let paths: BTreeSet<String> = (0..10).map(|n| format!("{trouble:?}/{n}")).collect();
            for path in &paths {
                fetch(a.address(), path).await;
            }
            if kill {
                a.kill();
                a.launch().await;
            } else {
                a.restart().await;
            }
            site.heal().await;
            for node in [&a, &b] {
                eventually(SOON, "everything is listed", async || {
                    paths.is_subset(&listed(node).await)
                })
                .await;
            }
        }
    });
}

#[test]
fn a_file_on_another_host_is_fetched_without_postgres() {
    run_for(LIMIT, async {
        let (mut site, host) = tokio::join!(Site::start(), Upstream::start());
        let names: Vec<String> = (0..4).map(|n| format!("pkg-{n}.0-py3-none-any.whl")).collect();
        let links = names
            .iter()
            .map(|name| format!("<a href=\"{}\">{name}</a>\n", host.url(&format!("/f/{name}"))));
        let page = format!(
            "<!DOCTYPE html><html><body>\n{}</body></html>",
            links.collect::<String>()
        );
        site.up
            .reply("/simple/pkg/", Reply::ok(page).content_type("text/html; charset=utf-8"));
        host.fallback(|seen| Reply::ok(seen.path.clone()));
        let remotes = format!("py: {{package: pypi, base_url: '{}'}}", site.up.base());
        let settings = || site.settings().remotes(&remotes);
        let (one, two) = tokio::join!(settings().start(), settings().start());
        fleet::ready(&one).await;
        fleet::ready(&two).await;
        one.fetch("py", "simple/pkg/").await.ok();
        let fetch = async |node: &Proxy, n: usize| {
            let path = format!("-/host/{}/f/{}", host.authority(), names[n]);
            let answer = within("a file", node.fetch("py", &path)).await.ok();
            assert_eq!(answer.text(), format!("/f/{}", names[n]));
        };
        // The link is in the database, for all nodes, and in no memory.
        fetch(&one, 0).await;
        list(&one, "").await.ok();
        for (trouble, n) in [(Cut, 1), (Stalled, 2)] {
            site.strike(Database, trouble);
            fetch(&one, n).await;
            fetch(&two, n).await;
            site.heal().await;
            fleet::ready(&one).await;
            fleet::ready(&two).await;
        }
        fetch(&two, 3).await;
    });
}
