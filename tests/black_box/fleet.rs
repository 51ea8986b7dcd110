//! Several nodes over one Redis and one bucket: what one has all have, upstream is asked once, and nobody depends on a node
//! that dies.

use std::time::Duration;

use crate::common::client::Headers;
use crate::common::fleet::{self, Backends};
use crate::common::redis::Redis;
use crate::common::server::at;
use crate::common::{File, Gate, Pattern, Proxy, Reply, Upstream, eventually, run_for};

const MB: u64 = 1_000_000;
const LIMIT: Duration = Duration::from_secs(120);

fn files(up: &Upstream) -> String {
    format!(
        "files:\n  base_url: {}\n  mutable_patterns: [\"^live/\"]\n  check_mutable_updates: true\n  cache: {{mutable_ttl: 60}}\n",
        up.base()
    )
}

/// Nodes that share Redis only, and read from one another.
async fn nodes(redis: &Redis, up: &Upstream, count: usize) -> Vec<Proxy> {
    let mut nodes = Vec::new();
    for _ in 0..count {
        let settings = fleet::with_redis(Proxy::settings().remotes(&files(up)), &redis.url());
        nodes.push(fleet::reachable(settings).start().await);
    }
    for node in &nodes {
        fleet::ready(node).await;
    }
    nodes
}

#[test]
fn what_one_node_fetched_another_serves_with_the_upstream_off() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        let body = Pattern::new(1, 30 * MB);
        up.file("/a/large", File::new(body).etag("\"v1\""))
            .file("/a/small", File::new("small").content_type("text/plain"))
            .file("/live/page", File::new("mutable"));
        let remotes = files(&up);
        let (a, b) = tokio::join!(backends.node(&remotes), backends.node(&remotes));
        fleet::ready(&a).await;
        fleet::ready(&b).await;
        for path in ["a/large", "a/small", "live/page"] {
            a.fetch("files", path).await.ok();
        }
        fleet::settled(&a).await;
        up.switch_off().await;
        let mut connection = b.connect().await;
        connection.send("GET", &at("files", "a/large"), &[], b"").await;
        let head = connection.read_head("GET").await;
        assert_eq!(
            (head.status, head.source(), head.must("etag")),
            (200, "cache", "\"v1\"")
        );
        assert_eq!(head.must("content-length"), "30000000");
        assert_eq!(connection.read_pattern(body).await, 30 * MB);
        let small = b.fetch("files", "a/small").await.is("cache", "small");
        assert_eq!(small.must("content-type"), "text/plain");
        b.fetch("files", "live/page").await.is("cache", "mutable");
        // From here on it is B's own.
        for path in ["a/large", "a/small", "live/page"] {
            let again = b.until_cached("files", path).await;
            assert!(!again.cache_status().contains("shared"), "{:?}", again.headers);
        }
        assert_eq!(b.metric("artifactapi_shared_total", &["from=\"bucket\""]).await, 3.0);
    });
}

#[test]
fn a_cold_object_on_all_nodes_at_once_is_one_upstream_request_and_all_clients_stream() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        let nodes = nodes(&redis, &up, 3).await;
        let (body, gate) = (Pattern::new(2, 8 * MB), Gate::new());
        up.reply("/x", Reply::ok(body).pause_at(3 * MB, &gate));
        let mut clients = Vec::new();
        for node in nodes.iter().chain(&nodes) {
            let mut connection = node.connect().await;
            connection.send("GET", &at("files", "x"), &[], b"").await;
            clients.push(connection);
        }
        // Each of them gets what has arrived while the rest is still to come.
        let (mut heads, mut lengths) = (Vec::new(), Vec::new());
        for client in &mut clients {
            heads.push(client.read_head("GET").await);
            let begun = client.read_body_until(2 * MB as usize).await;
            assert!(body.matches(0, &begun));
            lengths.push(begun.len() as u64);
        }
        gate.open();
        for ((client, head), begun) in clients.iter_mut().zip(&heads).zip(lengths) {
            assert_eq!((head.status, head.must("content-length")), (200, "8000000"));
            let rest = client.read_body().await;
            assert!(client.is_complete() && body.matches(begun, &rest));
            assert_eq!(begun + rest.len() as u64, 8 * MB);
        }
        assert_eq!(up.count("GET", "/x"), 1);
        up.switch_off().await;
        for node in &nodes {
            node.until_cached("files", "x").await;
        }
    });
}

#[test]
fn a_flush_on_one_node_is_seen_by_the_others() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        up.file("/a/one", File::new("one")).file("/b/two", File::new("two"));
        let remotes = files(&up);
        let (a, b) = tokio::join!(backends.node(&remotes), backends.node(&remotes));
        fleet::ready(&a).await;
        fleet::ready(&b).await;
        for node in [&a, &b] {
            node.fetch("files", "a/one").await.ok();
            node.fetch("files", "b/two").await.ok();
            fleet::settled(node).await;
        }
        assert_eq!(up.total(), 2, "B had both from elsewhere");
        up.file("/a/one", File::new("new one"));
        let flushed = a
            .request("PUT", "/cache/flush", &[], br#"{"prefix": "a/"}"#)
            .await
            .ok()
            .json();
        assert_eq!(flushed["deleted"], 1, "{flushed}");
        eventually(Duration::from_secs(2), "B has the new one", async || {
            b.fetch("files", "a/one").await.ok().text() == "new one"
        })
        .await;
        a.fetch("files", "a/one").await.ok().is("cache", "new one");
        b.fetch("files", "b/two").await.ok().is("cache", "two");
        assert_eq!(up.total(), 3);
    });
}

#[test]
fn a_node_that_is_killed_in_a_fill_hands_over() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        let mut nodes = nodes(&redis, &up, 2).await;
        let (body, gate) = (Pattern::new(3, 8 * MB), Gate::new());
        up.sequence(
            "/x",
            vec![
                Reply::ok(body).etag("\"v1\"").pause_at(3 * MB, &gate),
                Reply::ok(body).etag("\"v1\""),
            ],
        );
        let mut first = nodes[0].connect().await;
        first.send("GET", &at("files", "x"), &[], b"").await;
        up.wait_for("GET", "/x", 1).await;
        let mut second = nodes[1].connect().await;
        second.send("GET", &at("files", "x"), &[], b"").await;
        let head = second.read_head("GET").await;
        assert_eq!((head.status, head.must("content-length")), (200, "8000000"));
        let begun = second.read_body_until(2 * MB as usize).await;
        assert!(body.matches(0, &begun));
        nodes[0].kill();
        let rest = second.read_body().await;
        assert!(second.is_complete(), "{}", nodes[1].log());
        assert!(body.matches(begun.len() as u64, &rest) && begun.len() + rest.len() == 8 * MB as usize);
        assert_eq!(up.count("GET", "/x"), 2);
        nodes[1].until_cached("files", "x").await;
    });
}

#[test]
fn changed_content_is_on_every_node_within_a_second() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        up.file("/live/page", File::new("old").etag("\"1\""));
        let remotes = files(&up).replace("mutable_ttl: 60", "mutable_ttl: 3") + "  client_revalidation: true\n";
        let mut nodes = Vec::new();
        for _ in 0..2 {
            let settings = fleet::with_redis(Proxy::settings().remotes(&remotes), &redis.url());
            nodes.push(fleet::reachable(settings).start().await);
        }
        for node in &nodes {
            fleet::ready(node).await;
            assert_eq!(node.fetch("files", "live/page").await.ok().text(), "old");
        }
        assert_eq!(up.count("GET", "/live/page"), 1, "the second node took the first one's");
        up.file("/live/page", File::new("new").etag("\"2\""));
        // The first node fetches it again because a client wants no cached answer: it is not due yet.
        eventually(Duration::from_secs(3), "the first node has it", async || {
            let wants_fresh = [("cache-control", "no-cache")];
            nodes[0]
                .fetch_with("files", "live/page", &wants_fresh)
                .await
                .ok()
                .text()
                == "new"
        })
        .await;
        eventually(Duration::from_secs(1), "the second node has it", async || {
            nodes[1].fetch("files", "live/page").await.ok().text() == "new"
        })
        .await;
    });
}
