//! npm documents beyond what an install shows: under which address links are written, lock files, very large packuments.

use crate::common::client::Headers;
use crate::common::packages::{NPM_ABBREVIATED, NpmVersion, packuments, serve_npm};
use crate::common::server::at;
use crate::common::{Proxy, Reply, Response, Upstream, run};
use serde_json::{Value, json};

const REMOTE: &str = "package: npm\n  check_mutable_updates: true\n  immutable_patterns: ['\\.tgz$']\n  \
                      mutable_patterns: ['^(?!.*\\.tgz$).*']\n  cache: {mutable_ttl: 600}\n";

fn versions() -> Vec<NpmVersion> {
    vec![
        NpmVersion::new("plain", "1.0.0", json!({})),
        NpmVersion::new("@scope/inner", "2.0.0", json!({})),
    ]
}

async fn registry() -> Upstream {
    let registry = Upstream::start().await;
    serve_npm(&registry, &registry, &versions());
    registry
}

fn remote(registry: &Upstream, lines: &str) -> String {
    format!("npm:\n  base_url: {}\n  {lines}\n  {REMOTE}", registry.base())
}

#[track_caller]
fn tarball(answer: Response) -> String {
    let document = answer.ok().json();
    let versions = document["versions"].as_object().unwrap();
    let manifest = versions.values().next().unwrap();
    manifest["dist"]["tarball"].as_str().unwrap().to_owned()
}

#[test]
fn tarball_urls_can_stay_as_upstream_has_them() {
    run(async {
        let (registry, tarballs) = (Upstream::start().await, Upstream::start().await);
        serve_npm(&registry, &tarballs, &versions());
        let proxy = Proxy::start(&remote(&registry, "tarball_urls: upstream")).await;
        for (path, upstream) in [("plain", "/plain"), ("@scope%2finner", "/@scope%2finner")] {
            for accept in ["application/json", NPM_ABBREVIATED] {
                let original = crate::common::get_with(registry.address(), upstream, &[("Accept", accept)]).await;
                registry.forget();
                for _ in 0..2 {
                    let answer = proxy.fetch_with("npm", path, &[("Accept", accept)]).await.ok();
                    assert_eq!(answer.text(), original.text());
                    assert_eq!(answer.must("content-type"), accept);
                    assert!(
                        answer.must("vary").to_lowercase().contains("accept"),
                        "{:?}",
                        answer.headers
                    );
                }
                assert_eq!(registry.total(), 1);
            }
        }
        // npm's replace-registry-host brings a tarball of the registry's own back here.
        let own = registry_with_own_tarballs().await;
        let proxy = Proxy::start(&remote(&own, "tarball_urls: upstream")).await;
        let link = tarball(proxy.fetch("npm", "plain").await);
        let path = link
            .strip_prefix(&format!("{}/", own.base()))
            .expect("upstream's own address");
        proxy.fetch("npm", path).await.is("remote", &versions()[0].bytes);
    });
}

async fn registry_with_own_tarballs() -> Upstream {
    registry().await
}

#[test]
fn a_doubled_prefix_reaches_the_same_document() {
    run(async {
        let registry = registry().await;
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        let once = proxy.fetch("npm", "plain").await.ok();
        proxy.until_cached("npm", "plain").await;
        for path in ["api/v1/remote/npm/plain", "api/v1/remote/npm/api/v1/remote/npm/plain"] {
            proxy.fetch("npm", path).await.is("cache", &once.body);
        }
        let file = "plain/-/plain-1.0.0.tgz";
        proxy
            .fetch("npm", &format!("api/v1/remote/npm/{file}"))
            .await
            .is("remote", &versions()[0].bytes);
        proxy.until_cached("npm", file).await.is("cache", &versions()[0].bytes);
        let scoped = proxy.fetch("npm", "api/v1/remote/npm/@scope%2finner").await;
        assert!(tarball(scoped).ends_with("/api/v1/remote/npm/@scope/inner/-/inner-2.0.0.tgz"));
        let asked = registry.log().into_iter().map(|seen| seen.path).collect::<Vec<_>>();
        assert_eq!(asked, ["/plain", "/plain/-/plain-1.0.0.tgz", "/@scope%2finner"]);
    });
}

#[test]
fn the_two_spellings_of_a_scoped_tarball_are_one_file() {
    run(async {
        let registry = registry().await;
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        let bytes = &versions()[1].bytes;
        let file = "@scope%2Finner/-/inner-2.0.0.tgz";
        proxy.fetch("npm", file).await.is("remote", bytes);
        proxy.until_cached("npm", file).await;
        for spelling in ["@scope%2finner", "@scope/inner", "%40scope%2Finner", "%40scope/inner"] {
            let file = format!("{spelling}/-/inner-2.0.0.tgz");
            proxy.fetch("npm", &file).await.is("cache", bytes);
        }
        assert_eq!(registry.count("GET", &versions()[1].path()), 1);
    });
}

#[test]
fn a_remote_bound_to_a_host_is_its_root() {
    run(async {
        let registry = registry().await;
        registry.reply("/health", Reply::ok("{\"name\":\"health\",\"versions\":{}}"));
        let proxy = Proxy::settings()
            .remotes(&format!(
                "{}files:\n  base_url: {}\n",
                remote(&registry, "hosts: [npm.test, NPM2.test]"),
                registry.base()
            ))
            .env("ARTIFACTAPI_PUBLIC_URL", "https://public.test/base")
            .start()
            .await;
        let get = async |host: &str, target: &str| proxy.request("GET", target, &[("Host", host)], b"").await;
        for (host, base) in [
            ("npm.test", "http://npm.test"),
            ("npm.test:8081", "http://npm.test:8081"),
            ("NPM.Test", "http://NPM.Test"),
            ("npm2.test", "http://npm2.test"),
        ] {
            let link = tarball(get(host, "/plain").await);
            assert!(
                link.eq_ignore_ascii_case(&format!("{base}/plain/-/plain-1.0.0.tgz")),
                "{host}: {link}"
            );
            let link = tarball(get(host, "/@scope%2finner").await);
            assert!(
                link.eq_ignore_ascii_case(&format!("{base}/@scope/inner/-/inner-2.0.0.tgz")),
                "{host}: {link}"
            );
        }
        // One object, however it is reached.
        let file = get("npm.test", "/plain/-/plain-1.0.0.tgz").await.ok();
        assert_eq!(file.body, versions()[0].bytes);
        proxy
            .until_cached("npm", "plain/-/plain-1.0.0.tgz")
            .await
            .is("cache", &versions()[0].bytes);
        let outside = tarball(proxy.fetch("npm", "plain").await);
        assert_eq!(
            outside,
            "https://public.test/base/api/v1/remote/npm/plain/-/plain-1.0.0.tgz"
        );
        assert_eq!(registry.count("GET", "/plain"), 1);
        assert_eq!(registry.count("GET", "/plain/-/plain-1.0.0.tgz"), 1);
        // Every path there belongs to the remote, our own endpoints included.
        assert_eq!(get("npm.test", "/health").await.ok().json()["name"], "health");
        for target in ["/api/v1/remote/files/plain", "/metrics", "/config"] {
            let answer = get("npm.test", target).await;
            assert!(answer.status == 404, "{target}: {} {}", answer.status, answer.text());
            assert!(answer.json()["error"].is_string(), "{target}: {}", answer.text());
        }
        let flush = proxy
            .request("PUT", "/cache/flush", &[("Host", "npm.test")], b"")
            .await
            .expect(405);
        assert!(flush.json()["error"].is_string(), "{}", flush.text());
        // And on no other name.
        assert_eq!(get("other.test", "/plain").await.status, 404);
        // A trusted proxy says which name the client used; HTTP/2 says it by its authority.
        let forwarded = [("X-Forwarded-Host", "npm.test"), ("X-Forwarded-Proto", "https")];
        let link = tarball(proxy.request("GET", "/plain", &forwarded, b"").await);
        assert_eq!(link, "https://npm.test/plain/-/plain-1.0.0.tgz");
    });
}

/// What a packument's tarball starts with when the request has these headers.
async fn base_of(proxy: &Proxy, headers: &[(&str, &str)]) -> String {
    let link = tarball(proxy.fetch_with("npm", "plain", headers).await);
    let end = "/api/v1/remote/npm/plain/-/plain-1.0.0.tgz";
    link.strip_suffix(end).unwrap_or_else(|| panic!("{link}")).to_owned()
}

#[test]
fn a_trusted_proxy_says_how_clients_know_us() {
    run(async {
        let registry = registry().await;
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        for (headers, base) in [
            (&[("Host", "h.test")][..], "http://h.test"),
            (&[("Host", "h.test:81")], "http://h.test:81"),
            (&[("Host", "[::1]:81")], "http://[::1]:81"),
            (&[("Host", "h.test"), ("X-Forwarded-Proto", "https")], "https://h.test"),
            (
                &[
                    ("Host", "h.test"),
                    ("X-Forwarded-Host", "f.test"),
                    ("X-Forwarded-Port", "8443"),
                ],
                "http://f.test:8443",
            ),
            (
                &[
                    ("Host", "h.test"),
                    ("X-Forwarded-Host", "f.test"),
                    ("X-Forwarded-Proto", "https"),
                    ("X-Forwarded-Port", "443"),
                    ("X-Forwarded-Prefix", "/one/two/"),
                ],
                "https://f.test/one/two",
            ),
            // Of a list the value that the last trusted proxy wrote.
            (
                &[
                    ("X-Forwarded-Host", "evil.test, f.test"),
                    ("X-Forwarded-Proto", "http, https"),
                ],
                "https://f.test",
            ),
            (
                &[("X-Forwarded-Host", "evil.test"), ("X-Forwarded-Host", "f.test")],
                "http://f.test",
            ),
            (&[("Forwarded", "host=f.test;proto=https")], "https://f.test"),
            (
                &[(
                    "Forwarded",
                    "host=evil.test, for=\"[::1]\";HOST=\"f.test:8443\";Proto=HTTPS",
                )],
                "https://f.test:8443",
            ),
            (
                &[("Forwarded", "host=f.test;proto=https"), ("X-Forwarded-Host", "x.test")],
                "https://f.test",
            ),
            // What stands in quotes parts nothing.
            (
                &[(
                    "Forwarded",
                    "host=f.test;by=\"a, host=evil.test;proto=http\";proto=\"https\"",
                )],
                "https://f.test",
            ),
            (&[("Forwarded", "host=\"f\\.test\";proto=https")], "https://f.test"),
            (&[("Host", "h.test"), ("X-Forwarded-Port", "+80")], "http://h.test"),
            (
                &[("Host", "h.test:81"), ("X-Forwarded-Port", "+80")],
                "http://h.test:81",
            ),
        ] {
            assert_eq!(base_of(&proxy, headers).await, base, "{headers:?}");
        }
        assert_eq!(registry.count("GET", "/plain"), 1);
    });
}

#[test]
fn an_untrusted_peer_says_nothing_but_its_host() {
    run(async {
        let registry = registry().await;
        let proxy = Proxy::settings()
            .remotes(&remote(&registry, "hosts: [bound.test]"))
            .conf("trusted_proxies: [\"10.0.0.0/8\"]\n")
            .start()
            .await;
        for (name, value) in [
            ("Forwarded", "host=f.test;proto=https"),
            ("X-Forwarded-Host", "f.test"),
            ("X-Forwarded-Host", "bound.test"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Port", "8443"),
            ("X-Forwarded-Prefix", "/one"),
        ] {
            let headers = [("Host", "h.test"), (name, value)];
            assert_eq!(base_of(&proxy, &headers).await, "http://h.test", "{name}: {value}");
        }
    });
}

#[test]
fn the_public_url_wins_over_everything() {
    run(async {
        let registry = registry().await;
        let proxy = Proxy::settings()
            .remotes(&remote(&registry, "description: x"))
            .env("ARTIFACTAPI_PUBLIC_URL", "https://public.test/base/")
            .start()
            .await;
        for headers in [
            &[("Host", "h.test")][..],
            &[("X-Forwarded-Host", "f.test"), ("X-Forwarded-Prefix", "/x")],
            &[("Forwarded", "host=f.test;proto=http")],
        ] {
            assert_eq!(base_of(&proxy, headers).await, "https://public.test/base");
        }
    });
}

#[test]
fn a_host_that_is_none_is_not_written_into_links() {
    run(async {
        let registry = registry().await;
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        for bad in [
            "a/b",
            "a\"b",
            "<x>",
            "a b",
            "a@b",
            "a:b:c",
            "h.test:99999",
            "x\\y",
            "a?b",
            "a#b",
        ] {
            let answer = proxy.fetch_with("npm", "plain", &[("Host", bad)]).await;
            assert_eq!(answer.status, 400, "{bad}: {}", answer.text());
            assert!(!answer.text().contains("dist"), "{bad}: {}", answer.text());
        }
        for prefix in ["//evil.test", "/a/../b", "/a\"b", "nope"] {
            let base = base_of(&proxy, &[("Host", "h.test"), ("X-Forwarded-Prefix", prefix)]).await;
            assert_eq!(base, "http://h.test", "{prefix}");
        }
    });
}

#[test]
fn any_number_of_hosts_is_served_from_one_fetch() {
    run(async {
        let registry = registry().await;
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        for round in 0..2 {
            for number in 0..40 {
                let host = format!("h{number}.test");
                assert_eq!(
                    base_of(&proxy, &[("Host", &host)]).await,
                    format!("http://{host}"),
                    "{round}"
                );
            }
        }
        assert_eq!(registry.count("GET", "/plain"), 1);
    });
}

#[test]
fn a_tarball_elsewhere_can_be_asked_for_first() {
    run(async {
        let (registry, cdn) = (Upstream::start().await, Upstream::start().await);
        serve_npm(&registry, &cdn, &versions());
        let mut proxy = Proxy::start(&remote(&registry, "description: x")).await;
        for (version, document) in versions().iter().zip(["/plain", "/@scope%2finner"]) {
            let path = format!("-/host/{}{}", cdn.authority(), version.path());
            assert_eq!(proxy.fetch("npm", &path).await.ok().body, version.bytes);
            let unknown = path.replace(".tgz", "9.tgz");
            let refused = proxy.fetch("npm", &unknown).await.expect(403).json();
            assert!(refused["error"].as_str().unwrap().contains("file_hosts"), "{refused}");
            assert_eq!(registry.count("GET", document), 1);
        }
        // What an index named once is known after a flush and a restart.
        registry.switch_off().await;
        proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
        proxy.restart().await;
        let path = format!("-/host/{}{}", cdn.authority(), versions()[0].path());
        assert_eq!(proxy.fetch("npm", &path).await.ok().body, versions()[0].bytes);
    });
}

#[test]
fn every_change_is_refused_in_npms_own_form() {
    run(async {
        let registry = registry().await;
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        for (method, path) in [
            ("PUT", "plain"),
            ("PUT", "@scope%2finner"),
            ("DELETE", "plain/-rev/1"),
            ("PUT", "-/user/org.couchdb.user:me"),
            ("POST", "-/v1/login"),
            ("GET", "-/whoami"),
            ("GET", "-/npm/v1/user"),
            ("PUT", "-/package/plain/dist-tags/beta"),
            ("DELETE", "-/package/plain/dist-tags/beta"),
            ("POST", "-/npm/v1/tokens"),
        ] {
            let headers = [("Authorization", "Bearer secret"), ("Content-Type", "application/json")];
            let body: &[u8] = if method == "GET" { b"" } else { b"{}" };
            let answer = proxy.request(method, &at("npm", path), &headers, body).await;
            assert!(matches!(answer.status, 403 | 405), "{method} {path}: {}", answer.status);
            let said = answer.json();
            assert!(
                said["error"].as_str().is_some_and(|text| !text.is_empty()),
                "{method} {path}: {said}"
            );
        }
        assert_eq!(registry.total(), 0);
    });
}

#[test]
fn an_ecosystems_services_are_passed_through_and_not_kept() {
    run(async {
        let registry = registry().await;
        for path in [
            "/-/v1/search?text=x&size=20",
            "/-/npm/v1/keys",
            "/-/package/plain/dist-tags",
        ] {
            registry.reply(
                path,
                Reply::ok("{\"n\":1}")
                    .content_type("application/json")
                    .header("Set-Cookie", "a=1"),
            );
        }
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        for path in [
            "-/v1/search?text=x&size=20",
            "-/npm/v1/keys",
            "-/package/plain/dist-tags",
        ] {
            for _ in 0..2 {
                let headers = [("Authorization", "Bearer secret"), ("Cookie", "a=1")];
                let answer = proxy.fetch_with("npm", path, &headers).await.ok();
                assert_eq!((answer.text().as_str(), answer.source()), ("{\"n\":1}", "remote"));
                assert_eq!(answer.header("set-cookie"), None);
                assert!(
                    !answer.must("cache-control").contains("max-age=3"),
                    "{:?}",
                    answer.headers
                );
            }
            assert_eq!(registry.count("GET", &format!("/{path}")), 2, "{path}");
        }
        for seen in registry.log() {
            assert_eq!((seen.header("authorization"), seen.header("cookie")), (None, None));
        }
        let body = b"\x1f\x8bnot looked into";
        registry.on("/-/npm/v1/security/audits/quick", |seen| Reply::ok(seen.body.to_vec()));
        let answer = proxy
            .request(
                "POST",
                &at("npm", "-/npm/v1/security/audits/quick"),
                &[("Content-Type", "application/json"), ("Content-Encoding", "gzip")],
                body,
            )
            .await
            .ok();
        assert_eq!(answer.body, body.as_slice());
        let seen = registry.last("POST", "/-/npm/v1/security/audits/quick");
        assert_eq!(seen.header("content-encoding"), Some("gzip"));
    });
}

#[test]
fn head_on_a_packument_is_its_get_without_a_body() {
    run(async {
        let registry = registry().await;
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        for accept in [NPM_ABBREVIATED, "application/json"] {
            let head = proxy
                .request("HEAD", &at("npm", "plain"), &[("Accept", accept)], b"")
                .await
                .expect(200);
            let got = proxy.fetch_with("npm", "plain", &[("Accept", accept)]).await.ok();
            assert_eq!(head.must("content-length"), got.body.len().to_string());
            assert_eq!(head.must("content-type"), got.must("content-type"));
            assert_eq!(head.must("etag"), got.must("etag"));
        }
    });
}

#[test]
fn pnpm_reads_dates_that_are_upstreams() {
    run(async {
        let registry = Upstream::start().await;
        let version = NpmVersion::new("dated", "1.0.0", json!({}));
        let (full, short) = packuments(&[&version], &registry.base());
        let modified = "Tue, 14 Nov 2023 22:13:20 GMT";
        registry.on("/dated", move |seen| {
            let short_wanted = seen.header("accept").unwrap_or_default().contains(NPM_ABBREVIATED);
            let (document, kind) = if short_wanted {
                (&short, NPM_ABBREVIATED)
            } else {
                (&full, "application/json")
            };
            Reply::ok(document.to_string())
                .content_type(kind)
                .header("Last-Modified", modified)
        });
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        for accept in [NPM_ABBREVIATED, "application/json"] {
            let headers = [("Accept", accept)];
            for method in ["HEAD", "GET"] {
                let answer = proxy
                    .request(method, &at("npm", "dated"), &headers, b"")
                    .await
                    .expect(200);
                assert_eq!(answer.must("last-modified"), modified, "{method} {accept}");
            }
        }
        let short: Value = proxy
            .fetch_with("npm", "dated", &[("Accept", NPM_ABBREVIATED)])
            .await
            .ok()
            .json();
        assert_eq!(short["modified"], "2021-06-07T08:09:10.111Z");
    });
}

mod heavy {
    use std::time::Duration;

    use super::*;
    use crate::common::packages::gunzip;
    use crate::common::run_for;

    /// Microseconds of CPU that a process has spent so far, all of its threads together.
    fn cpu(proxy: &Proxy) -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap();
        let spent = threads.flatten().filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        spent.sum::<u64>() / 1000
    }

    /// A packument of about 40 MB.
    fn large(tarballs: &str) -> String {
        let mut text = String::with_capacity(42 << 20);
        text.push_str("{\"_id\":\"large\",\"name\":\"large\",\"dist-tags\":{\"latest\":\"1.0.0\"},\"versions\":{");
        let filler = (0..200)
            .map(|number| format!("\"dependency-{number}\":\"^1.{number}\""))
            .collect::<Vec<_>>()
            .join(",");
        for number in 0..7_800 {
            let comma = if number == 0 { "" } else { "," };
            let version = format!("1.0.{number}");
            text.push_str(&format!(
                "{comma}\"{version}\":{{\"name\":\"large\",\"version\":\"{version}\",\"n\":1.50,\"dependencies\":{{{filler}}},\
                 \"dist\":{{\"tarball\":\"{tarballs}/large/-/large-{version}.tgz\",\"shasum\":\"{number:040}\"}}}}"
            ));
        }
        text.push_str("},\"readme\":\"# large\"}");
        text
    }

    #[test]
    fn a_large_packument_is_rewritten_once_in_bounded_memory() {
        run_for(Duration::from_secs(180), async {
            const MB: u64 = 1_000_000;
            let registry = Upstream::start().await;
            let text = large(&registry.base());
            assert!(text.len() as u64 > 36 * MB, "{}", text.len());
            registry.reply(
                "/large",
                Reply::ok(text.clone())
                    .content_type("application/json")
                    .etag("\"upstream\"")
                    .header("Content-MD5", "x"),
            );
            let proxy = Proxy::settings()
                .remotes(&remote(&registry, "description: x"))
                .conf("cache: {memory_bytes: 4MB}\n")
                .start()
                .await;
            let expected = text.replace(&format!("{}/large/-/", registry.base()), &proxy.url("npm", "large/-/"));
            // A small one first, so that only what the size costs is measured.
            registry.reply(
                "/small",
                Reply::ok("{\"versions\":{}}").content_type("application/json"),
            );
            proxy.fetch("npm", "small").await.ok();
            let (before, _) = proxy.memory();
            let start = cpu(&proxy);
            let first = proxy.fetch("npm", "large").await.ok();
            let rewriting = cpu(&proxy) - start;
            assert!(
                first.text() == expected,
                "not the packument with its tarballs rewritten"
            );
            drop(first);
            let plain = proxy.until_cached("npm", "large").await;
            let start = cpu(&proxy);
            let again = proxy.fetch("npm", "large").await.is("cache", &expected);
            let serving = cpu(&proxy) - start;
            assert!(
                serving * 2 < rewriting,
                "{serving} µs from the cache, {rewriting} with the rewriting: it is rewritten again"
            );
            assert_eq!(again.must("content-length"), expected.len().to_string());
            assert_eq!(again.header("content-encoding"), None);
            assert_eq!(again.header("content-md5"), None);
            assert_ne!(again.must("etag"), "\"upstream\"");
            drop(again);

            // The compressed form is made once too.
            let packed = [("Accept-Encoding", "gzip, deflate, br")];
            let start = cpu(&proxy);
            let first = proxy.fetch_with("npm", "large", &packed).await.ok();
            let packing = cpu(&proxy) - start;
            assert_eq!(first.must("content-encoding"), "gzip");
            assert!(gunzip(&first.body) == expected.as_bytes(), "gzip holds something else");
            assert!(first.body.len() * 5 < expected.len(), "{} bytes", first.body.len());
            let mut second = proxy.fetch_with("npm", "large", &packed).await.ok();
            crate::common::eventually(Duration::from_secs(10), "the compressed form is kept", async || {
                second = proxy.fetch_with("npm", "large", &packed).await.ok();
                second.header("etag").is_some() && second.header("content-length").is_some()
            })
            .await;
            let start = cpu(&proxy);
            proxy.fetch_with("npm", "large", &packed).await.ok();
            let serving = cpu(&proxy) - start;
            assert!(
                serving * 4 < packing.max(4),
                "{serving} ticks, {packing} with the compression"
            );
            assert_eq!(second.body, first.body);
            assert_eq!(second.must("content-length"), first.body.len().to_string());
            assert_ne!(second.must("etag"), plain.must("etag"));
            for answer in [&plain, &second] {
                let vary = answer.must("vary").to_lowercase();
                assert!(vary.contains("accept-encoding"), "{vary}");
                let names = vary.split(',').map(str::trim).collect::<Vec<_>>();
                assert!(names.contains(&"accept"), "{vary}");
            }
            // Each form is validated by its own tag, and a range is of the form that is served.
            let tag = second.must("etag").to_owned();
            let with = [("Accept-Encoding", "gzip"), ("If-None-Match", tag.as_str())];
            let unchanged = proxy.fetch_with("npm", "large", &with).await.expect(304);
            assert_eq!(unchanged.must("etag"), tag);
            let head = proxy
                .request("HEAD", &at("npm", "large"), &packed, b"")
                .await
                .expect(200);
            assert_eq!(head.must("content-length"), second.body.len().to_string());
            for identity in ["identity", "gzip;q=0", "br", "*;q=0, identity"] {
                let headers = [("Accept-Encoding", identity), ("If-None-Match", tag.as_str())];
                let head = proxy
                    .request("HEAD", &at("npm", "large"), &headers, b"")
                    .await
                    .expect(200);
                assert_eq!(head.header("content-encoding"), None, "{identity}");
                assert_eq!(head.must("content-length"), expected.len().to_string(), "{identity}");
            }
            assert_eq!(registry.count("*", "/large"), 1);
            let (_, peak) = proxy.memory();
            println!("{rewriting} µs for the rewriting, {packing} µs for the compression, {serving} µs for serving it");
            println!(
                "{} MB packument: {} MB of memory before, {} MB at most",
                expected.len() as u64 / MB,
                before / MB,
                peak / MB
            );
            assert!(peak < before + 40 * MB, "from {before} to {peak}");
        });
    }

    #[test]
    fn many_clients_of_a_large_cold_packument_cost_one_rewriting() {
        run_for(Duration::from_secs(180), async {
            let registry = Upstream::start().await;
            let text = large(&registry.base());
            registry.reply("/large", Reply::ok(text.clone()).content_type("application/json"));
            let proxy = Proxy::settings()
                .remotes(&remote(&registry, "description: x"))
                .conf("cache: {memory_bytes: 4MB}\n")
                .start()
                .await;
            let expected = text.replace(&format!("{}/large/-/", registry.base()), &proxy.url("npm", "large/-/"));
            let digest = crate::common::sha256(expected.as_bytes());
            let (before, _) = proxy.memory();
            let mut clients = tokio::task::JoinSet::new();
            for _ in 0..6 {
                let address = proxy.address();
                clients.spawn(async move {
                    let answer = crate::common::get(address, &at("npm", "large")).await.ok();
                    crate::common::sha256(&answer.body)
                });
            }
            while let Some(got) = clients.join_next().await {
                assert_eq!(got.unwrap(), digest);
            }
            assert_eq!(registry.count("*", "/large"), 1);
            let (_, peak) = proxy.memory();
            assert!(peak < before + 60_000_000, "from {before} to {peak}");
        });
    }
}

// Who may ask under any name

/// The base URLs that views of documents are stored for.
fn stored_bases(proxy: &Proxy) -> Vec<String> {
    stored_views(proxy).into_keys().collect()
}

/// Base URLs with the number, on the disk, of the file of a view.
fn stored_views(proxy: &Proxy) -> std::collections::BTreeMap<String, u64> {
    use std::os::unix::fs::MetadataExt;
    let mut views = std::collections::BTreeMap::new();
    for path in crate::common::server::stored_files(&proxy.data_dir()) {
        let (Ok(bytes), Ok(metadata)) = (std::fs::read(&path), path.metadata()) else {
            continue;
        };
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(600)]).into_owned();
        if let Some((_, rest)) = start.split_once("/for http://") {
            views.extend(rest.split('/').next().map(|base| (base.to_owned(), metadata.ino())));
        }
    }
    views
}

async fn under(proxy: &Proxy, host: &str) -> Response {
    proxy.request("GET", &at("npm", "plain"), &[("Host", host)], b"").await
}

#[test]
fn names_that_anybody_makes_up_do_not_push_out_the_one_that_is_used() {
    run(async {
        let registry = registry().await;
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        under(&proxy, "honest.test").await.ok();
        crate::common::eventually(
            std::time::Duration::from_secs(10),
            "the first view is stored",
            async || !stored_views(&proxy).is_empty(),
        )
        .await;
        let first = stored_views(&proxy);
        for number in 0..40 {
            under(&proxy, &format!("made-up-{number}.test")).await.ok();
            under(&proxy, "honest.test").await.ok();
        }
        crate::common::eventually(std::time::Duration::from_secs(10), "all views are stored", async || {
            stored_bases(&proxy).contains(&"made-up-39.test".to_owned())
        })
        .await;
        // The very file of the beginning: it was not made again either.
        assert_eq!(stored_views(&proxy).get("honest.test"), first.get("honest.test"));
        let bases = stored_bases(&proxy);
        assert!(!bases.contains(&"made-up-0.test".to_owned()), "{bases:?}");
        assert!(bases.len() <= 16, "{bases:?}");
        assert_eq!(registry.count("GET", "/plain"), 1);
    });
}

/// A document of half a megabyte, whose links stand at its end.
/// A packument of a little more than so many bytes.
fn long_packument(registry: &Upstream, bytes: usize) -> String {
    let (document, _) = packuments(&[&versions()[0]], &registry.base());
    let mut text = document.to_string();
    text.insert_str(1, &format!("\"readme\":\"{}\",", "x".repeat(bytes)));
    text
}

#[test]
fn few_views_are_made_at_once_for_names_that_were_not_seen_before() {
    run(async {
        let registry = Upstream::start().await;
        serve_npm(&registry, &registry, &versions());
        let (text, gate) = (long_packument(&registry, 500_000), crate::common::Gate::new());
        let half = text.len() as u64 - 100;
        registry.reply(
            "/plain",
            Reply::ok(text).content_type("application/json").pause_at(half, &gate),
        );
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        let begun = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..10 {
            let (mut connection, begun) = (proxy.connect().await, begun.clone());
            let host = format!("made-up-{number}.test");
            clients.spawn(async move {
                connection
                    .send("GET", &at("npm", "plain"), &[("Host", &host)], b"")
                    .await;
                assert_eq!(connection.read_head("GET").await.status, 200);
                begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let body = connection.read_body().await;
                assert!(connection.is_complete());
                assert!(String::from_utf8_lossy(&body).contains(&format!("http://{host}/api/v1/remote/npm/plain/-/")));
            });
        }
        let begun = || begun.load(std::sync::atomic::Ordering::SeqCst);
        // The first of all, and two that came after it.
        crate::common::eventually(std::time::Duration::from_secs(10), "three have begun", async || {
            begun() == 3
        })
        .await;
        // And no more.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(begun(), 3);
        // They take nobody's place: upstream may take long.
        for host in ["first.test", "new.test", "newer.test"] {
            let (path, host) = (at("npm", "@scope%2finner"), [("Host", host)]);
            let other = proxy.request("GET", &path, &host, b"");
            let other = tokio::time::timeout(std::time::Duration::from_secs(10), other).await;
            other.expect("a document that is there").ok();
        }
        gate.open();
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        assert_eq!(registry.count("GET", "/plain"), 1);
    });
}

#[test]
fn a_view_that_nobody_waits_for_is_dropped() {
    run(async {
        let registry = Upstream::start().await;
        // More than sockets hold: who leaves is noticed by what cannot be sent to it.
        let (text, gate) = (long_packument(&registry, 40_000_000), crate::common::Gate::new());
        let half = text.len() as u64 - 200_000;
        registry.reply(
            "/plain",
            Reply::ok(text)
                .content_type("application/json")
                .pieces(256 * 1024)
                .pause_at(half, &gate),
        );
        let proxy = Proxy::start(&remote(&registry, "description: x")).await;
        let mut clients = Vec::new();
        for host in ["stays.test", "leaves.test"] {
            let mut connection = proxy.connect().await;
            connection
                .send("GET", &at("npm", "plain"), &[("Host", host)], b"")
                .await;
            assert_eq!(connection.read_head("GET").await.status, 200);
            connection.read_body_until(100_000).await;
            clients.push(connection);
        }
        clients.pop().expect("the second").reset();
        crate::common::eventually(
            std::time::Duration::from_secs(10),
            "it is known to have left",
            async || proxy.metric("artifactapi_requests_total", &["remote=\"npm\""]).await == 1.0,
        )
        .await;
        gate.open();
        clients.pop().expect("the first").read_body().await;
        crate::common::eventually(std::time::Duration::from_secs(10), "a view is stored", async || {
            stored_bases(&proxy).contains(&"stays.test".to_owned())
        })
        .await;
        assert_eq!(stored_bases(&proxy), ["stays.test"]);
        // Whoever asks gets it.
        let again = under(&proxy, "leaves.test").await.ok().text();
        assert!(again.contains("http://leaves.test/api/v1/remote/npm/plain/-/plain-1.0.0.tgz"));
        assert_eq!(registry.count("GET", "/plain"), 1);
    });
}
