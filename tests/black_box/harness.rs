//! The harness against itself: what the other tests lean on must hold without the program under test.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use crate::common::client::{Headers, parts};
use crate::common::dns::Dns;
use crate::common::h2client::H2Connection;
use crate::common::outbound::OutboundProxy;
use crate::common::packages::{self, Wheel};
use crate::common::upstream::{Authority, Seen};
use crate::common::{Connection, File, Gate, Pattern, Reply, Response, Upstream, eventually, get, get_with, head, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BIG: u64 = 3_000_001;

#[test]
fn a_pattern_is_the_same_from_every_offset() {
    let pattern = Pattern::new(7, 1000);
    let whole = pattern.whole();
    for (from, to) in [(0, 1000), (1, 9), (8, 16), (13, 14), (999, 1000), (1000, 1000)] {
        assert_eq!(pattern.slice(from, to).whole(), whole.slice(from as usize..to as usize));
        assert!(pattern.matches(from, &whole[from as usize..to as usize]));
    }
    assert!(!pattern.matches(1, &whole[..10]));
    assert_ne!(Pattern::new(8, 1000).whole(), whole);
}

#[test]
fn every_framing_arrives_whole() {
    run(async {
        let up = Upstream::start().await;
        let body = Pattern::new(1, BIG);
        up.reply("/length", Reply::ok(body));
        up.reply("/chunked", Reply::ok(body).chunked().trailer("X-Sum", "42"));
        up.reply("/close", Reply::ok(body).until_close());
        for path in ["/length", "/chunked", "/close"] {
            let answer = get(up.address(), path).await.ok();
            assert_eq!(answer.body, body.whole(), "{path}");
            eventually(Duration::from_secs(5), "all written", async || up.written(path) == BIG).await;
        }
        assert_eq!(
            get(up.address(), "/chunked").await.trailers,
            [("x-sum".to_owned(), "42".to_owned())]
        );
        assert_eq!(up.count("GET", "/chunked"), 2);
        assert_eq!(up.count("GET", "/elsewhere"), 0);
    });
}

#[test]
fn one_connection_serves_many_requests() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a", Reply::ok("a"))
            .reply("/b", Reply::ok("bb").chunked())
            .reply("/none", Reply::status(204));
        let mut connection = Connection::open(up.address()).await;
        for _ in 0..3 {
            assert_eq!(connection.get("/a").await.ok().body, "a");
            assert_eq!(
                connection
                    .request("HEAD", "/a", &[], b"")
                    .await
                    .ok()
                    .must("content-length"),
                "1"
            );
            assert_eq!(connection.get("/none").await.expect(204).body, "");
            assert_eq!(connection.get("/b").await.ok().body, "bb");
            assert_eq!(connection.get("/missing").await.status, 404);
        }
        assert_eq!(up.connections(), 1);
        let echoed = connection
            .request("POST", "/a?x=1", &[("X-One", "1"), ("X-One", "2")], b"hello")
            .await;
        assert_eq!(echoed.status, 200);
        let seen: Seen = up.last("POST", "/a?x=1");
        assert_eq!(
            (&seen.body[..], seen.headers_named("x-one"), seen.version),
            (&b"hello"[..], vec!["1", "2"], 1)
        );
        let chunked = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        connection
            .request("PUT", "/a", &[("Transfer-Encoding", "chunked")], chunked)
            .await
            .ok();
        assert_eq!(&up.last("PUT", "/a").body[..], b"abcde");
    });
}

#[test]
fn a_short_body_is_seen_as_short() {
    run(async {
        let up = Upstream::start().await;
        let body = Pattern::new(2, BIG);
        up.reply("/cut", Reply::ok(body).truncate_at(1_000_000));
        up.reply("/cut-chunked", Reply::ok(body).chunked().truncate_at(1_000_000));
        up.reply("/reset", Reply::ok(body).reset_at(500));
        up.reply("/lie", Reply::ok("short").claim_length(100));
        let cut = get(up.address(), "/cut").await;
        assert_eq!((cut.complete, cut.body.len()), (false, 1_000_000));
        let cut = get(up.address(), "/cut-chunked").await;
        assert_eq!((cut.complete, cut.body.len()), (false, 1_000_000));
        assert!(!get(up.address(), "/reset").await.complete);
        assert!(!get(up.address(), "/lie").await.complete);
        up.reply("/silent", Reply::reset()).reply("/hang-up", Reply::hang_up());
        for path in ["/silent", "/hang-up"] {
            let mut connection = Connection::open(up.address()).await;
            connection.send("GET", path, &[], b"").await;
            assert!(connection.try_read_head("GET").await.is_err(), "{path}");
        }
        up.reply("/raw", Reply::raw("HTTP/1.1 299 Odd\r\nContent-Length: 2\r\n\r\nok"));
        assert_eq!(get(up.address(), "/raw").await.expect(299).body, "ok");
    });
}

#[test]
fn gates_hold_what_they_should_hold() {
    run(async {
        let up = Upstream::start().await;
        let (header, middle) = (Gate::new(), Gate::new());
        up.reply(
            "/x",
            Reply::ok(Pattern::new(3, 1000)).gated(&header).pause_at(600, &middle),
        );
        let mut connection = Connection::open(up.address()).await;
        connection.send("GET", "/x", &[], b"").await;
        up.wait_for("GET", "/x", 1).await;
        up.wait_in_flight(1).await;
        let early = tokio::time::timeout(Duration::from_millis(50), connection.try_read_head("GET")).await;
        assert!(early.is_err());
        header.open();
        assert_eq!(connection.read_head("GET").await.must("content-length"), "1000");
        assert_eq!(connection.read_body_until(600).await.len(), 600);
        eventually(Duration::from_secs(5), "600 bytes written", async || {
            up.written("/x") == 600
        })
        .await;
        middle.open();
        assert_eq!(connection.read_body().await.len(), 400);
        assert!(connection.is_complete());
        up.wait_in_flight(0).await;
    });
}

#[test]
fn a_file_answers_ranges_and_conditions() {
    run(async {
        let up = Upstream::start().await;
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        up.file(
            "/f",
            File::new("0123456789")
                .etag("\"v1\"")
                .modified(at)
                .content_type("text/plain"),
        );
        let ask = async |headers: &[(&str, &str)]| -> Response { get_with(up.address(), "/f", headers).await };
        let part = ask(&[("Range", "bytes=2-4")]).await.expect(206);
        assert_eq!(
            (&part.body[..], part.must("content-range")),
            (&b"234"[..], "bytes 2-4/10")
        );
        assert_eq!(&ask(&[("Range", "bytes=-3")]).await.expect(206).body[..], b"789");
        assert_eq!(&ask(&[("Range", "bytes=8-")]).await.expect(206).body[..], b"89");
        assert_eq!(
            ask(&[("Range", "bytes=10-")]).await.expect(416).must("content-range"),
            "bytes */10"
        );
        ask(&[("If-None-Match", "\"v0\", W/\"v1\"")]).await.expect(304);
        ask(&[("If-None-Match", "\"v2\"")]).await.ok();
        let date = httpdate::fmt_http_date(at);
        ask(&[("If-Modified-Since", &date)]).await.expect(304);
        ask(&[("Range", "bytes=0-0"), ("If-Range", "\"v1\"")]).await.expect(206);
        ask(&[("Range", "bytes=0-0"), ("If-Range", "\"v2\"")]).await.ok();
        let only_header = head(up.address(), "/f").await.ok();
        assert_eq!(
            (only_header.must("content-length"), only_header.must("last-modified")),
            ("10", date.as_str())
        );
    });
}

#[test]
fn switched_off_means_refused_and_on_again_means_answered() {
    run(async {
        let up = Upstream::start().await;
        up.sequence("/s", vec![Reply::ok("1"), Reply::ok("2"), Reply::status(500)]);
        let mut kept = Connection::open(up.address()).await;
        assert_eq!(kept.get("/s").await.ok().body, "1");
        up.switch_off().await;
        assert!(Connection::try_open(up.address()).await.is_err());
        assert!(kept.closes().await);
        up.switch_on().await;
        assert_eq!(get(up.address(), "/s").await.ok().body, "2");
        get(up.address(), "/s").await.expect(500);
        get(up.address(), "/s").await.expect(500);
    });
}

#[test]
fn a_folder_is_served() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a b")).unwrap();
        std::fs::write(folder.path().join("a b/c+d.txt"), "hello").unwrap();
        let up = Upstream::start().await;
        up.directory("/tree/", folder.path());
        assert_eq!(get(up.address(), "/tree/a%20b/c+d.txt").await.ok().body, "hello");
        get(up.address(), "/tree/a%20b/%2e%2e/x").await.expect(400);
        get(up.address(), "/tree/none").await.expect(404);
    });
}

async fn tls(
    authority: &Authority,
    address: std::net::SocketAddr,
    alpn: &[&str],
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    use tokio_rustls::rustls;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(authority.path()).unwrap();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap())
        .unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
}

#[test]
fn tls_carries_http_1_and_http_2() {
    run(async {
        let authority = Authority::new();
        let up = Upstream::start_tls_with(&authority, "localhost", &["h2", "http/1.1"]).await;
        assert_eq!(up.base(), format!("https://localhost:{}", up.port()));
        let body = Pattern::new(4, 300_000);
        up.reply("/x", Reply::ok(body));
        let mut stream = tls(&authority, up.address(), &["http/1.1"]).await;
        stream
            .write_all(b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(&body.whole()));

        let stream = tls(&authority, up.address(), &["h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut send = send.ready().await.unwrap();
        let request = http::Request::get("https://localhost/x").body(()).unwrap();
        let (response, _) = send.send_request(request, true).unwrap();
        let mut received = response.await.unwrap().into_body();
        let mut all = Vec::new();
        while let Some(data) = received.data().await {
            let data = data.unwrap();
            received.flow_control().release_capacity(data.len()).unwrap();
            all.extend_from_slice(&data);
        }
        assert_eq!(all, body.whole());
        assert_eq!(up.log().iter().map(|seen| seen.version).collect::<Vec<_>>(), [1, 2]);
    });
}

#[test]
fn http_2_by_prior_knowledge() {
    run(async {
        let up = Upstream::start().await;
        let body = Pattern::new(5, BIG);
        up.reply("/x", Reply::ok(body))
            .reply("/cut", Reply::ok(body).truncate_at(1000));
        up.reply("/reset", Reply::ok(body).reset_at(1000));
        let mut connection = H2Connection::open(up.address()).await;
        assert_eq!(connection.get("/x").await.ok().body, body.whole());
        assert_eq!(
            connection.request("HEAD", "/x", &[]).await.ok().must("content-length"),
            BIG.to_string()
        );
        assert!(!connection.get("/cut").await.complete);
        assert_eq!(connection.get("/missing").await.status, 404);
        assert!(!connection.get("/reset").await.complete);
    });
}

#[test]
fn the_outbound_proxy_records_and_forwards() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x?q=1", Reply::ok("hello"));
        let proxy = OutboundProxy::start().await;
        proxy.place("example.test:80", up.address());
        let answer = get(proxy.address(), "http://example.test/x?q=1").await.ok();
        assert_eq!(answer.body, "hello");
        let mut tunnel = Connection::open(proxy.address()).await;
        tunnel.send("CONNECT", &up.address().to_string(), &[], b"").await;
        let mut answer = [0; 39];
        let opened = b"HTTP/1.1 200 Connection established\r\n\r\n";
        // The tunnel's answer has no body: what follows belongs to the far end.
        let read = tunnel.read_exact_raw(&mut answer).await;
        assert!(read && &answer == opened);
        assert_eq!(tunnel.get("/x?q=1").await.ok().body, "hello");
        proxy.wants("Basic dTpw");
        get(proxy.address(), "http://example.test/x").await.expect(407);
        get_with(
            proxy.address(),
            "http://example.test/x?q=1",
            &[("Proxy-Authorization", "Basic dTpw")],
        )
        .await
        .ok();
        let log = proxy.log();
        assert_eq!(log.len(), 4);
        assert_eq!(
            (log[0].method.as_str(), log[0].target.as_str()),
            ("GET", "http://example.test/x?q=1")
        );
        assert_eq!(log[1].method, "CONNECT");
        assert!(up.log().iter().all(|seen| seen.header("proxy-authorization").is_none()));
    });
}

#[test]
fn the_dns_server_answers_and_counts() {
    run(async {
        let dns = Dns::start().await;
        dns.set("a.test", &[Ipv4Addr::new(127, 0, 0, 9).into()]);
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let query = |kind: u8, name: &[u8]| {
            let mut packet = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            packet.extend_from_slice(name);
            packet.extend([0, 0, kind, 0, 1]);
            packet
        };
        let ask = async |packet: Vec<u8>| {
            socket.send_to(&packet, dns.address()).await.unwrap();
            let mut answer = [0; 512];
            let read = tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut answer)).await;
            read.ok().map(|length| answer[..length.unwrap()].to_vec())
        };
        let answer = ask(query(1, b"\x01a\x04test")).await.unwrap();
        assert_eq!((&answer[..2], answer[3] & 15, answer[7]), (&[0xab, 0xcd][..], 0, 1));
        assert!(answer.ends_with(&[0, 4, 127, 0, 0, 9]));
        assert_eq!(ask(query(28, b"\x01a\x04test")).await.unwrap()[7], 0);
        assert_eq!(ask(query(1, b"\x01b\x04test")).await.unwrap()[3] & 15, 3);
        dns.silent(true);
        assert!(ask(query(1, b"\x01a\x04test")).await.is_none());
        assert_eq!((dns.count("a.test"), dns.count("b.test")), (3, 1));
    });
}

#[test]
fn multipart_bodies_are_taken_apart() {
    let response = Response {
        status: 206,
        headers: vec![("content-type".into(), "multipart/byteranges; boundary=XX".into())],
        body: "--XX\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/9\r\n\r\nab\r\n--XX\r\n\
               Content-Range: bytes 4-4/9\r\n\r\ne\r\n--XX--\r\n"
            .into(),
        complete: true,
        trailers: Vec::new(),
    };
    let parts = parts(&response);
    assert_eq!(parts.len(), 2);
    assert_eq!(
        (&parts[0].body[..], parts[0].must("content-range")),
        (&b"ab"[..], "bytes 0-1/9")
    );
    assert_eq!(
        (&parts[1].body[..], parts[1].must("content-range")),
        (&b"e"[..], "bytes 4-4/9")
    );
}

#[test]
fn packages_are_real() {
    let wheel = Wheel::new("Some.Thing", "1.2", &["other>=1"], 1000);
    assert_eq!(
        (wheel.project().as_str(), wheel.file.as_str()),
        ("some-thing", "some_thing-1.2-py3-none-any.whl")
    );
    assert!(wheel.bytes.starts_with(b"PK\x03\x04"));
    let tar = packages::gunzip(&packages::tgz(&[("a/b", b"hello")]));
    assert_eq!(
        (&tar[..3], &tar[512..517], tar.len()),
        (&b"a/b"[..], &b"hello"[..], 2048)
    );
}

/// `docs/security.md` promises nothing without a test: each that it names is in the file that it names.
#[test]
fn every_promise_names_tests_that_there_are() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/security.md")).expect("the promises");
    let mut named = 0;
    for line in text.lines().filter(|line| line.contains(".rs: ")) {
        let tests = line
            .trim_end_matches(['|', ' '])
            .rsplit("| ")
            .next()
            .unwrap_or_default();
        let mut source = String::new();
        for test in tests.split([',', ';']).map(str::trim) {
            let (file, test) = test
                .split_once(": ")
                .map_or((None, test), |(file, test)| (Some(file), test));
            if let Some(file) = file {
                let folder = if file.starts_with("src/") {
                    ""
                } else {
                    "tests/black_box"
                };
                let file = root.join(folder).join(file);
                source = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            }
            assert!(source.contains(&format!("fn {test}(")), "{test} is not there: {line}");
            named += 1;
        }
    }
    assert!(named > 100, "{named}");
}
