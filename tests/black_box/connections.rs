//! One connection, many requests: whichever way each of them is answered, the next one is not affected.

use std::time::Duration;

use crate::common::client::Headers;
use crate::common::h2client::H2Connection;
use crate::common::server::at;
use crate::common::{Connection, File, Gate, Pattern, Proxy, Reply, Upstream, eventually, run};

async fn pair() -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    let files = format!("files:\n  base_url: {}\n", up.base());
    let npm = format!("npm:\n  package: npm\n  base_url: {}\n", up.base());
    let proxy = Proxy::start(&format!("{files}{npm}")).await;
    (up, proxy)
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

#[test]
fn requests_of_every_kind_follow_each_other() {
    run(async {
        let (up, proxy) = pair().await;
        up.file("/x", File::new("the file x").etag("\"x\""));
        up.on("/cold", |_| Reply::ok("cold"));
        up.on("/-/npm/v1/security/audits/quick", |seen| Reply::ok(seen.body.to_vec()));
        proxy.until_cached("files", "x").await;
        let x = at("files", "x");
        let audit = at("npm", "-/npm/v1/security/audits/quick");
        let mut connection = proxy.connect().await;
        for round in 0..3 {
            connection.get(&x).await.is("cache", "the file x");
            connection.get(&at("files", &format!("none{round}"))).await.expect(404);
            connection.get(&x).await.is("cache", "the file x");
            connection
                .get(&format!("{}?{round}", at("files", "cold")))
                .await
                .is("remote", "cold");
            let range = [("Range", "bytes=4-7")];
            let part = connection.request("GET", &x, &range, b"").await.expect(206);
            assert_eq!(part.body, "file");
            let known = [("If-None-Match", "\"x\"")];
            connection.request("GET", &x, &known, b"").await.expect(304);
            connection.get(&x).await.is("cache", "the file x");
            let head = connection.request("HEAD", &x, &[], b"").await.expect(200);
            assert_eq!(head.must("content-length"), "10");
            let posted = connection.request("POST", &audit, &[], b"{\"a\": 1}").await.ok();
            assert_eq!(posted.body, "{\"a\": 1}");
            connection.get(&x).await.is("cache", "the file x");
            connection.get("/health/live").await.ok();
            let put = connection.request("PUT", &x, &[], b"new").await;
            assert_eq!(put.status, 405);
            if put.header("connection") == Some("close") {
                connection = proxy.connect().await;
            }
        }
        connection.get(&x).await.is("cache", "the file x");
        let last = connection.request("GET", &x, &[("Connection", "close")], b"").await;
        last.is("cache", "the file x");
        assert!(connection.closes().await);
    });
}

#[test]
fn requests_sent_ahead_are_answered_in_their_order() {
    run(async {
        let (up, proxy) = pair().await;
        for name in ["a", "b", "c"] {
            up.reply(&format!("/{name}"), Reply::ok(name));
        }
        proxy.until_cached("files", "a").await;
        proxy.until_cached("files", "b").await;
        let mut connection = proxy.connect().await;
        for _ in 0..2 {
            // Hits before and after what has to be fetched, and one head cut in two.
            let order = ["a", "b", "c", "none", "a", "b"];
            let all: String = order.iter().map(|name| get(&at("files", name))).collect();
            let (first, rest) = all.as_bytes().split_at(all.len() - 30);
            connection.write_raw(first).await;
            for name in &order[..3] {
                assert_eq!(connection.response("GET").await.ok().body, *name);
            }
            connection.write_raw(rest).await;
            connection.response("GET").await.expect(404);
            for name in &order[4..] {
                assert_eq!(connection.response("GET").await.ok().body, *name);
            }
        }
    });
}

#[test]
fn a_request_sent_while_another_passes_by_is_not_lost() {
    run(async {
        let (up, proxy) = pair().await;
        let gate = Gate::new();
        let held = gate.clone();
        up.on("/-/npm/v1/security/audits/quick", move |_| {
            Reply::ok("audited").gated(&held)
        });
        up.reply("/x", Reply::ok("x"));
        proxy.until_cached("files", "x").await;
        let audit = at("npm", "-/npm/v1/security/audits/quick");
        let mut connection = proxy.connect().await;
        connection.send("POST", &audit, &[], b"{}").await;
        eventually(Duration::from_secs(10), "the request is at upstream", async || {
            up.in_flight() > 0
        })
        .await;
        for _ in 0..3 {
            connection.write_raw(get(&at("files", "x")).as_bytes()).await;
        }
        gate.open();
        assert_eq!(connection.response("POST").await.ok().body, "audited");
        for _ in 0..3 {
            connection.response("GET").await.is("cache", "x");
        }
        connection.get(&at("files", "x")).await.is("cache", "x");
    });
}

#[test]
fn a_head_may_come_in_any_pieces() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        proxy.until_cached("files", "x").await;
        let request = get(&at("files", "x"));
        let mut connection = proxy.connect().await;
        for byte in request.as_bytes() {
            connection.write_raw(&[*byte]).await;
            // Each in a packet of its own, mostly.
            tokio::task::yield_now().await;
        }
        connection.response("GET").await.is("cache", "x");
        for at in 1..request.len() {
            let (first, rest) = request.as_bytes().split_at(at);
            connection.write_raw(first).await;
            connection.write_raw(rest).await;
            connection.response("GET").await.is("cache", "x");
        }
        // Shorter than the preface of HTTP/2, for which a new connection is searched.
        let mut connection = proxy.connect().await;
        connection.write_raw(b"GET / HTTP/1.0\r\n\r\n").await;
        connection.response("GET").await.ok();
    });
}

#[test]
fn bodies_of_every_length_arrive_whole_at_fast_and_slow_clients() {
    run(async {
        let (up, proxy) = pair().await;
        for length in [1, 1_000, 32_767, 32_768, 300_000, 1_000_000, 1_100_000, 5_000_000] {
            let body = Pattern::new(length, length);
            let path = format!("f{length}");
            up.file(&format!("/{path}"), File::new(body));
            proxy.until_cached("files", &path).await;
            let mut connection = proxy.connect().await;
            for _ in 0..3 {
                connection.send("GET", &at("files", &path), &[], b"").await;
                let head = connection.read_head("GET").await;
                assert_eq!((head.status, head.source()), (200, "cache"), "{length}");
                assert_eq!(head.must("content-length"), length.to_string());
                assert_eq!(connection.read_pattern(body).await, length);
            }
            // What the socket does not take at once is sent when it does, and the next request is answered behind it.
            let mut narrow = Connection::open_narrow(proxy.address()).await;
            for _ in 0..2 {
                narrow.write_raw(get(&at("files", &path)).as_bytes()).await;
            }
            for _ in 0..2 {
                narrow.read_head("GET").await;
                assert_eq!(narrow.read_pattern(body).await, length);
                assert!(narrow.is_complete(), "{length}");
            }
        }
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_harms_nobody() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(7, 40_000_000);
        up.file("/large", File::new(body));
        up.reply("/x", Reply::ok("x"));
        proxy.until_cached("files", "large").await;
        proxy.until_cached("files", "x").await;
        let mut other = proxy.connect().await;
        for _ in 0..20 {
            let mut leaving = Connection::open_narrow(proxy.address()).await;
            leaving.send("GET", &at("files", "large"), &[], b"").await;
            leaving.read_head("GET").await;
            leaving.read_body_until(10_000).await;
            leaving.reset();
            other.get(&at("files", "x")).await.is("cache", "x");
        }
        assert_eq!(up.count("GET", "/large"), 1);
    });
}

#[test]
fn a_hit_says_the_same_whichever_way_it_is_answered() {
    run(async {
        let (up, proxy) = pair().await;
        let file = File::new(Pattern::new(3, 50_000))
            .header("Link", "<x>; rel=next")
            .etag("\"e\"")
            .header("X-Theirs", "1")
            .content_type("text/plain");
        up.file("/x", file);
        up.reply("/bare", Reply::ok("no validator, no type"));
        for path in ["x", "bare"] {
            proxy.until_cached("files", path).await;
            let target = at("files", path);
            let short = proxy.connect().await.get(&target).await.ok();
            // A field of more than usual makes it go the long way.
            let long = [("If-None-Match", "\"other\"")];
            let long = proxy.connect().await.request("GET", &target, &long, b"").await.ok();
            let h2 = H2Connection::open(proxy.address()).await.get(&target).await.ok();
            let told = |headers: &[(String, String)]| {
                let mut told: Vec<_> = headers
                    .iter()
                    .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                    .filter(|(name, _)| !["date", "age", "connection", "x-request-id"].contains(&name.as_str()))
                    .collect();
                told.sort();
                told
            };
            assert_eq!(told(&short.headers), told(&long.headers), "{path}");
            assert_eq!(told(&short.headers), told(&h2.headers), "{path}");
            assert!(short.must("date").ends_with(" GMT"));
            assert_eq!(short.body, long.body);
        }
        let hits = [("remote", "files"), ("status", "200"), ("cache", "hit")];
        let hits: Vec<String> = hits.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let hits: Vec<&str> = hits.iter().map(String::as_str).collect();
        assert!(proxy.metric("artifactapi_requests_total", &hits).await >= 6.0);
    });
}

#[test]
fn a_server_that_stops_says_so_on_connections_in_use() {
    run(async {
        let (up, mut proxy) = pair().await;
        let gate = Gate::new();
        up.reply("/x", Reply::ok("x"));
        up.reply("/slow", Reply::ok("slow").gated(&gate));
        proxy.until_cached("files", "x").await;
        let mut used = proxy.connect().await;
        used.get(&at("files", "x")).await.is("cache", "x");
        let mut slow = proxy.connect().await;
        slow.send("GET", &at("files", "slow"), &[], b"").await;
        eventually(Duration::from_secs(10), "the request is at upstream", async || {
            up.in_flight() > 0
        })
        .await;
        proxy.ask_to_stop();
        proxy.wait_for_log("stopping").await;
        // In use still, and answered: as the last request.
        let answer = used.get(&at("files", "x")).await.is("cache", "x");
        assert_eq!(answer.header("connection"), Some("close"));
        gate.open();
        slow.response("GET").await.is("remote", "slow");
        assert!(proxy.ended(Duration::from_secs(20)).await.success());
    });
}

#[test]
fn a_request_behind_a_chunked_body_is_not_lost() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        proxy.until_cached("files", "x").await;
        let next = get(&at("files", "x"));
        let mut connection = proxy.connect().await;
        for cut in [1, 20, next.len()] {
            let flush = "PUT /cache/flush HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
            connection.write_raw(flush.as_bytes()).await;
            // Read with the rest of the body, whichever way the segments come.
            let body = "{\"remote\": \"npm\"}";
            let (first, rest) = next.split_at(cut);
            let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n{first}", body.len());
            connection.write_raw(chunks.as_bytes()).await;
            connection.response("PUT").await.ok();
            connection.write_raw(rest.as_bytes()).await;
            connection.response("GET").await.is("cache", "x");
        }
    });
}

#[test]
fn the_preface_of_http_2_may_come_in_any_pieces() {
    run(async {
        let (_up, proxy) = pair().await;
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for cut in 1..preface.len() {
            let mut connection = proxy.connect().await;
            let (first, rest) = preface.split_at(cut);
            connection.write_raw(first).await;
            // So that the rest comes by itself.
            tokio::time::sleep(Duration::from_millis(2)).await;
            connection.write_raw(rest).await;
            // An empty SETTINGS frame (RFC 9113 section 6.5), to which one of the server's own is the answer.
            connection.write_raw(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
            let mut frame = [0; 4];
            assert!(connection.read_exact_raw(&mut frame).await, "cut at {cut}");
            assert_eq!(frame[3], 4, "cut at {cut}");
        }
    });
}

#[test]
fn a_host_with_a_users_name_is_refused_for_hits_too() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        proxy.until_cached("files", "x").await;
        let mut connection = proxy.connect().await;
        let request = format!("GET {} HTTP/1.1\r\nHost: user@a\r\n\r\n", at("files", "x"));
        connection.write_raw(request.as_bytes()).await;
        assert_eq!(connection.response("GET").await.status, 400);
    });
}
