//! The catalogue in PostgreSQL, as clients of several instances see it, while the server comes and goes.

use std::time::{Duration, Instant};

use crate::common::client::Headers;
use crate::common::clock::Clock;
use crate::common::postgres::Postgres;
use crate::common::server::Settings;
use crate::common::{Proxy, Reply, Response, Upstream, eventually, run};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);

/// An instance on the database, with one remote.
fn settings(up: &Upstream, server: &Postgres) -> Settings {
    let remotes = format!(
        "files: {{base_url: '{}', package: generic, immutable_patterns: ['.*']}}",
        up.base()
    );
    let settings = Proxy::settings().remotes(&remotes);
    server
        .env()
        .into_iter()
        .fold(settings, |settings, (name, value)| settings.env(name, value))
}

async fn upstream() -> Upstream {
    let up = Upstream::start().await;
    up.fallback(|seen| Reply::ok(seen.path.clone()));
    up
}

async fn list(proxy: &Proxy, query: &str) -> Response {
    proxy
        .request("GET", &format!("/api/v1/artifacts{query}"), &[], b"")
        .await
}

/// The paths that are listed, once there are this many.
async fn listed(proxy: &Proxy, query: &str, count: usize) -> Vec<String> {
    let mut paths = Vec::new();
    eventually(LIMIT, "what was fetched is listed", async || {
        let page = list(proxy, query).await;
        if page.status == 200 {
            let artifacts = page.json()["artifacts"].as_array().expect("a list").clone();
            let path = |artifact: &Value| artifact["path"].as_str().expect("a path").to_owned();
            paths = artifacts.iter().map(path).collect();
        }
        paths.len() == count
    })
    .await;
    paths
}

async fn catalogue(proxy: &Proxy) -> Value {
    let health = proxy.request("GET", "/health/ready", &[], b"").await.ok().json();
    health["dependencies"]["catalogue"].clone()
}

#[test]
fn two_instances_show_one_list_and_flush_by_it() {
    run(async {
        let (up, server) = (upstream().await, Postgres::start());
        let one = settings(&up, &server).start().await;
        let two = settings(&up, &server).start().await;
        for path in ["a/1", "a/2", "b/1"] {
            one.fetch("files", path).await.ok();
        }
        assert_eq!(listed(&two, "?remote=files", 3).await, ["a/1", "a/2", "b/1"]);
        assert_eq!(catalogue(&two).await["status"], "ok");
        let artifact = two.request("GET", "/api/v1/artifacts/files/a/1", &[], b"").await.ok();
        assert_eq!(artifact.json()["size"], 4);
        let body = json!({"remote": "files", "prefix": "a/"}).to_string();
        let flushed = one.request("PUT", "/cache/flush", &[], body.as_bytes()).await.ok();
        assert_eq!(flushed.json()["deleted"], 2);
        for proxy in [&one, &two] {
            assert_eq!(listed(proxy, "", 1).await, ["b/1"]);
        }
        one.fetch("files", "a/1").await.is("remote", "/a/1");
        // It is not in a file of this machine.
        assert!(!one.data_dir().join("catalog.db").exists());
        let config = one.request("GET", "/config", &[], b"").await.ok();
        assert_eq!(config.json()["settings"]["database"]["tls"]["mode"], "prefer");
        assert!(!config.text().contains(crate::common::postgres::PASSWORD));
    });
}

#[test]
fn what_the_list_has_lost_is_flushed_too() {
    run(async {
        let (up, server) = (upstream().await, Postgres::start());
        let proxy = settings(&up, &server).start().await;
        for path in ["a/1", "a/2", "b/1"] {
            proxy.fetch("files", path).await.ok();
        }
        assert_eq!(listed(&proxy, "", 3).await, ["a/1", "a/2", "b/1"]);
        // As when another node evicts it, which knows nothing of this one.
        server.sql("DELETE FROM artifactapi.artifact WHERE path = 'a/1'").await;
        let body = json!({"prefix": "a/"}).to_string();
        let flushed = proxy.request("PUT", "/cache/flush", &[], body.as_bytes()).await.ok();
        assert_eq!(flushed.json()["deleted"], 1);
        proxy.wait_for_log("a flush was made").await;
        for path in ["a/1", "a/2"] {
            proxy.fetch("files", path).await.is("remote", format!("/{path}"));
        }
        proxy.fetch("files", "b/1").await.is("cache", "/b/1");
    });
}

#[test]
fn a_clock_that_is_apart_from_the_databases_is_said() {
    run(async {
        let (up, server, clock) = (upstream().await, Postgres::start(), Clock::new());
        let env = clock.env(60).into_iter();
        let settings = env.fold(settings(&up, &server), |settings, (name, value)| {
            settings.env(name, value)
        });
        let proxy = settings.start().await;
        let mut health = Value::Null;
        eventually(LIMIT, "it is said", async || {
            let all = proxy.request("GET", "/health", &[], b"").await.ok().json();
            health = all["dependencies"]["postgres"].clone();
            health["clock_ahead_seconds"].is_number()
        })
        .await;
        let near = |said: f64| (said + 60.0).abs() < 1.0;
        assert!(health["clock_ahead_seconds"].as_f64().is_some_and(near), "{health}");
        assert!(health["detail"].to_string().contains("clock"), "{health}");
        let metric = proxy.metric("artifactapi_dependency_clock_ahead_seconds", &["postgres"]);
        assert!(near(metric.await));
        assert!(proxy.log_contains("the clocks of this machine and of a dependency differ"));
    });
}

#[test]
fn a_database_that_is_away_stops_no_download_and_loses_nothing() {
    run(async {
        let (up, mut server) = (upstream().await, Postgres::prepare());
        // Away at the start.
        let started = Instant::now();
        let proxy = settings(&up, &server).start().await;
        assert!(started.elapsed() < Duration::from_secs(5));
        proxy.fetch("files", "first").await.is("remote", "/first");
        let refused = list(&proxy, "").await.expect(503);
        assert_eq!(refused.must("retry-after"), "5");
        let health = catalogue(&proxy).await;
        assert_eq!(health["status"], "degraded");
        let detail = health["detail"].as_str().expect("why").to_owned();
        assert!(
            detail.contains("PostgreSQL at 127.0.0.1") && detail.contains("refused"),
            "{detail}"
        );
        server.launch();
        assert_eq!(listed(&proxy, "", 1).await, ["first"]);

        // Stopped in the middle.
        let mut paths = vec!["first".to_owned()];
        server.stop();
        for n in 0..50 {
            let path = format!("stopped/{n:02}");
            let started = Instant::now();
            proxy.fetch("files", &path).await.is("remote", format!("/{path}"));
            assert!(started.elapsed() < Duration::from_secs(1));
            paths.push(path);
        }
        list(&proxy, "").await.expect(503);
        let body = json!({"prefix": "stopped/"}).to_string();
        let flushed = proxy.request("PUT", "/cache/flush", &[], body.as_bytes()).await;
        assert_eq!(flushed.expect(503).must("retry-after"), "5");
        server.launch();
        assert_eq!(listed(&proxy, "", paths.len()).await, paths);

        // Hung: whoever asks the list has a bound, whoever downloads does not notice.
        server.pause();
        let asked = Instant::now();
        let (refused, _) = tokio::join!(list(&proxy, ""), async {
            for n in 0..50 {
                let path = format!("zhung/{n:02}");
                let started = Instant::now();
                proxy.fetch("files", &path).await.is("remote", format!("/{path}"));
                assert!(started.elapsed() < Duration::from_secs(1));
                paths.push(path);
            }
        });
        refused.expect(503);
        assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
        server.resume();
        assert_eq!(listed(&proxy, "?limit=1000", paths.len()).await, paths);

        // Killed.
        server.kill();
        proxy.fetch("files", "zzkilled").await.is("remote", "/zzkilled");
        paths.push("zzkilled".to_owned());
        server.launch();
        assert_eq!(listed(&proxy, "?limit=1000", paths.len()).await, paths);
        assert_eq!(catalogue(&proxy).await["status"], "ok");
    });
}

#[test]
fn links_that_there_was_no_room_for_are_noted_when_the_index_is_read_again() {
    const LINKS: usize = 140_000;
    run(async {
        let (up, mut server) = (upstream().await, Postgres::prepare());
        let file = |n: usize| format!("f/pkg-{n}.0-py3-none-any.whl");
        let page: String = (0..LINKS)
            .map(|n| format!("<a href=\"{}\">x</a>\n", up.url(&format!("/{}", file(n)))))
            .collect();
        let index = Upstream::start().await;
        index.reply("/simple/pkg/", Reply::ok(page).content_type("text/html; charset=utf-8"));
        let remotes = format!("py: {{package: pypi, base_url: '{}'}}", index.base());
        let proxy = settings(&up, &server).remotes(&remotes).start().await;
        eventually(LIMIT, "the database is known to be away", async || {
            catalogue(&proxy).await["status"] == "degraded"
        })
        .await;
        // The document waits for nothing.
        let page = proxy.fetch("py", "simple/pkg/").await.ok();
        assert_eq!(page.text().matches("/-/host/").count(), LINKS);
        let path = |n: usize| format!("-/host/{}/{}", up.authority(), file(n));
        proxy.fetch("py", &path(0)).await.ok();
        proxy.fetch("py", &path(LINKS - 1)).await.expect(503);
        server.launch();
        eventually(LIMIT, "the last file is served", async || {
            proxy.fetch("py", &path(LINKS - 1)).await.status == 200
        })
        .await;
    });
}

#[test]
fn what_is_recorded_last_is_written_at_the_stop() {
    run(async {
        let (up, server) = (upstream().await, Postgres::start());
        let mut proxy = settings(&up, &server).start().await;
        assert_eq!(listed(&proxy, "", 0).await, [""; 0]);
        proxy.fetch("files", "last").await.ok();
        assert!(proxy.stop().await.success());
        let other = settings(&up, &server).start().await;
        assert_eq!(listed(&other, "", 1).await, ["last"]);
    });
}
