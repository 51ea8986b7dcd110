//! What `/metrics` tells.

use std::time::Duration;

use crate::common::server::at;
use crate::common::{Gate, Pattern, Proxy, Reply, Upstream, eventually, refused, run};

async fn text(proxy: &Proxy) -> String {
    proxy.request("GET", "/metrics", &[], b"").await.ok().text()
}

async fn until(proxy: &Proxy, name: &str, labels: &[&str], value: f64) {
    let mut last = 0.0;
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while std::time::Instant::now() < end {
        last = proxy.metric(name, labels).await;
        if last == value {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{name} {labels:?} is {last}, not {value}:\n{}", text(proxy).await);
}

#[test]
fn requests_are_counted_by_remote_status_and_cache() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x", Reply::ok("12345"));
        up.reply("/absent", Reply::status(404));
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}\nother:\n  base_url: {}\n",
            up.base(),
            up.base()
        ))
        .await;
        const REQUESTS: &str = "artifactapi_requests_total";
        proxy.fetch("files", "x").await.is("remote", "12345");
        until(&proxy, REQUESTS, &["\"files\"", "\"200\"", "\"miss\""], 1.0).await;
        let before = {
            proxy.until_cached("files", "x").await;
            proxy.metric(REQUESTS, &["\"files\"", "\"200\"", "\"hit\""]).await
        };
        let mut connection = proxy.connect().await;
        for _ in 0..5 {
            connection.get(&at("files", "x")).await.is("cache", "12345");
        }
        until(&proxy, REQUESTS, &["\"files\"", "\"200\"", "\"hit\""], before + 5.0).await;
        proxy.fetch("files", "absent").await.expect(404);
        until(&proxy, REQUESTS, &["\"files\"", "\"404\"", "\"miss\""], 1.0).await;
        proxy.fetch("files", "absent").await.expect(404);
        until(&proxy, REQUESTS, &["\"files\"", "\"404\"", "\"negative\""], 1.0).await;
        // Whatever unknown remotes are called, they are one.
        for name in ["a", "b", "c"] {
            proxy.fetch(name, "x").await.expect(404);
        }
        until(&proxy, REQUESTS, &["remote=\"\"", "\"404\"", "\"none\""], 3.0).await;
        assert_eq!(proxy.metric(REQUESTS, &["\"other\""]).await, 0.0);
        // Bytes by where they came from, and what upstream sent.
        let hits = before + 5.0;
        until(
            &proxy,
            "artifactapi_response_bytes_total",
            &["\"files\"", "\"cache\""],
            hits * 5.0,
        )
        .await;
        until(
            &proxy,
            "artifactapi_response_bytes_total",
            &["\"files\"", "\"remote\""],
            5.0,
        )
        .await;
        until(&proxy, "artifactapi_upstream_received_bytes_total", &["\"files\""], 5.0).await;
        until(
            &proxy,
            "artifactapi_upstream_responses_total",
            &["\"files\"", "\"200\""],
            1.0,
        )
        .await;
        until(
            &proxy,
            "artifactapi_upstream_responses_total",
            &["\"files\"", "\"404\""],
            1.0,
        )
        .await;
        until(&proxy, "artifactapi_fills_total", &["\"files\""], 2.0).await;
        // Times, by how the cache came into it.
        until(&proxy, "artifactapi_request_duration_seconds_count", &["\"hit\""], hits).await;
        until(&proxy, "artifactapi_request_duration_seconds_count", &["\"miss\""], 2.0).await;
        until(
            &proxy,
            "artifactapi_upstream_response_seconds_count",
            &["\"files\""],
            2.0,
        )
        .await;
        assert!(proxy.metric("artifactapi_tier_bytes", &["\"memory\""]).await > 5.0);
        assert!(proxy.metric("artifactapi_tier_bytes", &["\"disk\""]).await > 5.0);
        assert_eq!(proxy.metric("artifactapi_tier_limit_bytes", &["\"disk\""]).await, 50e9);
        // The one that asks.
        assert_eq!(proxy.metric("artifactapi_requests_in_flight", &[]).await, 1.0);
        let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
        assert_eq!(proxy.metric("artifactapi_build_info", &[&version]).await, 1.0);
    });
}

#[test]
fn upstreams_latency_is_measured() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/slow", Reply::ok("x").delay(Duration::from_millis(300)));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        proxy.fetch("files", "slow").await.ok();
        let waited = proxy
            .metric("artifactapi_upstream_response_seconds_sum", &["\"files\""])
            .await;
        assert!((0.3..10.0).contains(&waited), "{waited}");
        let quick = proxy
            .metric(
                "artifactapi_upstream_response_seconds_bucket",
                &["\"files\"", "le=\"0.25\""],
            )
            .await;
        assert_eq!(quick, 0.0);
    });
}

#[test]
fn what_waits_for_upstream_is_shown() {
    run(async {
        let up = Upstream::start().await;
        let gate = Gate::new();
        up.under("/", {
            let gate = gate.clone();
            move |_| Reply::ok("x").gated(&gate)
        });
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .conf("upstream: {max_concurrent: 2}\n")
            .start()
            .await;
        let mut connections = Vec::new();
        for path in ["a", "b", "c", "d", "d"] {
            let mut connection = proxy.connect().await;
            connection.send("GET", &at("files", path), &[], b"").await;
            connections.push(connection);
        }
        until(&proxy, "artifactapi_upstream_fetches", &["running"], 2.0).await;
        until(&proxy, "artifactapi_upstream_fetches", &["waiting"], 2.0).await;
        until(&proxy, "artifactapi_collapsed_total", &["\"files\""], 1.0).await;
        gate.open();
        for connection in &mut connections {
            connection.read_head("GET").await;
            connection.read_body().await;
        }
        until(&proxy, "artifactapi_upstream_fetches", &[], 0.0).await;
    });
}

#[test]
fn failures_are_counted_by_remote_and_kind() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/hangs", Reply::silence());
        up.reply("/odd", Reply::status(304));
        let gate = Gate::new();
        let cut = Reply::ok(Pattern::new(1, 2_000_000)).pause_at(1_000_000, &gate);
        up.reply("/cut", cut.truncate_at(1_500_000));
        let proxy = Proxy::start(&format!(
            "up:\n  base_url: {}\n  upstream: {{first_byte_timeout: 200ms}}\ndown:\n  base_url: http://{}/\n",
            up.base(),
            refused()
        ))
        .await;
        const FAILURES: &str = "artifactapi_upstream_failures_total";
        // They are there before there is any.
        let begins = text(&proxy).await;
        assert!(
            begins.contains("artifactapi_upstream_failures_total{kind=\"timeout\",remote=\"up\"} 0"),
            "{begins}"
        );
        assert!(
            begins.contains("artifactapi_digest_mismatches_total{remote=\"up\"} 0"),
            "{begins}"
        );
        assert!(
            begins.contains("artifactapi_quarantined_total{remote=\"up\"} 0"),
            "{begins}"
        );
        proxy.fetch("up", "hangs").await.expect(504);
        until(&proxy, FAILURES, &["\"up\"", "\"timeout\""], 1.0).await;
        proxy.fetch("up", "odd").await.expect(502);
        until(&proxy, FAILURES, &["\"up\"", "\"refused\""], 1.0).await;
        proxy.fetch("down", "x").await.expect(502);
        until(&proxy, FAILURES, &["\"down\"", "\"unreachable\""], 1.0).await;
        // Before anything has gone out, a body that breaks off counts as no answer.
        let mut cut = proxy.connect().await;
        cut.send("GET", &at("up", "cut"), &[], b"").await;
        assert_eq!(cut.read_head("GET").await.status, 200);
        cut.read_body_until(500_000).await;
        gate.open();
        cut.read_body().await;
        assert!(!cut.is_complete());
        until(&proxy, "artifactapi_fill_failures_total", &["\"up\""], 1.0).await;
    });
}

#[test]
fn the_series_of_a_remote_end_with_it() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let one = |name: &str| format!("{name}:\n  base_url: {}\n", up.base());
        let proxy = Proxy::start(&format!("{}{}", one("stays"), one("goes"))).await;
        proxy.until_cached("goes", "x").await;
        proxy.until_cached("stays", "x").await;
        assert!(text(&proxy).await.contains("\"goes\""));
        proxy.write_remotes(&one("stays"));
        proxy.reload_and_wait().await;
        proxy.fetch("goes", "x").await.expect(404);
        let after = text(&proxy).await;
        assert!(!after.contains("\"goes\"") && after.contains("\"stays\""), "{after}");
        eventually(Duration::from_secs(10), "the generation is told", async || {
            proxy.metric("artifactapi_config_generation", &[]).await == 2.0
        })
        .await;
    });
}

#[test]
fn names_and_units_are_as_prometheus_has_them() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        proxy.until_cached("files", "x").await;
        let text = text(&proxy).await;
        let mut families = 0;
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            families += 1;
            assert!(name.starts_with("artifactapi_"), "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(kind != "histogram" || name.ends_with("_seconds"), "{line}");
            assert!(
                text.contains(&format!("# HELP {name} ")),
                "{name} says nothing of itself"
            );
        }
        assert!(families > 30, "{families}");
        // Nothing of a client's own making is in a label.
        proxy.fetch("files", "path-of-a-client").await;
        let after = self::text(&proxy).await;
        assert!(!after.contains("path-of-a-client"));
    });
}
