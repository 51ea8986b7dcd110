//! What upstream is spared: hosts that do not answer, caps on what is asked of them, refreshing before anybody waits.

use std::time::{Duration, Instant};

use crate::common::client::Headers;
use crate::common::server::at;
use crate::common::{Gate, Pattern, Proxy, Reply, Upstream, eventually, run};
use serde_json::{Value, json};

async fn health(proxy: &Proxy) -> Value {
    proxy.request("GET", "/health", &[], b"").await.ok().json()
}

async fn away(proxy: &Proxy) -> Vec<String> {
    let health = health(proxy).await;
    let away = health["upstreams_away"].as_object().expect("an object");
    away.keys().cloned().collect()
}

async fn is_back(proxy: &Proxy) {
    eventually(Duration::from_secs(30), "the host is asked again", async || {
        away(proxy).await.is_empty()
    })
    .await;
}

/// A host that has served `kept.txt`, and has left three questions unanswered since.
async fn silent_host() -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    let proxy = Proxy::settings()
        .remotes(&format!(
            "files:\n  base_url: {}\n  mutable_patterns: ['kept']\n  cache: {{mutable_ttl: 1}}\n",
            up.base()
        ))
        .conf("upstream: {first_byte_timeout: 300ms}\n")
        .start()
        .await;
    up.reply("/kept.txt", Reply::ok("old"));
    proxy.fetch("files", "kept.txt").await.is("remote", "old");
    up.fallback(|_| Reply::silence());
    up.reply("/kept.txt", Reply::ok("new"));
    for path in ["a", "b", "c"] {
        proxy.fetch("files", path).await.expect(504);
    }
    (up, proxy)
}

#[test]
fn a_host_that_does_not_answer_is_not_asked_until_it_does() {
    run(async {
        let (up, proxy) = silent_host().await;
        let host = format!("http://{}", up.authority());
        assert_eq!(away(&proxy).await.as_slice(), std::slice::from_ref(&host));
        let about = &health(&proxy).await["upstreams_away"][&host];
        assert!(
            about["detail"]
                .as_str()
                .is_some_and(|why| why.contains("did not answer")),
            "{about}"
        );
        assert!(about["seconds"].is_u64(), "{about}");
        assert_eq!(proxy.metric("artifactapi_upstream_away", &[&host]).await, 1.0);
        proxy.wait_for_log("an upstream host does not answer").await;
        // Expired, and served at once: upstream would have something new.
        eventually(Duration::from_secs(10), "the copy expires", async || {
            let answer = proxy.fetch("files", "kept.txt").await.is("cache", "old");
            answer.cache_words().contains(&"fwd=stale".into())
        })
        .await;
        assert_eq!(up.count("GET", "/kept.txt"), 1);
        assert!(proxy.metric("artifactapi_upstream_unasked_total", &["files"]).await >= 1.0);
        // Nothing is stored of this: the client is told why, and that it is asked again by itself.
        let refused = proxy.fetch("files", "d").await.expect(504).json();
        assert!(
            refused["detail"]
                .as_str()
                .is_some_and(|why| why.contains("is asked again by itself")),
            "{refused}"
        );
        assert_eq!(up.count("GET", "/d"), 0);
        up.fallback(|_| Reply::ok("here"));
        is_back(&proxy).await;
        proxy.wait_for_log("an upstream host answers again").await;
        assert_eq!(proxy.metric("artifactapi_upstream_away", &[]).await, 0.0);
        proxy.fetch("files", "d").await.is("remote", "here");
        eventually(Duration::from_secs(10), "what is new is fetched", async || {
            proxy.fetch("files", "kept.txt").await.ok().text() == "new"
        })
        .await;
    });
}

#[test]
fn who_has_nothing_stored_waits_a_little_for_a_host_to_come_back() {
    run(async {
        let (up, proxy) = silent_host().await;
        up.fallback(|_| Reply::ok("here"));
        proxy.fetch("files", "d").await.is("remote", "here");
        assert!(away(&proxy).await.is_empty());
    });
}

#[test]
fn a_host_whose_answers_are_errors_or_that_is_slow_at_one_path_is_there() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("upstream: {first_byte_timeout: 300ms}\n")
            .start()
            .await;
        up.reply("/slow", Reply::silence()).reply("/broken", Reply::status(500));
        for round in 0..3 {
            for _ in 0..2 {
                proxy.fetch("files", "slow").await.expect(504);
            }
            proxy.fetch("files", "broken").await.expect(500);
            assert_eq!(up.count("GET", "/slow"), 2 * (round + 1));
        }
        assert!(away(&proxy).await.is_empty());
        assert_eq!(up.count("HEAD", "/"), 0);
    });
}

#[test]
fn a_remote_asks_no_more_often_than_it_may() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {0}\n  upstream: {{requests_per_second: 5}}\nfree:\n  base_url: {0}\n",
            up.base()
        ))
        .await;
        up.fallback(|seen| Reply::ok(seen.path.clone()));
        let start = Instant::now();
        let paths: Vec<String> = (0..15).map(|n| format!("f{n}")).collect();
        let all = futures_util::future::join_all(paths.iter().map(|path| proxy.fetch("files", path))).await;
        for (answer, path) in all.into_iter().zip(&paths) {
            answer.is("remote", format!("/{path}"));
        }
        // A second's worth is saved up, five come each second.
        assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
        assert!(
            proxy
                .metric("artifactapi_upstream_delay_seconds_total", &["files", "requests"])
                .await
                > 1.0
        );
        assert_eq!(health(&proxy).await["caps_reached"]["files"], json!(["requests"]));
        proxy.wait_for_log("the remote's cap is reached").await;
        for path in &paths {
            proxy.fetch("files", path).await.is("cache", format!("/{path}"));
            proxy.fetch("free", path).await.is("remote", format!("/{path}"));
        }
        assert_eq!(
            proxy
                .metric("artifactapi_upstream_delay_seconds_total", &["free"])
                .await,
            0.0
        );
    });
}

#[test]
fn what_would_wait_too_long_for_its_turn_is_told_to_come_again() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}\n  upstream: {{requests_per_second: 1}}\n",
            up.base()
        ))
        .await;
        up.fallback(|_| Reply::ok("x"));
        // One is answered at once, thirty have their turn within as many seconds, the rest is refused.
        let paths: Vec<String> = (0..40).map(|n| format!("f{n}")).collect();
        let mut waiting: futures_util::stream::FuturesUnordered<_> =
            paths.iter().map(|path| proxy.fetch("files", path)).collect();
        let mut refused = 0;
        while refused < 8 {
            let answer = futures_util::StreamExt::next(&mut waiting).await.expect("an answer");
            if answer.status != 200 {
                let answer = answer.expect(503);
                assert!(!answer.must("retry-after").is_empty());
                assert!(answer.text().contains("requests_per_second"), "{}", answer.text());
                refused += 1;
            }
        }
    });
}

#[test]
fn a_remotes_bodies_come_no_faster_than_they_may() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {0}\n  upstream: {{bytes_per_second: 500KB, least_rate: 400KB, rate_window: 1s, idle_timeout: 2s}}\n\
             npm:\n  base_url: {0}\n  package: npm\n  mutable_patterns: ['^']\n  upstream: {{bytes_per_second: 500KB}}\n",
            up.base()
        ))
        .await;
        let body = Pattern::new(40, 1_500_000);
        up.reply("/big", Reply::ok(body)).reply("/-/v1/search", Reply::ok(body));
        for (remote, path) in [("files", "big"), ("npm", "-/v1/search")] {
            let start = Instant::now();
            proxy.fetch(remote, path).await.is("remote", body.whole());
            assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
            let delayed = ["artifactapi_upstream_delay_seconds_total"];
            assert!(proxy.metric(delayed[0], &[remote, "bytes"]).await > 1.0, "{remote}");
        }
        // What is stored is nobody's business but the client's.
        let start = Instant::now();
        proxy.fetch("files", "big").await.is("cache", body.whole());
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    });
}

#[test]
fn what_is_asked_for_often_is_refreshed_before_anybody_waits() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}\n  mutable_patterns: ['x']\n  refresh: background\n  cache: {{mutable_ttl: 10}}\n",
            up.base()
        ))
        .await;
        let gate = Gate::new();
        up.sequence("/x", vec![Reply::ok("old"), Reply::ok("new").pause_at(1, &gate)]);
        proxy.fetch("files", "x").await.is("remote", "old");
        eventually(Duration::from_secs(20), "it is refreshed", async || {
            let answer = proxy.fetch("files", "x").await.is("cache", "old");
            assert!(!answer.cache_words().contains(&"fwd=stale".into()));
            up.count("GET", "/x") == 2
        })
        .await;
        // It is on its way, and nobody waits for it.
        proxy.fetch("files", "x").await.is("cache", "old");
        gate.open();
        eventually(Duration::from_secs(10), "the new one is served", async || {
            let answer = proxy.fetch("files", "x").await.ok();
            assert_eq!(answer.source(), "cache");
            answer.text() == "new"
        })
        .await;
        assert_eq!(up.count("GET", "/x"), 2);
    });
}

#[test]
fn a_refresh_that_fails_is_not_tried_again_at_once() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}\n  mutable_patterns: ['x']\n  refresh: background\n  cache: {{mutable_ttl: 5}}\n",
            up.base()
        ))
        .await;
        up.sequence("/x", vec![Reply::ok("old"), Reply::status(500)]);
        proxy.fetch("files", "x").await.is("remote", "old");
        eventually(Duration::from_secs(20), "the copy has expired", async || {
            let answer = proxy.fetch("files", "x").await;
            assert!(answer.status == 500 || answer.status == 200 && answer.source() == "cache");
            answer.status == 500
        })
        .await;
        // In the last second of the TTL there were dozens of requests; the last one of all waited for upstream.
        let asked = up.count("GET", "/x");
        assert!((3..=5).contains(&asked), "{asked}");
    });
}

#[test]
fn without_it_who_comes_first_after_the_ttl_waits() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}\n  mutable_patterns: ['x']\n  cache: {{mutable_ttl: 1}}\n",
            up.base()
        ))
        .await;
        up.sequence("/x", vec![Reply::ok("old"), Reply::ok("new")]);
        proxy.fetch("files", "x").await.is("remote", "old");
        eventually(Duration::from_secs(10), "the TTL passes", async || {
            let answer = proxy.request("GET", &at("files", "x"), &[], b"").await.ok();
            assert_eq!(answer.source() == "remote", answer.text() == "new");
            answer.text() == "new"
        })
        .await;
    });
}
