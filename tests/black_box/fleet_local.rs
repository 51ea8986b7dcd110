//! Local repositories of several nodes: their files are in the bucket before an upload is answered.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::common::client::Headers;
use crate::common::fleet::{self, BUCKET, Backends};
use crate::common::s3::{Kind, S3Server, names};
use crate::common::server::{Settings, at};
use crate::common::{Connection, Pattern, Proxy, Response, eventually, run_for};

const LIMIT: Duration = Duration::from_secs(120);
const LOCAL: &str = "files: {type: local}\n";

/// A node that takes uploads as long as the disk does: how full the disk of this machine is must not matter.
fn local() -> Settings {
    Proxy::settings().remotes(LOCAL).conf("cache: {disk_min_free: 0%}\n")
}

async fn node(backends: &Backends) -> Proxy {
    let settings = fleet::with_redis(local(), &backends.redis.url());
    fleet::reachable(fleet::with_s3(settings, &backends.s3)).start().await
}

async fn put(node: &Proxy, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
    node.request("PUT", &at("files", path), headers, body.as_ref()).await
}

/// What `nodes` answer to the same upload at once, each with a body of its own.
async fn all_at_once(nodes: &[&Proxy], path: &str, headers: &[(&'static str, String)]) -> Vec<(u16, String)> {
    let mut uploads = JoinSet::new();
    for (number, node) in nodes.iter().cycle().take(8).enumerate() {
        let (address, headers, target) = (node.address(), headers.to_vec(), at("files", path));
        uploads.spawn(async move {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let body = format!("{number}").repeat(200_000);
            let mut connection = Connection::open(address).await;
            let answer = connection.request("PUT", &target, &headers, body.as_bytes()).await;
            (answer.status, body)
        });
    }
    uploads.join_all().await
}

async fn every_rule_holds(first: &Proxy, second: &Proxy, folder: &str) {
    let path = |name: &str| format!("{folder}/{name}");
    let a = path("a.txt");
    put(first, &a, &[], "hello").await.expect(201);
    let got = second.fetch("files", &a).await.is("cache", "hello");
    assert_eq!(got.must("content-type"), "text/plain; charset=utf-8");
    let etag = got.must("etag").to_owned();
    assert_eq!(first.fetch("files", &a).await.ok().must("etag"), etag);
    let head = second.head("files", &a).await.ok();
    assert_eq!(head.must("content-length"), "5");
    let part = second
        .fetch_with("files", &a, &[("Range", "bytes=1-2")])
        .await
        .expect(206);
    assert_eq!(part.text(), "el");
    second
        .fetch_with("files", &a, &[("If-None-Match", &etag)])
        .await
        .expect(304);
    put(second, &a, &[("If-None-Match", "*")], "x").await.expect(412);
    put(second, &a, &[("If-Match", "\"x\"")], "x").await.expect(412);
    put(second, &a, &[("If-Match", &etag)], "other").await.expect(200);
    first.fetch("files", &a).await.is("cache", "other");
    // In parts.
    let large = Pattern::new(3, 40_000_000).whole();
    put(first, &path("large"), &[], &large).await.expect(201);
    second.fetch("files", &path("large")).await.is("cache", &large);
    // One of many, whichever node they come to.
    let nodes = [first, second];
    let new = all_at_once(&nodes, &path("new"), &[("If-None-Match", "*".to_owned())]).await;
    let stored: Vec<_> = new.iter().filter(|(status, _)| *status == 201).collect();
    assert_eq!(
        stored.len(),
        1,
        "{:?}",
        new.iter().map(|(status, _)| status).collect::<Vec<_>>()
    );
    assert!(new.iter().all(|(status, _)| [201, 412].contains(status)));
    for node in nodes {
        node.fetch("files", &path("new")).await.is("cache", &stored[0].1);
    }
    let any = all_at_once(&nodes, &path("any"), &[]).await;
    assert!(any.iter().all(|(status, _)| [200, 201].contains(status)));
    let body = first.fetch("files", &path("any")).await.ok().text();
    assert!(any.iter().any(|(_, sent)| *sent == body));
    second.fetch("files", &path("any")).await.is("cache", &body);
    // Gone for all.
    second.request("DELETE", &at("files", &a), &[], b"").await.expect(204);
    first.fetch("files", &a).await.expect(404);
    first.request("DELETE", &at("files", &a), &[], b"").await.expect(404);
}

#[test]
fn what_one_node_takes_all_have_at_once() {
    run_for(LIMIT, async {
        let mut backends = Backends::start().await;
        let (first, second) = (node(&backends).await, node(&backends).await);
        fleet::ready(&first).await;
        fleet::ready(&second).await;
        every_rule_holds(&first, &second, "with-redis").await;
        backends.redis.kill();
        every_rule_holds(&first, &second, "without-redis").await;
        // Nothing of it is flushed, from no node's cache and not from the bucket.
        let before = names(&backends.s3.client(BUCKET)).await;
        second.request("PUT", "/cache/flush", &[], b"").await.ok();
        fleet::removed(&second).await;
        assert_eq!(names(&backends.s3.client(BUCKET)).await, before);
        first.fetch("files", "with-redis/new").await.ok();
    });
}

#[test]
fn a_bucket_that_is_away_takes_nothing_and_loses_nothing() {
    run_for(LIMIT, async {
        let mut s3 = S3Server::start(Kind::Minio).await;
        let mut node = fleet::with_s3(local(), &s3).start().await;
        fleet::ready(&node).await;
        put(&node, "a", &[], "before").await.expect(201);
        s3.kill();
        for path in ["a", "b"] {
            let refused = put(&node, path, &[], "x").await.expect(503);
            assert!(refused.must("retry-after").parse::<u32>().is_ok());
        }
        node.fetch("files", "a").await.expect(503);
        node.request("DELETE", &at("files", "a"), &[], b"").await.expect(503);
        s3.launch().await;
        fleet::ready(&node).await;
        node.fetch("files", "a").await.is("cache", "before");
        node.fetch("files", "b").await.expect(404);
        // A node that is killed while it receives, or passes on what it received, leaves nothing.
        let large = Pattern::new(9, 60_000_000).whole();
        let mut connection = node.connect().await;
        let length = large.len().to_string();
        connection
            .send(
                "PUT",
                &at("files", "c"),
                &[("Content-Length", &length)],
                &large[..50_000_000],
            )
            .await;
        node.kill();
        node.launch().await;
        fleet::ready(&node).await;
        node.fetch("files", "c").await.expect(404);
        node.fetch("files", "a").await.is("cache", "before");
        assert_eq!(names(&s3.client(BUCKET)).await.len(), 1);
    });
}

#[test]
fn a_bucket_that_comes_later_gets_what_was_there_before() {
    run_for(LIMIT, async {
        let s3 = S3Server::start(Kind::Minio).await;
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let mut alone = local().data_dir(&data).start().await;
        for number in 0..5 {
            put(&alone, &format!("{number}"), &[], format!("{number}"))
                .await
                .expect(201);
        }
        alone.stop().await;
        drop(alone);
        let node = fleet::with_s3(local().data_dir(&data), &s3).start().await;
        node.fetch("files", "0").await.is("cache", "0");
        let client = s3.client(BUCKET);
        eventually(Duration::from_secs(30), "all is in the bucket", async || {
            crate::common::server::stored_files(&data.join("local")).is_empty()
        })
        .await;
        assert_eq!(names(&client).await.len(), 5);
        let other = fleet::with_s3(local(), &s3).start().await;
        for number in 0..5 {
            other
                .fetch("files", &format!("{number}"))
                .await
                .is("cache", format!("{number}"));
        }
        other.request("DELETE", &at("files", "3"), &[], b"").await.expect(204);
        node.fetch("files", "3").await.expect(404);
    });
}

#[test]
fn another_s3_does_too() {
    run_for(LIMIT, async {
        let s3 = S3Server::start(Kind::Versity).await;
        let node = fleet::with_s3(local(), &s3).start().await;
        let other = fleet::with_s3(local(), &s3).start().await;
        fleet::ready(&node).await;
        fleet::ready(&other).await;
        put(&node, "a/b", &[], "1").await.expect(201);
        put(&other, "a/b", &[("If-None-Match", "*")], "2").await.expect(412);
        put(&other, "a", &[], "2").await.expect(201);
        other.fetch("files", "a/b").await.is("cache", "1");
        node.fetch("files", "a").await.is("cache", "2");
        let large = Pattern::new(3, 40_000_000).whole();
        put(&node, "large", &[("If-None-Match", "*")], &large).await.expect(201);
        other.fetch("files", "large").await.is("cache", &large);
        node.request("DELETE", &at("files", "a"), &[], b"").await.expect(204);
        other.fetch("files", "a").await.expect(404);
    });
}
