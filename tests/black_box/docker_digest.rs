//! Digests: what does not match is never whole and never kept; what does match is never refused.

use std::time::Duration;

use crate::common::client::Headers;
use crate::common::image::*;
use crate::common::pull::*;
use crate::common::registry::*;
use crate::common::upstream::Seen;
use crate::common::{Pattern, Proxy, Reply, Response, client, eventually, run};

const NO_MEMORY: &str = "cache: {mutable_ttl: 0, negative_ttl: 0}";

/// The sum of the counters that tell of digests that did not match.
async fn mismatches(proxy: &Proxy) -> f64 {
    let text = client::get(proxy.address(), "/metrics").await.ok().text();
    let lines = text
        .lines()
        .filter(|line| line.starts_with("artifactapi_") && line.contains("digest_mismatches"));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Fails when a client could take this for a whole answer.
#[track_caller]
fn not_whole(answer: &Response, what: &str) {
    assert!(
        answer.status != 200 || !answer.complete,
        "{what}: wrong bytes arrived as a whole answer: {:?}",
        answer.headers
    );
    assert!(
        answer.status == 200 || answer.status == 502,
        "{what}: {} {}",
        answer.status,
        answer.text()
    );
}

fn flip(mut reply: Reply) -> Reply {
    let mut bytes = reply.body.bytes(0, usize::MAX >> 1).to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    reply.body = bytes.into();
    reply
}

fn corrupt(seen: &Seen, reply: Reply) -> Reply {
    if seen.method == "HEAD" || reply.body.is_empty() {
        reply
    } else {
        flip(reply)
    }
}

#[test]
fn wrong_bytes_of_a_blob_are_never_whole_never_kept_and_counted() {
    run(async {
        let sizes = [1, 5_000, 3_000_000];
        let layers = sizes.map(|size| Blob::new(Pattern::new(size, size))).to_vec();
        let long = Blob::sha512(Pattern::new(9, 100_000));
        let image = Manifest::of_blobs("app", layers.clone());
        let registry = Registry::with("team/app", "v1", &image).await;
        registry.blob("team/app", &long);
        let proxy = Proxy::start(&registry.remote("hub", NO_MEMORY)).await;
        for (number, blob) in layers.iter().chain([&long]).enumerate() {
            let path = blob_at("team/app", &blob.digest);
            registry.change(&path, corrupt);
            for round in 1..=2 {
                let answer = get_blob(&proxy, "hub/team/app", &blob.digest).await;
                not_whole(&answer, &blob.digest);
                assert_eq!(registry.count("GET", &path), round, "it was kept");
            }
            crate::common::eventually(Duration::from_secs(10), "both are counted", async || {
                mismatches(&proxy).await == 2.0 * (number + 1) as f64
            })
            .await;
            let digest = &blob.digest["sha256:".len()..][..12];
            proxy.wait_for_log(digest).await;
            registry.normal(&path);
            let answer = get_blob(&proxy, "hub/team/app", &blob.digest).await.ok();
            assert!(answer.body == blob.bytes());
            until_cached(&proxy, &blob_at("hub/team/app", &blob.digest)).await;
        }
    });
}

#[test]
fn wrong_bytes_from_the_storage_host_are_found_too() {
    run(async {
        let layer = Blob::new(Pattern::new(1, 50_000));
        let registry = Registry::start().await.redirecting().await;
        registry.push("team/app", "v1", &Manifest::of_blobs("app", vec![layer.clone()]));
        let proxy = Proxy::start(&registry.remote("hub", NO_MEMORY)).await;
        registry.change(&storage_path(&layer.digest), corrupt);
        not_whole(&get_blob(&proxy, "hub/team/app", &layer.digest).await, "corrupt");
        registry.change(&storage_path(&layer.digest), |_, reply| reply.truncate_at(1_000));
        not_whole(&get_blob(&proxy, "hub/team/app", &layer.digest).await, "truncated");
        registry.normal(&storage_path(&layer.digest));
        let answer = get_blob(&proxy, "hub/team/app", &layer.digest).await.ok();
        assert!(answer.body == layer.bytes());
    });
}

#[test]
fn wrong_bytes_of_a_manifest_are_refused_by_digest_and_by_tag() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &image).await;
        let proxy = Proxy::start(&registry.remote("hub", NO_MEMORY)).await;
        for reference in [image.digest.as_str(), "v1"] {
            let path = manifest_at("team/app", reference);
            registry.change(&path, corrupt);
            if reference == "v1" {
                // However it is fetched.
                registry.change(&manifest_at("team/app", &image.digest), corrupt);
            }
            for _ in 0..2 {
                not_whole(&get_manifest(&proxy, "hub/team/app", reference).await, reference);
            }
            registry.normal(&path).normal(&manifest_at("team/app", &image.digest));
            let answer = get_manifest(&proxy, "hub/team/app", reference).await.ok();
            assert!(answer.body == image.bytes, "{reference}");
        }
        assert!(mismatches(&proxy).await >= 2.0);
    });
}

#[test]
fn a_shorter_or_longer_body_is_never_whole_either() {
    run(async {
        let layer = Blob::new(Pattern::new(4, 200_000));
        let path = blob_at("team/app", &layer.digest);
        let (bytes, longer) = (layer.bytes(), [&layer.bytes()[..], b"more"].concat());
        for (what, reply) in [
            ("cut", Reply::ok(bytes.clone()).truncate_at(100_000)),
            ("reset", Reply::ok(bytes.clone()).reset_at(100_000)),
            ("short", Reply::ok(bytes.slice(..100_000))),
            ("short chunks", Reply::ok(bytes.slice(..100_000)).chunked()),
            ("until close", Reply::ok(bytes.slice(..100_000)).until_close()),
            ("longer", Reply::ok(longer.clone())),
            ("longer chunks", Reply::ok(longer).chunked()),
            ("empty", Reply::ok("")),
        ] {
            let registry = Registry::with("team/app", "v1", &Manifest::of_blobs("app", vec![layer.clone()])).await;
            let proxy = Proxy::start(&registry.remote("hub", NO_MEMORY)).await;
            registry.instead(&path, reply);
            not_whole(&get_blob(&proxy, "hub/team/app", &layer.digest).await, what);
            registry.normal(&path);
            let answer = get_blob(&proxy, "hub/team/app", &layer.digest).await.ok();
            assert!(answer.body == bytes, "{what}");
        }
    });
}

#[test]
fn those_who_joined_a_wrong_fill_get_no_whole_answer_either() {
    run(async {
        let layer = Blob::new(Pattern::new(4, 2_000_000));
        let registry = Registry::with("team/app", "v1", &Manifest::of_blobs("app", vec![layer.clone()])).await;
        let proxy = Proxy::start(&registry.remote("hub", NO_MEMORY)).await;
        let gate = crate::common::Gate::new();
        let held = gate.clone();
        registry.change(&blob_at("team/app", &layer.digest), move |_, reply| {
            flip(reply).pause_at(1_000_000, &held)
        });
        let target = blob_at("hub/team/app", &layer.digest);
        let mut connections = Vec::new();
        for _ in 0..8 {
            let mut connection = proxy.connect().await;
            connection.send("GET", &target, &[], b"").await;
            connections.push(connection);
        }
        // All of them read already what is good so far.
        for connection in &mut connections {
            connection.read_head("GET").await;
            connection.read_body_until(500_000).await;
        }
        gate.open();
        for connection in &mut connections {
            connection.read_body().await;
            assert!(!connection.is_complete(), "wrong bytes arrived as a whole answer");
        }
        assert_eq!(registry.count("GET", &blob_at("team/app", &layer.digest)), 1);
        eventually(Duration::from_secs(5), "the mismatch is counted", async || {
            mismatches(&proxy).await == 1.0
        })
        .await;
    });
}

#[test]
fn both_algorithms_name_what_is_served() {
    run(async {
        let layer = Blob::sha512(Pattern::new(2, 400_000));
        let image = Manifest::of_blobs("app", vec![layer.clone()]);
        let registry = Registry::with("team/app", "v1", &image).await;
        let long = Blob::sha512(image.bytes.clone());
        let mut renamed = image.clone();
        renamed.digest.clone_from(&long.digest);
        registry.push("team/app", "long", &renamed);
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        for _ in 0..2 {
            let answer = get_blob(&proxy, "hub/team/app", &layer.digest).await.ok();
            assert!(answer.body == layer.bytes());
            assert_eq!(answer.must("docker-content-digest"), layer.digest);
            let answer = get_manifest(&proxy, "hub/team/app", &long.digest).await.ok();
            assert!(answer.body == image.bytes);
            assert_eq!(answer.must("docker-content-digest"), long.digest);
            let by_tag = get_manifest(&proxy, "hub/team/app", "long").await.ok();
            assert!(by_tag.body == image.bytes);
            until_cached(&proxy, &blob_at("hub/team/app", &layer.digest)).await;
        }
        // Neither has the other's name.
        let other = format!("sha512:{}", "ab".repeat(64));
        refused(get_blob(&proxy, "hub/team/app", &other).await, 404, "BLOB_UNKNOWN");
        assert_eq!(mismatches(&proxy).await, 0.0);
    });
}

#[test]
fn right_bytes_in_an_unusual_dress_are_served() {
    run(async {
        let layer = Blob::new("text that compresses ".repeat(20_000));
        let image = Manifest::of_blobs("app", vec![layer.clone()]);
        let packed = |bytes: &[u8]| crate::common::packages::gzip(bytes);
        let blob = blob_at("team/app", &layer.digest);
        let manifest = manifest_at("team/app", &image.digest);
        let tag = manifest_at("team/app", "v1");
        for what in ["chunked", "until close", "gzip unasked", "no length on HEAD"] {
            println!("{what}");
            let registry = Registry::with("team/app", "v1", &image).await;
            for path in [&blob, &manifest, &tag] {
                registry.change(path, move |seen, mut reply| {
                    match what {
                        "chunked" => return reply.chunked(),
                        "until close" => return reply.until_close(),
                        "gzip unasked" if seen.header("range").is_none() => {
                            let bytes = packed(&reply.body.bytes(0, 1 << 30));
                            reply.body = bytes.into();
                            return reply.header("Content-Encoding", "gzip");
                        }
                        "no length on HEAD" if seen.method == "HEAD" => return reply.chunked(),
                        _ => {}
                    }
                    reply
                });
            }
            let proxy = Proxy::start(&registry.remote("hub", "")).await;
            for round in ["cold", "cached"] {
                for (target, bytes) in [
                    (blob_at("hub/team/app", &layer.digest), layer.bytes()),
                    (manifest_at("hub/team/app", "v1"), image.bytes.clone()),
                    (manifest_at("hub/team/app", &image.digest), image.bytes.clone()),
                ] {
                    let answer = client::get_with(proxy.address(), &target, &[("Accept", ACCEPT_ALL)]).await;
                    let answer = answer.ok();
                    assert!(answer.body == bytes, "{what}, {round}: other bytes for {target}");
                    assert_eq!(answer.header("content-encoding"), None, "{what}, {round}: {target}");
                    // What only the end of the connection ends is not kept, whoever sends it.
                    if what != "until close" {
                        until_cached(&proxy, &target).await;
                    }
                }
            }
            assert_eq!(mismatches(&proxy).await, 0.0, "{what}");
        }
    });
}

#[test]
fn a_range_of_a_right_blob_is_no_mismatch() {
    run(async {
        let layer = Blob::new(Pattern::new(7, 3_000_000));
        let registry = Registry::start().await.redirecting().await;
        registry.push("team/app", "v1", &Manifest::of_blobs("app", vec![layer.clone()]));
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        let target = blob_at("hub/team/app", &layer.digest);
        let bytes = layer.bytes();
        for (range, from, to) in [("bytes=2999000-", 2_999_000, 3_000_000), ("bytes=5-9", 5, 10)] {
            let answer = client::get_with(proxy.address(), &target, &[("Range", range)])
                .await
                .expect(206);
            assert!(answer.body == bytes[from..to], "{range}");
        }
        let whole = client::get(proxy.address(), &target).await.ok();
        assert!(whole.body == bytes);
        until_cached(&proxy, &target).await;
        assert_eq!(mismatches(&proxy).await, 0.0);
    });
}

#[test]
fn a_registry_that_names_another_digest_than_it_sends_is_not_believed() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &image).await;
        let proxy = Proxy::start(&registry.remote("hub", NO_MEMORY)).await;
        let lie = |_: &Seen, mut reply: Reply| {
            for (name, value) in &mut reply.headers {
                if name == "Docker-Content-Digest" {
                    *value = unknown_digest();
                }
            }
            reply
        };
        registry.change(&manifest_at("team/app", "v1"), lie);
        let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
        if answer.status == 200 && answer.complete {
            // Served by what it is, never by what was said of it.
            assert_eq!(answer.must("docker-content-digest"), image.digest);
        }
        let answer = get_manifest(&proxy, "hub/team/app", &unknown_digest()).await;
        assert!(matches!(answer.status, 404 | 502), "{}", answer.text());
    });
}

#[test]
fn what_is_too_large_to_be_kept_is_verified_as_it_passes_by() {
    run(async {
        // Longer than the disk may hold, so that it passes by.
        let layer = Blob::new(Pattern::new(4, 20_000_000));
        let long = Blob::sha512(Pattern::new(5, 20_000_000));
        let registry = Registry::with("team/app", "v1", &Manifest::of_blobs("app", vec![layer.clone()])).await;
        registry.blob("team/app", &long);
        let proxy = Proxy::settings()
            .remotes(&registry.remote("hub", NO_MEMORY))
            .conf("cache: {disk_bytes: 5MB, disk_min_free: 0%, memory_bytes: 1MB}\n")
            .start()
            .await;
        for (number, blob) in [&layer, &long].into_iter().enumerate() {
            let path = blob_at("team/app", &blob.digest);
            let answer = get_blob(&proxy, "hub/team/app", &blob.digest).await.ok();
            assert!(answer.body == blob.bytes());
            assert_eq!(answer.must("docker-content-digest"), blob.digest);
            registry.change(&path, corrupt);
            not_whole(&get_blob(&proxy, "hub/team/app", &blob.digest).await, &blob.digest);
            assert_eq!(mismatches(&proxy).await, (number + 1) as f64);
            registry.normal(&path);
            let answer = get_blob(&proxy, "hub/team/app", &blob.digest).await.ok();
            assert!(answer.body == blob.bytes());
        }
    });
}
