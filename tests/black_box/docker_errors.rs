//! What `/v2/` answers when it answers no: the registry's JSON, its codes, the right status.

use crate::common::client::Headers;
use crate::common::image::*;
use crate::common::pull::*;
use crate::common::registry::*;
use crate::common::{Proxy, Reply, client, run};

async fn pair(keys: &str) -> (Registry, Proxy, Manifest) {
    let image = Manifest::image("app", "amd64", 1);
    let registry = Registry::with("team/app", "v1", &image).await;
    let proxy = Proxy::start(&registry.remote("hub", keys)).await;
    (registry, proxy, image)
}

#[test]
fn a_malformed_digest_is_invalid_and_asks_no_upstream() {
    run(async {
        let (registry, proxy, image) = pair("").await;
        let right = &image.digest["sha256:".len()..];
        for digest in [
            "sha256:short",
            &format!("sha256:{right}00"),
            &format!("sha256:{}", right.to_uppercase()),
            &format!("sha256:{}g", &right[..63]),
            &format!("sha512:{right}"),
            &format!("md5:{}", "0".repeat(32)),
            "sha256:",
            "sha256",
            "nonsense",
        ] {
            for method in ["GET", "HEAD"] {
                let answer = proxy.request(method, &blob_at("hub/team/app", digest), &[], b"").await;
                assert_eq!(answer.status, 400, "{method} of blob {digest}: {}", answer.text());
                if method == "GET" {
                    refused(answer, 400, "DIGEST_INVALID");
                }
            }
            if digest.contains(':') {
                let answer = get_manifest(&proxy, "hub/team/app", digest).await;
                refused(answer, 400, "DIGEST_INVALID");
            }
        }
        assert_eq!(registry.up.total(), 0);
    });
}

#[test]
fn what_the_registry_does_not_know_is_not_found_with_the_code_of_its_kind() {
    run(async {
        let (registry, proxy, image) = pair("").await;
        let unknown = unknown_digest();
        for (target, code) in [
            (manifest_at("hub/team/app", "v2"), "MANIFEST_UNKNOWN"),
            (manifest_at("hub/team/app", &unknown), "MANIFEST_UNKNOWN"),
            (blob_at("hub/team/app", &unknown), "BLOB_UNKNOWN"),
            (manifest_at("nowhere/team/app", "v1"), "NAME_UNKNOWN"),
            (blob_at("nowhere/team/app", &image.digest), "NAME_UNKNOWN"),
        ] {
            let answer = client::get(proxy.address(), &target).await;
            assert_eq!(answer.must("docker-distribution-api-version"), "registry/2.0");
            refused(answer, 404, code);
            let head = client::head(proxy.address(), &target).await;
            assert_eq!((head.status, head.body.len()), (404, 0), "{target}");
        }
        let answer = client::get(proxy.address(), &manifest_at("hub/nobody/knows", "v1")).await;
        assert!(matches!(
            answer.json()["errors"][0]["code"].as_str(),
            Some("NAME_UNKNOWN" | "MANIFEST_UNKNOWN")
        ));
        answer.expect(404);
        // Whatever form upstream's own answer has.
        for reply in [
            Reply::new(404, "<html>no</html>"),
            Reply::new(404, ""),
            Reply::new(404, "{\"x\": 1}"),
        ] {
            registry.instead(&blob_at("team/app", &image.blobs[0].digest), reply);
            let proxy = Proxy::start(&registry.remote("hub", "")).await;
            let answer = get_blob(&proxy, "hub/team/app", &image.blobs[0].digest).await;
            refused(answer, 404, "BLOB_UNKNOWN");
        }
    });
}

#[test]
fn a_digest_that_is_unknown_is_asked_for_again_after_a_moment() {
    run(async {
        let (registry, proxy, _) = pair("cache: {negative_ttl: 0}").await;
        let late = Blob::new("pushed later");
        refused(
            get_blob(&proxy, "hub/team/app", &late.digest).await,
            404,
            "BLOB_UNKNOWN",
        );
        registry.blob("team/app", &late);
        get_blob(&proxy, "hub/team/app", &late.digest)
            .await
            .is("remote", late.bytes());
    });
}

#[test]
fn pushes_are_unsupported_and_ask_no_upstream() {
    run(async {
        let (registry, proxy, image) = pair("").await;
        let digest = &image.blobs[1].digest;
        for (method, target) in [
            ("POST", "/v2/hub/team/app/blobs/uploads/".to_owned()),
            ("POST", format!("/v2/hub/team/app/blobs/uploads/?digest={digest}")),
            (
                "POST",
                format!("/v2/hub/team/app/blobs/uploads/?mount={digest}&from=hub/other"),
            ),
            ("PATCH", "/v2/hub/team/app/blobs/uploads/1234".to_owned()),
            ("PUT", format!("/v2/hub/team/app/blobs/uploads/1234?digest={digest}")),
            ("PUT", manifest_at("hub/team/app", "v1")),
            ("DELETE", manifest_at("hub/team/app", &image.digest)),
            ("DELETE", blob_at("hub/team/app", digest)),
            ("PUT", "/v2/".to_owned()),
        ] {
            let answer = proxy.request(method, &target, &[], b"{}").await;
            assert!(
                answer.must("allow").contains("GET"),
                "{method} {target}: {:?}",
                answer.headers
            );
            refused(answer, 405, "UNSUPPORTED");
        }
        assert_eq!(registry.up.total(), 0);
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
    });
}

#[test]
fn trouble_upstream_is_a_gateway_error_and_never_unknown_or_unauthorized() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &image).await;
        let proxy = Proxy::settings()
            .remotes(
                &(registry.remote("hub", "cache: {negative_ttl: 0}")
                    + &format!(
                        "gone:\n  base_url: http://{}\n  package: docker\n",
                        crate::common::refused()
                    )),
            )
            .conf("upstream: {first_byte_timeout: 500ms}\n")
            .start()
            .await;
        let paths = [
            manifest_at("team/app", "v1"),
            manifest_at("team/app", &image.digest),
            blob_at("team/app", &image.blobs[1].digest),
            "/v2/team/app/tags/list".to_owned(),
        ];
        for (reply, statuses) in [
            (Reply::new(500, "oops"), 500..=504),
            (Reply::new(502, ""), 502..=504),
            (Reply::new(503, "later").header("Retry-After", "9"), 502..=504),
            (Reply::reset(), 502..=504),
            (Reply::hang_up(), 502..=504),
            (Reply::silence(), 504..=504),
            (Reply::raw("this is not HTTP\r\n\r\n"), 502..=502),
            (Reply::redirect(307, "http://169.254.169.254/x"), 502..=502),
            (Reply::redirect(307, ""), 502..=502),
        ] {
            for path in &paths {
                registry.instead(path, reply.clone());
                let target = path.replace("/v2/", "/v2/hub/");
                let answer = client::get_with(proxy.address(), &target, &[("Accept", ACCEPT_ALL)]).await;
                assert!(statuses.contains(&answer.status), "{path} {reply:?}: {}", answer.status);
                let body = answer.json();
                assert!(
                    body["errors"][0]["code"].as_str().is_some_and(|code| !code.is_empty()),
                    "{body}"
                );
                assert!(
                    body["errors"][0]["message"].as_str().is_some_and(|text| text.len() > 5),
                    "{body}"
                );
                registry.normal(path);
            }
        }
        for path in &paths {
            let target = path.replace("/v2/", "/v2/gone/");
            let answer = client::get_with(proxy.address(), &target, &[("Accept", ACCEPT_ALL)])
                .await
                .expect(502);
            assert!(answer.json()["errors"][0]["message"].is_string(), "{}", answer.text());
        }
        // Nothing of it was remembered.
        pull(&proxy, "hub/team/app", "v1", &image).await;
    });
}

#[test]
fn an_html_page_is_not_a_manifest_and_not_a_blob() {
    run(async {
        let (registry, proxy, image) = pair("cache: {mutable_ttl: 0, negative_ttl: 0}").await;
        let page = || Reply::ok("<html>please log in</html>").content_type("text/html");
        for path in [
            manifest_at("team/app", "v1"),
            manifest_at("team/app", &image.digest),
            blob_at("team/app", &image.blobs[1].digest),
        ] {
            registry.instead(&path, page());
            let target = path.replace("/v2/", "/v2/hub/");
            let answer = client::get_with(proxy.address(), &target, &[("Accept", ACCEPT_ALL)]).await;
            let whole = answer.status == 200 && answer.complete;
            assert!(!whole, "{target}: a page was served as a whole answer");
            registry.normal(&path);
        }
        pull(&proxy, "hub/team/app", "v1", &image).await;
    });
}

#[test]
fn a_refusal_by_the_registry_is_denied_with_its_reason() {
    run(async {
        let (registry, proxy, image) = pair("cache: {negative_ttl: 0}").await;
        for (reply, status, code) in [
            (error(403, "DENIED"), 403, "DENIED"),
            (Reply::new(403, "blocked"), 403, "DENIED"),
            (error(401, "UNAUTHORIZED"), 403, "DENIED"),
            (
                error(429, "TOOMANYREQUESTS").header("Retry-After", "33"),
                429,
                "TOOMANYREQUESTS",
            ),
        ] {
            for path in [
                manifest_at("team/app", "v1"),
                blob_at("team/app", &image.blobs[1].digest),
            ] {
                registry.instead(&path, reply.clone());
                let target = path.replace("/v2/", "/v2/hub/");
                let answer = client::get_with(proxy.address(), &target, &[("Accept", ACCEPT_ALL)]).await;
                assert_eq!(answer.header("www-authenticate"), None);
                if status == 429 {
                    assert_eq!(answer.must("retry-after"), "33");
                }
                refused(answer, status, code);
            }
        }
    });
}

#[test]
fn what_is_no_path_of_a_registry_is_refused_as_one() {
    run(async {
        let (registry, proxy, image) = pair("").await;
        for (target, statuses) in [
            ("/v2/hub/team/app".to_owned(), 404..=404),
            ("/v2/hub/team/app/manifests/".to_owned(), 400..=404),
            ("/v2/hub/manifests/v1".to_owned(), 400..=404),
            (manifest_at("hub/Team/App", "v1"), 400..=404),
            (manifest_at("hub/team/app", "-no"), 400..=404),
            (manifest_at("hub/team/app", &"x".repeat(129)), 400..=404),
            (manifest_at("hub/team/../secret", "v1"), 400..=400),
            (manifest_at("hub/team/%2e%2e/secret", "v1"), 400..=400),
            (blob_at("hub/../hub/team/app", &image.digest), 400..=400),
            ("/v2/hub/team/app/blobs/uploads/".to_owned(), 400..=405),
        ] {
            let answer = client::get(proxy.address(), &target).await;
            assert!(
                statuses.contains(&answer.status),
                "{target}: {} {}",
                answer.status,
                answer.text()
            );
            assert!(
                answer.json()["errors"][0]["code"].is_string(),
                "{target}: {}",
                answer.text()
            );
        }
        // What passes all this is at most asked for under the same name.
        for seen in registry.up.log() {
            assert!(
                seen.path.starts_with("/v2/team/app") || seen.path.starts_with("/v2/manifests"),
                "{}",
                seen.path
            );
        }
    });
}

#[test]
fn a_refusal_by_policy_says_why_in_body_and_warning() {
    run(async {
        let (registry, proxy, image) = pair("immutable_patterns: []").await;
        for target in [
            manifest_at("hub/team/app", &image.digest),
            blob_at("hub/team/app", &image.blobs[1].digest),
        ] {
            let answer = client::get(proxy.address(), &target).await;
            let warning = answer.must("warning").to_owned();
            // `299 - "text"`
            let text = warning.strip_prefix("299 ").and_then(|rest| rest.split_once('"'));
            let text = text.unwrap_or_else(|| panic!("not a warning: {warning}")).1;
            assert!(text.ends_with('"') && text.len() > 10, "{warning}");
            assert_eq!(answer.must("cache-control"), "no-store");
            refused(answer, 403, "DENIED");
        }
        assert_eq!(registry.up.total(), 0);
        // Tags are mutable, and so are always served.
        get_manifest(&proxy, "hub/team/app", "v1").await.ok();
    });
}

#[test]
fn an_offline_remote_serves_what_is_here() {
    run(async {
        let (registry, proxy, image) = pair("cache: {mutable_ttl: 0}").await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        until_stored(&proxy, "hub/team/app", "v1", &image).await;
        proxy.write_remotes(&registry.remote("hub", "cache: {mutable_ttl: 0}\noffline: true"));
        proxy.reload_and_wait().await;
        registry.up.forget();
        pull(&proxy, "hub/team/app", "v1", &image).await;
        let answer = get_manifest(&proxy, "hub/team/app", "v2").await.expect(504);
        assert!(answer.json()["errors"][0]["code"].is_string(), "{}", answer.text());
        assert_eq!(registry.up.total(), 0);
    });
}
