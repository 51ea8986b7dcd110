//! Errors to clients, and the small endpoints: their form, their status, and what they name.

use crate::common::client::Headers;
use crate::common::h2client::H2Connection;
use crate::common::server::at;
use crate::common::{Proxy, Reply, Upstream, eventually, run};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

async fn pair() -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
    (up, proxy)
}

#[test]
fn an_error_names_remote_path_and_reason() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/dir/x", Reply::new(500, "<html>secret stack trace</html>"));
        let answer = proxy.fetch("files", "dir/x").await.expect(500);
        assert!(answer.must("content-type").starts_with("application/json"));
        assert_eq!(answer.must("cache-control"), "no-store");
        let body = answer.json();
        assert_eq!((&body["remote"], &body["path"]), (&json!("files"), &json!("dir/x")));
        assert!(
            body["detail"].as_str().is_some_and(|detail| detail.contains("500")),
            "{body}"
        );
        assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
    });
}

#[test]
fn bad_gateway_and_gateway_time_out_are_told_apart() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/silence", Reply::silence()).reply("/reset", Reply::reset());
        up.reply("/garbage", Reply::raw("this is not HTTP\r\n\r\n"));
        up.reply(
            "/lengths",
            Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        );
        let proxy = Proxy::settings()
            .remotes(&format!(
                "files:\n  base_url: {}\nrefused:\n  base_url: http://{}\n",
                up.base(),
                crate::common::refused()
            ))
            .conf("upstream: {first_byte_timeout: 500ms}\n")
            .start()
            .await;
        for (remote, path, status) in [
            ("files", "silence", 504),
            ("files", "reset", 502),
            ("files", "garbage", 502),
            ("files", "lengths", 502),
            ("refused", "x", 502),
        ] {
            let answer = proxy.fetch(remote, path).await.expect(status);
            assert_eq!(answer.json()["remote"], remote, "{path}");
            assert!(
                answer.json()["detail"].as_str().is_some_and(|detail| detail.len() > 10),
                "{}",
                answer.text()
            );
        }
    });
}

#[test]
fn upstreams_refusals_keep_their_meaning() {
    run(async {
        let (up, proxy) = pair().await;
        for status in [401, 403, 404, 429, 500, 503] {
            let reply = Reply::new(status, "no")
                .header("Retry-After", "7")
                .header("RateLimit-Remaining", "0;w=60")
                .header("Content-Language", "de")
                .header("WWW-Authenticate", "Basic realm=x");
            up.reply(&format!("/{status}"), reply);
        }
        for status in [401, 403, 404, 429, 500, 503] {
            let answer = proxy.fetch("files", &status.to_string()).await.expect(status);
            assert_eq!(answer.header("www-authenticate"), None, "{status}");
            // The body is ours, what is left to ask is upstream's to say.
            assert_eq!(answer.header("content-language"), None, "{status}");
            assert_eq!(answer.must("ratelimit-remaining"), "0;w=60", "{status}");
            if matches!(status, 429 | 503) {
                assert_eq!(answer.must("retry-after"), "7");
            }
        }
    });
}

#[test]
fn a_failure_is_never_turned_into_a_404() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "npm:\n  base_url: {0}\n  package: npm\npypi:\n  base_url: {0}\n  package: pypi\n\
             helm:\n  base_url: {0}\n  package: helm\nrpm:\n  base_url: {0}\n  package: rpm\n\
             alpine:\n  base_url: {0}\n  package: alpine\n",
            up.base()
        ))
        .await;
        up.switch_off().await;
        for (remote, path) in [
            ("npm", "left-pad"),
            ("pypi", "simple/x/"),
            ("helm", "index.yaml"),
            ("rpm", "repodata/repomd.xml"),
            ("alpine", "x86_64/APKINDEX.tar.gz"),
        ] {
            proxy.fetch(remote, path).await.expect(502);
        }
    });
}

#[test]
fn npm_gets_errors_in_its_own_form() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!("npm:\n  base_url: {}\n  package: npm\n", up.base())).await;
        let absent = proxy.fetch("npm", "absent").await.expect(404);
        assert!(absent.json()["error"].is_string(), "{}", absent.text());
        let refused = proxy.request("PUT", &at("npm", "some-package"), &[], b"{}").await;
        assert!(
            matches!(refused.status, 403 | 405) && refused.json()["error"].is_string(),
            "{}",
            refused.text()
        );
        assert_eq!(up.count("PUT", "/some-package"), 0);
    });
}

#[test]
fn what_is_nowhere_is_404_in_json() {
    run(async {
        let (_up, proxy) = pair().await;
        for target in [
            "/nowhere",
            "/api",
            "/api/v1/",
            "/api/v1/remote/",
            "/api/v2/remote/files/x",
            "/favicon.ico",
        ] {
            let answer = proxy.request("GET", target, &[], b"").await.expect(404);
            assert!(answer.json()["detail"].is_string(), "{target}");
        }
    });
}

// The small endpoints

#[test]
fn the_root_names_the_remotes() {
    run(async {
        let (_up, proxy) = pair().await;
        let root = proxy
            .request("GET", "/", &[("Accept", "application/json")], b"")
            .await
            .ok();
        assert!(root.must("content-type").starts_with("application/json"));
        assert!(root.text().contains("files"), "{}", root.text());
    });
}

#[test]
fn health_live_and_ready() {
    run(async {
        let (up, proxy) = pair().await;
        up.switch_off().await;
        let health = proxy.request("GET", "/health", &[], b"").await.ok().json();
        assert_eq!(health["status"], "ok", "{health}");
        assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
        assert!(
            health["config_generation"].is_u64() && health["dependencies"].is_object(),
            "{health}"
        );
        proxy.request("GET", "/health/live", &[], b"").await.ok();
        proxy.request("GET", "/health/ready", &[], b"").await.ok();
        assert_eq!(proxy.request("HEAD", "/health", &[], b"").await.ok().body.len(), 0);
        proxy.request("POST", "/health", &[], b"").await.expect(405);
    });
}

#[test]
fn config_shows_everything_but_secrets() {
    run(async {
        let proxy = Proxy::start(
            "files:\n  base_url: http://127.0.0.1:1/base\n  username: someone\n  password: hidden-one\n  \
             immutable_patterns: ['tgz$']\n  headers: {X-Token: hidden-two}\n",
        )
        .await;
        let config = proxy.request("GET", "/config", &[], b"").await.ok();
        let value = config.json();
        let files = &value["remotes"]["files"];
        assert!(
            files["base_url"]
                .as_str()
                .unwrap()
                .starts_with("http://127.0.0.1:1/base"),
            "{value}"
        );
        assert_eq!(
            (&files["password"], &files["immutable_patterns"]),
            (&json!("***"), &json!(["tgz$"]))
        );
        assert!(value["settings"].is_object() && value["generation"].is_u64(), "{value}");
        assert!(!config.text().contains("hidden"), "{}", config.text());
    });
}

#[test]
fn metrics_count_requests() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        let metrics = proxy.request("GET", "/metrics", &[], b"").await.ok();
        assert!(metrics.must("content-type").starts_with("text/plain"));
        assert!(
            metrics
                .text()
                .lines()
                .any(|line| line.starts_with("# TYPE artifactapi_")),
            "{}",
            metrics.text()
        );
        assert!(metrics.text().contains("remote=\"files\""), "{}", metrics.text());
    });
}

/// What `/api/v1/artifacts` lists, once it lists this many: the catalogue is written behind the requests.
async fn listed(proxy: &Proxy, query: &str, count: usize) -> Value {
    let mut page = Value::Null;
    eventually(
        Duration::from_secs(10),
        "the catalogue lists what is stored",
        async || {
            page = proxy
                .request("GET", &format!("/api/v1/artifacts{query}"), &[], b"")
                .await
                .ok()
                .json();
            page["artifacts"].as_array().is_some_and(|list| list.len() == count)
        },
    )
    .await;
    page
}

#[test]
fn the_catalogue_lists_what_is_stored() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply(
            "/dir/a.bin",
            Reply::ok("hello").content_type("application/x-a").etag("\"e\""),
        );
        up.reply("/b.bin", Reply::ok("bb"));
        for path in ["dir/a.bin", "b.bin"] {
            proxy.fetch("files", path).await.ok();
            proxy.until_cached("files", path).await;
        }
        let page = listed(&proxy, "?remote=files", 2).await;
        assert_eq!(
            (&page["total"], &page["bytes"], &page["next"]),
            (&json!(2), &json!(7), &Value::Null)
        );
        let page = listed(&proxy, "?prefix=dir/", 1).await;
        let artifact = &page["artifacts"][0];
        assert_eq!(
            (&artifact["remote"], &artifact["path"]),
            (&json!("files"), &json!("dir/a.bin"))
        );
        assert_eq!(
            (&artifact["size"], &artifact["class"]),
            (&json!(5), &json!("immutable"))
        );
        assert_eq!(artifact["content_type"], "application/x-a");
        let digest = artifact["digest"].as_str().unwrap();
        assert!(digest.ends_with(&crate::common::sha256(b"hello")), "{digest}");
        for key in ["published_at", "first_seen", "last_seen", "hits", "fresh_until"] {
            assert!(artifact.get(key).is_some(), "{key} is not in {artifact}");
        }
        let one = proxy
            .request("GET", "/api/v1/artifacts/files/dir/a.bin", &[], b"")
            .await
            .ok()
            .json();
        assert_eq!(one["size"], 5);
        proxy
            .request("GET", "/api/v1/artifacts/files/none", &[], b"")
            .await
            .expect(404);
        proxy
            .request("GET", "/api/v1/artifacts?nonsense=1", &[], b"")
            .await
            .expect(400);
    });
}

#[test]
fn flush_by_everything_it_can_name() {
    run(async {
        let (up, proxy) = pair().await;
        up.fallback(|seen| Reply::ok(seen.path.clone()));
        let paths = ["a/1", "a/2", "b/1", "b/2"];
        for path in paths {
            proxy.fetch("files", path).await.ok();
            proxy.until_cached("files", path).await;
        }
        let flush = async |body: Value| {
            let body = body.to_string();
            proxy
                .request("PUT", "/cache/flush", &[], body.as_bytes())
                .await
                .ok()
                .json()
        };
        let dry = flush(json!({"remote": "files", "prefix": "a/", "dry_run": true})).await;
        assert_eq!(
            (&dry["matched"], &dry["deleted"], &dry["dry_run"]),
            (&json!(2), &json!(0), &json!(true))
        );
        proxy.fetch("files", "a/1").await.is("cache", "/a/1");
        let done = flush(json!({"prefix": "a/"})).await;
        assert_eq!(
            (&done["matched"], &done["deleted"], &done["bytes"]),
            (&json!(2), &json!(2), &json!(8))
        );
        proxy.fetch("files", "b/1").await.is("cache", "/b/1");
        proxy.fetch("files", "a/1").await.is("remote", "/a/1");
        assert_eq!(flush(json!({"pattern": "^b/2$"})).await["deleted"], 1);
        assert_eq!(flush(json!({"class": "mutable"})).await["matched"], 0);
        proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
        for path in paths {
            proxy.fetch("files", path).await.is("remote", format!("/{path}"));
        }
        for bad in [
            json!({"remote": "nowhere"}),
            json!({"unknown": 1}),
            json!({"pattern": "("}),
            json!([1]),
        ] {
            let status = proxy
                .request("PUT", "/cache/flush", &[], bad.to_string().as_bytes())
                .await
                .status;
            assert_eq!(status, if bad.get("remote").is_some() { 404 } else { 400 }, "{bad}");
        }
    });
}

/// Without a token this machine's own programs may write, not what asks through them.
#[test]
fn who_may_flush() {
    run(async {
        let (_up, proxy) = pair().await;
        let port = proxy.address().port();
        let flush = async |headers: &[(&str, &str)]| proxy.request("PUT", "/cache/flush", headers, b"{}").await;
        let own = format!("localhost:{port}");
        let page = format!("http://{own}");
        flush(&[]).await.ok();
        flush(&[
            ("Host", own.as_str()),
            ("Origin", page.as_str()),
            ("Sec-Fetch-Site", "same-origin"),
        ])
        .await
        .ok();
        for header in [
            ("Host", "rebound.test"),
            ("Host", "10.0.0.1"),
            ("Origin", "http://example.test"),
            ("Origin", "null"),
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Site", "none"),
            ("Via", "1.1 other"),
            ("Forwarded", "for=10.0.0.1"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Prefix", "/a"),
            ("X-Forwarded-Server", "a"),
            ("X-Real-IP", "10.0.0.1"),
            ("X-Client-IP", "10.0.0.1"),
            ("CF-Connecting-IP", "10.0.0.1"),
        ] {
            let refused = flush(&[header]).await.expect(401);
            assert!(
                refused.json()["detail"]
                    .as_str()
                    .is_some_and(|text| text.contains("ARTIFACTAPI_ADMIN_TOKEN"))
            );
        }
        let mut foreign = H2Connection::open_as(proxy.address(), "rebound.test").await;
        assert_eq!(foreign.send("PUT", "/cache/flush", &[], b"{}").await.status, 401);
        let mut own = H2Connection::open(proxy.address()).await;
        own.send("PUT", "/cache/flush", &[], b"{}").await.ok();
        // With one it is needed, and enough.
        let guarded = Proxy::settings()
            .remotes("")
            .env("ARTIFACTAPI_ADMIN_TOKEN", "hunter2")
            .start()
            .await;
        for (headers, status) in [
            (vec![], 401),
            (vec![("Authorization", "Bearer hunter")], 401),
            (vec![("Authorization", "Bearer hunter2")], 200),
            (
                vec![
                    ("Authorization", "Bearer hunter2"),
                    ("Host", "a.test"),
                    ("Via", "1.1 a"),
                ],
                200,
            ),
        ] {
            let answer = guarded.request("PUT", "/cache/flush", &headers, b"{}").await;
            assert_eq!(answer.status, status, "{headers:?}");
        }
    });
}

#[test]
fn a_flush_of_much_is_answered_soon_and_covers_all_of_it_at_once() {
    run(async {
        let (up, proxy) = pair().await;
        up.fallback(|seen| Reply::ok(seen.path.clone()));
        let path = |n: usize| format!("{}/{n}", if n.is_multiple_of(50) { "kept" } else { "much" });
        for first in (0..1200).step_by(20) {
            let mut connection = proxy.connect().await;
            for n in first..first + 20 {
                let target = crate::common::server::at("files", &path(n));
                connection.request("GET", &target, &[], b"").await.ok();
            }
        }
        let began = Instant::now();
        let body = json!({"pattern": "^m.*ch/"}).to_string();
        let answer = proxy
            .request("PUT", "/cache/flush", &[], body.as_bytes())
            .await
            .ok()
            .json();
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(answer["matched"], 1176, "{answer}");
        assert!(answer["unfinished"] == true || answer["deleted"] == 1176, "{answer}");
        for n in (0..1200).step_by(25) {
            let source = if n % 50 == 0 { "cache" } else { "remote" };
            proxy.fetch("files", &path(n)).await.is(source, format!("/{}", path(n)));
        }
        // What was fetched anew is not taken away by the rest of it.
        crate::common::eventually(Duration::from_secs(20), "all of it is gone", async || {
            let list = proxy.request("GET", "/api/v1/artifacts?limit=1", &[], b"").await;
            list.ok().json()["total"] == 48
        })
        .await;
        for n in (0..1200).step_by(25) {
            proxy
                .fetch("files", &path(n))
                .await
                .is("cache", format!("/{}", path(n)));
        }
    });
}

#[test]
fn a_flush_that_was_cut_short_is_made_by_the_next_start() {
    run(async {
        let (up, mut proxy) = pair().await;
        up.fallback(|seen| Reply::ok(seen.path.clone()));
        for path in ["a/1", "b/1"] {
            proxy.fetch("files", path).await.ok();
            proxy.until_cached("files", path).await;
        }
        proxy.kill();
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let at = at.expect("a time").as_millis() as u64;
        let begun = json!({"at": at, "request": {"prefix": "a/"}, "id": "1"}).to_string();
        let folder = proxy.data_dir().join("flushes");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("1"), begun).expect("written");
        proxy.launch().await;
        proxy.fetch("files", "b/1").await.is("cache", "/b/1");
        proxy.fetch("files", "a/1").await.is("remote", "/a/1");
    });
}

#[test]
fn a_flush_clears_remembered_absence() {
    run(async {
        let (up, proxy) = pair().await;
        proxy.fetch("files", "none").await.expect(404);
        up.reply("/none", Reply::ok("there now"));
        proxy.fetch("files", "none").await.expect(404);
        proxy
            .request("PUT", "/cache/flush", &[], b"{\"remote\": \"files\"}")
            .await
            .ok();
        proxy.fetch("files", "none").await.is("remote", "there now");
    });
}

#[test]
fn an_expiring_flush_keeps_the_copy_for_bad_times() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        let done = proxy
            .request("PUT", "/cache/flush", &[], b"{\"mode\": \"expire\"}")
            .await
            .ok()
            .json();
        assert_eq!((&done["expired"], &done["deleted"]), (&json!(1), &json!(0)), "{done}");
        up.switch_off().await;
        proxy.fetch("files", "x").await.is("cache", "x");
    });
}
