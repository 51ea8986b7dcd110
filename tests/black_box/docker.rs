//! The registry API against a scripted registry: pulls, keys, tokens, errors, mirrors.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::common::client::Headers;
use crate::common::upstream::Seen;
use crate::common::{Gate, Proxy, Reply, Response, Upstream, run, sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn digest(body: impl AsRef<[u8]>) -> String {
    format!("sha256:{}", sha256(body.as_ref()))
}

/// A manifest as registries send it.
fn manifest(body: &str, media_type: &str) -> Reply {
    Reply::ok(body)
        .content_type(media_type)
        .header("Docker-Content-Digest", digest(body))
}

fn code(answer: &Response) -> String {
    answer.json()["errors"][0]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

async fn registry(up: &Upstream, more: &str) -> Proxy {
    Proxy::start(&format!("hub:\n  package: docker\n  base_url: {}\n{more}", up.base())).await
}

async fn get(proxy: &Proxy, target: &str) -> Response {
    proxy.request("GET", target, &[], b"").await
}

async fn head(proxy: &Proxy, target: &str) -> Response {
    proxy.request("HEAD", target, &[], b"").await
}

/// A token service and a registry that wants its tokens, whose blobs are elsewhere.
struct Guarded {
    registry: Upstream,
    tokens: Upstream,
    storage: Upstream,
    made: Arc<AtomicUsize>,
    /// The token that counts.
    current: Arc<Mutex<String>>,
}

impl Guarded {
    async fn start() -> Self {
        let guarded = Guarded {
            registry: Upstream::start().await,
            tokens: Upstream::start().await,
            storage: Upstream::start().await,
            made: Arc::default(),
            current: Arc::default(),
        };
        let (made, current) = (Arc::clone(&guarded.made), Arc::clone(&guarded.current));
        guarded.tokens.under("/token", move |_: &Seen| {
            let token = format!("token-{}", made.fetch_add(1, SeqCst) + 1);
            *current.lock().unwrap() = token.clone();
            Reply::ok(format!(r#"{{"access_token": "{token}", "expires_in": 300}}"#))
        });
        guarded
    }

    fn serve(&self, path: &str, reply: Reply) {
        let current = Arc::clone(&self.current);
        let challenge = format!(
            r#"Bearer service="registry.test",scope="repository:a/b:pull",realm="{}""#,
            self.tokens.url("/token")
        );
        self.registry.on(path, move |seen: &Seen| {
            let wanted = format!("Bearer {}", current.lock().unwrap());
            match seen.header("authorization") == Some(&wanted) {
                true => reply.clone(),
                false => Reply::status(401).header("WWW-Authenticate", &challenge),
            }
        });
    }
}

#[test]
fn an_image_is_pulled_through_the_token_flow_and_kept() {
    run(async {
        let guarded = Guarded::start().await;
        let (layer, body) = ("layer ".repeat(40_000), r#"{"schemaVersion":2}"#);
        guarded.serve("/v2/a/b/manifests/1", manifest(body, MANIFEST));
        let blob = digest(&layer);
        let redirect = Reply::redirect(307, guarded.storage.url("/layer?signature=1"));
        guarded.serve(&format!("/v2/a/b/blobs/{blob}"), redirect);
        guarded.storage.reply("/layer?signature=1", Reply::ok(layer.clone()));
        let proxy = registry(&guarded.registry, "").await;

        let ping = get(&proxy, "/v2/").await.expect(200);
        assert_eq!(ping.must("docker-distribution-api-version"), "registry/2.0");
        let first = get(&proxy, "/v2/hub/a/b/manifests/1").await;
        let first = first.is("remote", body);
        assert_eq!(first.must("content-type"), MANIFEST);
        assert_eq!(first.must("docker-content-digest"), digest(body));
        assert_eq!(first.must("docker-distribution-api-version"), "registry/2.0");
        get(&proxy, "/v2/hub/a/b/manifests/1").await.is("cache", body);
        // The content of a tag is there under its digest too, and the other way round for a HEAD.
        let by_digest = get(&proxy, &format!("/v2/hub/a/b/manifests/{}", digest(body))).await;
        assert!(by_digest.is("cache", body).must("cache-control").contains("immutable"));
        let known = head(&proxy, "/v2/hub/a/b/manifests/1").await.expect(200);
        assert_eq!((known.source(), known.must("content-length")), ("cache", "19"));
        assert_eq!(known.must("docker-content-digest"), digest(body));

        let target = format!("/v2/hub/a/b/blobs/{blob}");
        let cold = get(&proxy, &target).await;
        assert_eq!(cold.must("docker-content-digest"), blob);
        cold.is("remote", &layer);
        // From another repository: stored once for the remote.
        let shared = get(&proxy, &format!("/v2/hub/other/blobs/{blob}")).await;
        shared.is("cache", &layer);
        let part = proxy
            .request("GET", &target, &[("Range", "bytes=6-10")], b"")
            .await
            .expect(206);
        assert_eq!(part.text(), "layer");

        // One token for both, and nothing of it at the storage.
        assert_eq!(guarded.made.load(SeqCst), 1);
        let asked = guarded
            .tokens
            .last("GET", "/token?service=registry.test&scope=repository%3Aa%2Fb%3Apull");
        assert_eq!(asked.header("authorization"), None);
        let away = guarded.storage.last("GET", "/layer?signature=1");
        assert_eq!(
            (away.header("authorization"), away.header("accept-encoding")),
            (None, Some("identity"))
        );
        let record = get(&proxy, &format!("/api/v1/artifacts/hub/other/blobs/{blob}"))
            .await
            .ok()
            .json();
        assert_eq!(
            (record["digest"].as_str(), record["class"].as_str()),
            (Some(blob.as_str()), Some("immutable"))
        );
        let tag = get(&proxy, "/api/v1/artifacts/hub/a/b/manifests/1").await.ok().json();
        assert_eq!(
            (tag["digest"].as_str(), tag["size"].as_u64()),
            (Some(digest(body).as_str()), Some(0))
        );
    });
}

#[test]
fn one_token_request_however_many_wait_and_a_refused_token_is_renewed_once() {
    run(async {
        let guarded = Guarded::start().await;
        let blobs: Vec<String> = (0..8).map(|number| format!("blob {number}")).collect();
        for blob in &blobs {
            guarded.serve(&format!("/v2/a/b/blobs/{}", digest(blob)), Reply::ok(blob.clone()));
        }
        guarded.serve("/v2/a/b/manifests/1", manifest("{}", MANIFEST));
        let proxy = registry(&guarded.registry, "").await;
        let address = proxy.address();
        let pulls = blobs.iter().map(|blob| {
            let target = format!("/v2/hub/a/b/blobs/{}", digest(blob));
            tokio::spawn(async move { crate::common::get(address, &target).await })
        });
        let pulls: Vec<_> = pulls.collect();
        for (pull, blob) in pulls.into_iter().zip(&blobs) {
            pull.await.unwrap().is("remote", blob);
        }
        assert_eq!(guarded.made.load(SeqCst), 1);
        // The service forgets it: the cached one is refused, another is asked for, once.
        *guarded.current.lock().unwrap() = "another".to_owned();
        get(&proxy, "/v2/hub/a/b/manifests/1").await.is("remote", "{}");
        assert_eq!(guarded.made.load(SeqCst), 2);
        // A fresh one that is refused too is a refusal.
        let challenge = format!("Bearer realm=\"{}\"", guarded.tokens.url("/token"));
        let refuse = Reply::status(401).header("WWW-Authenticate", challenge);
        guarded.registry.reply("/v2/a/b/manifests/private", refuse);
        let denied = get(&proxy, "/v2/hub/a/b/manifests/private").await.expect(403);
        assert_eq!(code(&denied), "DENIED");
        assert!(denied.header("www-authenticate").is_none());
        assert_eq!(guarded.made.load(SeqCst), 3);
    });
}

#[test]
fn credentials_go_to_the_token_service_and_to_basic_registries() {
    run(async {
        let guarded = Guarded::start().await;
        guarded.serve("/v2/a/b/manifests/1", manifest("{}", MANIFEST));
        let basic = Upstream::start().await;
        basic.on("/v2/a/manifests/1", |seen: &Seen| match seen.header("authorization") {
            Some("Basic bWU6c2VjcmV0") => manifest("{}", MANIFEST),
            _ => Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\""),
        });
        let proxy = Proxy::settings()
            .remotes(&format!(
                "hub:\n  package: docker\n  base_url: {}\n  username: me\n  password: secret\nbasic:\n  package: docker\n  \
                 base_url: {}\n  username: me\n  password_command: [sh, -c, 'echo $WORD']\nanonymous:\n  package: docker\n  base_url: {}\n",
                guarded.registry.base(),
                basic.base(),
                basic.base(),
            ))
            .env("WORD", "secret")
            .env("PATH", std::env::var("PATH").unwrap())
            .start()
            .await;
        get(&proxy, "/v2/hub/a/b/manifests/1").await.is("remote", "{}");
        assert_eq!(
            guarded.tokens.log()[0].header("authorization"),
            Some("Basic bWU6c2VjcmV0")
        );
        assert!(
            guarded
                .registry
                .log()
                .iter()
                .all(|seen| seen.header("authorization") != Some("Basic bWU6c2VjcmV0"))
        );
        let client = [("Authorization", "Basic aGlzOm93bg==")];
        proxy
            .request("GET", "/v2/basic/a/manifests/1", &client, b"")
            .await
            .is("remote", "{}");
        let mut seen = basic.log();
        seen.retain(|seen| seen.path != "/v2/");
        let sent: Vec<_> = seen.iter().map(|seen| seen.header("authorization")).collect();
        assert_eq!(sent, [None, Some("Basic bWU6c2VjcmV0")]);
        let denied = get(&proxy, "/v2/anonymous/a/manifests/1").await.expect(403);
        assert!(denied.text().contains("username"), "{}", denied.text());
        let config = get(&proxy, "/config").await.ok().text();
        assert!(
            !config.contains("echo") && config.contains("password_command"),
            "{config}"
        );
    });
}

#[test]
fn a_tags_head_downloads_nothing_and_what_it_says_is_remembered() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/v2/a/manifests/1", manifest("{}", MANIFEST));
        up.reply(&format!("/v2/a/manifests/{}", digest("{}")), manifest("{}", MANIFEST));
        let proxy = registry(&up, "").await;
        let unknown = head(&proxy, "/v2/hub/a/manifests/1").await.expect(200);
        assert_eq!((unknown.source(), unknown.must("content-length")), ("remote", "2"));
        assert_eq!(
            (unknown.must("content-type"), unknown.must("docker-content-digest")),
            (MANIFEST, &*digest("{}"))
        );
        assert_eq!(
            head(&proxy, "/v2/hub/a/manifests/1").await.expect(200).source(),
            "cache"
        );
        assert_eq!((up.count("HEAD", "/v2/a/manifests/1"), up.total()), (1, 1));
        // As containerd goes on.
        get(&proxy, &format!("/v2/hub/a/manifests/{}", digest("{}")))
            .await
            .is("remote", "{}");
        get(&proxy, "/v2/hub/a/manifests/1").await.is("cache", "{}");
        assert_eq!(up.count("GET", "/v2/a/manifests/1"), 0);
        // Upstream goes away: the last known digest.
        let flush = br#"{"remote": "hub", "class": "mutable", "mode": "expire"}"#;
        proxy.request("PUT", "/cache/flush", &[], flush).await.ok();
        up.switch_off().await;
        let stale = head(&proxy, "/v2/hub/a/manifests/1").await.expect(200);
        assert!(
            stale.must("cache-status").contains("fwd=stale"),
            "{}",
            stale.must("cache-status")
        );
        get(&proxy, "/v2/hub/a/manifests/1").await.is("cache", "{}");
    });
}

#[test]
fn an_expired_tag_is_asked_for_by_head_and_fetched_where_it_has_moved() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/v2/a/manifests/1", manifest("one", MANIFEST));
        let proxy = registry(&up, "  cache: {mutable_ttl: 0}\n").await;
        get(&proxy, "/v2/hub/a/manifests/1").await.is("remote", "one");
        get(&proxy, "/v2/hub/a/manifests/1").await.is("cache", "one");
        let counts = || {
            (
                up.count("HEAD", "/v2/a/manifests/1"),
                up.count("GET", "/v2/a/manifests/1"),
            )
        };
        assert_eq!(counts(), (1, 1));
        up.reply("/v2/a/manifests/1", manifest("two", MANIFEST));
        get(&proxy, "/v2/hub/a/manifests/1").await.is("remote", "two");
        assert_eq!(counts(), (2, 2));
        // Back: known already.
        up.reply("/v2/a/manifests/1", manifest("one", MANIFEST));
        get(&proxy, "/v2/hub/a/manifests/1").await.is("cache", "one");
        assert_eq!(counts(), (3, 2));
        // A registry that limits requests is as good as away, with what is stored.
        up.reply("/v2/a/manifests/1", Reply::status(429).header("Retry-After", "7"));
        get(&proxy, "/v2/hub/a/manifests/1").await.is("cache", "one");
        let limited = get(&proxy, "/v2/hub/a/manifests/2").await.expect(404);
        assert_eq!(code(&limited), "MANIFEST_UNKNOWN");
        up.reply("/v2/a/manifests/2", Reply::status(429).header("Retry-After", "7"));
        let flush = proxy.request("PUT", "/cache/flush", &[], b"{}").await;
        flush.ok();
        let limited = get(&proxy, "/v2/hub/a/manifests/2").await.expect(429);
        assert_eq!(
            (code(&limited).as_str(), limited.must("retry-after")),
            ("TOOMANYREQUESTS", "7")
        );
        // A HEAD that says no digest, or none at all: by GET, its digest computed.
        up.on("/v2/a/manifests/3", |seen: &Seen| match seen.method.as_str() {
            "HEAD" => Reply::status(405),
            _ => Reply::ok("three").content_type(MANIFEST),
        });
        let computed = head(&proxy, "/v2/hub/a/manifests/3").await.expect(200);
        assert_eq!(computed.must("docker-content-digest"), digest("three"));
    });
}

#[test]
fn what_a_client_accepts_decides_what_a_tag_is() {
    run(async {
        let up = Upstream::start().await;
        up.on("/v2/a/manifests/1", |seen: &Seen| {
            match seen.header("accept").is_some_and(|accept| accept.contains(INDEX)) {
                true => manifest("index", INDEX),
                false => manifest("single", DOCKER),
            }
        });
        let proxy = registry(&up, "").await;
        for _ in 0..2 {
            let both = [("Accept", MANIFEST), ("Accept", INDEX)];
            let index = proxy.request("GET", "/v2/hub/a/manifests/1", &both, b"").await.ok();
            assert_eq!((index.text().as_str(), index.must("content-type")), ("index", INDEX));
            let one = [(
                "Accept",
                "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json",
            )];
            let single = proxy.request("GET", "/v2/hub/a/manifests/1", &one, b"").await.ok();
            assert_eq!(
                (single.text().as_str(), single.must("content-type")),
                ("single", DOCKER)
            );
            assert_eq!(single.must("vary"), "Accept");
        }
        assert_eq!(up.count("GET", "/v2/a/manifests/1"), 2);
    });
}

#[test]
fn a_wrong_body_is_never_passed_off_as_right() {
    run(async {
        let up = Upstream::start().await;
        let right = "r".repeat(300_000);
        let path = format!("/v2/a/blobs/{}", digest(&right));
        up.reply(&path, Reply::ok("w".repeat(300_000)));
        up.reply("/v2/a/manifests/1", manifest("{}", MANIFEST).header("X", "1"));
        up.on("/v2/a/manifests/2", |_: &Seen| {
            Reply::ok("other")
                .content_type(MANIFEST)
                .header("Docker-Content-Digest", digest("{}"))
        });
        let proxy = registry(&up, "").await;
        let target = format!("/v2/hub{}", path.strip_prefix("/v2").unwrap());
        let cut = get(&proxy, &target).await;
        // Known to be wrong before its header was sent on, or a moment after.
        assert!(cut.status == 502 || !cut.complete, "{}", cut.status);
        let small = format!("/v2/hub/a/blobs/{}", digest("right"));
        up.reply(&format!("/v2/a/blobs/{}", digest("right")), Reply::ok("wrong"));
        assert_eq!(code(&get(&proxy, &small).await.expect(502)), "UNAVAILABLE");
        assert_eq!(
            code(&get(&proxy, "/v2/hub/a/manifests/2").await.expect(502)),
            "UNAVAILABLE"
        );
        let wrong = async || {
            proxy
                .metric("artifactapi_digest_mismatches_total", &["remote=\"hub\""])
                .await
        };
        crate::common::eventually(std::time::Duration::from_secs(5), "three are counted", async || {
            wrong().await == 3.0
        })
        .await;
        up.reply(&path, Reply::ok(right.clone()));
        get(&proxy, &target).await.is("remote", &right);
    });
}

#[test]
fn a_repository_that_lacks_a_blob_says_nothing_of_another() {
    run(async {
        let up = Upstream::start().await;
        let gate = Gate::new();
        let path = |name: &str| format!("/v2/{name}/blobs/{}", digest("layer"));
        up.reply(&path("a"), Reply::status(404).gated(&gate));
        up.reply(&path("b"), Reply::ok("layer"));
        let proxy = registry(&up, "").await;
        let address = proxy.address();
        let lacking =
            tokio::spawn(
                async move { crate::common::get(address, &format!("/v2/hub/a/blobs/{}", digest("layer"))).await },
            );
        up.wait_for("GET", &path("a"), 1).await;
        let having =
            tokio::spawn(
                async move { crate::common::get(address, &format!("/v2/hub/b/blobs/{}", digest("layer"))).await },
            );
        crate::common::eventually(std::time::Duration::from_secs(5), "the second waits", async || {
            proxy.metric("artifactapi_collapsed_total", &[]).await == 1.0
        })
        .await;
        gate.open();
        assert_eq!(code(&lacking.await.unwrap().expect(404)), "BLOB_UNKNOWN");
        having.await.unwrap().is("remote", "layer");
    });
}

#[test]
fn errors_are_in_the_registrys_form() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "hub:\n  package: docker\n  base_url: {0}\n  immutable_patterns: ['^allowed/']\nfiles:\n  base_url: {0}\n",
            up.base()
        ))
        .await;
        let hex = "ab".repeat(32);
        for (target, status, expected) in [
            ("/v2/hub/a/blobs/sha256:zz", 400, "DIGEST_INVALID"),
            ("/v2/hub/a/manifests/sha256:abc", 400, "DIGEST_INVALID"),
            ("/v2/hub/a/manifests/.x", 400, "MANIFEST_INVALID"),
            ("/v2/hub/A/manifests/x", 400, "NAME_INVALID"),
            ("/v2/hub/a/..%2Fb/manifests/x", 400, "NAME_INVALID"),
            ("/v2/hub/a/b", 404, "NAME_UNKNOWN"),
            ("/v2/other/a/manifests/x", 404, "NAME_UNKNOWN"),
            ("/v2/files/a/manifests/x", 404, "NAME_UNKNOWN"),
            ("/v2/_catalog", 404, "UNSUPPORTED"),
            ("/v2/hub/a/manifests/x", 404, "MANIFEST_UNKNOWN"),
            ("/v2/hub/a/tags/list", 404, "NAME_UNKNOWN"),
            (&format!("/v2/hub/a/blobs/sha256:{hex}"), 403, "DENIED"),
            (&format!("/v2/hub/allowed/a/blobs/sha256:{hex}"), 404, "BLOB_UNKNOWN"),
        ] {
            let answer = get(&proxy, target).await.expect(status);
            assert_eq!(code(&answer), expected, "{target}");
            assert_eq!(answer.must("docker-distribution-api-version"), "registry/2.0");
            assert_eq!(answer.header("warning").is_some(), status == 403, "{target}");
            head(&proxy, target).await.expect(status);
        }
        let warned = head(&proxy, &format!("/v2/hub/a/blobs/sha256:{hex}")).await;
        assert!(warned.must("warning").starts_with("299 - \"no pattern of this remote"));
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let refused = proxy
                .request(method, "/v2/hub/a/blobs/uploads/", &[], b"")
                .await
                .expect(405);
            assert_eq!(
                (code(&refused).as_str(), refused.must("allow")),
                ("UNSUPPORTED", "GET, HEAD")
            );
        }
        assert!(
            get(&proxy, "/v2/files/a")
                .await
                .expect(404)
                .text()
                .contains("/api/v1/remote/files/")
        );
        assert!(
            get(&proxy, "/api/v1/remote/hub/a")
                .await
                .expect(404)
                .text()
                .contains("/v2/hub/")
        );
    });
}

#[test]
fn lists_are_cached_and_their_next_page_is_ours() {
    run(async {
        let up = Upstream::start().await;
        let page = Reply::ok(r#"{"name":"a","tags":["1"]}"#).content_type("application/json");
        let next = format!("<{}>; rel=\"next\"", up.url("/v2/a/tags/list?last=1&n=1"));
        up.reply("/v2/a/tags/list?n=1", page.header("Link", next));
        let proxy = registry(&up, "").await;
        for source in ["remote", "cache"] {
            let answer = get(&proxy, "/v2/hub/a/tags/list?n=1").await.ok();
            assert_eq!(answer.source(), source);
            assert_eq!(answer.must("link"), "</v2/hub/a/tags/list?last=1&n=1>; rel=\"next\"");
        }
        let mirrored = get(&proxy, &format!("/v2/a/tags/list?n=1&ns={}", up.authority()))
            .await
            .ok();
        assert_eq!(
            (mirrored.source(), mirrored.must("oci-namespace")),
            ("cache", &*up.authority())
        );
    });
}

#[test]
fn referrers_come_from_the_api_or_from_the_tag() {
    run(async {
        let up = Upstream::start().await;
        let subject = digest("subject");
        let index = r#"{"schemaVersion":2,"manifests":[{"digest":"x","artifactType":"a/b"},{"digest":"y","artifactType":"c/d"}]}"#;
        let api = format!("/v2/with/referrers/{subject}?artifactType=a%2Fb");
        up.reply(
            &api,
            Reply::ok(index)
                .content_type(INDEX)
                .header("OCI-Filters-Applied", "artifactType"),
        );
        up.reply(
            &format!("/v2/without/manifests/{}", subject.replace(':', "-")),
            manifest(index, INDEX),
        );
        up.reply(
            &format!("/v2/page/referrers/{subject}"),
            Reply::ok("<html>").content_type("text/html"),
        );
        let proxy = registry(&up, "").await;
        for _ in 0..2 {
            let own = get(&proxy, &format!("/v2/hub/with/referrers/{subject}?artifactType=a%2Fb"))
                .await
                .ok();
            assert_eq!(
                (own.text().as_str(), own.must("oci-filters-applied")),
                (index, "artifactType")
            );
            let all = get(&proxy, &format!("/v2/hub/without/referrers/{subject}")).await.ok();
            assert_eq!((all.text().as_str(), all.must("content-type")), (index, INDEX));
            let some = get(
                &proxy,
                &format!("/v2/hub/without/referrers/{subject}?artifactType=c%2Fd"),
            )
            .await
            .ok();
            assert_eq!(some.must("oci-filters-applied"), "artifactType");
            assert_eq!(some.json()["manifests"][0]["digest"], "y");
            assert_eq!(some.json()["manifests"].as_array().unwrap().len(), 1);
            for name in ["page", "none"] {
                let empty = get(&proxy, &format!("/v2/hub/{name}/referrers/{subject}")).await.ok();
                assert_eq!(empty.must("content-type"), INDEX);
                assert_eq!(empty.json()["manifests"].as_array().unwrap().len(), 0);
            }
        }
        assert_eq!(up.count("GET", &api), 1);
    });
}

#[test]
fn a_mirror_is_asked_without_a_remote_in_the_path() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/v2/a/b/manifests/1", manifest("{}", MANIFEST));
        let other = Upstream::start().await;
        let proxy = Proxy::settings()
            .remotes(&format!(
                "hub:\n  package: docker\n  base_url: {}\n  hosts: [images.test]\nother:\n  package: docker\n  base_url: {}\n",
                up.base(),
                other.base()
            ))
            .conf("docker: {default_remote: hub}\n")
            .start()
            .await;
        get(&proxy, "/v2/a/b/manifests/1").await.is("remote", "{}");
        for target in [
            "/v2/hub/a/b/manifests/1".to_owned(),
            "/v2/hub/a/b/manifests/1?ns=elsewhere.test".to_owned(),
            "/v2/hub/v2/a/b/manifests/1?ns=elsewhere.test".to_owned(),
            format!("/v2/a/b/manifests/1?ns={}", up.authority()),
        ] {
            get(&proxy, &target).await.is("cache", "{}");
        }
        assert_eq!(up.total(), 1);
        let bound = proxy
            .request("GET", "/v2/a/b/manifests/1", &[("Host", "images.test")], b"")
            .await;
        bound.is("cache", "{}");
        proxy
            .request("GET", "/health", &[("Host", "images.test")], b"")
            .await
            .expect(404);
        // Another registry's image is not the default one's.
        get(&proxy, "/v2/a/b/manifests/1?ns=elsewhere.test").await.expect(404);
        get(&proxy, &format!("/v2/a/b/manifests/1?ns={}", other.authority()))
            .await
            .expect(404);
        assert_eq!((up.total(), other.total()), (1, 1));
    });
}

#[test]
fn a_correct_body_in_a_coding_is_not_refused() {
    run(async {
        let up = Upstream::start().await;
        let (plain, packed) = (
            "content ".repeat(1000),
            crate::common::packages::gzip("content ".repeat(1000).as_bytes()),
        );
        let path = |body: &[u8]| format!("/v2/a/blobs/{}", digest(body));
        // What it is anyway, named as a coding; a real coding; a wrong body in one.
        for body in [packed.as_slice(), plain.as_bytes(), b"wrong"] {
            up.reply(
                &path(body),
                Reply::ok(packed.clone()).header("Content-Encoding", "gzip"),
            );
        }
        up.reply(
            "/v2/a/manifests/1",
            Reply::ok(packed.clone())
                .content_type(MANIFEST)
                .header("Content-Encoding", "gzip")
                .header("Docker-Content-Digest", digest(&plain)),
        );
        let proxy = registry(&up, "").await;
        let accept = [("Accept-Encoding", "zstd, gzip")];
        for source in ["remote", "cache"] {
            for body in [packed.as_slice(), plain.as_bytes()] {
                let answer = proxy
                    .request("GET", &path(body).replacen("/v2", "/v2/hub", 1), &accept, b"")
                    .await;
                assert_eq!(answer.is(source, body).header("content-encoding"), None);
            }
        }
        get(&proxy, &path(b"wrong").replacen("/v2", "/v2/hub", 1))
            .await
            .expect(502);
        let tag = get(&proxy, "/v2/hub/a/manifests/1").await.is("remote", &plain);
        assert_eq!(
            (tag.header("content-encoding"), tag.must("docker-content-digest")),
            (None, &*digest(&plain))
        );
    });
}

#[test]
fn a_token_service_that_is_away_is_an_upstream_that_is_away() {
    run(async {
        let guarded = Guarded::start().await;
        guarded.serve(
            "/v2/a/b/manifests/1",
            manifest("{}", MANIFEST).header("ratelimit-remaining", "76;w=21600"),
        );
        let proxy = registry(&guarded.registry, "  cache: {mutable_ttl: 0}\n").await;
        get(&proxy, "/v2/hub/a/b/manifests/1").await.is("remote", "{}");
        let left = proxy
            .metric("artifactapi_upstream_ratelimit_remaining", &["remote=\"hub\""])
            .await;
        assert_eq!(left, 76.0);
        *guarded.current.lock().unwrap() = "another".to_owned();
        guarded.tokens.switch_off().await;
        let stale = get(&proxy, "/v2/hub/a/b/manifests/1").await.is("cache", "{}");
        assert!(stale.must("cache-status").contains("fwd=stale"));
        guarded.serve("/v2/a/b/manifests/3", manifest("{}", MANIFEST));
        let nothing = get(&proxy, "/v2/hub/a/b/manifests/3").await.expect(502);
        assert_eq!(code(&nothing), "UNAVAILABLE");
    });
}

#[test]
fn a_range_far_ahead_of_a_layers_fill_goes_by_itself_with_the_token() {
    run(async {
        let guarded = Guarded::start().await;
        let layer = "0123456789abcdef".repeat(1 << 20);
        let gate = Gate::new();
        let path = format!("/v2/a/b/blobs/{}", digest(&layer));
        guarded.serve(&path, Reply::redirect(307, guarded.storage.url("/layer")));
        let slow = gate.clone();
        let file = crate::common::File::new(layer.clone().into_bytes()).etag("\"storage\"");
        guarded
            .storage
            .on("/layer", move |seen: &Seen| match seen.header("range") {
                Some(_) => file.reply(seen),
                None => file.clone().shaped(|reply| reply.pause_at(1 << 20, &slow)).reply(seen),
            });
        let proxy = registry(&guarded.registry, "").await;
        let target = format!("/v2/hub{}", path.strip_prefix("/v2").unwrap());
        let mut first = proxy.connect().await;
        first.send("GET", &target, &[], b"").await;
        first.read_head("GET").await;
        let range = [("Range", "bytes=15728640-15728655")];
        let far = proxy.request("GET", &target, &range, b"").await.expect(206);
        assert_eq!(far.text(), "0123456789abcdef");
        assert_eq!(far.must("docker-content-digest"), digest(&layer));
        gate.open();
        assert_eq!(first.read_body().await.len(), layer.len());
        assert_eq!(guarded.made.load(SeqCst), 1);
        assert!(
            guarded
                .storage
                .log()
                .iter()
                .all(|seen| seen.header("authorization").is_none())
        );
    });
}
