//! Pulling through `/v2/`: manifests and blobs, their headers, what is fetched once, what is served again.

use crate::common::client::Headers;
use crate::common::image::*;
use crate::common::pull::*;
use crate::common::registry::*;
use crate::common::{Proxy, Reply, Upstream, client, eventually, run};
use serde_json::json;
use tokio::task::JoinSet;

async fn pair(manifest: &Manifest) -> (Registry, Proxy) {
    let registry = Registry::with("team/app", "v1", manifest).await;
    let proxy = Proxy::start(&registry.remote("hub", "")).await;
    (registry, proxy)
}

#[test]
fn the_root_says_that_this_is_a_registry_and_asks_no_upstream() {
    run(async {
        let (registry, proxy) = pair(&Manifest::image("app", "amd64", 1)).await;
        for method in ["GET", "HEAD"] {
            let answer = proxy.request(method, "/v2/", &[], b"").await.ok();
            assert_eq!(answer.must("docker-distribution-api-version"), "registry/2.0");
            assert!(answer.must("content-type").starts_with("application/json"));
            assert_eq!(answer.header("www-authenticate"), None);
            if method == "GET" {
                assert!(answer.json().is_object(), "{}", answer.text());
            }
        }
        assert_eq!(registry.up.total(), 0);
    });
}

#[test]
fn manifests_of_every_kind_arrive_byte_for_byte_with_their_headers() {
    run(async {
        let registry = Registry::start().await;
        let (amd, arm) = (Manifest::image("x", "amd64", 1), Manifest::image("x", "arm64", 1));
        let kinds = [
            ("oci", Manifest::image("oci", "amd64", 2)),
            ("docker", Manifest::docker_image("docker", "amd64")),
            ("index", Manifest::index(OCI_INDEX, &[("amd64", &amd), ("arm64", &arm)])),
            (
                "list",
                Manifest::index(DOCKER_LIST, &[("amd64", &amd), ("arm64", &arm)]),
            ),
            ("artifact", Manifest::artifact("application/x.test", "hello", None)),
        ];
        for (tag, manifest) in &kinds {
            registry.push("team/app", tag, manifest);
        }
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        for (tag, manifest) in &kinds {
            for reference in [tag, manifest.digest.as_str()] {
                let target = manifest_at("hub/team/app", reference);
                let first = get_manifest(&proxy, "hub/team/app", reference).await.ok();
                let again = until_cached(&proxy, &target).await;
                let head = head_manifest(&proxy, "hub/team/app", reference).await.ok();
                for (what, answer) in [("first", &first), ("again", &again), ("head", &head)] {
                    let what = format!("{what} of {tag} as {reference}: {:?}", answer.headers);
                    assert_eq!(answer.must("docker-content-digest"), manifest.digest, "{what}");
                    assert_eq!(answer.must("content-type"), manifest.kind, "{what}");
                    let length = manifest.bytes.len().to_string();
                    assert_eq!(answer.must("content-length"), length, "{what}");
                    assert_eq!(answer.must("docker-distribution-api-version"), "registry/2.0", "{what}");
                    assert_eq!(answer.header("content-encoding"), None, "{what}");
                }
                assert!(first.body == manifest.bytes && again.body == manifest.bytes, "{tag}");
                assert_eq!(head.must("x-artifact-source"), "cache");
            }
        }
    });
}

#[test]
fn blobs_arrive_byte_for_byte_with_their_headers() {
    run(async {
        let image = Manifest::image("app", "amd64", 2);
        let (registry, proxy) = pair(&image).await;
        let empty = Blob::new("");
        registry.blob("team/app", &empty);
        for blob in image.blobs.iter().chain([&empty]) {
            let target = blob_at("hub/team/app", &blob.digest);
            let cold = client::head(proxy.address(), &target).await.ok();
            assert_eq!(registry.count("GET", &blob_at("team/app", &blob.digest)), 0);
            let first = client::get(proxy.address(), &target).await.is("remote", blob.bytes());
            let again = until_cached(&proxy, &target).await;
            let head = client::head(proxy.address(), &target).await.ok();
            assert!(again.body == blob.bytes());
            for answer in [&cold, &first, &again, &head] {
                assert_eq!(answer.must("docker-content-digest"), blob.digest);
                assert_eq!(answer.must("content-length"), blob.body.len().to_string());
                assert_eq!(answer.must("content-type"), "application/octet-stream");
                assert_eq!(answer.must("docker-distribution-api-version"), "registry/2.0");
                assert_eq!(answer.must("accept-ranges"), "bytes");
            }
            assert_eq!(head.source(), "cache");
        }
    });
}

#[test]
fn what_was_pulled_once_is_pulled_again_without_upstream_and_after_a_restart() {
    run(async {
        let image = Manifest::two_platforms("app");
        let tokens = Tokens::start().await;
        let registry = Registry::start().await.guarded(&tokens).redirecting().await;
        registry.push("team/app", "v1", &image);
        let mut proxy = Proxy::start(&registry.remote("hub", "cache: {mutable_ttl: 300}")).await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        until_stored(&proxy, "hub/team/app", "v1", &image).await;
        for blob in image.all().iter().flat_map(|part| &part.blobs) {
            assert_eq!(registry.stored("GET", &blob.digest), 1, "{}", blob.digest);
        }
        registry.switch_off().await;
        tokens.up.switch_off().await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        proxy.restart().await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
    });
}

#[test]
fn a_layer_that_two_repositories_share_is_fetched_once() {
    run(async {
        let base = Blob::new("the layer that all images stand on");
        let own = |name: &str| Manifest::of_blobs(name, vec![base.clone(), Blob::new(format!("of {name}"))]);
        let (first, second) = (own("first"), own("second"));
        let registry = Registry::with("one", "v1", &first).await;
        registry.push("deep/down/two", "v1", &second);
        // A whole image in a second repository: its manifest is shared too.
        registry.push("three", "v1", &first);
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        pull(&proxy, "hub/one", "v1", &first).await;
        until_stored(&proxy, "hub/one", "v1", &first).await;
        pull(&proxy, "hub/deep/down/two", "v1", &second).await;
        pull(&proxy, "hub/three", "v1", &first).await;
        let blobs = |repository: &str| registry.count("GET", &blob_at(repository, &base.digest));
        assert_eq!((blobs("one"), blobs("deep/down/two"), blobs("three")), (1, 0, 0));
        assert_eq!(registry.count("GET", &manifest_at("three", &first.digest)), 0);
        let artifacts = client::get(proxy.address(), "/api/v1/artifacts?remote=hub&limit=100")
            .await
            .ok()
            .json();
        let rows = artifacts["artifacts"].as_array().expect("rows");
        let named = rows
            .iter()
            .filter(|row| row["path"].as_str().unwrap_or_default().contains(&base.digest));
        assert_eq!(named.count(), 1, "stored more than once: {artifacts}");
    });
}

#[test]
fn fifty_pulls_of_a_cold_image_ask_for_everything_once() {
    run(async {
        let image = Manifest::two_platforms("app");
        let amd = image.of("amd64").clone();
        let tokens = Tokens::start().await;
        let registry = Registry::start().await.guarded(&tokens).redirecting().await;
        registry.push("team/app", "v1", &image);
        // Slow enough that all are on the way before any of them is done.
        let slow = std::time::Duration::from_millis(300);
        registry.change(&manifest_at("team/app", "v1"), move |_, reply| reply.delay(slow));
        for blob in &amd.blobs {
            registry.change(&storage_path(&blob.digest), move |_, reply| reply.delay(slow));
        }
        registry.change(&manifest_at("team/app", &amd.digest), move |_, reply| reply.delay(slow));
        let proxy = std::sync::Arc::new(Proxy::start(&registry.remote("hub", "")).await);
        let mut pulls = JoinSet::new();
        for _ in 0..50 {
            let (proxy, image, amd) = (proxy.clone(), image.clone(), amd.clone());
            pulls.spawn(async move {
                let top = get_manifest(&proxy, "hub/team/app", "v1").await.ok();
                assert!(top.body == image.bytes);
                let manifest = get_manifest(&proxy, "hub/team/app", &amd.digest).await.ok();
                assert!(manifest.body == amd.bytes);
                let mut blobs = JoinSet::new();
                for blob in amd.blobs {
                    let proxy = proxy.clone();
                    blobs.spawn(async move {
                        let answer = get_blob(&proxy, "hub/team/app", &blob.digest).await.ok();
                        assert!(answer.body == blob.bytes());
                    });
                }
                while let Some(blob) = blobs.join_next().await {
                    blob.unwrap();
                }
            });
        }
        while let Some(done) = pulls.join_next().await {
            done.unwrap();
        }
        assert_eq!(tokens.count(), 1, "{:?}", tokens.scopes());
        for blob in &amd.blobs {
            assert_eq!(registry.stored("*", &blob.digest), 1, "{}", blob.digest);
            assert_eq!(registry.authorized("*", &blob_at("team/app", &blob.digest)), 1);
        }
        assert_eq!(registry.authorized("GET", &manifest_at("team/app", &amd.digest)), 1);
        let by_tag = registry.authorized("GET", &manifest_at("team/app", "v1"));
        let by_digest = registry.authorized("GET", &manifest_at("team/app", &image.digest));
        assert_eq!(by_tag + by_digest, 1, "the index");
        assert!(registry.authorized("HEAD", &manifest_at("team/app", "v1")) <= 1);
    });
}

#[test]
fn names_of_any_depth_and_with_confusing_parts_are_pulled() {
    run(async {
        let image = Manifest::image("deep", "amd64", 1);
        let registry = Registry::start().await;
        let names = [
            "one",
            "a/b/c/d/e/f/g/h",
            "team/manifests/blobs",
            "blobs/sha256/tags",
            "tags/list/x",
            "with.dots/and--dashes/under__scores/9",
            "v2",
            "referrers",
        ];
        for name in names {
            registry.push(name, "v1", &image);
        }
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        for name in names {
            pull(&proxy, &format!("hub/{name}"), "v1", &image).await;
            let tags = client::get(proxy.address(), &format!("/v2/hub/{name}/tags/list"))
                .await
                .ok();
            assert_eq!(tags.json()["tags"], json!(["v1"]), "{name}");
        }
    });
}

#[test]
fn foreign_and_zstd_layers_pass_untouched_and_nothing_is_ever_encoded() {
    run(async {
        let zstd = Blob::new(&b"\x28\xb5\x2f\xfd\x20\x05\x29\x00\x00hello and more that is no real frame"[..]);
        let text = Blob::new("a layer that compresses well ".repeat(5_000));
        let gone = Blob::new("on some other host");
        let mut foreign = gone.descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        foreign["urls"] = json!(["https://layers.invalid/x"]);
        let manifest = Manifest::new(
            json!({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": Blob::new("{}").descriptor(OCI_CONFIG),
                "layers": [
                    zstd.descriptor("application/vnd.oci.image.layer.v1.tar+zstd"),
                    text.descriptor("application/vnd.oci.image.layer.v1.tar"),
                    foreign,
                ],
            }),
            vec![Blob::new("{}"), zstd.clone(), text.clone()],
            Vec::new(),
        );
        let (registry, proxy) = pair(&manifest).await;
        let codings = ("Accept-Encoding", "zstd, gzip, br;q=0.5");
        for round in ["cold", "cached"] {
            for (target, bytes) in [
                (manifest_at("hub/team/app", "v1"), manifest.bytes.clone()),
                (manifest_at("hub/team/app", &manifest.digest), manifest.bytes.clone()),
                (blob_at("hub/team/app", &zstd.digest), zstd.bytes()),
                (blob_at("hub/team/app", &text.digest), text.bytes()),
            ] {
                let headers = [("Accept", ACCEPT_ALL), codings];
                let answer = client::get_with(proxy.address(), &target, &headers).await.ok();
                assert!(answer.body == bytes, "{round}: other bytes for {target}");
                assert_eq!(answer.header("content-encoding"), None, "{round}: {target}");
                assert_eq!(
                    answer.must("content-length"),
                    bytes.len().to_string(),
                    "{round}: {target}"
                );
            }
            until_stored(&proxy, "hub/team/app", "v1", &manifest).await;
        }
        for seen in registry.up.log() {
            let asked = seen.header("accept-encoding").unwrap_or("identity");
            assert_eq!(asked, "identity", "{} {}", seen.method, seen.path);
        }
        // A foreign layer that the registry does not hold is not held here either.
        refused(
            get_blob(&proxy, "hub/team/app", &gone.digest).await,
            404,
            "BLOB_UNKNOWN",
        );
    });
}

#[test]
fn ranges_and_conditions_are_answered_cold_and_cached() {
    run(async {
        let layer = Blob::new(crate::common::Pattern::new(3, 300_000));
        let image = Manifest::of_blobs("app", vec![layer.clone()]);
        let (_registry, proxy) = pair(&image).await;
        let target = blob_at("hub/team/app", &layer.digest);
        let bytes = layer.bytes();
        for round in ["cold", "cached"] {
            for (range, from, to) in [
                ("bytes=1000-1999", 1000, 2000),
                ("bytes=299000-", 299_000, 300_000),
                ("bytes=-10", 299_990, 300_000),
                ("bytes=0-0", 0, 1),
            ] {
                let answer = client::get_with(proxy.address(), &target, &[("Range", range)])
                    .await
                    .expect(206);
                assert!(answer.body == bytes[from..to], "{round}: {range}");
                let says = format!("bytes {from}-{}/300000", to - 1);
                assert_eq!(answer.must("content-range"), says, "{round}");
                assert_eq!(answer.must("docker-content-digest"), layer.digest, "{round}");
            }
            until_cached(&proxy, &target).await;
            let beyond = client::get_with(proxy.address(), &target, &[("Range", "bytes=300000-")]).await;
            assert_eq!((beyond.status, beyond.must("content-range")), (416, "bytes */300000"));
        }
        for target in [target, manifest_at("hub/team/app", &image.digest)] {
            let etag = until_cached(&proxy, &target).await.must("etag").to_owned();
            let same = [("If-None-Match", etag.as_str()), ("Accept", ACCEPT_ALL)];
            client::get_with(proxy.address(), &target, &same).await.expect(304);
            let other = [("If-None-Match", "\"other\""), ("Accept", ACCEPT_ALL)];
            client::get_with(proxy.address(), &target, &other).await.ok();
        }
    });
}

#[test]
fn the_wrong_door_names_the_right_one() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &image).await;
        let files = Upstream::start().await;
        files.fallback(|_| Reply::ok("a file"));
        let yaml = registry.remote("hub", "") + &format!("files:\n  base_url: {}\n", files.base());
        let proxy = Proxy::start(&yaml).await;
        let answer = proxy.fetch("hub", "team/app/manifests/v1").await.expect(404);
        assert!(
            answer.text().contains("/v2/hub/team/app/manifests/v1"),
            "{}",
            answer.text()
        );
        let answer = client::get(proxy.address(), "/v2/files/some/manifests/v1").await;
        let said = answer.text();
        refused(answer, 404, "NAME_UNKNOWN");
        assert!(said.contains("/api/v1/remote/files/some/manifests/v1"), "{said}");
        assert_eq!(registry.up.total() + files.total(), 0);
    });
}

#[test]
fn digests_are_immutable_to_clients_and_tags_are_not() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let (_registry, proxy) = pair(&image).await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        for target in [
            manifest_at("hub/team/app", &image.digest),
            blob_at("hub/team/app", &image.blobs[1].digest),
        ] {
            let answer = until_cached(&proxy, &target).await;
            assert_eq!(answer.must("cache-control"), "public, max-age=31536000, immutable");
            assert_eq!(answer.cache_words()[0], "hit", "{}", answer.cache_status());
        }
        let answer = until_cached(&proxy, &manifest_at("hub/team/app", "v1")).await;
        assert!(
            !answer.must("cache-control").contains("immutable"),
            "{:?}",
            answer.headers
        );
    });
}

#[test]
fn a_registry_that_names_no_digest_gets_one_here() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let (registry, proxy) = pair(&image).await;
        let silent = |_: &crate::common::upstream::Seen, mut reply: Reply| {
            reply
                .headers
                .retain(|(name, _)| name != "Docker-Content-Digest" && name != "ETag");
            reply
        };
        let layer = &image.blobs[1];
        for path in [
            manifest_at("team/app", "v1"),
            manifest_at("team/app", &image.digest),
            blob_at("team/app", &layer.digest),
        ] {
            registry.change(&path, silent);
        }
        for _ in 0..2 {
            let by_tag = get_manifest(&proxy, "hub/team/app", "v1").await.ok();
            assert_eq!(by_tag.must("docker-content-digest"), image.digest);
            let answer = get_manifest(&proxy, "hub/team/app", &image.digest).await.ok();
            assert_eq!(answer.must("docker-content-digest"), image.digest);
            let answer = get_blob(&proxy, "hub/team/app", &layer.digest).await.ok();
            assert_eq!(answer.must("docker-content-digest"), layer.digest);
            until_cached(&proxy, &blob_at("hub/team/app", &layer.digest)).await;
        }
        let head = head_manifest(&proxy, "hub/team/app", "v1").await.ok();
        assert_eq!(head.must("docker-content-digest"), image.digest);
    });
}

#[test]
fn an_allow_list_decides_by_the_repository_that_is_asked_for() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("allowed/app", "v1", &image).await;
        registry.push("secret/app", "v1", &image);
        let proxy = Proxy::start(&registry.remote("hub", "immutable_patterns: ['^allowed/']")).await;
        pull(&proxy, "hub/allowed/app", "v1", &image).await;
        until_stored(&proxy, "hub/allowed/app", "v1", &image).await;
        registry.up.forget();
        // The bytes are here, but not for who asks by this name.
        for target in [
            blob_at("hub/secret/app", &image.blobs[1].digest),
            manifest_at("hub/secret/app", &image.digest),
        ] {
            let answer = client::get(proxy.address(), &target).await;
            let warning = answer.header("warning").unwrap_or_default().to_owned();
            let reason = refused(answer, 403, "DENIED");
            assert!(warning.starts_with("299 "), "no Warning: {warning:?}");
            assert!(reason.contains("immutable_patterns"), "{reason}");
            let head = client::head(proxy.address(), &target).await;
            assert_eq!(head.status, 403);
            assert!(head.must("warning").starts_with("299 "));
        }
        assert_eq!(registry.up.total(), 0);
    });
}

#[test]
fn a_heads_answer_for_a_tag_downloads_nothing() {
    run(async {
        let image = Manifest::two_platforms("app");
        let (registry, proxy) = pair(&image).await;
        for _ in 0..3 {
            let head = head_manifest(&proxy, "hub/team/app", "v1").await.ok();
            assert_eq!(head.must("docker-content-digest"), image.digest);
            assert_eq!(head.must("content-type"), OCI_INDEX);
            assert_eq!(head.must("content-length"), image.bytes.len().to_string());
        }
        let head = head_manifest(&proxy, "hub/team/app", &image.digest).await.ok();
        assert_eq!(head.must("docker-content-digest"), image.digest);
        let methods = registry
            .up
            .log()
            .iter()
            .map(|seen| seen.method.clone())
            .collect::<Vec<_>>();
        assert!(methods.iter().all(|method| method == "HEAD"), "{methods:?}");
        eventually(
            std::time::Duration::from_secs(5),
            "only where the tag leads is listed",
            async || {
                let listed = client::get(proxy.address(), "/api/v1/artifacts?remote=hub")
                    .await
                    .ok()
                    .json();
                let rows = listed["artifacts"].as_array().expect("rows");
                // Where the tag leads is noted, the content is not here.
                rows.iter().any(|row| row["path"] == "team/app/manifests/v1")
                    && rows.iter().all(|row| row["path"] == "team/app/manifests/v1")
                    && listed["bytes"] == 0
            },
        )
        .await;
    });
}
