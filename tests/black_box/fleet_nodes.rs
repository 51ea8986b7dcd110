//! What clients of several nodes see: every kind of package on every node, parts of what only the bucket has, nodes that
//! share only some of the backends, nodes that stop, are killed, or come back with what was flushed meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::common::client::{Headers, parts};
use crate::common::fleet::{self, BUCKET, Backends};
use crate::common::image::{Blob, Manifest};
use crate::common::link::Link;
use crate::common::packages::{Chart, IndexForm, NpmVersion, Wheel, helm_index, serve_npm, serve_pypi};
use crate::common::postgres::Postgres;
use crate::common::pull::{get_blob, get_manifest, head_manifest};
use crate::common::redis::Redis;
use crate::common::registry::{Registry, blob_at};
use crate::common::s3::{self, Kind, S3Server};
use crate::common::server::{Settings, at, run_binary};
use crate::common::{Connection, File, Gate, Pattern, Proxy, Reply, Response, Upstream, eventually, run_for, sha256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::json;
use tokio::task::JoinSet;

const MB: u64 = 1_000_000;
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// How much older content may be on one node than on another.
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Everything below `live/` is mutable, for `ttl` seconds.
pub(crate) fn files(base: &str, ttl: u64) -> String {
    format!(
        "files:\n  base_url: {base}\n  mutable_patterns: [\"^live/\"]\n  check_mutable_updates: true\n  \
         client_revalidation: true\n  cache: {{mutable_ttl: {ttl}, negative_ttl: 1}}\n"
    )
}

/// Starts them, and waits until each is in touch with its backends.
pub(crate) async fn start<const COUNT: usize>(settings: [Settings; COUNT]) -> [Proxy; COUNT] {
    let mut nodes = Vec::new();
    for settings in settings {
        nodes.push(settings.start().await);
    }
    for node in &nodes {
        fleet::ready(node).await;
    }
    nodes.try_into().unwrap_or_else(|_| panic!("as many as settings"))
}

/// Nodes over Redis and the bucket that can read from one another.
pub(crate) async fn nodes<const COUNT: usize>(backends: &Backends, remotes: &str) -> [Proxy; COUNT] {
    start(std::array::from_fn(|_| fleet::reachable(backends.settings(remotes)))).await
}

/// Nodes that share Redis only, and read from one another.
pub(crate) async fn with_redis<const COUNT: usize>(redis: &Redis, remotes: &str) -> [Proxy; COUNT] {
    let settings = |_| fleet::with_redis(Proxy::settings().remotes(remotes), &redis.url());
    start(std::array::from_fn(|node| fleet::reachable(settings(node)))).await
}

/// The bucket as this node sees it through `link`.
pub(crate) fn with_s3_through(settings: Settings, link: &Link) -> Settings {
    let env = s3::env(link.address, BUCKET).into_iter();
    env.fold(settings, |settings, (name, value)| settings.env(name, value))
}

/// What the bucket holds, by object name.
pub(crate) async fn bucket(s3: &S3Server) -> BTreeMap<String, Vec<u8>> {
    let client = s3.client(BUCKET);
    let mut objects = BTreeMap::new();
    for name in s3::names(&client).await {
        let got = client.get(&name, http::HeaderMap::new()).await.expect("an object");
        objects.insert(name, got.bytes().await.expect("its body").to_vec());
    }
    objects
}

/// The only body in the bucket.
pub(crate) async fn only_body(s3: &S3Server) -> String {
    let objects = bucket(s3).await;
    assert_eq!(objects.len(), 1, "{:?}", objects.keys());
    String::from_utf8_lossy(objects.values().next().expect("one")).into_owned()
}

pub(crate) async fn text(node: &Proxy, path: &str) -> String {
    node.fetch("files", path).await.ok().text()
}

/// A client that wants nothing from a cache.
async fn fresh_text(node: &Proxy, path: &str) -> String {
    let wants_fresh = [("cache-control", "no-cache")];
    node.fetch_with("files", path, &wants_fresh).await.ok().text()
}

pub(crate) async fn flush(node: &Proxy, request: &str) -> serde_json::Value {
    let answer = node.request("PUT", "/cache/flush", &[], request.as_bytes()).await;
    answer.ok().json()
}

/// A connection on which `path` was asked for.
pub(crate) async fn asking(node: &Proxy, path: &str) -> Connection {
    let mut connection = node.connect().await;
    connection.send("GET", &at("files", path), &[], b"").await;
    connection
}

/// Where a link on a page of `node` leads, which must be `node` itself.
#[track_caller]
fn on_node(node: &Proxy, page: &str, link: &str) -> String {
    let url = url::Url::parse(page).and_then(|page| page.join(link)).expect("a link");
    let text = url.to_string();
    assert!(text.starts_with(&format!("{}/", node.base())), "{link} leads elsewhere");
    url[url::Position::BeforePath..url::Position::AfterQuery].to_owned()
}

fn repomd(primary: &[u8]) -> String {
    format!(
        "<?xml version=\"1.0\"?>\n<repomd xmlns=\"urn:repo\"><revision>1</revision>\n<data type=\"primary\">\
         <checksum type=\"sha256\">{}</checksum><location href=\"repodata/primary.xml.gz\"/><size>{}</size></data>\n\
         </repomd>\n",
        sha256(primary),
        primary.len()
    )
}

#[test]
fn every_kind_of_package_that_one_node_fetched_is_served_by_another() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        let wheel = Wheel::new("Pkg", "1.0", &[], 5000);
        serve_pypi(&up, &up, IndexForm::Both, std::slice::from_ref(&wheel));
        let npm = NpmVersion::new("@scope/plain", "1.0.0", json!({}));
        serve_npm(&up, &up, std::slice::from_ref(&npm));
        let chart = Chart::new("app", "1.0.0");
        let index = helm_index(&[chart.entry(&[&up.url(&format!("/charts/{}", chart.file()))])]);
        up.file("/charts/index.yaml", File::new(index).content_type("application/yaml"));
        up.file(&format!("/charts/{}", chart.file()), File::new(chart.bytes.clone()));
        let primary = crate::common::packages::gzip(b"<metadata/>");
        up.file("/os/repodata/repomd.xml", File::new(repomd(&primary)).etag("\"md\""));
        up.file("/os/repodata/primary.xml.gz", File::new(primary.clone()).etag("\"p\""));
        up.file("/alpine/main/aarch64/APKINDEX.tar.gz", File::new("the index"));
        up.file("/alpine/main/aarch64/some-1.0-r0.apk", File::new("the package"));
        let remotes = format!(
            "py:\n  base_url: {0}\n  package: pypi\nnpm:\n  base_url: {0}\n  package: npm\ncharts:\n  base_url: \
             {0}/charts\n  package: helm\nrpms:\n  base_url: {0}\n  package: rpm\nalpine:\n  base_url: {0}/alpine\n  \
             package: alpine\n",
            up.base()
        );
        let [a, b] = nodes(&backends, &remotes).await;
        for node in [&a, &b] {
            let source = |here: &'static str| if std::ptr::eq(node, &a) { "remote" } else { here };
            let page = node.fetch("py", "simple/pkg/").await.ok();
            assert_eq!(page.source(), source("cache"));
            let html = page.text();
            let link = html.split("href=\"").nth(1).and_then(|rest| rest.split('"').next());
            let target = on_node(node, &node.url("py", "simple/pkg/"), link.expect("a link"));
            let file = node.request("GET", &target, &[], b"").await;
            file.is(source("cache"), &wheel.bytes);

            let packument = node.fetch("npm", "@scope%2fplain").await.ok();
            assert_eq!(packument.source(), source("cache"));
            let link = packument.json()["versions"]["1.0.0"]["dist"]["tarball"].clone();
            let target = on_node(node, &node.base(), link.as_str().expect("a link"));
            node.request("GET", &target, &[], b"")
                .await
                .is(source("cache"), &npm.bytes);

            let index = node.fetch("charts", "index.yaml").await.ok();
            assert_eq!(index.source(), source("cache"));
            let yaml = index.text();
            let link = yaml.split("urls:\n    - ").nth(1).and_then(|rest| rest.lines().next());
            let link = link.expect("a link").trim_matches(['"', '\'']);
            let target = on_node(node, &node.url("charts", "index.yaml"), link);
            node.request("GET", &target, &[], b"")
                .await
                .is(source("cache"), &chart.bytes);

            let md = node.fetch("rpms", "os/repodata/repomd.xml").await;
            md.is(source("cache"), repomd(&primary));
            let file = node.fetch("rpms", "os/repodata/primary.xml.gz").await;
            file.is(source("cache"), &primary);

            let index = node.fetch("alpine", "main/aarch64/APKINDEX.tar.gz").await;
            index.is(source("cache"), "the index");
            let package = node.fetch("alpine", "main/aarch64/some-1.0-r0.apk").await;
            package.is(source("cache"), "the package");
            fleet::settled(&a).await;
            if std::ptr::eq(node, &a) {
                up.switch_off().await;
            }
        }
    });
}

#[test]
fn an_image_that_one_node_fetched_is_served_by_another() {
    run_for(LIMIT, async {
        let backends = Backends::start().await;
        let image = Manifest::two_platforms("app");
        let registry = Registry::with("team/app", "v1", &image).await;
        let remotes = registry.remote("hub", "cache: {mutable_ttl: 300}");
        let [a, b] = nodes(&backends, &remotes).await;
        crate::common::pull::pull(&a, "hub/team/app", "v1", &image).await;
        crate::common::pull::until_stored(&a, "hub/team/app", "v1", &image).await;
        fleet::settled(&a).await;
        registry.switch_off().await;
        let head = head_manifest(&b, "hub/team/app", "v1").await.ok();
        assert_eq!(
            (head.must("docker-content-digest"), head.source()),
            (image.digest.as_str(), "cache")
        );
        assert_eq!(head.must("content-length"), image.bytes.len().to_string());
        let top = get_manifest(&b, "hub/team/app", "v1").await.is("cache", &image.bytes);
        assert_eq!(top.must("docker-content-digest"), image.digest);
        assert_eq!(top.must("content-type"), image.kind);
        for part in image.all() {
            let head = head_manifest(&b, "hub/team/app", &part.digest).await.ok();
            assert_eq!(head.must("docker-content-digest"), part.digest);
            let manifest = get_manifest(&b, "hub/team/app", &part.digest).await;
            manifest.is("cache", &part.bytes);
            for blob in &part.blobs {
                let target = blob_at("hub/team/app", &blob.digest);
                let head = b.request("HEAD", &target, &[], b"").await.ok();
                assert_eq!(head.must("content-length"), blob.body.len().to_string());
                let whole = get_blob(&b, "hub/team/app", &blob.digest).await;
                whole.is("cache", blob.bytes());
            }
        }
    });
}

#[test]
fn a_part_of_what_only_the_bucket_has_crosses_alone() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        let body = Pattern::new(1, 30 * MB);
        up.file("/a/large", File::new(body).etag("\"v1\"").content_type("text/x-large"));
        let remotes = files(&up.base(), 60);
        let link = Link::start(backends.s3.address).await;
        let through = fleet::with_redis(Proxy::settings().remotes(&remotes), &backends.redis.url());
        let through = fleet::reachable(with_s3_through(through, &link));
        let [a, b] = start([fleet::reachable(backends.settings(&remotes)), through]).await;
        a.fetch("files", "a/large").await.ok();
        fleet::settled(&a).await;
        up.switch_off().await;
        let before = link.bytes();
        let head = b.head("files", "a/large").await.ok();
        assert_eq!(
            (head.source(), head.must("content-length"), head.must("etag")),
            ("cache", "30000000", "\"v1\"")
        );
        assert_eq!(head.must("content-type"), "text/x-large");
        let range = async |range: &str| b.fetch_with("files", "a/large", &[("range", range)]).await;
        let part = range("bytes=10000000-10099999").await.expect(206);
        assert_eq!(part.must("content-range"), "bytes 10000000-10099999/30000000");
        assert_eq!(part.source(), "cache");
        assert!(part.body == body.slice(10 * MB, 10 * MB + 100_000).whole());
        let end = range("bytes=-100").await.expect(206);
        assert_eq!(end.must("content-range"), "bytes 29999900-29999999/30000000");
        assert!(end.body == body.slice(30 * MB - 100, 30 * MB).whole());
        let several = range("bytes=0-99, 20000000-20000099,-50").await.expect(206);
        let several = parts(&several);
        let bodies: Vec<_> = several.iter().map(|part| part.body.clone()).collect();
        let slice = |from: u64, to: u64| body.slice(from, to).whole();
        assert_eq!(
            bodies,
            [
                slice(0, 100),
                slice(20 * MB, 20 * MB + 100),
                slice(30 * MB - 50, 30 * MB)
            ]
        );
        let beyond = range("bytes=30000000-").await;
        assert_eq!((beyond.status, beyond.must("content-range")), (416, "bytes */30000000"));
        let crossed = link.bytes() - before;
        assert!(crossed < MB, "{crossed} bytes for 100350");
        // Another validator than the stored one: the whole it is.
        let headers = [("range", "bytes=5-9"), ("if-range", "\"v2\"")];
        let whole = b.fetch_with("files", "a/large", &headers).await.ok();
        assert!(body.matches(0, &whole.body));
        assert_eq!((up.total(), whole.source()), (1, "cache"));
        b.until_cached("files", "a/large").await;
        let now = link.bytes();
        assert!(now - before > 30 * MB);
        range("bytes=7-8").await.expect(206);
        assert!(link.bytes() - now < 100_000, "it is here");
    });
}

#[test]
fn a_range_that_is_all_of_it_and_a_condition_bring_the_whole() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        let body = Pattern::new(1, 30 * MB);
        up.file("/a/large", File::new(body).etag("\"v1\""));
        up.file("/a/small", File::new("small").etag("\"v2\""));
        let [a, b, c] = nodes(&backends, &files(&up.base(), 60)).await;
        for path in ["a/large", "a/small"] {
            a.fetch("files", path).await.ok();
        }
        fleet::settled(&a).await;
        up.switch_off().await;
        let all = b.fetch_with("files", "a/large", &[("range", "bytes=0-")]).await;
        let all = all.expect(206);
        assert_eq!(all.must("content-range"), "bytes 0-29999999/30000000");
        assert!(body.matches(0, &all.body) && all.body.len() == 30 * MB as usize);
        b.until_cached("files", "a/large").await;
        for (path, etag) in [("a/large", "\"v1\""), ("a/small", "\"v2\"")] {
            let same = c.fetch_with("files", path, &[("if-none-match", etag)]).await;
            assert_eq!((same.status, same.must("etag"), same.body.len()), (304, etag, 0));
        }
        c.until_cached("files", "a/large").await;
    });
}

#[test]
fn where_nodes_cannot_reach_one_another_the_second_waits_for_the_bucket() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        let (body, gate) = (Pattern::new(4, 40 * MB), Gate::new());
        up.reply("/x", Reply::ok(body).pause_at(3 * MB, &gate));
        up.reply("/y", Reply::ok("small").gated(&gate));
        let remotes = files(&up.base(), 60);
        // The upload takes a while.
        let link = Link::start(backends.s3.address).await;
        let settings = fleet::with_redis(Proxy::settings().remotes(&remotes), &backends.redis.url());
        let [a, b] = start([with_s3_through(settings, &link), backends.settings(&remotes)]).await;
        for path in ["x", "y"] {
            let mut first = asking(&a, path).await;
            up.wait_for("GET", &format!("/{path}"), 1).await;
            let mut second = asking(&b, path).await;
            if path == "x" {
                assert_eq!(first.read_head("GET").await.status, 200);
                // Nothing tells that the second one waits; it would have asked by then.
                tokio::time::sleep(Duration::from_millis(300)).await;
                link.delay(Duration::from_millis(5));
                gate.open();
                assert_eq!(first.read_pattern(body).await, 40 * MB);
                let head = second.read_head("GET").await;
                assert_eq!((head.status, head.source()), (200, "cache"));
                assert_eq!(second.read_pattern(body).await, 40 * MB);
            } else {
                first.response("GET").await.is("remote", "small");
                second.response("GET").await.is("cache", "small");
            }
        }
        assert_eq!(up.total(), 2);
    });
}

#[test]
fn with_nothing_to_meet_at_each_node_fetches_for_itself() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        let gate = Gate::new();
        up.reply("/x", Reply::ok("content").gated(&gate));
        let remotes = files(&up.base(), 60);
        let settings = |_| fleet::with_redis(Proxy::settings().remotes(&remotes), &redis.url());
        let [a, b] = start(std::array::from_fn(settings)).await;
        let (mut first, mut second) = (asking(&a, "x").await, asking(&b, "x").await);
        up.wait_for("GET", "/x", 2).await;
        gate.open();
        first.response("GET").await.is("remote", "content");
        second.response("GET").await.is("remote", "content");
        // What changes and what is flushed is heard all the same.
        up.file("/live/page", File::new("old").etag("\"1\""));
        assert_eq!(text(&a, "live/page").await, "old");
        assert_eq!(text(&b, "live/page").await, "old");
        up.file("/live/page", File::new("new").etag("\"2\""));
        eventually(Duration::from_secs(5), "a has it", async || {
            fresh_text(&a, "live/page").await == "new"
        })
        .await;
        eventually(SECOND, "b has it", async || text(&b, "live/page").await == "new").await;
        up.reply("/x", Reply::ok("another"));
        flush(&b, r#"{"remote": "files", "prefix": "x"}"#).await;
        eventually(SECOND, "a has it", async || text(&a, "x").await == "another").await;
    });
}

#[test]
fn with_the_bucket_alone_another_node_has_what_one_fetched() {
    run_for(LIMIT, async {
        let (s3, up) = tokio::join!(S3Server::start(Kind::Minio), Upstream::start());
        up.file("/a/b", File::new("immutable"));
        up.file("/live/page", File::new("mutable").etag("\"1\""));
        let remotes = files(&up.base(), 60);
        let settings = |_| fleet::with_s3(Proxy::settings().remotes(&remotes), &s3);
        let [a, b, c] = start(std::array::from_fn(settings)).await;
        assert_eq!(text(&a, "a/b").await, "immutable");
        assert_eq!(text(&a, "live/page").await, "mutable");
        fleet::settled(&a).await;
        up.switch_off().await;
        b.fetch("files", "a/b").await.is("cache", "immutable");
        b.fetch("files", "live/page").await.is("cache", "mutable");
        assert_eq!(c.head("files", "live/page").await.ok().source(), "cache");
        assert_eq!(up.total(), 2);
        // What one flushes is out of the bucket, and not brought back by it.
        flush(&a, r#"{"prefix": "a/"}"#).await;
        assert!(a.fetch("files", "a/b").await.status >= 500);
        fleet::settled(&a).await;
        assert!(c.fetch("files", "a/b").await.status >= 500);
        c.fetch("files", "live/page").await.is("cache", "mutable");
    });
}

/// The paths that a node lists.
pub(crate) async fn listed(node: &Proxy, query: &str) -> Vec<String> {
    let page = node
        .request("GET", &format!("/api/v1/artifacts{query}"), &[], b"")
        .await;
    let page = page.ok().json();
    let artifacts = page["artifacts"].as_array().expect("a list");
    let path = |artifact: &serde_json::Value| artifact["path"].as_str().expect("a path").to_owned();
    artifacts.iter().map(path).collect()
}

#[test]
fn what_upstream_refuses_one_node_it_refuses_all_that_wait() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        let gate = Gate::new();
        up.reply(
            "/gone",
            Reply::new(404, "no such thing").header("X-Why", "gone").gated(&gate),
        );
        up.reply(
            "/busy",
            Reply::new(429, "slow down").header("Retry-After", "7").gated(&gate),
        );
        let [a, b, c] = with_redis(&redis, &files(&up.base(), 60)).await;
        let mut clients = Vec::new();
        for path in ["gone", "busy"] {
            for (number, node) in [&a, &b, &c].into_iter().enumerate() {
                clients.push((path, asking(node, path).await));
                if number == 0 {
                    up.wait_for("GET", &format!("/{path}"), 1).await;
                }
            }
        }
        // Nothing tells that the others wait; they would have asked by then.
        tokio::time::sleep(Duration::from_millis(500)).await;
        gate.open();
        for (path, mut client) in clients {
            let answer = client.response("GET").await;
            let expected = if path == "gone" { 404 } else { 429 };
            assert_eq!(
                (answer.status, answer.complete),
                (expected, true),
                "{path}: {}",
                answer.text()
            );
            if path == "busy" {
                assert_eq!(answer.must("retry-after"), "7");
            }
        }
        assert_eq!((up.count("GET", "/gone"), up.count("GET", "/busy")), (1, 1));
    });
}

#[test]
fn a_node_that_cannot_reach_upstream_is_not_in_the_way_of_one_that_can() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        up.file("/x", File::new("content"));
        let link = Link::start(up.address()).await;
        let through = format!("http://{}", link.address);
        let settings = |base: &str| {
            fleet::reachable(fleet::with_redis(
                Proxy::settings().remotes(&files(base, 60)),
                &redis.url(),
            ))
        };
        let [a, b] = start([settings(&through), settings(&up.base())]).await;
        link.stall();
        let mut first = asking(&a, "x").await;
        let fills = async || {
            let mut connection = redis.connection().await;
            let keys: Vec<String> = redis::cmd("KEYS")
                .arg("artifactapi:fill:*")
                .query_async(&mut connection)
                .await
                .expect("keys");
            keys.len()
        };
        eventually(Duration::from_secs(5), "A holds the lock", async || fills().await == 1).await;
        let mut second = asking(&b, "x").await;
        // Nothing tells that it waits for A; it would have asked upstream by then.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(up.total(), 0);
        link.cut();
        second.response("GET").await.is("remote", "content");
        // A has it from B, or says that it failed.
        let answer = first.response("GET").await;
        assert!(answer.status >= 500 || answer.text() == "content", "{}", answer.text());
        eventually(Duration::from_secs(5), "A has it from B", async || {
            a.fetch("files", "x").await.text() == "content"
        })
        .await;
    });
}

#[test]
fn what_was_fetched_while_another_held_the_lock_is_said_though_that_one_says_nothing() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        up.file("/x", File::new("content"));
        let [a, b] = with_redis(&redis, &files(&up.base(), 60)).await;
        let hash = hex::encode(artifactapi::cache::Key::new("files", "x", None, "").hash);
        // A node that cannot be asked, and dies.
        let lock = format!("artifactapi:fill:{hash}");
        let mut connection = redis.connection().await;
        let () = redis::pipe()
            .cmd("HSET")
            .arg(&lock)
            .arg(&["holding", "other", "fence", "1", "node", "other"])
            .cmd("PEXPIRE")
            .arg(&lock)
            .arg(2000)
            .query_async(&mut connection)
            .await
            .expect("set");
        b.fetch("files", "x").await.is("remote", "content");
        eventually(Duration::from_secs(10), "B has said it", async || {
            let mut look = redis::cmd("HEXISTS");
            look.arg(format!("artifactapi:fresh:{hash}")).arg("id");
            look.query_async(&mut connection).await.expect("an answer")
        })
        .await;
        eventually(Duration::from_secs(10), "the lock has ended", async || {
            let mut look = redis::cmd("EXISTS");
            let there: bool = look.arg(&lock).query_async(&mut connection).await.expect("an answer");
            !there
        })
        .await;
        a.fetch("files", "x").await.is("cache", "content");
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn upstreams_word_that_nothing_changed_counts_for_all_nodes() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        up.file("/live/page", File::new("same").etag("\"1\""));
        let [a, b] = nodes(&backends, &files(&up.base(), 4)).await;
        assert_eq!(text(&a, "live/page").await, "same");
        assert_eq!(text(&b, "live/page").await, "same");
        assert_eq!(up.total(), 1);
        eventually(Duration::from_secs(8), "A has asked again", async || {
            a.fetch("files", "live/page").await.is("cache", "same");
            up.total() == 2
        })
        .await;
        assert_eq!(up.last("GET", "/live/page").header("if-none-match"), Some("\"1\""));
        for _ in 0..5 {
            b.fetch("files", "live/page").await.is("cache", "same");
        }
        assert_eq!(up.total(), 2, "what A was told is B's too");
    });
}

#[test]
fn what_is_expired_and_only_in_the_bucket_is_revalidated_or_served_stale() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        up.file("/live/page", File::new("content").etag("\"1\""));
        let remotes = files(&up.base(), 1);
        let [mut a, b] = nodes(&backends, &remotes).await;
        let alone = fleet::with_s3(Proxy::settings().remotes(&remotes), &backends.s3);
        let [c, d] = start([alone.clone(), alone]).await;
        let fetched = Instant::now();
        assert_eq!(text(&a, "live/page").await, "content");
        fleet::settled(&a).await;
        a.kill();
        tokio::time::sleep(Duration::from_millis(1300).saturating_sub(fetched.elapsed())).await;
        let mut asked = 1;
        // B knows the fleet's word, C only the bucket.
        for node in [&b, &c] {
            let revalidated = node.fetch("files", "live/page").await.is("cache", "content");
            assert!(
                revalidated.cache_status().contains("fwd-status=304"),
                "{:?}",
                revalidated.headers
            );
            asked += 1;
            assert_eq!(up.total(), asked);
            assert_eq!(up.last("GET", "/live/page").header("if-none-match"), Some("\"1\""));
        }
        up.switch_off().await;
        let stale = d.fetch("files", "live/page").await.is("cache", "content");
        assert!(stale.cache_status().contains("unreachable"), "{:?}", stale.headers);
        let mut e = nodes::<1>(&backends, &remotes).await;
        eventually(Duration::from_secs(5), "it is expired on E", async || {
            let stale = e[0].fetch("files", "live/page").await.is("cache", "content");
            stale.cache_status().contains("unreachable")
        })
        .await;
        e[0].kill();
    });
}

#[test]
fn what_is_gone_upstream_is_gone_on_every_node_and_from_the_bucket() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        up.file("/live/page", File::new("content").etag("\"1\""));
        up.file("/live/other", File::new("other").etag("\"1\""));
        let [a, b] = nodes(&backends, &files(&up.base(), 60)).await;
        for node in [&a, &b] {
            assert_eq!(text(node, "live/page").await, "content");
            assert_eq!(text(node, "live/other").await, "other");
        }
        for node in [&a, &b] {
            fleet::settled(node).await;
        }
        assert_eq!(bucket(&backends.s3).await.len(), 2);
        up.reply("/live/page", Reply::new(404, "gone"));
        let wants_fresh = [("cache-control", "no-cache")];
        eventually(Duration::from_secs(5), "A knows", async || {
            a.fetch_with("files", "live/page", &wants_fresh).await.status == 404
        })
        .await;
        eventually(SECOND, "B knows", async || {
            b.fetch("files", "live/page").await.status == 404
        })
        .await;
        eventually(Duration::from_secs(5), "it is out of the bucket", async || {
            bucket(&backends.s3).await.len() == 1
        })
        .await;
        assert_eq!(only_body(&backends.s3).await, "other");
        b.fetch("files", "live/other").await.is("cache", "other");
        for node in [&a, &b] {
            eventually(Duration::from_secs(5), "it is not listed", async || {
                let list = node
                    .request("GET", "/api/v1/artifacts?remote=files", &[], b"")
                    .await
                    .ok();
                let artifacts = list.json()["artifacts"].as_array().expect("a list").clone();
                artifacts.len() == 1 && artifacts[0]["path"] == "live/other"
            })
            .await;
        }
    });
}

#[test]
fn what_is_refused_by_one_name_stays_for_those_who_share_it() {
    run_for(LIMIT, async {
        let redis = Redis::start().await;
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &image).await;
        let blob = &image.blobs[1];
        let gate = Gate::new();
        let (ours, theirs) = (blob_at("team/app", &blob.digest), blob_at("other/app", &blob.digest));
        let refusal = crate::common::registry::error(404, "BLOB_UNKNOWN").gated(&gate);
        registry.instead(&theirs, refusal);
        let remotes = registry.remote("hub", "cache: {immutable_ttl: 1}");
        let [a, b] = with_redis(&redis, &remotes).await;
        get_blob(&b, "hub/team/app", &blob.digest).await.ok();
        // It has expired on B when A asks for it by a name by which it is refused, and B joins.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let target = blob_at("hub/other/app", &blob.digest);
        let mut clients = [a.connect().await, b.connect().await];
        clients[0].send("GET", &target, &[], b"").await;
        registry.up.wait_for("GET", &theirs, 1).await;
        clients[1].send("GET", &target, &[], b"").await;
        // Nothing tells that it waits for A; it would have asked upstream by then.
        tokio::time::sleep(Duration::from_millis(300)).await;
        gate.open();
        for client in &mut clients {
            assert_eq!(client.response("GET").await.status, 404);
        }
        assert_eq!(registry.count("GET", &theirs), 1, "B joined A");
        registry.switch_off().await;
        get_blob(&b, "hub/team/app", &blob.digest)
            .await
            .is("cache", blob.bytes());
        assert_eq!(registry.count("GET", &ours), 1);
    });
}

/// An upstream whose first answer for `/live/page` is `old` and stops half-way until `gate` is open, and whose later ones
/// are `new`.
async fn changing(gate: &Gate) -> Upstream {
    let up = Upstream::start().await;
    up.sequence(
        "/live/page",
        vec![
            Reply::ok("old content").etag("\"1\"").pause_at(3, gate),
            Reply::ok("new content").etag("\"2\""),
        ],
    );
    up
}

#[test]
fn a_node_that_was_stopped_in_a_fill_overwrites_nothing() {
    run_for(LIMIT, async {
        let gate = Gate::new();
        let (backends, up) = tokio::join!(Backends::start(), changing(&gate));
        let [a, b, c] = nodes(&backends, &files(&up.base(), 600)).await;
        let mut first = asking(&a, "live/page").await;
        assert_eq!(first.read_head("GET").await.status, 200);
        a.pause();
        // B waits for A until the lock ends.
        assert_eq!(text(&b, "live/page").await, "new content");
        fleet::settled(&b).await;
        assert_eq!(only_body(&backends.s3).await, "new content");
        a.resume();
        // While its old fill goes on, A's other clients get what the fleet has.
        eventually(SECOND, "A serves the new one beside its old fill", async || {
            let asked = asking(&a, "live/page");
            let answer = tokio::time::timeout(Duration::from_millis(500), async { asked.await.response("GET").await });
            answer.await.is_ok_and(|answer| answer.text() == "new content")
        })
        .await;
        gate.open();
        assert_eq!(first.read_body().await, "old content");
        for _ in 0..10 {
            assert_eq!(text(&a, "live/page").await, "new content");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        fleet::settled(&a).await;
        assert_eq!(only_body(&backends.s3).await, "new content");
        assert_eq!(text(&b, "live/page").await, "new content");
        c.fetch("files", "live/page").await.is("cache", "new content");
        assert_eq!(up.total(), 2);
    });
}

#[test]
fn what_a_stopped_node_finishes_at_once_is_not_served_for_longer_than_a_second() {
    run_for(LIMIT, async {
        let gate = Gate::new();
        let (backends, up) = tokio::join!(Backends::start(), changing(&gate));
        let [a, b] = nodes(&backends, &files(&up.base(), 600)).await;
        let mut first = asking(&a, "live/page").await;
        assert_eq!(first.read_head("GET").await.status, 200);
        a.pause();
        assert_eq!(text(&b, "live/page").await, "new content");
        fleet::settled(&b).await;
        gate.open();
        up.wait_in_flight(0).await;
        a.resume();
        eventually(SECOND, "A has the new one", async || {
            text(&a, "live/page").await == "new content"
        })
        .await;
        for _ in 0..10 {
            assert_eq!(text(&a, "live/page").await, "new content");
            assert_eq!(text(&b, "live/page").await, "new content");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        fleet::settled(&a).await;
        assert_eq!(only_body(&backends.s3).await, "new content");
    });
}

#[test]
fn a_word_that_comes_too_late_for_redis_is_taken_back_by_its_node() {
    run_for(LIMIT, async {
        let (gate, redis) = (Gate::new(), Redis::start().await);
        let up = changing(&gate).await;
        let link = Link::start(redis.address).await;
        let remotes = files(&up.base(), 600);
        let settings = |url: &str| fleet::reachable(fleet::with_redis(Proxy::settings().remotes(&remotes), url));
        let [a, b] = start([settings(&format!("redis://{}", link.address)), settings(&redis.url())]).await;
        let mut first = asking(&a, "live/page").await;
        assert_eq!(first.read_head("GET").await.status, 200);
        a.pause();
        assert_eq!(text(&b, "live/page").await, "new content");
        a.resume();
        // A hears of B's, and then nothing of Redis while its own fill ends.
        fleet::ready(&a).await;
        eventually(Duration::from_secs(5), "A has heard all", async || {
            a.metric("artifactapi_fleet_total", &["what=\"received\""]).await >= 1.0
        })
        .await;
        link.cut();
        gate.open();
        assert_eq!(first.read_body().await, "old content");
        eventually(Duration::from_secs(5), "A has noticed", async || {
            a.request("GET", "/health/ready", &[], b"").await.json()["dependencies"]["redis"]["status"] != "ok"
        })
        .await;
        link.restore();
        fleet::ready(&a).await;
        eventually(SECOND, "A has the new one", async || {
            text(&a, "live/page").await == "new content"
        })
        .await;
        assert_eq!(text(&b, "live/page").await, "new content");
    });
}

#[test]
fn an_old_upload_that_passes_late_is_put_right_again() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        let gate = Gate::new();
        up.sequence(
            "/live/page",
            vec![
                Reply::ok("old content").etag("\"1\"").pause_at(3, &gate),
                Reply::ok("new content").etag("\"2\""),
            ],
        );
        let remotes = files(&up.base(), 600);
        let link = Link::start(backends.s3.address).await;
        let through = fleet::with_redis(Proxy::settings().remotes(&remotes), &backends.redis.url());
        let through = fleet::reachable(with_s3_through(through, &link));
        let [a, b] = start([through, fleet::reachable(backends.settings(&remotes))]).await;
        let mut first = asking(&a, "live/page").await;
        assert_eq!(first.read_head("GET").await.status, 200);
        let before = link.bytes();
        link.stall();
        gate.open();
        assert_eq!(first.read_body().await, "old content");
        eventually(
            Duration::from_secs(5),
            "the upload is on its way, as far as the link",
            async || link.holds("PUT /"),
        )
        .await;
        assert_eq!(link.bytes(), before);
        eventually(Duration::from_secs(5), "B has the new one", async || {
            fresh_text(&b, "live/page").await == "new content"
        })
        .await;
        fleet::settled(&b).await;
        assert_eq!(only_body(&backends.s3).await, "new content");
        link.restore();
        eventually(Duration::from_secs(5), "the late upload has passed", async || {
            a.metric("artifactapi_bucket_total", &["what=\"outdated\""]).await >= 1.0
        })
        .await;
        fleet::settled(&a).await;
        eventually(Duration::from_secs(5), "the bucket has the new one", async || {
            only_body(&backends.s3).await == "new content"
        })
        .await;
        // And keeps it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        fleet::settled(&b).await;
        assert_eq!(only_body(&backends.s3).await, "new content");
        assert_eq!(text(&a, "live/page").await, "new content");
    });
}

#[test]
fn three_that_read_from_a_node_that_is_killed_all_finish() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        let [mut a, b, c, d] = with_redis(&redis, &files(&up.base(), 60)).await;
        let (body, gate) = (Pattern::new(3, 8 * MB), Gate::new());
        up.sequence(
            "/x",
            vec![
                Reply::ok(body).etag("\"v1\"").pause_at(3 * MB, &gate),
                Reply::ok(body).etag("\"v1\""),
            ],
        );
        let mut first = asking(&a, "x").await;
        up.wait_for("GET", "/x", 1).await;
        let mut clients = Vec::new();
        for node in [&b, &c, &d] {
            let mut client = asking(node, "x").await;
            assert_eq!(client.read_head("GET").await.must("content-length"), "8000000");
            let begun = client.read_body_until(2 * MB as usize).await;
            assert!(body.matches(0, &begun));
            clients.push((client, begun.len() as u64));
        }
        assert_eq!(first.read_head("GET").await.status, 200);
        a.kill();
        let mut reading = JoinSet::new();
        for (mut client, begun) in clients {
            reading.spawn(async move {
                let rest = client.read_body().await;
                (
                    client.is_complete() && body.matches(begun, &rest),
                    begun + rest.len() as u64,
                )
            });
        }
        while let Some(read) = reading.join_next().await {
            assert_eq!(read.expect("read"), (true, 8 * MB));
        }
        for node in [&b, &c, &d] {
            node.until_cached("files", "x").await;
        }
        assert_eq!(up.count("GET", "/x"), 2);
    });
}

#[test]
fn three_that_read_a_blob_from_a_node_that_is_killed_all_finish() {
    run_for(LIMIT, async {
        let (redis, registry) = tokio::join!(Redis::start(), Registry::start());
        let (body, gate) = (Pattern::new(5, 8 * MB), Gate::new());
        let blob = Blob::new(body);
        registry.blob("team/app", &blob);
        let [mut a, b, c, d] = with_redis(&redis, &registry.remote("hub", "")).await;
        let (held, asked) = (gate.clone(), AtomicBool::new(false));
        registry.change(&blob_at("team/app", &blob.digest), move |_, reply| {
            match asked.swap(true, SeqCst) {
                false => reply.pause_at(3 * MB, &held),
                true => reply,
            }
        });
        let target = blob_at("hub/team/app", &blob.digest);
        let mut first = a.connect().await;
        first.send("GET", &target, &[], b"").await;
        assert_eq!(first.read_head("GET").await.status, 200);
        let mut clients = Vec::new();
        for node in [&b, &c, &d] {
            let mut client = node.connect().await;
            client.send("GET", &target, &[], b"").await;
            assert_eq!(client.read_head("GET").await.must("content-length"), "8000000");
            let begun = client.read_body_until(2 * MB as usize).await;
            clients.push((client, begun.len() as u64));
        }
        a.kill();
        let mut reading = JoinSet::new();
        for (mut client, begun) in clients {
            reading.spawn(async move {
                let rest = client.read_body().await;
                (
                    client.is_complete() && body.matches(begun, &rest),
                    begun + rest.len() as u64,
                )
            });
        }
        while let Some(read) = reading.join_next().await {
            assert_eq!(read.expect("read"), (true, 8 * MB));
        }
        for node in [&b, &c, &d] {
            crate::common::pull::until_cached(node, &target).await;
        }
        assert_eq!(registry.count("GET", &blob_at("team/app", &blob.digest)), 2);
    });
}

#[test]
fn what_one_node_cannot_pass_on_is_soon_fetched_by_the_other() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        let gate = Gate::new();
        // Its end is that of the connection, so that nobody knows whether it is whole.
        up.reply("/x", Reply::ok("unframed content").until_close().pause_at(3, &gate));
        let [a, b] = nodes(&backends, &files(&up.base(), 600)).await;
        let mut first = asking(&a, "x").await;
        assert_eq!(first.read_head("GET").await.status, 200);
        let asked = Instant::now();
        let mut second = asking(&b, "x").await;
        up.wait_for("GET", "/x", 2).await;
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        gate.open();
        assert_eq!(first.read_body().await, "unframed content");
        assert_eq!(second.response("GET").await.text(), "unframed content");
    });
}

#[test]
fn a_node_that_cannot_be_read_from_is_said_with_the_reason() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        let remotes = files(&up.base(), 60);
        let settings = |url: &str, secret: &str| {
            fleet::with_redis(Proxy::settings().remotes(&remotes), &redis.url())
                .env("ARTIFACTAPI_NODE_URL", url)
                .env("ARTIFACTAPI_NODE_SECRET", secret)
        };
        let own = "http://{address}";
        let a = settings(own, "right").start().await;
        fleet::ready(&a).await;
        let nowhere = format!("http://{}", crate::common::refused());
        let (b, c, d) = tokio::join!(
            settings(own, "wrong").start(),
            settings(&nowhere, "right").start(),
            settings(&a.base(), "right").start(),
        );
        let nodes = async |node: &Proxy| -> serde_json::Value {
            node.request("GET", "/health", &[], b"").await.ok().json()["dependencies"]["nodes"].clone()
        };
        let says = async |node: &Proxy, parts: &[String]| {
            eventually(Duration::from_secs(20), &format!("{parts:?} is said"), async || {
                let said = nodes(node).await.to_string();
                parts.iter().all(|part| said.contains(part))
            })
            .await;
            let health = node.request("GET", "/health", &[], b"").await.ok().json();
            assert_eq!(health["status"], "degraded");
        };
        let is_wrong = format!(
            "{}/: it answers 404 Not Found: its ARTIFACTAPI_NODE_SECRET is another",
            b.base()
        );
        let is_refused = format!("{nowhere}/: error sending request");
        let is_me = format!("{}/: this very node answers there", a.base());
        let is_other = format!("{}/: another node answers there", a.base());
        says(&a, &[is_wrong.clone(), is_refused.clone(), is_me]).await;
        says(&c, &[is_wrong, is_other]).await;
        says(&b, &["ARTIFACTAPI_NODE_SECRET".to_owned()]).await;
        let gauge = async |url: &str| a.metric("artifactapi_node_reachable", &[url]).await;
        assert_eq!((gauge(&b.base()).await, gauge(&nowhere).await), (0.0, 0.0));
        let warnings = a.log().matches("another node cannot be read from").count();
        assert_eq!(warnings, 3, "each is said once");
        drop((b, c, d));
        eventually(Duration::from_secs(40), "who is gone is forgotten", async || {
            nodes(&a).await.is_null()
        })
        .await;
    });
}

/// A TCP proxy before `to` that changes one of so many bytes of what comes back.
async fn changing_bytes(to: SocketAddr, one_of: usize) -> SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let Ok(server) = tokio::net::TcpStream::connect(to).await else {
                continue;
            };
            tokio::spawn(async move {
                let (mut client_read, mut client_write) = client.into_split();
                let (mut server_read, mut server_write) = server.into_split();
                let asking = async { tokio::io::copy(&mut client_read, &mut server_write).await };
                let answering = async {
                    let (mut buffer, mut passed) = (vec![0; 16 << 10], 0);
                    loop {
                        let got = server_read.read(&mut buffer).await.unwrap_or(0);
                        for byte in &mut buffer[..got] {
                            passed += 1;
                            if passed % one_of == 0 {
                                *byte ^= 1;
                            }
                        }
                        if got == 0 || client_write.write_all(&buffer[..got]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::join!(asking, answering).0.ok();
            });
        }
    });
    address
}

#[test]
fn what_was_changed_on_the_way_between_nodes_is_neither_kept_nor_whole() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        let (body, gate) = (Pattern::new(3, 4 * MB), Gate::new());
        for path in ["/grows", "/whole"] {
            let reply = Reply::ok(body).etag("\"v1\"");
            up.reply(
                path,
                if path == "/grows" {
                    reply.pause_at(2 * MB, &gate)
                } else {
                    reply
                },
            );
        }
        let remotes = files(&up.base(), 600);
        let settings = || fleet::with_redis(Proxy::settings().remotes(&remotes), &redis.url());
        let a_port = crate::common::free_port();
        let address = SocketAddr::from(([127, 0, 0, 1], a_port));
        let between = changing_bytes(address, 1_000_000).await;
        let secret = |settings: Settings| settings.env("ARTIFACTAPI_NODE_SECRET", "the-nodes-own");
        let a = secret(settings())
            .env("ARTIFACTAPI_NODE_URL", format!("http://{between}"))
            .arg("--listen")
            .arg(address.to_string())
            .start()
            .await;
        let b = secret(settings())
            .env("ARTIFACTAPI_NODE_URL", "http://{address}")
            .start()
            .await;
        for node in [&a, &b] {
            fleet::ready(node).await;
        }
        for path in ["grows", "whole"] {
            let mut first = asking(&a, path).await;
            assert_eq!(first.read_head("GET").await.status, 200);
            if path == "whole" {
                first.read_pattern(body).await;
                a.until_cached("files", path).await;
            } else {
                first.read_body_until(MB as usize).await;
            }
            let mut second = asking(&b, path).await;
            let head = second.read_head("GET").await;
            assert_eq!((head.status, head.must("content-length")), (200, "4000000"));
            if path == "grows" {
                second.read_body_until(MB as usize).await;
                gate.open();
            }
            let got = second.read_body().await;
            assert!(
                !second.is_complete() && got.len() < 4 * MB as usize,
                "{path}: it is cut"
            );
            // It was not kept: whoever asks next gets the right one, or another cut one.
            let again = b.fetch("files", path).await;
            assert!(!again.complete || body.matches(0, &again.body), "{path}");
        }
    });
}

#[test]
fn nobody_but_a_node_learns_anything_from_the_internal_path() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        let body = Pattern::new(7, 200_000);
        up.file("/a/private", File::new(body).etag("\"v1\""));
        let remotes = files(&up.base(), 600);
        let nowhere: SocketAddr = crate::common::refused();
        let link = Link::start(nowhere).await;
        let settings = || {
            fleet::with_redis(Proxy::settings().remotes(&remotes), &redis.url())
                .env("ARTIFACTAPI_NODE_SECRET", "the-nodes-own")
                .env("ARTIFACTAPI_LOG", "debug")
        };
        let [a, b] = start([
            settings().env("ARTIFACTAPI_NODE_URL", format!("http://{}", link.address)),
            settings().env("ARTIFACTAPI_NODE_URL", "http://{address}"),
        ])
        .await;
        link.lead_to(a.address());
        a.fetch("files", "a/private").await.ok();
        a.until_cached("files", "a/private").await;
        let shared = b.fetch("files", "a/private").await.ok();
        assert!(body.matches(0, &shared.body) && up.total() == 1, "it came from A");
        let wire = link.first_bytes();
        let wire = String::from_utf8_lossy(&wire).into_owned();
        assert!(wire.contains("/-/node/object"), "{wire}");
        for said in [&wire, &a.log(), &b.log()] {
            assert!(!said.contains("the-nodes-own"), "the secret was said");
        }
        // B's own question, as it went over the wire.
        // Nodes also ask one another who they are: that question has no key.
        let heads = wire.split("GET ").filter_map(|rest| rest.split("\r\n\r\n").next());
        let head = heads
            .filter(|head| head.starts_with("/-/node/object"))
            .find(|head| !head.contains("x-artifactapi-key: \r\n"))
            .expect("a question");
        let question: Vec<(String, String)> = head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .filter(|(name, _)| name.to_lowercase().starts_with("x-artifactapi-"))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        assert!(question.len() >= 3, "{head}");
        let ask = async |method: &str, headers: &[(String, String)]| -> Response {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            a.request(method, "/-/node/object", &headers, b"").await
        };
        // Whoever hears it may ask the very same for some minutes, and learns what he has heard already. The answer is no
        // answer to anything else.
        assert_eq!(ask("GET", &question).await.status, 200);
        let usual = a.request("GET", "/-/node/other", &[], b"").await;
        let usual_text = usual.text();
        let mut wrong = vec![Vec::new()];
        for index in 0..question.len() {
            let mut without = question.clone();
            without.remove(index);
            wrong.push(without);
            let mut changed = question.clone();
            let last = changed[index].1.pop().expect("something");
            changed[index].1.push(if last == '1' { '2' } else { '1' });
            wrong.push(changed);
        }
        let signature = question
            .iter()
            .position(|(name, _)| name.to_lowercase() == "x-artifactapi-signature")
            .expect("a signature");
        let parts: Vec<&str> = question[signature].1.split(':').collect();
        let [time, nonce, mac] = parts[..] else {
            panic!("time, number and code: {parts:?}")
        };
        let time: u64 = time.parse().expect("a time");
        for other in [time - 3_600_000, time + 3_600_000, 0, u64::MAX] {
            let mut moved = question.clone();
            moved[signature].1 = format!("{other}:{nonce}:{mac}");
            wrong.push(moved);
        }
        // With the secret the same can be asked anew, but not under a time long past or to come.
        let value = |name: &str| {
            let found = question.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
            found.map_or("", |(_, value)| value.as_str())
        };
        let key = URL_SAFE_NO_PAD.decode(value("x-artifactapi-key")).expect("a key");
        let signed = |time: u64| {
            let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"the-nodes-own").expect("a key");
            let (from, have) = (value("x-artifactapi-from"), value("x-artifactapi-have"));
            let to = value("x-artifactapi-to");
            mac.update(format!("question\nGET\n/-/node/object\n{to}\n{time}\n{nonce}\n{from}\n{have}\n").as_bytes());
            mac.update(&key);
            let mut headers = question.clone();
            headers[signature].1 = format!("{time}:{nonce}:{}", crate::common::hex(&mac.finalize().into_bytes()));
            headers
        };
        assert_eq!(ask("GET", &signed(time + 1)).await.status, 200);
        wrong.extend([signed(time - 400_000), signed(time + 400_000)]);
        for text in [
            "",
            ":",
            "x:y",
            &format!("{time}:{nonce}:"),
            &format!("{time}:{nonce}:{}", "é".repeat(32)),
        ] {
            let mut garbage = question.clone();
            garbage[signature].1 = text.to_owned();
            wrong.push(garbage);
        }
        for headers in &wrong {
            let answer = ask("GET", headers).await;
            assert_eq!(answer.status, usual.status, "{headers:?}");
            assert_eq!(answer.text(), usual_text, "{headers:?}");
            let names = |answer: &Response| {
                let mut names: Vec<String> = answer.headers.iter().map(|(name, _)| name.clone()).collect();
                names.sort();
                names
            };
            assert_eq!(names(&answer), names(&usual));
        }
        assert_eq!(usual.status, 404);
        // A node without a secret has no such path.
        let [alone] = start([Proxy::settings().remotes(&remotes)]).await;
        let headers: Vec<(&str, &str)> = question.iter().map(|(name, value)| (&**name, &**value)).collect();
        alone.request("GET", "/-/node/object", &headers, b"").await.expect(404);
    });
}

#[test]
fn a_database_that_is_filled_from_the_bucket_lists_what_another_node_fetched() {
    run_for(LIMIT, async {
        let (s3, up) = tokio::join!(S3Server::start(Kind::Minio), Upstream::start());
        let server = Postgres::start();
        up.file("/a/one", File::new("one").content_type("text/one").etag("\"1\""));
        up.file("/live/two", File::new("two two").etag("\"2\""));
        up.file("/a/three", File::new("three"));
        let remotes = files(&up.base(), 600);
        let [a] = start([fleet::with_s3(Proxy::settings().remotes(&remotes), &s3)]).await;
        for path in ["a/one", "live/two", "a/three"] {
            a.fetch("files", path).await.ok();
        }
        fleet::settled(&a).await;
        let with_database = || {
            let settings = fleet::with_s3(Proxy::settings().remotes(&remotes), &s3);
            let env = server.env().into_iter();
            env.fold(settings, |settings, (name, value)| settings.env(name, value))
        };
        let env: Vec<(&str, String)> = s3.env(BUCKET).into_iter().chain(server.env()).collect();
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, &**value)).collect();
        let folder = a.folder().to_owned();
        let done = tokio::task::spawn_blocking({
            let env: Vec<(String, String)> = env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            move || {
                let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (&**name, &**value)).collect();
                run_binary(&folder, &env, &["reindex"])
            }
        });
        let done = done.await.expect("it ran");
        assert_eq!(done.code, Some(0), "{}", done.text());
        let [b, c] = start([with_database(), with_database()]).await;
        let list = async |node: &Proxy| {
            let list = node
                .request("GET", "/api/v1/artifacts?remote=files", &[], b"")
                .await
                .ok();
            list.json()["artifacts"].as_array().expect("a list").clone()
        };
        let listed = list(&b).await;
        assert_eq!(listed, list(&c).await);
        let paths: Vec<_> = listed.iter().map(|artifact| artifact["path"].clone()).collect();
        assert_eq!(paths, ["a/one", "a/three", "live/two"]);
        let known = list(&a).await;
        for (ours, theirs) in listed.iter().zip(&known) {
            for field in ["path", "size", "sha256", "content_type", "etag", "class", "fetched_at"] {
                assert_eq!(ours[field], theirs[field], "{field} of {ours} and {theirs}");
            }
        }
        // What one of them fetches both list, and what one flushes neither.
        up.file("/b/four", File::new("four"));
        b.fetch("files", "b/four").await.ok();
        eventually(Duration::from_secs(5), "both list four", async || {
            list(&b).await.len() == 4 && list(&c).await.len() == 4
        })
        .await;
        assert_eq!(list(&b).await, list(&c).await);
        up.switch_off().await;
        c.fetch("files", "a/one").await.is("cache", "one");
        assert_eq!(flush(&c, r#"{"prefix": "a/"}"#).await["deleted"], 2);
        for node in [&b, &c] {
            eventually(Duration::from_secs(5), "neither lists them", async || {
                let paths = list(node).await;
                paths.len() == 2 && paths[0]["path"] == "b/four" && paths[1]["path"] == "live/two"
            })
            .await;
        }
    });
}

#[test]
fn a_client_that_leaves_or_is_slow_stops_no_fill() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        let [a, b] = with_redis(&redis, &files(&up.base(), 600)).await;
        let gate = Gate::new();
        let (left, slow) = (Pattern::new(8, 8 * MB), Pattern::new(9, 30 * MB));
        up.reply("/left", Reply::ok(left).pause_at(3 * MB, &gate));
        up.reply("/slow", Reply::ok(slow).pause_at(3 * MB, &gate));
        // A's only client leaves, then B's.
        let mut first = asking(&a, "left").await;
        first.read_head("GET").await;
        let mut second = asking(&b, "left").await;
        second.read_head("GET").await;
        second.read_body_until(MB as usize).await;
        first.reset();
        second.reset();
        // B's only client takes nothing, while A's takes all.
        let mut quick = asking(&a, "slow").await;
        quick.read_head("GET").await;
        let mut narrow = Connection::open_narrow(b.address()).await;
        narrow.send("GET", &at("files", "slow"), &[], b"").await;
        narrow.read_head("GET").await;
        gate.open();
        assert_eq!(quick.read_pattern(slow).await, 30 * MB);
        for node in [&a, &b] {
            for (path, body) in [("left", left), ("slow", slow)] {
                let whole = node.until_cached("files", path).await;
                assert!(body.matches(0, &whole.body) && whole.body.len() as u64 == body.length);
            }
        }
        assert_eq!(narrow.read_pattern(slow).await, 30 * MB);
        assert_eq!((up.count("GET", "/left"), up.count("GET", "/slow")), (1, 1));
    });
}

#[test]
fn a_file_on_another_host_is_known_to_every_node() {
    run_for(LIMIT, async {
        let (backends, index, host) = tokio::join!(Backends::start(), Upstream::start(), Upstream::start());
        let wheel = Wheel::new("Pkg", "1.0", &[], 1000);
        serve_pypi(&index, &host, IndexForm::Html, std::slice::from_ref(&wheel));
        let remotes = format!("py:\n  base_url: {}\n  package: pypi\n", index.base());
        let [a, b] = nodes(&backends, &remotes).await;
        let path = format!("-/host/{}{}", host.authority(), wheel.path());
        a.fetch("py", "simple/pkg/").await.ok();
        fleet::settled(&a).await;
        index.switch_off().await;
        // A client may have its index from one node and its file from another.
        b.fetch("py", &path).await.is("remote", &wheel.bytes);
        fleet::settled(&b).await;
        host.switch_off().await;
        a.fetch("py", &path).await.is("cache", &wheel.bytes);
        let unknown = path.replace("1.0", "9.0");
        b.fetch("py", &unknown).await.expect(403);
    });
}
