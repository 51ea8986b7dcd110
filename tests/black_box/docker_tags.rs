//! Tags: what they resolve to for whom, how they are looked at again, what is served when that fails.

use crate::common::client::Headers;
use crate::common::image::*;
use crate::common::pull::*;
use crate::common::registry::*;
use crate::common::{File, Proxy, Reply, Upstream, client, run};

/// Every request for a tag looks at the tag again.
const EXPIRED: &str = "cache: {mutable_ttl: 0, negative_ttl: 0}";

async fn pair(manifest: &Manifest, keys: &str) -> (Registry, Proxy) {
    let registry = Registry::with("team/app", "v1", manifest).await;
    let proxy = Proxy::start(&registry.remote("hub", keys)).await;
    (registry, proxy)
}

/// Pulls a tag by each kind of client and says what they got.
async fn as_clients(proxy: &Proxy, accepts: &[&str]) -> Vec<String> {
    let mut got = Vec::new();
    for accept in accepts {
        let answer = get_manifest_as(proxy, "hub/team/app", "v1", accept).await.ok();
        let digest = format!("sha256:{}", crate::common::sha256(&answer.body));
        assert_eq!(answer.must("docker-content-digest"), digest);
        let head = proxy
            .request("HEAD", &manifest_at("hub/team/app", "v1"), &[("Accept", accept)], b"")
            .await
            .ok();
        for name in ["docker-content-digest", "content-type", "content-length"] {
            assert_eq!(head.must(name), answer.must(name), "{accept}");
        }
        got.push(digest);
    }
    got
}

#[test]
fn each_client_gets_what_its_accept_list_stands_for_whoever_asked_before() {
    run(async {
        let image = Manifest::two_platforms("app");
        let (index, single) = (image.digest.clone(), image.of("amd64").digest.clone());
        let expected = [&index, &single, &index, &single].map(String::clone);
        for (clients, expected) in [
            ([ACCEPT_ALL, ACCEPT_SINGLE, ACCEPT_ALL, ACCEPT_SINGLE], expected.clone()),
            (
                [ACCEPT_SINGLE, ACCEPT_ALL, ACCEPT_SINGLE, ACCEPT_ALL],
                [&single, &index, &single, &index].map(String::clone),
            ),
        ] {
            let (registry, proxy) = pair(&image, "cache: {mutable_ttl: 300}").await;
            assert_eq!(as_clients(&proxy, &clients).await, expected);
            until_cached(&proxy, &manifest_at("hub/team/app", "v1")).await;
            registry.switch_off().await;
            // Both answers are here now, and each is still the right one.
            assert_eq!(as_clients(&proxy, &clients).await, expected);
        }
    });
}

#[test]
fn an_index_of_one_kind_is_not_for_a_client_that_knows_the_other_kind() {
    run(async {
        let (amd, arm) = (
            Manifest::docker_image("app", "amd64"),
            Manifest::docker_image("app", "arm64"),
        );
        let list = Manifest::index(DOCKER_LIST, &[("amd64", &amd), ("arm64", &arm)]);
        let oci_only = format!("{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_MANIFEST}");
        let (_registry, proxy) = pair(&list, "").await;
        let clients = [ACCEPT_ALL, &oci_only, ACCEPT_ALL, &oci_only];
        let expected = [&list.digest, &amd.digest, &list.digest, &amd.digest].map(String::clone);
        assert_eq!(as_clients(&proxy, &clients).await, expected);
    });
}

#[test]
fn lists_that_mean_the_same_share_one_fetch() {
    run(async {
        let image = Manifest::two_platforms("app");
        let (registry, proxy) = pair(&image, "").await;
        let types = [DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX];
        let lines = types.map(|kind| ("Accept", kind));
        let backwards = types.iter().rev().copied().collect::<Vec<_>>().join(",");
        let weighed = types.map(|kind| format!("{kind};q=0.9")).join(" , ");
        for headers in [
            &[("Accept", ACCEPT_ALL)][..],
            &lines,
            &[("Accept", backwards.as_str())],
            &[("Accept", weighed.as_str()), ("User-Agent", "other/1")],
        ] {
            let answer = client::get_with(proxy.address(), &manifest_at("hub/team/app", "v1"), headers)
                .await
                .ok();
            assert!(answer.body == image.bytes, "{headers:?}");
        }
        let asked = registry.count("GET", &manifest_at("team/app", "v1"))
            + registry.count("GET", &manifest_at("team/app", &image.digest));
        assert_eq!(asked, 1);
    });
}

#[test]
fn a_request_without_an_accept_list_spoils_nothing() {
    run(async {
        let image = Manifest::two_platforms("app");
        let (_registry, proxy) = pair(&image, "").await;
        for headers in [&[][..], &[("Accept", "*/*")]] {
            let answer = client::get_with(proxy.address(), &manifest_at("hub/team/app", "v1"), headers)
                .await
                .ok();
            let digest = format!("sha256:{}", crate::common::sha256(&answer.body));
            assert_eq!(answer.must("docker-content-digest"), digest);
            let expected = [&image.digest, &image.of("amd64").digest].map(String::clone);
            assert_eq!(as_clients(&proxy, &[ACCEPT_ALL, ACCEPT_SINGLE]).await, expected);
        }
        // By digest there is nothing to choose.
        for headers in [&[][..], &[("Accept", "*/*")], &[("Accept", ACCEPT_SINGLE)]] {
            let target = manifest_at("hub/team/app", &image.digest);
            let answer = client::get_with(proxy.address(), &target, headers).await.ok();
            assert!(answer.body == image.bytes);
        }
    });
}

#[test]
fn a_tag_is_looked_at_again_by_head_and_not_downloaded_again() {
    run(async {
        let image = Manifest::two_platforms("app");
        let (registry, proxy) = pair(&image, EXPIRED).await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        until_cached(&proxy, &manifest_at("hub/team/app", "v1")).await;
        registry.up.forget();
        for round in 1..=3 {
            let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
            let answer = answer.is("cache", &image.bytes);
            assert_eq!(answer.must("docker-content-digest"), image.digest);
            assert_eq!(registry.count("HEAD", &manifest_at("team/app", "v1")), round);
            assert_eq!(registry.up.total(), round, "{:?}", registry.up.log());
        }
        let head = head_manifest(&proxy, "hub/team/app", "v1").await.ok();
        assert_eq!(head.must("docker-content-digest"), image.digest);
        assert_eq!(registry.count("HEAD", &manifest_at("team/app", "v1")), 4);
        assert_eq!(registry.up.total(), 4);
    });
}

#[test]
fn a_tag_within_its_time_is_not_looked_at_and_a_moved_one_is_seen_after_it() {
    run(async {
        let (old, new) = (Manifest::image("old", "amd64", 1), Manifest::image("new", "amd64", 1));
        let registry = Registry::with("team/app", "v1", &old).await;
        let yaml = registry.remote("long", "cache: {mutable_ttl: 300}") + &registry.remote("short", EXPIRED);
        let proxy = Proxy::start(&yaml).await;
        for remote in ["long", "short"] {
            pull(&proxy, &format!("{remote}/team/app"), "v1", &old).await;
            until_cached(&proxy, &manifest_at(&format!("{remote}/team/app"), "v1")).await;
        }
        registry.push("team/app", "v1", &new);
        registry.up.forget();
        let answer = get_manifest(&proxy, "long/team/app", "v1").await.ok();
        assert!(answer.body == old.bytes);
        assert_eq!(registry.up.total(), 0);
        // A tag's HEAD tells of the new one without fetching it; the GET after it fetches it once.
        let head = head_manifest(&proxy, "short/team/app", "v1").await.ok();
        assert_eq!(head.must("docker-content-digest"), new.digest);
        assert_eq!(head.must("content-length"), new.bytes.len().to_string());
        let gets = || {
            registry.count("GET", &manifest_at("team/app", "v1"))
                + registry.count("GET", &manifest_at("team/app", &new.digest))
        };
        assert_eq!(
            gets(),
            0,
            "a HEAD downloaded: {:?}",
            registry.requests("GET", &manifest_at("team/app", "v1"))
        );
        for _ in 0..3 {
            let answer = get_manifest(&proxy, "short/team/app", "v1").await.ok();
            assert!(answer.body == new.bytes);
        }
        assert_eq!(gets(), 1);
        // What it was before can still be had by its digest.
        let answer = get_manifest(&proxy, "short/team/app", &old.digest).await;
        answer.is("cache", &old.bytes);
    });
}

#[test]
fn a_registry_whose_head_is_of_no_use_is_asked_by_get() {
    run(async {
        let (old, new) = (Manifest::image("old", "amd64", 1), Manifest::image("new", "amd64", 1));
        for what in ["no digest", "405", "403"] {
            let (registry, proxy) = pair(&old, EXPIRED).await;
            registry.change(&manifest_at("team/app", "v1"), move |seen, mut reply| {
                match (seen.method.as_str(), what) {
                    ("HEAD", "405") => return Reply::status(405),
                    ("HEAD", "403") => return Reply::status(403),
                    ("HEAD", _) => reply
                        .headers
                        .retain(|(name, _)| name != "Docker-Content-Digest" && name != "ETag"),
                    _ => {}
                }
                reply
            });
            for _ in 0..2 {
                let answer = get_manifest(&proxy, "hub/team/app", "v1").await.ok();
                assert!(answer.body == old.bytes, "{what}");
            }
            registry.push("team/app", "v1", &new);
            let answer = get_manifest(&proxy, "hub/team/app", "v1").await.ok();
            assert!(answer.body == new.bytes, "{what}: the old one is served");
            let head = head_manifest(&proxy, "hub/team/app", "v1").await.ok();
            assert_eq!(head.must("docker-content-digest"), new.digest, "{what}");
        }
    });
}

// When upstream is not well

#[test]
fn a_tag_whose_registry_is_unreachable_resolves_to_what_it_was() {
    run(async {
        let image = Manifest::two_platforms("app");
        let (registry, proxy) = pair(&image, EXPIRED).await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        until_stored(&proxy, "hub/team/app", "v1", &image).await;
        registry.switch_off().await;
        let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
        let answer = answer.is("cache", &image.bytes);
        assert!(answer.cache_status().contains("stale"), "{}", answer.cache_status());
        let head = head_manifest(&proxy, "hub/team/app", "v1").await.ok();
        assert_eq!(head.must("docker-content-digest"), image.digest);
        pull(&proxy, "hub/team/app", "v1", &image).await;
        // What was never seen cannot be had.
        let answer = get_manifest(&proxy, "hub/team/app", "v2").await;
        assert!(matches!(answer.status, 502..=504), "{}", answer.text());
        registry.switch_on().await;
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
    });
}

#[test]
fn every_kind_of_unreachable_counts() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let tokens = Tokens::start().await;
        let registry = Registry::start().await.guarded(&tokens);
        registry.push("team/app", "v1", &image);
        let proxy = Proxy::settings()
            .remotes(&registry.remote("hub", EXPIRED))
            .conf("upstream: {first_byte_timeout: 500ms}\n")
            .start()
            .await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        until_cached(&proxy, &manifest_at("hub/team/app", "v1")).await;
        let path = manifest_at("team/app", "v1");
        for (what, reply) in [
            ("reset", Reply::reset()),
            ("silence", Reply::silence()),
            ("closed", Reply::hang_up()),
        ] {
            registry.instead(&path, reply);
            let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
            assert_eq!(answer.status, 200, "{what}: {}", answer.text());
            assert!(answer.body == image.bytes, "{what}");
        }
        // Only a GET tells where the tag leads, and its answer breaks off.
        registry.change(&path, |seen, reply| match seen.method.as_str() {
            "HEAD" => Reply::status(405),
            _ => reply.truncate_at(5),
        });
        let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
        assert_eq!(answer.status, 200, "broken off: {}", answer.text());
        assert!(answer.body == image.bytes);
        registry.normal(&path);
        // The token service is down, and the token that is here is good no longer.
        tokens.revoke();
        tokens.up.switch_off().await;
        let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
        answer.is("cache", &image.bytes);
    });
}

#[test]
fn a_tag_that_may_not_be_looked_at_for_now_is_what_it_was() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &image).await;
        let yaml =
            registry.remote("hub", EXPIRED) + &registry.remote("strict", &format!("{EXPIRED}\nserve_stale_on: []"));
        let proxy = Proxy::start(&yaml).await;
        for remote in ["hub", "strict"] {
            pull(&proxy, &format!("{remote}/team/app"), "v1", &image).await;
            until_cached(&proxy, &manifest_at(&format!("{remote}/team/app"), "v1")).await;
        }
        let limited = error(429, "TOOMANYREQUESTS").header("Retry-After", "77");
        registry.instead(&manifest_at("team/app", "v1"), limited.clone());
        registry.instead(&manifest_at("team/app", "v2"), limited);
        let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
        let answer = answer.is("cache", &image.bytes);
        assert!(answer.cache_status().contains("stale"), "{}", answer.cache_status());
        let head = head_manifest(&proxy, "hub/team/app", "v1").await.ok();
        assert_eq!(head.must("docker-content-digest"), image.digest);
        // Without a stored copy, or where the list is empty, the client learns when to come again.
        for (remote, tag) in [("hub", "v2"), ("strict", "v1"), ("strict", "v2")] {
            let answer = get_manifest(&proxy, &format!("{remote}/team/app"), tag).await;
            assert_eq!(answer.must("retry-after"), "77", "{remote} {tag}");
            refused(answer, 429, "TOOMANYREQUESTS");
        }
        registry.normal(&manifest_at("team/app", "v1"));
        get_manifest(&proxy, "strict/team/app", "v1").await.ok();
    });
}

#[test]
fn other_remotes_may_name_statuses_that_serve_the_stored_copy() {
    run(async {
        let up = Upstream::start().await;
        up.file("/x", File::new("first").etag("\"1\""));
        let keys = "mutable_patterns: ['.*']\n  cache: {mutable_ttl: 0}";
        let yaml = format!(
            "set:\n  base_url: {0}\n  {keys}\n  serve_stale_on: [503, 429]\nplain:\n  base_url: {0}\n  {keys}\n",
            up.base()
        );
        let proxy = Proxy::start(&yaml).await;
        for remote in ["set", "plain"] {
            proxy.fetch(remote, "x").await.is("remote", "first");
        }
        for status in [503, 429, 500] {
            up.reply("/x", Reply::status(status).header("Retry-After", "9"));
            if status != 500 {
                proxy.fetch("set", "x").await.is("cache", "first");
            } else {
                proxy.fetch("set", "x").await.expect(500);
            }
            let answer = proxy.fetch("plain", "x").await.expect(status);
            assert_eq!(answer.header("retry-after"), Some("9"));
        }
    });
}

#[test]
fn an_error_is_passed_on_and_a_missing_tag_is_forgotten() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let (registry, proxy) = pair(&image, EXPIRED).await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        until_cached(&proxy, &manifest_at("hub/team/app", "v1")).await;
        let path = manifest_at("team/app", "v1");
        registry.instead(&path, Reply::new(500, "oops"));
        let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
        assert!(answer.status >= 500, "{}", answer.status);
        registry.normal(&path);
        registry.up.forget();
        get_manifest(&proxy, "hub/team/app", "v1")
            .await
            .is("cache", &image.bytes);
        assert_eq!(registry.count("GET", &path), 0, "the copy was thrown away");
        registry.untag("team/app", "v1");
        refused(
            get_manifest(&proxy, "hub/team/app", "v1").await,
            404,
            "MANIFEST_UNKNOWN",
        );
        registry.switch_off().await;
        let answer = get_manifest(&proxy, "hub/team/app", "v1").await;
        assert!(matches!(answer.status, 502..=504), "{}", answer.text());
        // By its digest it is here for ever.
        get_manifest(&proxy, "hub/team/app", &image.digest)
            .await
            .is("cache", &image.bytes);
    });
}

#[test]
fn what_is_left_of_the_pull_limit_is_a_gauge() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let (registry, proxy) = pair(&image, EXPIRED).await;
        let gauge = async || {
            let text = client::get(proxy.address(), "/metrics").await.ok().text();
            let lines = text.lines().filter(|line| {
                line.starts_with("artifactapi_") && line.contains("ratelimit_remaining") && line.contains("\"hub\"")
            });
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            values.collect::<Vec<_>>()
        };
        registry.header("ratelimit-limit", "100;w=21600");
        for left in [76, 75, 0] {
            registry.header("ratelimit-remaining", &format!("{left};w=21600"));
            head_manifest(&proxy, "hub/team/app", "v1").await.ok();
            assert_eq!(gauge().await, [f64::from(left)]);
        }
        // What cannot be read changes nothing.
        registry.header("ratelimit-remaining", "many");
        head_manifest(&proxy, "hub/team/app", "v1").await.ok();
        assert_eq!(gauge().await, [0.0]);
    });
}

#[test]
fn a_tag_that_moved_while_its_content_went_is_found_again() {
    run(async {
        let (old, new) = (Manifest::image("old", "amd64", 1), Manifest::image("new", "amd64", 1));
        let (registry, proxy) = pair(&old, "cache: {mutable_ttl: 3600}").await;
        as_clients(&proxy, &[ACCEPT_ALL]).await;
        until_cached(&proxy, &manifest_at("hub/team/app", "v1")).await;
        // The content is flushed, where it leads is not; and upstream has collected it.
        let body = serde_json::json!({"remote": "hub", "prefix": "manifests/"}).to_string();
        proxy.request("PUT", "/cache/flush", &[], body.as_bytes()).await.ok();
        registry.push("team/app", "v1", &new);
        registry.instead(
            &manifest_at("team/app", &old.digest),
            crate::common::registry::error(404, "MANIFEST_UNKNOWN"),
        );
        let answer = get_manifest_as(&proxy, "hub/team/app", "v1", ACCEPT_ALL).await.ok();
        assert!(answer.body == new.bytes);
        assert_eq!(answer.must("docker-content-digest"), new.digest);
    });
}

#[test]
fn a_head_tells_the_validator_that_a_get_tells() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let (registry, proxy) = pair(&image, "cache: {mutable_ttl: 300}").await;
        for reference in ["v1", image.digest.as_str()] {
            registry.change(&manifest_at("team/app", reference), |_, mut reply| {
                let named = |name: &str| {
                    name.eq_ignore_ascii_case("etag") || name.eq_ignore_ascii_case("docker-content-digest")
                };
                // By tag the digest is needed; by digest a storage host says neither.
                reply.headers.retain(|(name, _)| !named(name));
                reply
            });
        }
        let tag = image.digest.clone();
        registry.change(&manifest_at("team/app", "v1"), move |_, mut reply| {
            reply.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("etag"));
            reply.header("Docker-Content-Digest", tag.clone())
        });
        for reference in ["v1", image.digest.as_str()] {
            let target = manifest_at("hub/team/app", reference);
            let head = proxy
                .request("HEAD", &target, &[("Accept", ACCEPT_ALL)], b"")
                .await
                .ok();
            let whole = get_manifest_as(&proxy, "hub/team/app", reference, ACCEPT_ALL)
                .await
                .ok();
            for name in ["etag", "docker-content-digest"] {
                assert_eq!(head.must(name), whole.must(name), "{reference}");
            }
            assert_eq!(head.must("docker-content-digest"), image.digest);
        }
    });
}
