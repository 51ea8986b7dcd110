//! SIGHUP: the configuration is read again, all of it or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::client::Headers;
use crate::common::server::at;
use crate::common::{Connection, Gate, Pattern, Proxy, Reply, Upstream, eventually, run};

#[test]
fn a_reload_adds_changes_and_removes_remotes_and_keeps_what_is_cached() {
    run(async {
        let (one, two) = (Upstream::start().await, Upstream::start().await);
        one.fallback(|_| Reply::ok("one"));
        two.fallback(|_| Reply::ok("two"));
        let proxy = Proxy::start(&format!("a:\n  base_url: {0}\nb:\n  base_url: {0}\n", one.base())).await;
        for path in ["x", "y.tgz"] {
            proxy.fetch("a", path).await.ok();
            proxy.until_cached("a", path).await;
        }
        proxy.fetch("b", "x").await.ok();
        proxy.until_cached("b", "x").await;
        proxy.write_remotes(&format!(
            "a:\n  base_url: {0}\n  immutable_patterns: ['tgz$']\nc:\n  base_url: {1}\n",
            one.base(),
            two.base()
        ));
        proxy.reload_and_wait().await;
        // A pattern holds at once, also for what is stored.
        proxy.fetch("a", "x").await.expect(403);
        proxy.fetch("a", "y.tgz").await.is("cache", "one");
        proxy.fetch("b", "x").await.expect(404);
        proxy.fetch("c", "x").await.is("remote", "two");
        // What was cached of a remote that is gone is there when it comes back.
        proxy.write_remotes(&format!("b:\n  base_url: {}\n", one.base()));
        proxy.reload_and_wait().await;
        proxy.fetch("b", "x").await.is("cache", "one");
    });
}

#[test]
fn a_bad_file_changes_nothing_and_every_problem_is_logged() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        let before = proxy.generation().await;
        for (text, words) in [
            (
                "good:\n  base_url: http://127.0.0.1:1\nfirst:\n  bad_key: 1\nsecond:\n  immutable_patterns: ['(']\n",
                &["bad_key", "first", "second"][..],
            ),
            ("one: [\n", &["remotes.yaml"]),
        ] {
            proxy.write_remotes(text);
            proxy.reload();
            for word in words {
                proxy.wait_for_log(word).await;
            }
            proxy.fetch("files", "x").await.ok();
            proxy.fetch("good", "x").await.expect(404);
            assert_eq!(proxy.generation().await, before);
        }
        std::fs::remove_file(proxy.remotes_file()).unwrap();
        proxy.reload();
        proxy.fetch("files", "y").await.is("remote", "x");
    });
}

#[test]
fn no_request_is_lost_or_mixed_while_reloading() {
    run(async {
        let (one, two) = (Upstream::start().await, Upstream::start().await);
        one.fallback(|_| Reply::ok("one"));
        two.fallback(|_| Reply::ok("two"));
        let yaml = |up: &Upstream| {
            // Both remotes always point to the same place: an answer that says otherwise mixes two configurations.
            format!(
                "a:\n  base_url: {0}\n  headers: {{X-Gen: {1}}}\nb:\n  base_url: {0}\n",
                up.base(),
                up.port()
            )
        };
        let proxy = Proxy::start(&yaml(&one)).await;
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..4 {
            let (address, stop, answered) = (proxy.address(), stop.clone(), answered.clone());
            clients.spawn(async move {
                let mut connection = Connection::open(address).await;
                let mut number = 0;
                while !stop.load(Ordering::SeqCst) {
                    let target = at("a", &format!("{client}/{number}"));
                    let answer = connection.get(&target).await.ok();
                    assert!(answer.body == "one" || answer.body == "two");
                    number += 1;
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..10 {
            proxy.write_remotes(&yaml(if round % 2 == 0 { &two } else { &one }));
            proxy.reload_and_wait().await;
            let before = answered.load(Ordering::SeqCst);
            eventually(Duration::from_secs(20), "requests between two reloads", async || {
                answered.load(Ordering::SeqCst) > before + 8
            })
            .await;
        }
        stop.store(true, Ordering::SeqCst);
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
        for up in [&one, &two] {
            assert!(
                up.log()
                    .iter()
                    .all(|seen| seen.header("x-gen") == Some(&up.port().to_string()))
            );
        }
    });
}

#[test]
fn a_download_under_way_ends_as_it_began() {
    run(async {
        let up = Upstream::start().await;
        let (body, gate) = (Pattern::new(1, 3_000_000), Gate::new());
        up.reply("/x", Reply::ok(body).pause_at(1_000_000, &gate));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        let mut client = proxy.connect().await;
        client.send("GET", &at("files", "x"), &[], b"").await;
        client.read_head("GET").await;
        proxy.write_remotes("other:\n  base_url: http://127.0.0.1:1\n");
        proxy.reload_and_wait().await;
        gate.open();
        assert_eq!(client.read_pattern(body).await, 3_000_000);
        assert!(client.is_complete());
        proxy.fetch("files", "x").await.expect(404);
    });
}

#[test]
fn settings_are_read_again_in_one_swap_with_the_remotes() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let remotes = |more: &str| format!("files:\n  base_url: {}\n{more}", up.base());
        let token = |secret: &str| {
            let hash = crate::common::sha256(secret.as_bytes());
            format!("tokens: [{{name: t, hash: 'sha256:{hash}', scopes: [admin]}}]\n")
        };
        let proxy = Proxy::settings()
            .remotes(&remotes(""))
            .conf("stop_timeout: 9s\n")
            .start()
            .await;
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        let is_answered = async |secret: &str| {
            let authorization = format!("Bearer {secret}");
            proxy
                .fetch_with("files", "x", &[("Authorization", &authorization)])
                .await
                .status
        };
        // A remote that needs a token, and the token.
        proxy.write_conf(&(token("one") + "stop_timeout: 9s\n"));
        proxy.write_remotes(&remotes("  protected: true\n"));
        proxy.reload_and_wait().await;
        assert_eq!((is_answered("").await, is_answered("one").await), (401, 200));
        assert_eq!(
            proxy
                .fetch_with("files", "x", &[("Authorization", "Bearer one")])
                .await
                .source(),
            "cache"
        );
        // Another token, and what cannot change.
        proxy.write_conf(
            &(token("two") + "stop_timeout: 8s\ncache: {memory_bytes: 1MB}\nclients: {head_bytes: 4KiB}\n"),
        );
        proxy.reload_and_wait().await;
        assert_eq!((is_answered("one").await, is_answered("two").await), (401, 200));
        for key in ["`stop_timeout` was changed", "`cache` was changed"] {
            proxy.wait_for_log(key).await;
        }
        let long = "a".repeat(5000);
        let answer = proxy.request("GET", "/health/live", &[("X-Long", &long)], b"").await;
        assert_eq!(answer.status, 431, "the limits are those of now");
        // What does not hold together changes nothing, of either file.
        let before = proxy.generation().await;
        proxy.write_conf("stop_timeout: 9s\n");
        proxy.write_remotes(&remotes("  protected: true\n  offline: true\n"));
        proxy.reload();
        proxy.wait_for_log("nobody could read it").await;
        assert_eq!(proxy.generation().await, before);
        assert_eq!(is_answered("two").await, 200);
        let admin = [("Authorization", "Bearer two")];
        let health = proxy.request("GET", "/health", &admin, b"").await.ok().json();
        assert_eq!(health["config_reload"], "failed");
        assert!(
            health["config_last_failure"]["detail"]
                .as_str()
                .unwrap()
                .contains("protected"),
            "{health}"
        );
        let stranger = proxy.request("GET", "/health", &[], b"").await.ok().json();
        assert!(
            stranger["config_last_failure"]["at"].is_string() && stranger["config_last_failure"]["detail"].is_null()
        );
        let metrics = proxy.request("GET", "/metrics", &admin, b"").await.ok().text();
        assert!(metrics.contains("artifactapi_config_last_reload_successful 0"));
        assert!(metrics.contains(&format!("artifactapi_config_generation {before}")));
        proxy.write_conf(&token("two"));
        proxy.reload_and_wait().await;
        let health = proxy.request("GET", "/health", &admin, b"").await.ok().json();
        assert_eq!(health["config_reload"], "ok");
        assert!(
            health["config_last_failure"]["at"].is_string(),
            "the last one is still told"
        );
        let metrics = proxy.request("GET", "/metrics", &admin, b"").await.ok().text();
        assert!(metrics.contains("artifactapi_config_last_reload_successful 1"));
    });
}
