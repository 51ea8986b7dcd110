//! Flushes on several nodes: they reach all, fills under way and nodes that were down too, and hold after a kill.

use std::time::{Duration, Instant};

use crate::common::fleet::{self, Backends};
use crate::common::link::Link;
use crate::common::redis::Redis;
use crate::common::s3::{Kind, S3Server};
use crate::common::server::stored_files;
use crate::common::{File, Gate, Proxy, Reply, Upstream, eventually, run_for};
use crate::fleet_nodes::{
    LIMIT, SECOND, asking, bucket, files, flush, listed, nodes, only_body, start, text, with_redis, with_s3_through,
};
use serde_json::json;

/// Leaves behind what a node that was killed has begun: a flush of what is below `a/`.
fn has_begun_a_flush(node: &Proxy) {
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let at = at.expect("a time").as_millis() as u64;
    let begun = json!({"at": at, "request": {"prefix": "a/"}, "id": "1"}).to_string();
    let folder = node.data_dir().join("flushes");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("1"), begun).expect("written");
}

#[test]
fn a_flush_that_a_kill_cut_short_holds_for_the_bucket_too() {
    run_for(LIMIT, async {
        let (s3, up) = tokio::join!(S3Server::start(Kind::Minio), Upstream::start());
        for path in ["/a/1", "/b/1"] {
            up.file(path, File::new("old"));
        }
        let settings = fleet::with_s3(Proxy::settings().remotes(&files(&up.base(), 60)), &s3);
        let [mut node] = start([settings]).await;
        for path in ["a/1", "b/1"] {
            assert_eq!(text(&node, path).await, "old");
        }
        fleet::settled(&node).await;
        node.kill();
        has_begun_a_flush(&node);
        for path in ["/a/1", "/b/1"] {
            up.file(path, File::new("new"));
        }
        node.launch().await;
        assert_eq!(text(&node, "a/1").await, "new");
        assert_eq!(text(&node, "b/1").await, "old");
    });
}

#[test]
fn a_flush_that_a_kill_cut_short_strikes_what_only_the_bucket_has() {
    run_for(LIMIT, async {
        let (s3, up) = tokio::join!(S3Server::start(Kind::Minio), Upstream::start());
        for path in ["/a/1", "/a/2", "/b/1"] {
            up.file(path, File::new("old"));
        }
        let settings = fleet::with_s3(Proxy::settings().remotes(&files(&up.base(), 60)), &s3);
        let [mut node] = start([settings]).await;
        for path in ["a/1", "a/2", "b/1"] {
            assert_eq!(text(&node, path).await, "old");
        }
        fleet::settled(&node).await;
        assert_eq!(listed(&node, "").await.len(), 3);
        node.kill();
        // Evicted.
        for file in stored_files(&node.data_dir()) {
            std::fs::remove_file(file).expect("removed");
        }
        has_begun_a_flush(&node);
        node.launch().await;
        eventually(Duration::from_secs(10), "what was flushed is struck", async || {
            listed(&node, "").await == ["b/1"]
        })
        .await;
        fleet::settled(&node).await;
        assert_eq!(only_body(&s3).await, "old");
    });
}

#[test]
fn a_flush_of_another_node_costs_what_it_matches() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        for path in ["/a/1", "/b/1"] {
            up.file(path, File::new("old"));
        }
        let [a, b] = with_redis(&redis, &files(&up.base(), 600)).await;
        for node in [&a, &b] {
            for path in ["a/1", "b/1"] {
                assert_eq!(text(node, path).await, "old");
                node.until_cached("files", path).await;
            }
        }
        // Whoever looks at all that is stored finds that it cannot be read.
        let unreadable = b.data_dir().join("objects/ee/ee").join("e".repeat(32));
        std::fs::create_dir_all(unreadable).expect("made");
        up.file("/a/1", File::new("new"));
        flush(&a, r#"{"pattern": "^a/"}"#).await;
        b.wait_for_log("a flush of another node was made here").await;
        assert_eq!(text(&b, "a/1").await, "new");
        b.fetch("files", "b/1").await.is("cache", "old");
        eventually(SECOND, "it is struck, and listed again", async || {
            listed(&b, "").await == ["a/1", "b/1"]
        })
        .await;
    });
}

#[test]
fn every_way_to_flush_reaches_every_node() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        let paths = ["a/one.txt", "b/two.txt", "c/three.bin", "live/four.txt"];
        let serve = |word: &str| {
            for path in paths {
                let etag = format!("\"{word}\"");
                up.file(&format!("/{path}"), File::new(format!("{word} {path}")).etag(&etag));
            }
        };
        serve("first");
        let remotes = files(&up.base(), 600) + &files(&up.base(), 600).replace("files:", "second:");
        let [a, b] = nodes(&backends, &remotes).await;
        let fill = async || {
            for node in [&a, &b] {
                for path in paths {
                    node.fetch("files", path).await.ok();
                    node.fetch("second", path).await.ok();
                }
                fleet::settled(node).await;
            }
        };
        let shows = async |word: &str, remote: &str, changed: &[&str]| {
            for node in [&a, &b] {
                for path in paths {
                    let expected = if changed.contains(&path) { word } else { "first" };
                    let expected = format!("{expected} {path}");
                    let what = format!("{remote} {expected}");
                    eventually(Duration::from_secs(2), &what, async || {
                        node.fetch(remote, path).await.ok().text() == expected
                    })
                    .await;
                }
            }
        };
        fill().await;
        serve("second");
        // Nothing of this changes anything anywhere.
        let dry = flush(&a, r#"{"dry_run": true}"#).await;
        assert_eq!((&dry["matched"], &dry["dry_run"]), (&json!(8), &json!(true)), "{dry}");
        shows("second", "files", &[]).await;
        assert_eq!(bucket(&backends.s3).await.len(), 8);
        // What is mutable is asked about again; what never changes stays.
        let before = up.total();
        flush(&a, r#"{"remote": "files", "pattern": "^live/", "mode": "expire"}"#).await;
        shows("second", "files", &["live/four.txt"]).await;
        shows("second", "second", &[]).await;
        assert_eq!(up.total(), before + 1);
        assert_eq!(
            up.last("GET", "/live/four.txt").header("if-none-match"),
            Some("\"first\"")
        );
        flush(&b, r#"{"remote": "files", "pattern": "\\.bin$"}"#).await;
        shows("second", "files", &["live/four.txt", "c/three.bin"]).await;
        shows("second", "second", &[]).await;
        flush(&a, r#"{"remote": "second"}"#).await;
        shows("second", "second", &paths).await;
        shows("second", "files", &["live/four.txt", "c/three.bin"]).await;
        for node in [&a, &b] {
            fleet::settled(node).await;
        }
        let objects = bucket(&backends.s3).await;
        let old = objects
            .iter()
            .filter(|(name, body)| name.starts_with("artifactapi/second/") && body.starts_with(b"first"));
        assert_eq!(old.count(), 0, "{:?}", objects.keys());
    });
}

#[test]
fn a_node_that_was_down_during_a_flush_does_not_serve_what_was_flushed() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        let remotes = files(&up.base(), 600);
        let link = Link::start(backends.s3.address).await;
        let through = fleet::with_redis(Proxy::settings().remotes(&remotes), &backends.redis.url());
        let through = fleet::reachable(with_s3_through(through, &link));
        let [mut a, mut b] = start([fleet::reachable(backends.settings(&remotes)), through]).await;
        up.file("/a/one", File::new("old one"));
        up.file("/live/two", File::new("old two").etag("\"old\""));
        up.file("/a/late", File::new("old late"));
        for node in [&a, &b] {
            assert_eq!(text(node, "a/one").await, "old one");
            assert_eq!(text(node, "live/two").await, "old two");
            fleet::settled(node).await;
        }
        // B goes down before it has uploaded this.
        link.cut();
        assert_eq!(text(&b, "a/late").await, "old late");
        b.until_cached("files", "a/late").await;
        b.kill();
        for path in ["/a/one", "/live/two", "/a/late"] {
            up.file(path, File::new(format!("new {path}")).etag("\"new\""));
        }
        flush(&a, r#"{"remote": "files"}"#).await;
        link.restore();
        b.launch().await;
        fleet::ready(&b).await;
        fleet::settled(&b).await;
        for node in [&b, &a] {
            for path in ["a/one", "live/two", "a/late"] {
                assert_eq!(text(node, path).await, format!("new /{path}"));
            }
        }
        for node in [&a, &b] {
            fleet::settled(node).await;
        }
        let objects = bucket(&backends.s3).await;
        assert!(objects.values().all(|body| body.starts_with(b"new")), "{objects:?}");
        // A new node, and one that forgets everything, find nothing older either.
        a.kill();
        let [c] = nodes(&backends, &remotes).await;
        for path in ["a/one", "live/two", "a/late"] {
            assert_eq!(text(&c, path).await, format!("new /{path}"));
        }
    });
}

#[test]
fn what_was_flushed_does_not_come_back_from_a_node_that_does_not_know() {
    run_for(LIMIT, async {
        let (redis, up) = tokio::join!(Redis::start(), Upstream::start());
        let link = Link::start(redis.address).await;
        let remotes = files(&up.base(), 600);
        let settings = |url: &str| fleet::reachable(fleet::with_redis(Proxy::settings().remotes(&remotes), url));
        let [a, b] = start([settings(&redis.url()), settings(&format!("redis://{}", link.address))]).await;
        for path in ["a/one", "live/two"] {
            up.file(&format!("/{path}"), File::new("old").etag("\"old\""));
            assert_eq!(text(&b, path).await, "old");
            assert_eq!(text(&a, path).await, "old");
        }
        assert_eq!(up.total(), 2);
        // B hears nothing any more, and can still be asked.
        link.cut();
        for path in ["/a/one", "/live/two"] {
            up.file(path, File::new("new").etag("\"new\""));
        }
        flush(&a, r#"{"remote": "files"}"#).await;
        for path in ["a/one", "live/two"] {
            assert_eq!(text(&a, path).await, "new");
        }
        link.restore();
        fleet::ready(&b).await;
        for path in ["a/one", "live/two"] {
            eventually(SECOND, "B has it", async || text(&b, path).await == "new").await;
        }
    });
}

#[test]
fn a_flush_reaches_a_fill_on_another_node() {
    run_for(LIMIT, async {
        let (backends, up) = tokio::join!(Backends::start(), Upstream::start());
        let gate = Gate::new();
        up.sequence(
            "/x",
            vec![
                Reply::ok("old content").etag("\"1\"").pause_at(3, &gate),
                Reply::ok("new content").etag("\"2\""),
            ],
        );
        let [a, b] = nodes(&backends, &files(&up.base(), 600)).await;
        let mut first = asking(&a, "x").await;
        assert_eq!(first.read_head("GET").await.status, 200);
        flush(&b, r#"{"remote": "files"}"#).await;
        // The old fill still stands still when others ask.
        let asked = Instant::now();
        eventually(Duration::from_secs(5), "B gets the new one", async || {
            let answer = async { asking(&b, "x").await.response("GET").await.text() };
            let answer = tokio::time::timeout(Duration::from_secs(4), answer).await;
            answer.is_ok_and(|text| text == "new content")
        })
        .await;
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        gate.open();
        // Who began before the flush gets what it began with.
        assert_eq!(first.read_body().await, "old content");
        assert!(first.is_complete());
        for node in [&a, &b] {
            assert_eq!(text(node, "x").await, "new content");
            fleet::settled(node).await;
        }
        assert!(bucket(&backends.s3).await.values().all(|body| body == b"new content"));
    });
}
