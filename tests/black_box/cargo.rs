//! Cargo registries: where `config.json` leads, what is revalidated, crates on other hosts and their checksums, the web API.

use crate::common::client::Headers;
use crate::common::packages::{Crate, serve_crates};
use crate::common::server::at;
use crate::common::{File, Gate, Proxy, Reply, Response, Upstream, run};
use serde_json::{Value, json};

fn remote(index: &Upstream, lines: &str) -> String {
    format!(
        "crates:\n  base_url: {}/index\n  package: cargo\n  {lines}\n",
        index.base()
    )
}

/// A registry whose crates are on another host.
async fn registry(crates: &[Crate]) -> (Upstream, Upstream) {
    let (index, files) = (Upstream::start().await, Upstream::start().await);
    serve_crates(&index, &files, crates);
    (index, files)
}

/// The path below the remote that cargo asks for, by a `dl`.
fn download(proxy: &Proxy, config: &Value, one: &Crate) -> String {
    let dl = config["dl"].as_str().unwrap();
    let url = dl
        .replace("{crate}", &one.name)
        .replace("{version}", &one.version)
        .replace("{sha256-checksum}", &one.checksum());
    let path = url.strip_prefix(&proxy.url("crates", ""));
    path.unwrap_or_else(|| panic!("{url} leads elsewhere")).to_owned()
}

#[track_caller]
fn detail(answer: &Response) -> String {
    assert!(answer.must("content-type").starts_with("application/json"));
    let errors = answer.json()["errors"].clone();
    errors[0]["detail"].as_str().expect("cargo's form").to_owned()
}

#[test]
fn config_json_leads_here_under_the_name_that_the_client_uses() {
    run(async {
        let one = Crate::new("one", "1.0.0", &[]);
        let (index, files) = registry(std::slice::from_ref(&one)).await;
        let proxy = Proxy::start(&remote(&index, "hosts: [crates.test]")).await;
        let below = format!("-/host/{}", files.authority());
        let dl = format!("{below}/crates/{{crate}}/{{version}}/download/-/sha256/{{sha256-checksum}}");
        for (target, host, root) in [
            (
                at("crates", "config.json"),
                "10.0.0.7:8000",
                "http://10.0.0.7:8000/api/v1/remote/crates",
            ),
            (
                at("crates", "config.json"),
                "proxy.test",
                "http://proxy.test/api/v1/remote/crates",
            ),
            ("/config.json".to_owned(), "crates.test", "http://crates.test"),
        ] {
            for _ in 0..2 {
                let answer = proxy.request("GET", &target, &[("Host", host)], b"").await.ok();
                assert!(answer.must("content-type").starts_with("application/json"));
                let expected = json!({"dl": format!("{root}/{dl}"), "api": format!("{root}/{below}")});
                assert_eq!(answer.json(), expected);
            }
        }
        assert_eq!(index.count("GET", "/index/config.json"), 1);
    });
}

#[test]
fn what_expires_is_revalidated_and_clients_revalidate_here() {
    run(async {
        let (old, new) = (Crate::new("name", "1.0.0", &[]), Crate::new("name", "1.1.0", &[]));
        let (index, files) = registry(std::slice::from_ref(&old)).await;
        let proxy = Proxy::start(&remote(&index, "cache: {mutable_ttl: 0}")).await;
        let first = proxy.fetch("crates", &old.index()).await.is("remote", old.line());
        assert!(first.must("content-type").starts_with("text/plain"));
        for path in [old.index(), "config.json".to_owned()] {
            proxy.fetch("crates", &path).await.ok();
            let stored = proxy.until_cached("crates", &path).await.ok();
            let again = proxy.fetch("crates", &path).await.is("cache", &stored.body);
            assert!(
                again.cache_status().contains("fwd-status=304"),
                "{}",
                again.cache_status()
            );
            let seen = index.last("GET", &format!("/index/{path}"));
            assert!(seen.header("if-none-match").is_some(), "{:?}", seen.headers);
            // As cargo asks.
            let tag = again.must("etag");
            let answer = proxy.fetch_with("crates", &path, &[("If-None-Match", tag)]).await;
            answer.expect(304);
        }
        serve_crates(&index, &files, &[old.clone(), new.clone()]);
        let both = format!("{}{}", old.line(), new.line());
        let headers = [("If-None-Match", first.must("etag"))];
        proxy
            .fetch_with("crates", &old.index(), &headers)
            .await
            .is("remote", &both);
        index.switch_off().await;
        proxy.fetch("crates", &old.index()).await.is("cache", &both);
    });
}

#[test]
fn a_name_in_any_case_is_one_file_of_the_index() {
    run(async {
        let one = Crate::new("MixedCase", "1.0.0", &[]);
        let (index, _files) = registry(std::slice::from_ref(&one)).await;
        let proxy = Proxy::start(&remote(&index, "description: x")).await;
        proxy.fetch("crates", "mi/xe/mixedcase").await.is("remote", one.line());
        for path in ["Mi/xe/MixedCase", "MI/XE/MIXEDCASE"] {
            proxy.until_cached("crates", path).await.is("cache", one.line());
        }
        assert_eq!(index.total(), 1);
    });
}

#[test]
fn crates_are_found_where_the_configuration_names_them() {
    run(async {
        let crates = [
            Crate::new("plain", "1.0.0", &[]),
            Crate::new("a", "1.0.0-rc.1+b.2", &[]),
        ];
        let templates = [
            "/crates",
            "/crates/{crate}/{version}/download",
            "/x/{prefix}/{crate}-{version}.crate",
            "/x/{lowerprefix}/{crate}-{version}.crate",
            "/{sha256-checksum}",
            "/dl?name={crate}&version={version}",
        ];
        for template in templates {
            for is_elsewhere in [true, false] {
                let (index, other) = (Upstream::start().await, Upstream::start().await);
                let (host, below) = if is_elsewhere { (&other, "") } else { (&index, "/index") };
                let dl = host.url(&format!("{below}{template}"));
                index.file("/index/config.json", File::new(json!({"dl": dl}).to_string()));
                for one in &crates {
                    let prefix = one.index().rsplit_once('/').unwrap().0.to_owned();
                    let path = match template {
                        "/crates" => format!("/crates/{}", one.download()),
                        _ => template
                            .replace("{crate}", &one.name)
                            .replace("{version}", &one.version)
                            .replace("{prefix}", &prefix)
                            .replace("{lowerprefix}", &prefix)
                            .replace("{sha256-checksum}", &one.checksum()),
                    };
                    host.file(&format!("{below}{path}"), File::new(one.bytes.clone()));
                }
                let proxy = Proxy::start(&remote(&index, "description: x")).await;
                let config = proxy.fetch("crates", "config.json").await.ok().json();
                for one in &crates {
                    let prefix = one.index().rsplit_once('/').unwrap().0.to_owned();
                    let path = download(&proxy, &config, one)
                        .replace("{prefix}", &prefix)
                        .replace("{lowerprefix}", &prefix);
                    let answer = proxy.fetch("crates", &path).await.is("remote", &one.bytes);
                    assert_eq!(answer.must("content-type"), "application/gzip", "{template}");
                    assert_eq!(answer.header("docker-content-digest"), None);
                    let answer = proxy.until_cached("crates", &path).await.is("cache", &one.bytes);
                    assert!(
                        answer.must("cache-control").contains("immutable"),
                        "{:?}",
                        answer.headers
                    );
                }
            }
        }
    });
}

#[test]
fn a_crate_can_be_asked_for_first_and_its_host_is_known_for_good() {
    run(async {
        let one = Crate::new("one", "1.0.0", &[]);
        let (index, files) = registry(std::slice::from_ref(&one)).await;
        files.reply("/secret/one", Reply::ok("secret"));
        let other = Upstream::start().await;
        other.reply(&format!("/crates/{}", one.download()), Reply::ok("other"));
        let mut proxy = Proxy::start(&remote(&index, "description: x")).await;
        let path = format!("-/host/{}/crates/{}", files.authority(), one.download());
        proxy.fetch("crates", &path).await.is("remote", &one.bytes);
        for (host, path) in [
            (&files, "secret/one"),
            (&files, "crates"),
            (&other, &*format!("crates/{}", one.download())),
        ] {
            let refused = proxy
                .fetch("crates", &format!("-/host/{}/{path}", host.authority()))
                .await
                .expect(403);
            assert!(detail(&refused).contains("file_hosts"), "{}", refused.text());
        }
        assert_eq!((other.total(), files.count("*", "/secret/one")), (0, 0));
        assert_eq!(index.count("GET", "/index/config.json"), 1);
        proxy.until_cached("crates", &path).await;
        index.switch_off().await;
        proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
        proxy.restart().await;
        proxy.fetch("crates", &path).await.is("remote", &one.bytes);
    });
}

#[test]
fn a_crate_with_another_checksum_is_not_kept() {
    run(async {
        let one = Crate::new("one", "1.0.0", &[]);
        let (index, files) = registry(std::slice::from_ref(&one)).await;
        let at_upstream = format!("/crates/{}", one.download());
        let mut damaged = one.bytes.to_vec();
        damaged[20] ^= 1;
        files.sequence(
            &at_upstream,
            vec![Reply::ok(damaged.clone()), Reply::ok(one.bytes.clone())],
        );
        let proxy = Proxy::start(&remote(&index, "description: x")).await;
        let config = proxy.fetch("crates", "config.json").await.ok().json();
        let path = download(&proxy, &config, &one);
        let answer = proxy.fetch("crates", &path).await;
        assert!(answer.status != 200 || !answer.complete, "{}", answer.status);
        proxy.fetch("crates", &path).await.is("remote", &one.bytes);
        proxy.until_cached("crates", &path).await.is("cache", &one.bytes);
        // What upstream puts in its place has another checksum, and is another file.
        let other = Crate::new("one", "1.0.0", &[("two", "1")]);
        files.file(&at_upstream, File::new(other.bytes.clone()));
        let replaced = download(&proxy, &config, &other);
        proxy.fetch("crates", &replaced).await.is("remote", &other.bytes);
        proxy.fetch("crates", &path).await.is("cache", &one.bytes);
        // It is listed under the path that it is asked for by.
        let record = crate::common::get(proxy.address(), &format!("/api/v1/artifacts/crates/{path}")).await;
        assert_eq!(record.ok().json()["path"], path);
    });
}

#[test]
fn patterns_see_the_path_at_upstream() {
    run(async {
        let (one, two) = (Crate::new("one", "1.0.0", &[]), Crate::new("two", "1.0.0", &[]));
        let (index, _files) = registry(&[one.clone(), two.clone()]).await;
        let proxy = Proxy::start(&remote(&index, "immutable_patterns: ['^crates/one/.*/download$']")).await;
        let config = proxy.fetch("crates", "config.json").await.ok().json();
        for (one, status) in [(&one, 200), (&two, 403)] {
            proxy.fetch("crates", &one.index()).await.is("remote", one.line());
            let path = download(&proxy, &config, one);
            proxy.fetch("crates", &path).await.expect(status);
        }
    });
}

#[test]
fn what_is_not_there_keeps_its_status_and_cargo_reads_why() {
    run(async {
        let (index, _files) = registry(&[]).await;
        for (path, status) in [
            ("go/ne/gone", 410),
            ("un/av/unavailable", 451),
            ("br/ok/broken", 500),
            ("to/om/toomany", 429),
        ] {
            index.reply(
                &format!("/index/{path}"),
                Reply::new(status, "<html>").header("Retry-After", "7"),
            );
        }
        let proxy = Proxy::start(&remote(&index, "description: x")).await;
        for (path, status) in [
            ("no/th/nothing", 404),
            ("go/ne/gone", 410),
            ("un/av/unavailable", 451),
            ("br/ok/broken", 500),
            ("to/om/toomany", 429),
        ] {
            for _ in 0..2 {
                let answer = proxy.fetch("crates", path).await.expect(status);
                assert!(detail(&answer).contains(&status.to_string()), "{}", answer.text());
                if status == 429 {
                    assert_eq!(answer.must("retry-after"), "7");
                }
            }
            let asked = if matches!(status, 404 | 410 | 451) { 1 } else { 2 };
            assert_eq!(index.count("GET", &format!("/index/{path}")), asked, "{path}");
        }
    });
}

#[test]
fn a_private_registry_is_asked_with_the_credentials_of_this_proxy() {
    run(async {
        let one = Crate::new("one", "1.0.0", &[]);
        let index = Upstream::start().await;
        let config = json!({"dl": index.url("/crates"), "api": index.base(), "auth-required": true}).to_string();
        let (line, bytes) = (one.line(), one.bytes.clone());
        let paths = [format!("/index/{}", one.index()), format!("/crates/{}", one.download())];
        index.fallback(move |seen| match (seen.header("authorization"), seen.path.as_str()) {
            (Some("token"), "/index/config.json") => Reply::ok(config.clone()),
            (Some("token"), path) if path == paths[0] => Reply::ok(line.clone()),
            (Some("token"), path) if path == paths[1] => Reply::ok(bytes.clone()),
            (Some("token"), _) => Reply::status(404),
            _ => Reply::new(401, "").header("WWW-Authenticate", "Cargo login_url=\"https://x.invalid\""),
        });
        let proxy = Proxy::start(&remote(&index, "headers: {Authorization: token}")).await;
        let config = proxy.fetch("crates", "config.json").await.ok().json();
        assert_eq!(config.get("auth-required"), None, "{config}");
        // What clients bring is theirs.
        let headers = [("Authorization", "theirs")];
        let crate_path = download(&proxy, &config, &one);
        proxy
            .fetch_with("crates", &one.index(), &headers)
            .await
            .is("remote", one.line());
        proxy
            .fetch_with("crates", &crate_path, &headers)
            .await
            .is("remote", &one.bytes);

        let proxy = Proxy::start(&remote(&index, "description: x")).await;
        let refused = proxy.fetch_with("crates", "config.json", &headers).await.expect(403);
        assert!(detail(&refused).contains("401"), "{}", refused.text());
        assert_eq!(refused.header("www-authenticate"), None);
        assert!(
            index
                .log()
                .iter()
                .all(|seen| seen.header("authorization") != Some("theirs"))
        );
    });
}

#[test]
fn the_web_api_is_read_through_and_changed_by_nobody() {
    run(async {
        let one = Crate::new("one", "1.0.0", &[]);
        let (index, files) = registry(std::slice::from_ref(&one)).await;
        let found = json!({"crates": [{"name": "one", "max_version": "1.0.0"}], "meta": {"total": 1}});
        files.reply("/api/v1/crates?q=one&per_page=10", Reply::ok(found.to_string()));
        files.reply("/api/v1/me", Reply::ok("whose token this is"));
        let proxy = Proxy::start(&remote(&index, "description: x")).await;
        let api = format!("-/host/{}", files.authority());
        // Also before anybody has asked for config.json.
        let search = format!("{api}/api/v1/crates?q=one&per_page=10");
        for count in 1..3 {
            let headers = [("Authorization", "theirs")];
            let answer = proxy.fetch_with("crates", &search, &headers).await.ok();
            assert_eq!(answer.json(), found);
            assert_eq!(answer.must("cache-control"), "no-cache");
            assert_eq!(files.count("GET", "/api/v1/crates?q=one&per_page=10"), count);
        }
        assert!(files.log().iter().all(|seen| seen.header("authorization").is_none()));
        let config = proxy.fetch("crates", "config.json").await.ok().json();
        assert_eq!(config["api"], proxy.url("crates", &api));
        let asked = (index.total(), files.total());
        for (method, path, status) in [
            ("PUT", "crates/new", 405),
            ("DELETE", "crates/one/1.0.0/yank", 405),
            ("PUT", "crates/one/owners", 405),
            ("GET", "crates/one/owners", 404),
            ("GET", "me", 404),
        ] {
            let target = at("crates", &format!("{api}/api/v1/{path}"));
            let answer = proxy.request(method, &target, &[], b"{}").await.expect(status);
            assert!(detail(&answer).contains("use the registry itself"), "{}", answer.text());
        }
        assert_eq!((index.total(), files.total()), asked);
        // A host that no configuration names is not asked for services either.
        let other = Upstream::start().await;
        let search = format!("-/host/{}/api/v1/crates?q=one", other.authority());
        proxy.fetch("crates", &search).await.expect(403);
        assert_eq!(other.total(), 0);
    });
}

#[test]
fn one_fetch_serves_all_who_wait_and_then_upstream_may_go() {
    run(async {
        let one = Crate::new("one", "1.0.0", &[]);
        let (index, files) = registry(std::slice::from_ref(&one)).await;
        let gate = Gate::new();
        let held = File::new(one.bytes.clone()).shaped(|reply| reply.gated(&gate));
        files.file(&format!("/crates/{}", one.download()), held);
        let proxy = Proxy::start(&remote(&index, "description: x")).await;
        let config = proxy.fetch("crates", "config.json").await.ok().json();
        let path = download(&proxy, &config, &one);
        let at_upstream = format!("/crates/{}", one.download());
        let asking = async {
            files.wait_for("GET", &at_upstream, 1).await;
            gate.open();
        };
        let (first, second, ()) = tokio::join!(proxy.fetch("crates", &path), proxy.fetch("crates", &path), asking);
        first.is("remote", &one.bytes);
        assert_eq!(second.ok().body, one.bytes);
        assert_eq!(files.count("GET", &at_upstream), 1);
        proxy.fetch("crates", &one.index()).await.is("remote", one.line());
        proxy.until_cached("crates", &path).await;
        proxy.until_cached("crates", &one.index()).await;
        index.switch_off().await;
        files.switch_off().await;
        proxy
            .fetch("crates", "config.json")
            .await
            .is("cache", config.to_string());
        proxy.fetch("crates", &one.index()).await.is("cache", one.line());
        proxy.fetch("crates", &path).await.is("cache", &one.bytes);
    });
}
