//! Corners of HTTP: framing, limits, the absolute form, HTTP/2 without TLS, what is added and what stops here.

use std::time::Duration;

use crate::common::client::{Headers, parts};
use crate::common::h2client::H2Connection;
use crate::common::server::at;
use crate::common::{Connection, File, Gate, Pattern, Proxy, Reply, Upstream, eventually, run};
use tokio::task::JoinSet;

const MB: u64 = 1_000_000;

async fn pair() -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
    (up, proxy)
}

async fn npm() -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    let proxy = Proxy::start(&format!("npm:\n  package: npm\n  base_url: {}\n", up.base())).await;
    (up, proxy)
}

/// The status of the answer to these bytes, and whether the connection was closed after it. No answer is 0.
async fn raw(proxy: &Proxy, bytes: &[u8]) -> (u16, bool) {
    let mut connection = proxy.connect().await;
    connection.write_raw(bytes).await;
    match connection.try_read_head("GET").await {
        Ok(head) => {
            connection.read_body().await;
            (head.status, connection.closes().await)
        }
        Err(_) => (0, true),
    }
}

// Framing

#[test]
fn what_two_readers_could_understand_differently_is_refused() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        let smuggled = format!("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", at("files", "smuggled"));
        let target = at("files", "x");
        for (what, head, body) in [
            ("a bare LF", format!("GET {target} HTTP/1.1\nHost: a\n\n"), ""),
            (
                "one bare LF",
                format!("GET {target} HTTP/1.1\r\nHost: a\r\nX: y\nContent-Length: 5\r\n\r\n"),
                "",
            ),
            (
                "a space before the colon of a length",
                format!("GET {target} HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\n"),
                "",
            ),
            (
                "both, the other way round",
                format!("GET {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"),
                "0\r\n\r\n",
            ),
            (
                "two codings in two lines",
                format!(
                    "GET {target} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"
                ),
                "0\r\n\r\n",
            ),
            (
                "the same length twice",
                format!("GET {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"),
                "",
            ),
            (
                "a hexadecimal length",
                format!("GET {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n"),
                "hello",
            ),
            (
                "a length with a space",
                format!("GET {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 1 0\r\n\r\n"),
                "",
            ),
            (
                "a length that overflows",
                format!("GET {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n"),
                "",
            ),
            ("no Host", format!("GET {target} HTTP/1.1\r\n\r\n"), ""),
            (
                "a folded header",
                format!("GET {target} HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n"),
                "",
            ),
            (
                "a header without a name",
                format!("GET {target} HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n"),
                "",
            ),
            (
                "a header without a colon",
                format!("GET {target} HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n"),
                "",
            ),
            (
                "two spaces in the request line",
                format!("GET  {target} HTTP/1.1\r\nHost: a\r\n\r\n"),
                "",
            ),
            (
                "a space in the target",
                format!("GET {target} y HTTP/1.1\r\nHost: a\r\n\r\n"),
                "",
            ),
            (
                "a space in the target of a long head",
                format!(
                    "GET {target} y HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
                    "x".repeat(20_000)
                ),
                "",
            ),
            ("no version", format!("GET {target}\r\nHost: a\r\n\r\n"), ""),
            (
                "a version that is none",
                format!("GET {target} HTTP/1.x\r\nHost: a\r\n\r\n"),
                "",
            ),
        ] {
            let bytes = format!("{head}{body}{smuggled}");
            let (status, closed) = raw(&proxy, bytes.as_bytes()).await;
            assert_eq!(status, 400, "{what}");
            assert!(closed, "{what}: the connection stays open");
        }
        assert_eq!(up.count("*", "/smuggled"), 0);
        assert_eq!(up.total(), 0);
        proxy.fetch("files", "x").await.is("remote", "x");
    });
}

#[test]
fn two_hosts_are_refused() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        let request = format!("GET {} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", at("files", "x"));
        assert_eq!(raw(&proxy, request.as_bytes()).await.0, 400);
        assert_eq!(up.total(), 0);
    });
}

#[test]
fn our_own_endpoints_are_as_strict() {
    run(async {
        let (_up, proxy) = pair().await;
        for head in [
            "PUT /cache/flush HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n",
            "GET /health HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        ] {
            assert_eq!(raw(&proxy, head.as_bytes()).await, (400, true), "{head:?}");
        }
    });
}

#[test]
fn a_chunked_body_is_read_as_chunks() {
    run(async {
        let (_up, proxy) = pair().await;
        let mut connection = proxy.connect().await;
        let body = "9\r\n{\"mode\": \r\n9;x=y\r\n\"expire\"}\r\n0\r\nX-Trailer: 1\r\n\r\n";
        let request =
            format!("PUT /cache/flush HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        connection.write_raw(request.as_bytes()).await;
        let answer = connection.response("PUT").await.ok().json();
        assert_eq!(answer["matched"], 0);
        connection.get("/health/live").await.ok();
        for bad in [
            "zz\r\n{}\r\n0\r\n\r\n",
            "-2\r\n{}\r\n0\r\n\r\n",
            "2\r\n{}x\r\n0\r\n\r\n",
        ] {
            let head = "PUT /cache/flush HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
            let request = format!("{head}{bad}");
            assert_eq!(raw(&proxy, request.as_bytes()).await, (400, true), "{bad:?}");
        }
    });
}

#[test]
fn a_few_empty_lines_before_a_request_are_passed_over() {
    run(async {
        let (_up, proxy) = pair().await;
        let mut connection = proxy.connect().await;
        for _ in 0..3 {
            let request = format!("{}GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n".repeat(8));
            connection.write_raw(request.as_bytes()).await;
            connection.response("GET").await.ok();
        }
        assert_eq!(raw(&proxy, "\r\n".repeat(9).as_bytes()).await, (400, true));
        assert_eq!(raw(&proxy, b"\n").await, (400, true));
    });
}

#[test]
fn heads_have_a_limit_and_what_is_usual_is_below_it() {
    run(async {
        let (up, proxy) = pair().await;
        up.fallback(|_| Reply::ok("x"));
        let usual = "c".repeat(8 * 1024);
        let headers = [("Cookie", usual.as_str()), ("X-Other", usual.as_str())];
        proxy.fetch_with("files", "x", &headers).await.ok();
        let query = format!("x?{}", "q".repeat(8 * 1024));
        proxy.fetch("files", &query).await.ok();
        let many = (0..60)
            .map(|number| format!("X-{number}: {number}\r\n"))
            .collect::<String>();
        let request = format!("GET {} HTTP/1.1\r\nHost: a\r\n{many}\r\n", at("files", "x"));
        let mut connection = proxy.connect().await;
        connection.write_raw(request.as_bytes()).await;
        connection.response("GET").await.ok();
        up.forget();
        for (what, path, headers) in [
            (
                "a long header",
                "x".to_owned(),
                format!("X-Long: {}\r\n", "l".repeat(4 << 20)),
            ),
            ("a long path", "p".repeat(4 << 20), String::new()),
            (
                "too many headers",
                "x".to_owned(),
                (0..50_000).map(|number| format!("X-{number}: {number}\r\n")).collect(),
            ),
        ] {
            let request = format!("GET {} HTTP/1.1\r\nHost: a\r\n{headers}\r\n", at("files", &path));
            let mut connection = proxy.connect().await;
            connection.send_as_far_as_taken(request.as_bytes()).await;
            match connection.try_read_head("GET").await {
                Ok(head) => assert!(matches!(head.status, 400 | 413 | 414 | 431), "{what}: {}", head.status),
                // Cut off before it was heard to its end.
                Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "{what}"),
            }
        }
        let (_, peak) = proxy.memory();
        assert!(peak < 200 * MB, "{peak}");
        assert_eq!(up.total(), 0);
        proxy.fetch("files", "x").await.ok();
    });
}

#[test]
fn a_body_that_is_announced_waits_for_the_word() {
    run(async {
        let (up, proxy) = npm().await;
        up.on("/-/npm/v1/security/audits/quick", |seen| Reply::ok(seen.body.to_vec()));
        let audit = at("npm", "-/npm/v1/security/audits/quick");
        for (method, target) in [("PUT", "/cache/flush"), ("POST", audit.as_str())] {
            let head = |version: &str, expect: &str| {
                format!(
                    "{method} {target} {version}\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: {expect}\r\n\r\n"
                )
            };
            let mut connection = proxy.connect().await;
            connection.write_raw(head("HTTP/1.1", "100-continue").as_bytes()).await;
            let mut word = [0; 25];
            assert!(connection.read_exact_raw(&mut word).await, "{target}");
            assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n", "{target}");
            connection.write_raw(b"{}").await;
            connection.response(method).await.ok();
            // Nobody else is told: who expects something else, who speaks an older version, who has sent the body.
            for sent in [
                format!("{}{{}}", head("HTTP/1.1", "200-ok")),
                format!("{}{{}}", head("HTTP/1.0", "100-continue")),
                format!("{}{{}}", head("HTTP/1.1", "100-continue")),
            ] {
                let mut connection = proxy.connect().await;
                connection.write_raw(sent.as_bytes()).await;
                let mut answer = [0; 12];
                assert!(connection.read_exact_raw(&mut answer).await, "{sent:?}");
                assert_eq!(&answer, b"HTTP/1.1 200", "{sent:?}");
            }
        }
        // Who is refused need not send it.
        let mut connection = proxy.connect().await;
        let refused = "PUT /health HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        connection.write_raw(refused.as_bytes()).await;
        let mut answer = [0; 12];
        assert!(connection.read_exact_raw(&mut answer).await);
        assert_eq!(&answer, b"HTTP/1.1 405");
    });
}

/// Whichever way a request comes to be read, it is read alike.
#[test]
fn a_second_request_is_read_as_the_first_is() {
    run(async {
        let (up, proxy) = pair().await;
        up.fallback(|seen| Reply::ok(seen.path.clone()));
        let cached = at("files", "cached");
        proxy.until_cached("files", "cached").await;
        let long = "p".repeat(5000);
        let mut cases: Vec<(u16, String)> = Vec::new();
        for target in [cached.as_str(), &at("files", "cold"), "/health/live"] {
            let get = |rest: &str| format!("GET {target}{rest}\r\n\r\n");
            for (status, head) in [
                (200, get(" HTTP/1.1\r\nHost: a")),
                (200, format!("\r\n{}", get(" HTTP/1.1\r\nHost: a"))),
                (400, get(" HTTP/1.1")),
                (400, get(" HTTP/1.1\r\nHost: ")),
                (400, get(" HTTP/1.1\r\nHost: a b")),
                (400, get(" HTTP/1.1\r\nHost: a/b")),
                (400, get(" HTTP/1.1\r\nHost: u@a")),
                (400, get(" HTTP/1.1\r\nHost: a:+80")),
                (400, get(" HTTP/1.1\r\nHost: a\r\nHost: a")),
                (400, get("#x HTTP/1.1\r\nHost: a")),
                (400, get(" x HTTP/1.1\r\nHost: a")),
                (400, get("\tx HTTP/1.1\r\nHost: a")),
                (400, get("\rx HTTP/1.1\r\nHost: a")),
                (400, get("\u{1}x HTTP/1.1\r\nHost: a")),
                (400, get("  HTTP/1.1\r\nHost: a")),
                (400, get(" HTTP/1.1 \r\nHost: a")),
                (400, get(" HTTP/1.1\nHost: a")),
                (400, get(" HTTP/1.1\r\nHost: a\r\nX: a\rb")),
                (400, get(" HTTP/1.1\r\nHost: a\r\nX : a")),
                (400, get(" HTTP/1.1\r\nHost: a\r\n X: a")),
                (400, get(" HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0")),
                (400, get(" HTTP/1.1\r\nHost: a\r\nContent-Length: +0")),
                (400, get(" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked")),
                (400, get(" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip")),
                (501, get(" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked")),
                (400, get(" HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked")),
                (414, get(&format!("/{long} HTTP/1.1\r\nHost: a"))),
                (414, get(&format!("?{long}{long}{long}{long} HTTP/1.1\r\nHost: a"))),
            ] {
                cases.push((status, head));
            }
        }
        cases.push((400, "GET health HTTP/1.1\r\nHost: a\r\n\r\n".into()));
        cases.push((400, "PRI * HTTP/2.0\r\n\r\nxx\r\n\r\n".into()));
        for (case, (status, head)) in cases.iter().enumerate() {
            let miss = at("files", &format!("miss{case}"));
            let mut befores = vec![cached.as_str(), "/health/live", miss.as_str()];
            befores.truncate(if case % 4 == 0 { 3 } else { 2 });
            let mut connection = proxy.connect().await;
            connection.write_raw(head.as_bytes()).await;
            let first = connection.read_head("GET").await.status;
            assert_eq!(first, *status, "{:?}", &head[..head.len().min(100)]);
            for before in befores {
                for ahead in [false, true] {
                    let mut connection = proxy.connect().await;
                    let request = format!("GET {before} HTTP/1.1\r\nHost: a\r\n\r\n");
                    if ahead {
                        connection.write_raw(format!("{request}{head}").as_bytes()).await;
                        connection.response("GET").await.ok();
                    } else {
                        connection.write_raw(request.as_bytes()).await;
                        connection.response("GET").await.ok();
                        connection.write_raw(head.as_bytes()).await;
                    }
                    let what = &head[..head.len().min(100)];
                    let second = connection.try_read_head("GET").await.map(|head| head.status);
                    assert_eq!(second.ok(), Some(*status), "behind {before}, ahead {ahead}: {what:?}");
                }
            }
        }
    });
}

#[test]
fn the_framing_of_a_body_is_written_anew() {
    run(async {
        let (up, proxy) = npm().await;
        up.on("/-/npm/v1/security/audits/quick", |seen| Reply::ok(seen.body.to_vec()));
        let audit = at("npm", "-/npm/v1/security/audits/quick");
        let framed = |seen: &crate::common::upstream::Seen| {
            let named = |name: &str| seen.headers_named(name).join("+");
            (named("content-length"), named("transfer-encoding"))
        };
        let post = |fields: &str, body: &str| format!("POST {audit} HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}");
        let (status, closed) = raw(&proxy, post("Content-Length: 4, 4", "{\"a\"").as_bytes()).await;
        assert_eq!((status, closed), (400, true));
        assert_eq!(up.total(), 0);
        let mut connection = proxy.connect().await;
        connection
            .write_raw(post("Content-Length: 0004", "null").as_bytes())
            .await;
        assert_eq!(connection.response("POST").await.ok().body, "null");
        let seen = up.last("POST", "/-/npm/v1/security/audits/quick");
        assert_eq!(
            (framed(&seen), seen.body.as_ref()),
            (("4".into(), String::new()), b"null".as_ref())
        );
        let chunks = "2;x=y\r\nnu\r\n2\r\nll\r\n0\r\nX: y\r\n\r\n";
        connection
            .write_raw(post("Transfer-Encoding: Chunked", chunks).as_bytes())
            .await;
        assert_eq!(connection.response("POST").await.ok().body, "null");
        let seen = up.last("POST", "/-/npm/v1/security/audits/quick");
        assert_eq!(
            (framed(&seen), seen.body.as_ref()),
            (("4".into(), String::new()), b"null".as_ref())
        );
        up.forget();
        let mut h2 = H2Connection::open(proxy.address()).await;
        let twice = [("content-length", "4"), ("content-length", "4")];
        assert_eq!(h2.send("POST", &audit, &twice, b"null").await.status, 400);
        assert_eq!(up.total(), 0);
        h2.send("POST", &audit, &[("content-length", "4")], b"null").await.ok();
        assert_eq!(framed(&up.last("POST", "/-/npm/v1/security/audits/quick")).0, "4");
        h2.send("POST", &audit, &[], b"null").await.ok();
    });
}

#[test]
fn paths_have_a_longest() {
    run(async {
        let (up, proxy) = pair().await;
        up.fallback(|_| Reply::ok("x"));
        let mut h2 = H2Connection::open(proxy.address()).await;
        for (path, status) in [
            ("p".repeat(3000), 200),
            ("p".repeat(5000), 414),
            ("p".repeat(60_000), 414),
        ] {
            assert_eq!(proxy.fetch("files", &path).await.status, status);
            assert_eq!(h2.get(&at("files", &path)).await.status, status);
        }
        assert_eq!(up.total(), 1);
    });
}

// The absolute form

#[test]
fn the_absolute_form_says_the_host() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|seen| Reply::ok(seen.path.clone()));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n  hosts: [files.test]\n", up.base())).await;
        for (target, host) in [
            ("http://files.test/a/b?c=d", "files.test"),
            ("http://files.test:8080/a/b?c=d", "files.test:8080"),
            ("HTTP://files.test/a/b?c=d", "files.test"),
        ] {
            let answer = proxy.request("GET", target, &[("Host", host)], b"").await;
            assert_eq!((answer.status, answer.text().as_str()), (200, "/a/b?c=d"), "{target}");
        }
        // A Host header that says something else may be refused (RFC 9112 section 3.2 wants it the same), never believed.
        let wrong = [("Host", "files.test")];
        let answer = proxy.request("GET", "http://other.test/a/b?c=d", &wrong, b"").await;
        assert!(
            matches!(answer.status, 400 | 404),
            "{} {}",
            answer.status,
            answer.text()
        );
        assert_eq!(up.count("GET", "/a/b?c=d"), 1);
        // Tricks in it are tricks as anywhere.
        for target in [
            "http://files.test/a/../b",
            "http://files.test/%2e%2e/b",
            "http://files.test/a\\b",
        ] {
            let answer = proxy.request("GET", target, &[], b"").await;
            assert_eq!(answer.status, 400, "{target}");
        }
    });
}

// HTTP/2

#[test]
fn http_2_carries_everything_that_http_1_does() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(31, 60 * MB);
        up.file("/large", File::new(body).etag("\"l\""));
        let mut connection = H2Connection::open(proxy.address()).await;
        // HEAD of what is not stored stores nothing.
        let head = connection.request("HEAD", &at("files", "large"), &[]).await.expect(200);
        assert_eq!(head.must("content-length"), (60 * MB).to_string());
        assert_eq!(head.body.len(), 0);
        assert_eq!(up.count("GET", "/large"), 0);
        let cold = connection.get(&at("files", "large")).await.ok();
        assert!(cold.body == body.whole(), "not the bytes of the large file");
        assert_eq!(cold.source(), "remote");
        drop(cold);
        proxy.until_cached("files", "large").await;
        let warm = connection.get(&at("files", "large")).await.ok();
        assert!(warm.body == body.whole(), "not the bytes of the large file");
        drop(warm);
        assert_eq!(up.count("GET", "/large"), 1);
        let far = format!("bytes={}-{}", 50 * MB, 50 * MB + 9);
        let part = connection
            .request("GET", &at("files", "large"), &[("range", &far)])
            .await
            .expect(206);
        assert_eq!(part.body, body.slice(50 * MB, 50 * MB + 10).whole());
        let several = [("range", "bytes=0-1,9-9")];
        let answer = connection
            .request("GET", &at("files", "large"), &several)
            .await
            .expect(206);
        let several = parts(&answer);
        assert_eq!(several.len(), 2);
        assert_eq!(several[1].body, body.slice(9, 10).whole());
        let beyond = [("range", "bytes=60000000-")];
        let answer = connection
            .request("GET", &at("files", "large"), &beyond)
            .await
            .expect(416);
        assert_eq!(answer.must("content-range"), "bytes */60000000");
        let mistaken = [("range", "bytes=0-1"), ("if-range", "\"other\"")];
        connection
            .request("HEAD", &at("files", "large"), &mistaken)
            .await
            .expect(200);
        for (target, status) in [
            (at("files", "none"), 404),
            (at("nobody", "x"), 404),
            (at("files", "a/../b"), 400),
            ("/health/live".to_owned(), 200),
        ] {
            assert_eq!(connection.get(&target).await.status, status, "{target}");
        }
        let refused = connection.request("PUT", &at("files", "large"), &[]).await.expect(405);
        assert!(refused.must("allow").contains("GET"));
        // What belongs to a connection of HTTP/1.1 has no place here.
        let answer = connection.get(&at("files", "large")).await;
        for name in ["connection", "keep-alive", "transfer-encoding"] {
            assert_eq!(answer.header(name), None, "{name}");
        }
        assert!(answer.must("via").contains("artifactapi"));
    });
}

#[test]
fn http_2_streams_a_growing_file_to_many_at_once() {
    run(async {
        let (up, proxy) = pair().await;
        let (body, gate) = (Pattern::new(32, 4 * MB), Gate::new());
        up.reply("/x", Reply::ok(body).pause_at(2 * MB, &gate));
        let connection = H2Connection::open(proxy.address()).await;
        let mut clients = JoinSet::new();
        for _ in 0..10 {
            let mut stream = connection.clone();
            clients.spawn(async move { stream.get(&at("files", "x")).await.ok().body });
        }
        up.wait_for("GET", "/x", 1).await;
        // Others on the connection are not held up by those that wait.
        let mut other = connection.clone();
        other.get("/health/live").await.ok();
        gate.open();
        while let Some(got) = clients.join_next().await {
            assert!(got.unwrap() == body.whole(), "not the bytes of the file");
        }
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn the_authority_of_http_2_is_its_host() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|seen| Reply::ok(seen.path.clone()));
        let address = crate::common::refused();
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n  hosts: [localhost]\n", up.base()))
            .arg("--listen")
            .arg(address.to_string())
            .start()
            .await;
        let mut connection = H2Connection::open_as(proxy.address(), "localhost:99").await;
        assert_eq!(connection.get("/a/b").await.ok().text(), "/a/b");
        let mut connection = H2Connection::open_as(address, "127.0.0.1").await;
        connection.get("/a/b").await.expect(404);
    });
}

// Cache-Control of clients

async fn refreshed(lines: &str, path: &str) -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    up.file(&format!("/{path}"), File::new("one").etag("\"1\""));
    let proxy = Proxy::start(&format!(
        "files:\n  base_url: {}\n  mutable_patterns: ['\\.txt$']\n  cache: {{mutable_ttl: 600}}\n  {lines}\n",
        up.base()
    ))
    .await;
    proxy.fetch("files", path).await.ok();
    proxy.until_cached("files", path).await;
    (up, proxy)
}

const FRESH: [&[(&str, &str)]; 3] = [
    &[("Cache-Control", "no-cache")],
    &[("Cache-Control", "private, max-age=0")],
    &[("Pragma", "no-cache")],
];

#[test]
fn a_client_may_revalidate_where_the_remote_lets_it() {
    run(async {
        for check in ["", "\n  check_mutable_updates: true"] {
            let (up, proxy) = refreshed(&format!("client_revalidation: true{check}"), "a.txt").await;
            // Without being asked for, nothing reaches upstream.
            proxy.fetch("files", "a.txt").await.is("cache", "one");
            proxy
                .fetch_with("files", "a.txt", &[("Cache-Control", "max-age=60")])
                .await
                .is("cache", "one");
            assert_eq!(up.total(), 1);
            for (number, headers) in FRESH.iter().enumerate() {
                // What was asked for a moment ago is as fresh as it gets.
                eventually(Duration::from_secs(10), "upstream is asked", async || {
                    proxy.fetch_with("files", "a.txt", headers).await.ok();
                    up.count("GET", "/a.txt") == number + 2
                })
                .await;
                let conditional = up.last("GET", "/a.txt").header("if-none-match").is_some();
                assert_eq!(conditional, !check.is_empty(), "{headers:?}");
            }
            up.file("/a.txt", File::new("two").etag("\"2\""));
            eventually(Duration::from_secs(10), "the change is seen", async || {
                proxy.fetch_with("files", "a.txt", FRESH[0]).await.ok().text() == "two"
            })
            .await;
            proxy.until_cached("files", "a.txt").await.is("cache", "two");
        }
    });
}

#[test]
fn what_never_changes_is_not_revalidated_for_anyone() {
    run(async {
        let (up, proxy) = refreshed("client_revalidation: true", "a.bin").await;
        tokio::time::sleep(Duration::from_millis(1200)).await;
        for headers in FRESH {
            proxy.fetch_with("files", "a.bin", headers).await.is("cache", "one");
        }
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn without_leave_a_client_does_not_reach_past_the_ttl() {
    run(async {
        let (up, proxy) = refreshed("description: x", "a.txt").await;
        tokio::time::sleep(Duration::from_millis(1200)).await;
        for headers in FRESH {
            proxy.fetch_with("files", "a.txt", headers).await.is("cache", "one");
        }
        proxy
            .fetch_with("files", "a.txt", &[("Cache-Control", "no-store")])
            .await
            .is("cache", "one");
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn a_client_that_wants_it_fresh_does_not_split_a_fill() {
    run(async {
        let up = Upstream::start().await;
        let (body, gate) = (Pattern::new(33, 2 * MB), Gate::new());
        up.reply("/a.txt", Reply::ok(body).pause_at(MB, &gate));
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}\n  mutable_patterns: ['\\.txt$']\n  client_revalidation: true\n",
            up.base()
        ))
        .await;
        let mut clients = Vec::new();
        for headers in [&[][..], FRESH[0], FRESH[1], FRESH[2]] {
            let mut connection = proxy.connect().await;
            connection.send("GET", &at("files", "a.txt"), headers, b"").await;
            assert_eq!(connection.read_head("GET").await.status, 200);
            connection.read_body_until(1000).await;
            clients.push(connection);
        }
        gate.open();
        for mut client in clients {
            client.read_body().await;
            assert!(client.is_complete());
        }
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn refusals_and_failures_are_not_to_be_kept() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/broken.txt", Reply::status(500).header("Cache-Control", "max-age=600"));
        up.reply(
            "/denied.txt",
            Reply::status(403).header("Expires", "Thu, 01 Jan 2099 00:00:00 GMT"),
        );
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}\n  immutable_patterns: ['\\.txt$']\ngone:\n  base_url: http://{}\n",
            up.base(),
            crate::common::refused()
        ))
        .await;
        for (remote, path, status) in [
            ("files", "refused.exe", 403),
            ("files", "none.txt", 404),
            ("files", "broken.txt", 500),
            ("files", "denied.txt", 403),
            ("files", "a/../b", 400),
            ("gone", "x", 502),
            ("nobody", "x", 404),
        ] {
            let answer = proxy.fetch(remote, path).await;
            assert_eq!(answer.header("expires"), None, "{path}");
            let control = answer.header("cache-control").unwrap_or("no-store");
            assert!(
                control.contains("no-store") || control.contains("no-cache"),
                "{path}: {control}"
            );
            if path == "broken.txt" {
                assert!(answer.status >= 500, "{path}: {}", answer.status);
            } else {
                assert_eq!(answer.status, status, "{remote}/{path}");
            }
        }
    });
}

// What is added, and what stops here

#[test]
fn via_is_on_everything_that_came_through() {
    run(async {
        let (up, proxy) = pair().await;
        up.file(
            "/x",
            File::new("0123456789")
                .etag("\"e\"")
                .header("Via", "1.1 upstream-cache"),
        );
        let cold = proxy.head("files", "x").await;
        let first = proxy.fetch("files", "x").await;
        let hit = proxy.until_cached("files", "x").await;
        let part = proxy
            .fetch_with("files", "x", &[("Range", "bytes=1-2")])
            .await
            .expect(206);
        let unchanged = proxy
            .fetch_with("files", "x", &[("If-None-Match", "\"e\"")])
            .await
            .expect(304);
        for answer in [cold, first, hit, part, unchanged] {
            let via = answer.headers_named("via").join(", ");
            assert!(
                via.contains("1.1 artifactapi"),
                "{}: {:?}",
                answer.status,
                answer.headers
            );
        }
    });
}

#[test]
fn via_is_on_what_is_passed_on_unstored_too() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/odd", Reply::new(203, "odd"));
        let odd = proxy.fetch("files", "odd").await.expect(203);
        assert!(odd.must("via").contains("1.1 artifactapi"), "{:?}", odd.headers);
    });
}

#[test]
fn what_connection_names_stops_here_in_both_directions() {
    run(async {
        let up = Upstream::start().await;
        let dressed = |reply: Reply| {
            reply
                .header("Connection", "X-One")
                .header("Connection", "x-two , Keep-Alive")
                .header("X-One", "1")
                .header("X-Two", "2")
                .header("X-Kept", "3")
                .header("Upgrade", "h2c")
                .header("TE", "trailers")
                .header("Proxy-Authentication-Info", "x")
        };
        up.reply("/x", dressed(Reply::ok("x")));
        up.reply("/odd", dressed(Reply::new(203, "odd")));
        up.on("/-/npm/v1/security/advisories/bulk", move |_| dressed(Reply::ok("{}")));
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {0}\n  headers_keep: [X-Kept]\nnpm:\n  base_url: {0}\n  headers_keep: [X-Kept]\n  package: npm\n  immutable_patterns: ['\\.tgz$']\n  \
             mutable_patterns: ['^(?!.*\\.tgz$).*']\n",
            up.base()
        ))
        .await;
        let audit = at("npm", "-/npm/v1/security/advisories/bulk");
        let headers = [
            ("Connection", "X-Mine, close"),
            ("X-Mine", "1"),
            ("Proxy-Authorization", "Basic c2VjcmV0"),
            ("Authorization", "Basic c2VjcmV0"),
            ("Cookie", "a=1"),
            ("Upgrade", "websocket"),
            ("TE", "trailers"),
            ("Content-Type", "application/json"),
        ];
        let posted = proxy.request("POST", &audit, &headers, b"{}").await.ok();
        let stored = proxy.fetch_with("files", "x", &headers).await.ok();
        let hit = proxy.until_cached("files", "x").await;
        let odd = proxy.fetch_with("files", "odd", &headers).await.expect(203);
        for answer in [posted, stored, hit, odd] {
            for name in ["x-one", "x-two", "upgrade", "te", "proxy-authentication-info"] {
                assert_eq!(answer.header(name), None, "{name}: {:?}", answer.headers);
            }
            assert_eq!(answer.must("x-kept"), "3");
        }
        for seen in up.log() {
            for name in [
                "x-mine",
                "proxy-authorization",
                "authorization",
                "cookie",
                "upgrade",
                "te",
            ] {
                assert_eq!(
                    seen.header(name),
                    None,
                    "{} {}: {:?}",
                    seen.method,
                    seen.path,
                    seen.headers
                );
            }
        }
        assert_eq!(up.total(), 3);
    });
}

#[test]
fn another_origins_business_with_a_browser_stops_here() {
    run(async {
        let up = Upstream::start().await;
        let names = [
            ("Set-Cookie", "a=1; Path=/"),
            ("Strict-Transport-Security", "max-age=63072000; includeSubDomains"),
            ("Alt-Svc", "h3=\":443\""),
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Credentials", "true"),
            ("Access-Control-Expose-Headers", "X"),
            ("Clear-Site-Data", "\"*\""),
            ("Public-Key-Pins", "x"),
        ];
        let dressed = move |reply: Reply| {
            names
                .iter()
                .fold(reply, |reply, (name, value)| reply.header(*name, *value))
        };
        let wheel = "<a href=\"/p/pkg-1.0.tar.gz\">pkg-1.0.tar.gz</a>";
        up.reply("/simple/pkg/", dressed(Reply::ok(wheel).content_type("text/html")));
        up.reply("/p/pkg-1.0.tar.gz", dressed(Reply::ok("file")));
        up.reply("/p/none", dressed(Reply::status(404)));
        up.reply("/p/denied", dressed(Reply::status(403)));
        up.reply("/p/odd", dressed(Reply::new(203, "odd")));
        let to = up.url("/p/pkg-1.0.tar.gz");
        up.reply("/p/moved", dressed(Reply::redirect(302, to)));
        let proxy = Proxy::start(&format!("py:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        for path in [
            "simple/pkg/",
            "p/pkg-1.0.tar.gz",
            "p/none",
            "p/denied",
            "p/odd",
            "p/moved",
        ] {
            for method in ["HEAD", "GET", "GET"] {
                let headers = [("Origin", "https://evil.test")];
                let answer = proxy.request(method, &at("py", path), &headers, b"").await;
                for (name, _) in names {
                    assert_eq!(answer.header(name), None, "{method} {path}: {:?}", answer.headers);
                }
            }
        }
    });
}

#[test]
fn a_half_closed_client_still_gets_its_answer() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("hello").delay(Duration::from_millis(200)));
        let mut connection = Connection::open(proxy.address()).await;
        connection.send("GET", &at("files", "x"), &[], b"").await;
        connection.finish_sending().await;
        assert_eq!(connection.response("GET").await.ok().body, "hello");
    });
}
