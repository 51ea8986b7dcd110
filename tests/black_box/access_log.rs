//! The access log, and the id that each request has.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::client::Headers;
use crate::common::h2client::H2Connection;
use crate::common::server::{Settings, at};
use crate::common::{Gate, Pattern, Proxy, Reply, Upstream, eventually, run};
use serde_json::{Value, json};

const ID: &str = "X-Request-Id";

fn settings(up: &Upstream) -> Settings {
    Proxy::settings().remotes(&format!("files:\n  base_url: {}\n", up.base()))
}

/// A proxy that logs to a file.
async fn logging(up: &Upstream) -> (Proxy, PathBuf) {
    let proxy = settings(up).conf("access_log: access.log\n").start().await;
    let file = proxy.folder().join("access.log");
    (proxy, file)
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// The line of the request that has this id.
async fn line_of(file: &Path, id: &str) -> Value {
    let mut found = Vec::new();
    eventually(Duration::from_secs(10), "the request is logged", async || {
        found = lines(file);
        found.retain(|line| line["request_id"] == id);
        !found.is_empty()
    })
    .await;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn every_request_is_a_line_whichever_way_it_is_answered() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x", Reply::ok("12345"));
        up.reply("/slow", Reply::ok("slow").delay(Duration::from_millis(300)));
        let (proxy, file) = logging(&up).await;
        let x = at("files", "x");
        let agent = ("User-Agent", "tool/1");
        let ask = async |id: &str, target: &str| {
            let answer = proxy.request("GET", target, &[(ID, id), agent], b"").await;
            assert_eq!(answer.must(ID), id);
        };
        ask("miss", &x).await;
        proxy.until_cached("files", "x").await;
        ask("hit", &x).await;
        ask("slow", &at("files", "slow")).await;
        ask("health", "/health").await;
        ask("unknown", &at("nobody", "x")).await;
        let range = [(ID, "range"), ("Range", "bytes=1-2")];
        proxy.request("GET", &x, &range, b"").await.expect(206);
        proxy.request("HEAD", &x, &[(ID, "head")], b"").await.ok();
        let mut h2 = H2Connection::open(proxy.address()).await;
        h2.request("GET", &x, &[("x-request-id", "h2")]).await.ok();
        let of = async |id: &str| line_of(&file, id).await;
        for (id, expected) in [
            ("miss", json!(["files", 200, 5, "miss", "HTTP/1.1", "GET", "tool/1"])),
            ("hit", json!(["files", 200, 5, "hit", "HTTP/1.1", "GET", "tool/1"])),
            ("range", json!(["files", 206, 2, "hit", "HTTP/1.1", "GET", null])),
            ("head", json!(["files", 200, 0, "hit", "HTTP/1.1", "HEAD", null])),
            ("h2", json!(["files", 200, 5, "hit", "HTTP/2", "GET", null])),
        ] {
            let line = of(id).await;
            let fields = ["remote", "status", "bytes", "cache", "protocol", "method", "user_agent"];
            let found = Value::Array(fields.iter().map(|field| line[field].clone()).collect());
            assert_eq!(found, expected, "{line}");
            assert_eq!(
                (&line["path"], &line["client"]),
                (&json!(x), &json!("127.0.0.1")),
                "{line}"
            );
        }
        let (slow, hit) = (of("slow").await, of("hit").await);
        let upstream = slow["upstream_seconds"].as_f64().expect("upstream had a part in it");
        assert!(
            upstream >= 0.3 && slow["seconds"].as_f64().unwrap() >= upstream,
            "{slow}"
        );
        assert_eq!(hit["upstream_seconds"], Value::Null);
        assert!(hit["seconds"].as_f64().unwrap() < upstream);
        assert_eq!(
            (&of("health").await["remote"], &of("health").await["cache"]),
            (&Value::Null, &json!("none"))
        );
        assert_eq!(of("unknown").await["status"], 404);
        for line in lines(&file) {
            let time = line["time"].as_str().unwrap();
            assert!(
                time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T',
                "{time}"
            );
        }
    });
}

#[test]
fn what_cannot_be_read_and_what_breaks_off_is_logged_too() {
    run(async {
        let up = Upstream::start().await;
        let gate = Gate::new();
        up.reply("/cut", Reply::ok(Pattern::new(1, 8_000_000)).pause_at(100_000, &gate));
        let (proxy, file) = logging(&up).await;
        let mut bad = proxy.connect().await;
        bad.write_raw(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
        let head = bad.read_head("GET").await;
        assert_eq!(head.status, 400);
        let line = line_of(&file, head.must(ID)).await;
        assert_eq!(
            (&line["status"], &line["path"], &line["method"]),
            (&json!(400), &Value::Null, &Value::Null)
        );
        let mut gone = proxy.connect().await;
        gone.send("GET", &at("files", "cut"), &[(ID, "gone")], b"").await;
        gone.read_head("GET").await;
        drop(gone);
        gate.open();
        let line = line_of(&file, "gone").await;
        assert!(line["bytes"].as_u64().unwrap() < 8_000_000, "{line}");
    });
}

#[test]
fn ids_are_taken_over_or_made_and_go_upstream() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let proxy = settings(&up).start().await;
        let mut seen = HashSet::new();
        for n in 0..5 {
            let path = format!("n{n}");
            let answer = proxy.fetch("files", &path).await.ok();
            let id = answer.must(ID);
            assert_eq!(
                (id.len(), id.bytes().all(|byte| byte.is_ascii_hexdigit())),
                (32, true),
                "{id}"
            );
            assert_eq!(up.last("GET", &format!("/{path}")).header(ID), Some(id));
            seen.insert(id.to_owned());
            seen.insert(proxy.until_cached("files", &path).await.must(ID).to_owned());
        }
        assert_eq!(seen.len(), 10);
        proxy.fetch_with("files", "given", &[(ID, "abc-1.2")]).await.ok();
        assert_eq!(up.last("GET", "/given").header(ID), Some("abc-1.2"));
        // Also of what is handed on without being stored.
        proxy.fetch_with("files", "given?q", &[(ID, "query")]).await.ok();
        assert_eq!(up.last("GET", "/given?q").header(ID), Some("query"));
        proxy.until_cached("files", "given").await;
        for insane in ["a b", "a\"b", "{x}", "a\\nb", &"x".repeat(129)] {
            for path in ["given", "n0?"] {
                let answer = proxy.fetch_with("files", path, &[(ID, insane)]).await;
                assert_ne!(answer.must(ID), insane);
            }
        }
        let twice = [(ID, "one"), (ID, "two")];
        let answer = proxy.fetch_with("files", "given", &twice).await.ok();
        assert!(!["one", "two"].contains(&answer.must(ID)));
    });
}

#[test]
fn a_fetch_that_many_wait_for_has_the_id_of_the_first() {
    run(async {
        let up = Upstream::start().await;
        let gate = Gate::new();
        up.reply("/x", Reply::ok("x").gated(&gate));
        let (proxy, file) = logging(&up).await;
        let mut connections = Vec::new();
        for id in ["first", "second"] {
            let mut connection = proxy.connect().await;
            connection.send("GET", &at("files", "x"), &[(ID, id)], b"").await;
            up.wait_in_flight(1).await;
            connections.push((id, connection));
        }
        eventually(Duration::from_secs(10), "the second has joined", async || {
            proxy.metric("artifactapi_collapsed_total", &["files"]).await == 1.0
        })
        .await;
        gate.open();
        for (id, mut connection) in connections {
            let head = connection.read_head("GET").await;
            connection.read_body().await;
            assert_eq!(head.must(ID), id);
            assert!(line_of(&file, id).await["upstream_seconds"].is_f64());
        }
        assert_eq!(up.last("GET", "/x").header(ID), Some("first"));
        assert_eq!(up.count("GET", "/x"), 1);
    });
}

#[test]
fn a_client_can_neither_forge_a_line_nor_leave_a_secret_in_one() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let (proxy, file) = logging(&up).await;
        let agent = "\"},{\"status\":1} \\ \u{e9}";
        let headers = [
            (ID, "evil"),
            ("User-Agent", agent),
            ("Authorization", "Bearer s3cret"),
            ("Cookie", "s3cret"),
        ];
        let target = at("files", "%22%0a%7b?token=s3cret&X-Amz-Signature=s3cret&s3cret");
        proxy.request("GET", &target, &headers, b"").await;
        let line = line_of(&file, "evil").await;
        assert_eq!(line["user_agent"], agent);
        let path = at("files", "%22%0a%7b?token=***&X-Amz-Signature=***&***");
        assert_eq!(line["path"], path);
        let plain = [(ID, "hit"), ("User-Agent", agent)];
        proxy.until_cached("files", "x").await;
        proxy.fetch_with("files", "x", &plain).await.is("cache", "x");
        assert_eq!(line_of(&file, "hit").await["user_agent"], agent);
        assert!(!fs::read_to_string(&file).unwrap().contains("s3cret"));
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
        assert_eq!(mode & 0o007, 0, "not for everybody: {mode:o}");
    });
}

#[test]
fn the_client_is_whom_a_trusted_proxy_names() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        for (trusted, expected) in [("[127.0.0.0/8]", "192.0.2.7"), ("[10.0.0.0/8]", "127.0.0.1")] {
            let conf = format!("access_log: access.log\ntrusted_proxies: {trusted}\n");
            let proxy = settings(&up).conf(&conf).start().await;
            let file = proxy.folder().join("access.log");
            proxy.until_cached("files", "x").await;
            for (id, field, value) in [
                ("one", "X-Forwarded-For", "10.9.9.9, 192.0.2.7"),
                ("two", "Forwarded", "for=192.0.2.7"),
            ] {
                let headers = [(ID, id), (field, value)];
                proxy.fetch_with("files", "x", &headers).await.is("cache", "x");
                assert_eq!(line_of(&file, id).await["client"], expected);
                let long = format!("{id}-long");
                let headers = [(ID, &*long), (field, value), ("Range", "bytes=0-0")];
                proxy.fetch_with("files", "x", &headers).await.expect(206);
                assert_eq!(line_of(&file, &long).await["client"], expected);
            }
        }
    });
}

#[test]
fn a_hangup_opens_the_file_anew_and_no_line_is_lost() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let (mut proxy, file) = logging(&up).await;
        proxy.until_cached("files", "x").await;
        let mut connection = proxy.connect().await;
        let mut count = 0;
        let mut moved = Vec::new();
        for round in 0..3 {
            for _ in 0..200 {
                let id = format!("r{count}");
                let headers = [(ID, id.as_str())];
                connection.request("GET", &at("files", "x"), &headers, b"").await.ok();
                count += 1;
            }
            let old = proxy.folder().join(format!("access.log.{round}"));
            fs::rename(&file, &old).unwrap();
            moved.push(old);
            proxy.reload_and_wait().await;
            eventually(Duration::from_secs(10), "there is a new file", async || file.exists()).await;
        }
        assert!(proxy.stop().await.success());
        let all = moved.iter().chain([&file]).flat_map(|file| lines(file));
        let ids: Vec<Value> = all.map(|line| line["request_id"].clone()).collect();
        let found = (0..count).filter(|n| ids.contains(&json!(format!("r{n}")))).count();
        assert_eq!(found, count);
    });
}

#[test]
fn it_can_be_written_to_standard_output_and_is_off_by_default() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let mut proxy = settings(&up).conf("access_log: stdout\n").start().await;
        proxy.fetch_with("files", "x", &[(ID, "on-stdout")]).await.ok();
        assert!(proxy.stop().await.success());
        let log = proxy.log();
        let line = log.lines().find(|line| line.contains("on-stdout")).expect("a line");
        let line: Value = serde_json::from_str(line).expect("JSON and nothing else");
        assert_eq!(line["status"], 200);
        let mut proxy = settings(&up).start().await;
        proxy.fetch_with("files", "x", &[(ID, "nowhere")]).await.ok();
        let config = proxy.request("GET", "/config", &[], b"").await.ok().json();
        assert_eq!(config["settings"]["access_log"], "off");
        assert!(proxy.stop().await.success());
        assert!(!proxy.log_contains("nowhere"));
    });
}

#[test]
fn what_cannot_be_written_is_dropped_and_counted_and_nobody_waits() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let mut proxy = settings(&up).conf("access_log: /dev/full\n").start().await;
        proxy.until_cached("files", "x").await.is("cache", "x");
        eventually(Duration::from_secs(10), "the lines are counted", async || {
            proxy.metric("artifactapi_access_log_dropped_total", &[]).await >= 2.0
        })
        .await;
        proxy.wait_for_log("the access log cannot be written").await;
        assert!(proxy.stop().await.success());
    });
}
