//! What one client can hold, and for how long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::common::h2client::H2Connection;
use crate::common::server::at;
use crate::common::{Connection, File, Gate, Pattern, Proxy, Reply, Upstream, eventually, run};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const MB: u64 = 1_000_000;
/// Far beyond the limits that the tests set, and far below those that nobody set.
const SOON: Duration = Duration::from_secs(20);

const SHORT: &str =
    "clients: {head_timeout: 1s, idle_timeout: 1s, body_timeout: 1s, body_rate: 20B, write_timeout: 2s}\n";

async fn with(conf: &str) -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    let files = format!("files:\n  base_url: {}\n", up.base());
    let npm = format!("npm:\n  package: npm\n  base_url: {}\n", up.base());
    let settings = Proxy::settings().remotes(&format!("{files}{npm}")).conf(conf);
    (up, settings.start().await)
}

/// Sends `first`, then a byte now and then if it drips; what was read until the other side gave up.
async fn until_given_up(address: SocketAddr, first: Vec<u8>, drips: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(&first).await.expect("written");
    let mut drip = tokio::time::interval(Duration::from_millis(150));
    let (mut read, mut write) = stream.split();
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        tokio::select! {
            got = read.read(&mut buffer) => match got {
                Ok(0) | Err(_) => return seen,
                Ok(length) => seen.extend_from_slice(&buffer[..length]),
            },
            _ = drip.tick(), if drips => {
                let _ = write.write_all(b"1").await;
            }
        }
    }
}

#[test]
fn every_wait_for_a_client_ends() {
    run(async {
        let (up, proxy) = with(SHORT).await;
        up.fallback(|_| Reply::ok("x"));
        let audit = at("npm", "-/npm/v1/security/audits/quick");
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let live = get("/health/live");
        let miss = get(&at("files", "miss"));
        let begun = "GET / HTTP/1.1\r\nHost: a\r\nX-Long: ";
        let body = |method: &str, target: &str, fields: &str| {
            format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n")
        };
        let cases = [
            ("silence", String::new(), false),
            ("a part of the preface of HTTP/2", "PRI * HTTP/2.0\r\n".into(), false),
            (
                "the preface and nothing more",
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
                false,
            ),
            ("a head that drips", begun.into(), true),
            ("a long head that drips", format!("{begun}{}", "x".repeat(20_000)), true),
            ("a head behind an answer of Pingora's", format!("{live}{begun}"), true),
            (
                "a long head behind a miss",
                format!("{miss}{begun}{}", "x".repeat(20_000)),
                true,
            ),
            ("silence behind a miss", get(&at("files", "other")), false),
            (
                "a body that stops",
                body("PUT", "/cache/flush", "Content-Length: 9999"),
                false,
            ),
            (
                "a body that drips",
                body("PUT", "/cache/flush", "Content-Length: 9999"),
                true,
            ),
            (
                "a chunk that drips",
                body("PUT", "/cache/flush", "Transfer-Encoding: chunked") + "fff\r\n",
                true,
            ),
            (
                "a body for upstream that drips",
                body("POST", &audit, "Content-Length: 9999"),
                true,
            ),
            (
                "a body that nobody reads",
                body("GET", "/health/live", "Content-Length: 9999"),
                true,
            ),
        ];
        let mut waiting = JoinSet::new();
        for (what, first, drips) in cases {
            let address = proxy.address();
            waiting.spawn(async move {
                let given_up = until_given_up(address, first.into_bytes(), drips);
                let seen = tokio::time::timeout(SOON, given_up).await;
                let seen = seen.unwrap_or_else(|_| panic!("{what}: still open"));
                (what, String::from_utf8_lossy(&seen).into_owned())
            });
        }
        while let Some(ended) = waiting.join_next().await {
            let (what, seen) = ended.expect("a client");
            if what.starts_with("a body that") && !what.ends_with("reads") || what.starts_with("a chunk") {
                assert!(seen.starts_with("HTTP/1.1 408 "), "{what}: {seen}");
            }
        }
    });
}

#[test]
fn bodies_over_http_2_have_the_same_limit() {
    run(async {
        let (up, proxy) = with(SHORT).await;
        up.fallback(|_| Reply::ok("x"));
        let stream = TcpStream::connect(proxy.address()).await.expect("a connection");
        let (mut send, connection) = h2::client::handshake(stream).await.expect("a handshake");
        tokio::spawn(connection);
        let audit = at("npm", "-/npm/v1/security/audits/quick");
        for (method, target) in [("PUT", "/cache/flush"), ("POST", audit.as_str())] {
            let request = http::Request::builder()
                .method(method)
                .uri(format!("http://localhost{target}"));
            let request = request.body(()).expect("a request");
            let (answer, mut body) = send.send_request(request, false).expect("sent");
            let drip = async {
                let mut drip = tokio::time::interval(Duration::from_millis(150));
                while body.send_data(Bytes::from_static(b"1"), false).is_ok() {
                    drip.tick().await;
                }
            };
            let given_up = async {
                tokio::select! {
                    answer = answer => answer.map(|answer| answer.status().as_u16()).ok(),
                    () = drip => None,
                }
            };
            let status = tokio::time::timeout(SOON, given_up).await.expect("an end");
            assert!(matches!(status, None | Some(408)), "{target}: {status:?}");
        }
    });
}

#[test]
fn a_slow_body_that_keeps_up_is_read() {
    run(async {
        let (_up, proxy) = with(SHORT).await;
        let mut connection = proxy.connect().await;
        let body = format!("{{\"prefix\": \"{}\"}}", "a".repeat(120));
        let head = format!(
            "PUT /cache/flush HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        connection.write_raw(head.as_bytes()).await;
        let began = Instant::now();
        for piece in body.as_bytes().chunks(8) {
            connection.write_raw(piece).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(
            began.elapsed() > Duration::from_secs(1),
            "longer than a body may do nothing"
        );
        connection.response("PUT").await.ok();
    });
}

#[test]
fn a_body_in_many_short_pieces_takes_no_more_than_its_length() {
    run(async {
        let (up, proxy) = with("").await;
        up.fallback(|_| Reply::ok("x"));
        let audit = at("npm", "-/npm/v1/security/audits/quick");
        let head = format!("POST {audit} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
        let body = "1\r\nx\r\n".repeat(66_000);
        let mut connection = proxy.connect().await;
        connection.write_raw(format!("{head}{body}0\r\n\r\n").as_bytes()).await;
        connection.response("POST").await.ok();
    });
}

#[test]
fn a_client_that_takes_nothing_is_given_up() {
    run(async {
        let (up, proxy) = with(SHORT).await;
        up.file("/large", File::new(Pattern::new(7, 30 * MB)));
        proxy.until_cached("files", "large").await;
        let mut connection = Connection::open_narrow(proxy.address()).await;
        connection.send("GET", &at("files", "large"), &[], b"").await;
        assert_eq!(connection.read_head("GET").await.status, 200);
        tokio::time::sleep(Duration::from_secs(5)).await;
        connection.read_body().await;
        assert!(!connection.is_complete());
    });
}

#[test]
fn heads_that_are_not_ended_hold_little() {
    run(async {
        let (_up, proxy) = with("").await;
        let before = proxy.memory().0;
        let mut held = Vec::new();
        for _ in 0..300 {
            let mut connection = proxy.connect().await;
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}", "x".repeat(1 << 20));
            connection.send_as_far_as_taken(head.as_bytes()).await;
            held.push(connection);
        }
        let (_, peak) = proxy.memory();
        assert!(peak < before + 60 * MB, "{before} before, {peak} at most");
        proxy.request("GET", "/health/live", &[], b"").await.ok();
    });
}

#[test]
fn a_head_over_http_2_is_no_longer_than_over_http_1() {
    run(async {
        let (_up, proxy) = with("clients: {head_bytes: 8KiB}\n").await;
        for (length, status) in [(4_000, 200), (20_000, 431)] {
            let long = "x".repeat(length);
            let headers = [("x-long", long.as_str())];
            let old = proxy.request("GET", "/health/live", &headers, b"").await;
            let mut connection = H2Connection::open(proxy.address()).await;
            let new = connection.request("GET", "/health/live", &headers).await;
            assert_eq!((old.status, new.status), (status, status), "{length}");
        }
    });
}

/// What a stream takes of a body that nobody reads.
const WINDOW: u32 = 1 << 20;

/// Streams of one connection that ask for something large and read nothing of it.
async fn unread(
    address: SocketAddr,
    target: &str,
    streams: usize,
) -> (h2::client::SendRequest<Bytes>, Vec<h2::RecvStream>) {
    let stream = TcpStream::connect(address).await.expect("a connection");
    let (mut send, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(1 << 30)
        .handshake::<_, Bytes>(stream)
        .await
        .expect("a handshake");
    tokio::spawn(connection);
    let mut bodies = Vec::new();
    for _ in 0..streams {
        send = send.ready().await.expect("a stream");
        let request = http::Request::get(format!("http://localhost{target}"));
        let (answer, _) = send
            .send_request(request.body(()).expect("a request"), true)
            .expect("sent");
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.status(), 200);
        bodies.push(answer.into_body());
    }
    (send, bodies)
}

#[test]
fn unread_streams_hold_little() {
    run(async {
        let (up, proxy) = with("cache: {memory_bytes: 1MB}\n").await;
        up.file("/large", File::new(Pattern::new(7, 30 * MB)));
        proxy.until_cached("files", "large").await;
        let before = proxy.memory().0;
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(unread(proxy.address(), &at("files", "large"), 100).await);
        }
        let (now, _) = proxy.memory();
        assert!(now < before + 400 * 160_000, "{before} before, {now} with 400 streams");
    });
}

#[test]
fn the_longest_wait_makes_room_for_the_next() {
    run(async {
        let (up, proxy) = with("clients: {http2_unread: 10, http2_streams: 20}\n").await;
        up.file("/large", File::new(Pattern::new(7, 30 * MB)));
        up.reply("/small", Reply::ok("small"));
        proxy.until_cached("files", "large").await;
        proxy.until_cached("files", "small").await;
        let (_first, early) = unread(proxy.address(), &at("files", "large"), 20).await;
        // What is in the windows comes, then the end.
        let mut ends = JoinSet::new();
        let stuck = Arc::new(AtomicUsize::new(0));
        for mut body in early {
            let stuck = Arc::clone(&stuck);
            ends.spawn(async move {
                let mut length = 0;
                while let Some(piece) = body.data().await {
                    let Ok(piece) = piece else { return (true, length) };
                    length += piece.len();
                    if length == WINDOW as usize {
                        stuck.fetch_add(1, SeqCst);
                    }
                }
                (false, length)
            });
        }
        // Also of how many had their window full.
        let some_end = async |ends: &mut JoinSet<(bool, usize)>, count: usize| {
            let mut full = 0;
            for _ in 0..count {
                let ended = tokio::time::timeout(SOON, ends.join_next()).await;
                let (pushed_out, length) = ended.expect("an end").expect("a stream").expect("no panic");
                assert!(pushed_out);
                full += usize::from(length == WINDOW as usize);
            }
            full
        };
        // Half make room for the others, which wait for good once their windows are full.
        let full = some_end(&mut ends, 10).await;
        eventually(SOON, "the others wait", async || stuck.load(SeqCst) == full + 10).await;
        let (mut send, mut late) = unread(proxy.address(), &at("files", "large"), 10).await;
        some_end(&mut ends, 10).await;
        let mut whole = 0;
        for body in &mut late {
            let mut length = 0;
            while let Some(piece) = body.data().await {
                let Ok(piece) = piece else { break };
                length += piece.len() as u64;
                let _ = body.flow_control().release_capacity(piece.len());
            }
            whole += usize::from(length == 30 * MB);
        }
        assert_eq!(whole, 10);
        let request = http::Request::get(format!("http://localhost{}", at("files", "small")));
        send = send.ready().await.expect("a stream");
        let (answer, _) = send
            .send_request(request.body(()).expect("a request"), true)
            .expect("sent");
        assert_eq!(answer.await.expect("an answer").status(), 200);
    });
}

#[test]
fn a_client_that_leaves_is_no_error() {
    run(async {
        let (up, proxy) = with("").await;
        let gate = Gate::new();
        let held = gate.clone();
        up.on("/held", move |_| Reply::ok("x").gated(&held));
        up.file("/large", File::new(Pattern::new(7, 30 * MB)));
        let held = at("files", "held");
        let large = at("files", "large");
        for first in [
            "GET / HT".to_owned(),
            "PRI * HTTP/2.0\r\n".to_owned(),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense that is no frame".to_owned(),
            format!("GET {held} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("GET {large} HTTP/1.1\r\nHost: a\r\n\r\n"),
            "GET /health/live HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n".to_owned(),
            "PUT /cache/flush HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{".to_owned(),
            "PUT /cache/flush HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{".to_owned(),
        ] {
            for reset in [false, true] {
                let mut connection = proxy.connect().await;
                connection.write_raw(first.as_bytes()).await;
                match reset {
                    true => connection.reset(),
                    false => drop(connection),
                }
            }
        }
        gate.open();
        // Whatever was to be said of them is said by now.
        proxy.until_cached("files", "held").await;
        proxy.until_cached("files", "large").await;
        eventually(SOON, "no request is under way", async || up.in_flight() == 0).await;
        let log = proxy.log();
        assert!(!log.contains("ERROR"), "{log}");
    });
}
