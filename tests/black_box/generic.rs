//! The main path, with a plain file server behind it: miss, hit, HEAD, ranges, conditions, headers, HTTP/1.1 and 2.

use std::time::{Duration, SystemTime};

use crate::common::client::{Headers, parts};
use crate::common::h2client::H2Connection;
use crate::common::packages::{gunzip, gzip};
use crate::common::server::at;
use crate::common::{Connection, File, Gate, Pattern, Proxy, Reply, Upstream, eventually, run, sha256};

const MB: u64 = 1_000_000;

/// An upstream and a proxy with one remote, `files`, that lets everything through.
async fn pair() -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
    (up, proxy)
}

fn moment() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

#[test]
fn a_miss_fetches_and_stores_and_a_hit_asks_nobody() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(1, 3 * MB);
        up.file(
            "/dir/app.bin",
            File::new(body)
                .etag("\"v1\"")
                .modified(moment())
                .content_type("application/x-app"),
        );
        let first = proxy.fetch("files", "dir/app.bin").await.is("remote", body.whole());
        let words = first.cache_words();
        assert!(
            words.contains(&"fwd=miss".into()) && words.contains(&"stored".into()),
            "{}",
            first.cache_status()
        );
        assert_eq!(first.header("age"), None);

        let second = proxy
            .until_cached("files", "dir/app.bin")
            .await
            .is("cache", body.whole());
        assert_eq!(second.cache_words()[0], "hit", "{}", second.cache_status());
        assert!(second.must("age").parse::<u64>().unwrap() < 60);
        assert_eq!(up.total(), 1);
        assert_eq!(up.last("GET", "/dir/app.bin").host(), up.authority());
        for answer in [first, second] {
            assert_eq!(answer.must("etag"), "\"v1\"");
            assert_eq!(answer.must("last-modified"), httpdate::fmt_http_date(moment()));
            assert_eq!(answer.must("content-type"), "application/x-app");
            assert_eq!(answer.must("content-length"), (3 * MB).to_string());
            assert_eq!(answer.must("accept-ranges"), "bytes");
            assert!(answer.must("via").contains("artifactapi"), "{:?}", answer.headers);
            assert!(httpdate::parse_http_date(answer.must("date")).is_ok());
        }
    });
}

#[test]
fn bodies_of_every_size_and_framing_come_back_as_they_were() {
    run(async {
        let (up, proxy) = pair().await;
        for (number, size) in [0, 1, 1023, 65_536, 65_537, 4 * MB + 1].into_iter().enumerate() {
            let body = Pattern::new(number as u64, size);
            up.reply(&format!("/plain/{size}"), Reply::ok(body));
            up.reply(&format!("/chunked/{size}"), Reply::ok(body).chunked().pieces(10_007));
            for form in ["plain", "chunked"] {
                let path = format!("{form}/{size}");
                proxy.fetch("files", &path).await.is("remote", body.whole());
                let hit = proxy.until_cached("files", &path).await.is("cache", body.whole());
                assert_eq!(hit.must("content-length"), size.to_string());
                assert_eq!(up.count("GET", &format!("/{path}")), 1, "{path}");
            }
        }
    });
}

#[test]
fn without_a_validator_of_upstream_the_etag_is_the_digest() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("hello"));
        proxy.fetch("files", "x").await.ok();
        let hit = proxy.until_cached("files", "x").await;
        assert_eq!(hit.must("etag"), format!("\"{}\"", sha256(b"hello")));
        proxy
            .fetch_with("files", "x", &[("If-None-Match", hit.must("etag"))])
            .await
            .expect(304);
    });
}

#[test]
fn a_weak_validator_stays_weak() {
    run(async {
        let (up, proxy) = pair().await;
        up.file("/x", File::new("0123456789").etag("W/\"w\""));
        assert_eq!(proxy.fetch("files", "x").await.ok().must("etag"), "W/\"w\"");
        let hit = proxy.until_cached("files", "x").await;
        assert_eq!(hit.must("etag"), "W/\"w\"");
        proxy
            .fetch_with("files", "x", &[("If-None-Match", "W/\"w\"")])
            .await
            .expect(304);
        proxy
            .fetch_with("files", "x", &[("If-None-Match", "\"w\"")])
            .await
            .expect(304);
        // A range may only be continued by a strong one.
        proxy
            .fetch_with("files", "x", &[("Range", "bytes=1-2"), ("If-Range", "W/\"w\"")])
            .await
            .expect(200);
    });
}

#[test]
fn the_type_comes_from_upstream_else_from_the_name() {
    run(async {
        let (up, proxy) = pair().await;
        for path in ["/a.json", "/b.unheard-of", "/c.html"] {
            up.reply(path, Reply::ok("{}"));
        }
        assert!(
            proxy
                .fetch("files", "a.json")
                .await
                .ok()
                .must("content-type")
                .starts_with("application/json")
        );
        let kind = proxy.fetch("files", "b.unheard-of").await.ok();
        assert_eq!(kind.must("content-type"), "application/octet-stream");
        assert!(
            proxy
                .fetch("files", "c.html")
                .await
                .ok()
                .must("content-type")
                .starts_with("text/html")
        );
    });
}

#[test]
fn cache_control_says_how_long_a_client_may_keep_it() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "open:\n  base_url: {0}\nlisted:\n  base_url: {0}\n  immutable_patterns: ['\\.tgz$']\n  \
             mutable_patterns: ['\\.txt$']\n  cache: {{mutable_ttl: 40}}\n\
             limited:\n  base_url: {0}\n  immutable_patterns: ['\\.tgz$']\n  cache: {{immutable_ttl: 500}}\n",
            up.base()
        ))
        .await;
        let upstream_says = "private, no-store, max-age=7";
        for path in ["/a.tgz", "/a.txt"] {
            let reply = Reply::ok("x")
                .header("Cache-Control", upstream_says)
                .header("Expires", "0")
                .header("Pragma", "no-cache");
            up.reply(path, reply);
        }
        let of = async |remote: &str, path: &str| {
            proxy.fetch(remote, path).await.ok();
            let hit = proxy.until_cached(remote, path).await;
            assert_eq!(
                (hit.header("expires"), hit.header("pragma")),
                (None, None),
                "{:?}",
                hit.headers
            );
            hit.must("cache-control").to_owned()
        };
        assert_eq!(of("listed", "a.tgz").await, "public, max-age=31536000, immutable");
        assert_eq!(of("open", "a.tgz").await, "public, max-age=3600");
        let age = |value: &str| {
            value
                .rsplit_once("max-age=")
                .map(|(_, age)| age.parse::<u64>().unwrap())
        };
        let mutable = of("listed", "a.txt").await;
        assert!(
            matches!(age(&mutable), Some(30..=40)) && !mutable.contains("immutable"),
            "{mutable}"
        );
        let limited = of("limited", "a.tgz").await;
        assert!(
            matches!(age(&limited), Some(480..=500)) && !limited.contains("immutable"),
            "{limited}"
        );
    });
}

#[test]
fn a_client_that_asks_for_a_fresh_copy_does_not_reach_past_the_ttl() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        for headers in [
            &[("Cache-Control", "no-cache"), ("Pragma", "no-cache")][..],
            &[("Cache-Control", "max-age=0")],
        ] {
            proxy.fetch_with("files", "x", headers).await.is("cache", "x");
        }
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn the_query_is_part_of_the_key_and_goes_upstream_verbatim() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/d", Reply::ok("none"));
        let odd = "/d?b=2&a=%2F%20+&a=1&&x";
        up.reply(odd, Reply::ok("odd")).reply("/d?b=3", Reply::ok("three"));
        for (path, body) in [("d", "none"), (&odd[1..], "odd"), ("d?b=3", "three")] {
            proxy.fetch("files", path).await.is("remote", body);
            proxy.until_cached("files", path).await.is("cache", body);
        }
        assert_eq!((up.count("GET", odd), up.count("GET", "/d?b=3"), up.total()), (1, 1, 3));
    });
}

// HEAD

#[test]
fn head_on_a_cold_object_goes_up_as_head_and_stores_nothing() {
    run(async {
        let (up, proxy) = pair().await;
        up.file(
            "/x",
            File::new("0123456789")
                .etag("\"e\"")
                .modified(moment())
                .content_type("text/plain"),
        );
        let cold = proxy.head("files", "x").await.ok();
        assert_eq!(
            (cold.must("content-length"), cold.must("etag"), cold.source()),
            ("10", "\"e\"", "remote")
        );
        assert!(!cold.cache_status().contains("stored"), "{}", cold.cache_status());
        assert_eq!((up.count("HEAD", "/x"), up.count("GET", "/x")), (1, 0));
        let got = proxy.fetch("files", "x").await.is("remote", "0123456789");
        proxy.until_cached("files", "x").await;
        let warm = proxy.head("files", "x").await.ok();
        assert_eq!((warm.source(), warm.body.len()), ("cache", 0));
        for name in [
            "content-length",
            "etag",
            "last-modified",
            "content-type",
            "accept-ranges",
            "cache-control",
        ] {
            assert_eq!(warm.must(name), got.must(name), "{name}");
        }
        assert_eq!((up.count("HEAD", "/x"), up.count("GET", "/x")), (1, 1));
    });
}

#[test]
fn head_that_upstream_refuses_is_answered_by_a_fill() {
    run(async {
        let (up, proxy) = pair().await;
        for status in [400, 403, 405, 501] {
            let path = format!("/{status}");
            up.on(&path, move |seen| match seen.method.as_str() {
                "HEAD" => Reply::status(status),
                _ => Reply::ok("12345"),
            });
            assert_eq!(
                proxy.head("files", &path).await.ok().must("content-length"),
                "5",
                "{status}"
            );
            proxy.until_cached("files", &path).await.is("cache", "12345");
            assert_eq!(up.count("GET", &path), 1, "{status}");
        }
        // 200 without a length is not good enough either.
        up.on("/chunked", |_| Reply::ok("1234567").chunked());
        assert_eq!(proxy.head("files", "chunked").await.ok().must("content-length"), "7");
    });
}

#[test]
fn the_404_of_a_head_is_remembered_like_that_of_a_get() {
    run(async {
        let (up, proxy) = pair().await;
        proxy.head("files", "none").await.expect(404);
        proxy.head("files", "none").await.expect(404);
        proxy.fetch("files", "none").await.expect(404);
        assert_eq!(up.total(), 1);
    });
}

// Ranges

#[test]
fn ranges_of_a_stored_object() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(3, MB);
        up.file(
            "/x",
            File::new(body)
                .etag("\"e\"")
                .modified(moment())
                .content_type("application/x-app"),
        );
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        for (range, from, to) in [
            ("bytes=0-0", 0, 1),
            ("bytes=0-99", 0, 100),
            ("bytes=500000-500099", 500_000, 500_100),
            ("bytes=999990-", 999_990, MB),
            ("bytes=999990-5000000", 999_990, MB),
            ("bytes=-7", MB - 7, MB),
            ("bytes=-5000000", 0, MB),
            ("bytes=0-", 0, MB),
        ] {
            let part = proxy.fetch_with("files", "x", &[("Range", range)]).await.expect(206);
            assert_eq!(
                part.must("content-range"),
                format!("bytes {from}-{}/{MB}", to - 1),
                "{range}"
            );
            assert_eq!(part.must("content-length"), (to - from).to_string());
            assert_eq!(part.body, body.slice(from, to).whole(), "{range}");
            assert_eq!((part.must("etag"), part.source()), ("\"e\"", "cache"));
            assert_eq!(part.must("content-type"), "application/x-app");
        }
        for range in ["bytes=1000000-", "bytes=2000000-3000000", "bytes=-0"] {
            let refused = proxy.fetch_with("files", "x", &[("Range", range)]).await.expect(416);
            assert_eq!(refused.must("content-range"), format!("bytes */{MB}"), "{range}");
        }
        for range in ["bytes=5-2", "bytes=", "bytes=a-b", "lines=1-2", "bytes 1-2"] {
            let whole = proxy.fetch_with("files", "x", &[("Range", range)]).await.expect(200);
            assert_eq!(whole.body.len() as u64, MB, "{range}");
        }
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn several_ranges_come_as_parts() {
    run(async {
        let (up, proxy) = pair().await;
        up.file(
            "/x",
            File::new("0123456789abcdefghij")
                .etag("\"e\"")
                .content_type("text/plain"),
        );
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        let answer = proxy
            .fetch_with("files", "x", &[("Range", "bytes=0-1, 5-6,-2")])
            .await
            .expect(206);
        assert_eq!(answer.header("content-range"), None);
        let got = parts(&answer);
        let expected = [("bytes 0-1/20", "01"), ("bytes 5-6/20", "56"), ("bytes 18-19/20", "ij")];
        assert_eq!(got.len(), 3);
        for (part, (range, body)) in got.iter().zip(expected) {
            assert_eq!((part.must("content-range"), &part.body[..]), (range, body.as_bytes()));
            assert_eq!(part.must("content-type"), "text/plain");
        }
        // One that cannot be satisfied is left out; one that remains may come as a single range or as parts.
        let one = proxy
            .fetch_with("files", "x", &[("Range", "bytes=3-4,99-100")])
            .await
            .expect(206);
        match one.header("content-range") {
            Some(range) => assert_eq!((range, &one.body[..]), ("bytes 3-4/20", &b"34"[..])),
            None => assert_eq!(parts(&one)[0].body, "34"),
        }
        proxy
            .fetch_with("files", "x", &[("Range", "bytes=30-31,99-100")])
            .await
            .expect(416);
        // A thousand overlapping ranges are an attack, not a request: anything but that many bytes.
        let many = format!("bytes={}", vec!["0-"; 1000].join(","));
        let answer = proxy.fetch_with("files", "x", &[("Range", &many)]).await;
        assert!(
            answer.body.len() < 2000,
            "{} bytes for a 20 byte file",
            answer.body.len()
        );
    });
}

#[test]
fn if_range_decides_between_the_part_and_the_whole() {
    run(async {
        let (up, proxy) = pair().await;
        up.file("/x", File::new("0123456789").etag("\"e\"").modified(moment()));
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        let date = httpdate::fmt_http_date(moment());
        let older = httpdate::fmt_http_date(moment() - Duration::from_secs(5));
        for (value, status) in [
            ("\"e\"", 206),
            ("\"other\"", 200),
            ("W/\"e\"", 200),
            (&date, 206),
            (&older, 200),
        ] {
            let headers = [("Range", "bytes=2-3"), ("If-Range", value)];
            let answer = proxy.fetch_with("files", "x", &headers).await.expect(status);
            assert_eq!(answer.body.len(), if status == 206 { 2 } else { 10 }, "{value}");
        }
    });
}

#[test]
fn a_range_of_a_cold_object_is_a_range_while_the_whole_is_fetched() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(4, 2 * MB);
        up.file("/x", File::new(body).etag("\"e\""));
        let part = proxy
            .fetch_with("files", "x", &[("Range", "bytes=10-19")])
            .await
            .expect(206);
        assert_eq!(
            (&part.body[..], part.source()),
            (&body.slice(10, 20).whole()[..], "remote")
        );
        assert_eq!(part.must("content-range"), format!("bytes 10-19/{}", 2 * MB));
        proxy.until_cached("files", "x").await.is("cache", body.whole());
        let whole = up
            .log()
            .into_iter()
            .filter(|seen| seen.header("range").is_none())
            .count();
        assert_eq!(whole, 1);
    });
}

#[test]
fn a_suffix_of_a_cold_object_and_an_impossible_range() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(4, 2 * MB);
        up.file("/a", File::new(body).etag("\"e\""))
            .file("/b", File::new(body).etag("\"e\""));
        let part = proxy
            .fetch_with("files", "a", &[("Range", "bytes=-100")])
            .await
            .expect(206);
        assert_eq!(part.body, body.slice(2 * MB - 100, 2 * MB).whole());
        let refused = proxy
            .fetch_with("files", "b", &[("Range", "bytes=9000000-")])
            .await
            .expect(416);
        assert_eq!(refused.must("content-range"), format!("bytes */{}", 2 * MB));
    });
}

#[test]
fn a_range_far_ahead_of_the_fill_does_not_wait_for_it() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(5, 50 * MB);
        let gate = Gate::new();
        let slow = gate.clone();
        up.on("/x", move |seen| {
            let file = File::new(body).etag("\"e\"");
            match seen.header("range") {
                Some(_) => file.reply(seen),
                None => file.shaped(|reply| reply.pause_at(MB, &slow)).reply(seen),
            }
        });
        let mut filling = proxy.connect().await;
        filling.send("GET", &at("files", "x"), &[], b"").await;
        filling.read_head("GET").await;
        let range = format!("bytes={}-{}", 40 * MB, 40 * MB + 99);
        let part = proxy.fetch_with("files", "x", &[("Range", &range)]).await.expect(206);
        assert_eq!(part.body, body.slice(40 * MB, 40 * MB + 100).whole());
        assert_eq!(up.last("GET", "/x").header("range"), Some(range.as_str()));
        // Near the beginning it comes from what has grown.
        let near = proxy
            .fetch_with("files", "x", &[("Range", "bytes=100-199")])
            .await
            .expect(206);
        assert_eq!(near.body, body.slice(100, 200).whole());
        assert_eq!(up.count("GET", "/x"), 2);
        gate.open();
        assert_eq!(filling.read_pattern(body).await, 50 * MB);
        proxy.until_cached("files", "x").await;
        assert_eq!(up.count("GET", "/x"), 2);
    });
}

#[test]
fn a_206_that_is_not_what_was_asked_is_never_passed_off_as_it() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply(
            "/unasked",
            Reply::new(206, "part").header("Content-Range", "bytes 0-3/10"),
        );
        proxy.fetch("files", "unasked").await.expect(502);
        proxy.fetch("files", "unasked").await.expect(502);
        assert_eq!(up.count("GET", "/unasked"), 2);
    });
}

// Conditions

#[test]
fn conditions_are_answered_from_the_cache() {
    run(async {
        let (up, proxy) = pair().await;
        up.file("/x", File::new("0123456789").etag("\"e\"").modified(moment()));
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        let date = httpdate::fmt_http_date(moment());
        let older = httpdate::fmt_http_date(moment() - Duration::from_secs(5));
        for (headers, status) in [
            (&[("If-None-Match", "\"e\"")][..], 304),
            (&[("If-None-Match", "*")], 304),
            (&[("If-None-Match", "\"a\", W/\"e\" ,\"b\"")], 304),
            (&[("If-None-Match", "\"a\"")], 200),
            (&[("If-Modified-Since", date.as_str())], 304),
            (&[("If-Modified-Since", older.as_str())], 200),
            (&[("If-Modified-Since", "nonsense")], 200),
            (&[("If-None-Match", "\"a\""), ("If-Modified-Since", date.as_str())], 200),
            (
                &[("If-None-Match", "\"e\""), ("If-Modified-Since", older.as_str())],
                304,
            ),
            (&[("If-None-Match", "\"e\""), ("Range", "bytes=0-1")], 304),
            (&[("If-Match", "\"a\"")], 412),
            (&[("If-Match", "\"e\"")], 200),
        ] {
            let answer = proxy.fetch_with("files", "x", headers).await.expect(status);
            if status == 304 {
                assert_eq!(
                    (answer.body.len(), answer.must("etag"), answer.source()),
                    (0, "\"e\"", "cache")
                );
                assert!(answer.header("cache-control").is_some() && answer.header("date").is_some());
                assert_eq!(answer.header("content-range"), None);
            }
        }
        proxy
            .request("HEAD", &at("files", "x"), &[("If-None-Match", "\"e\"")], b"")
            .await
            .expect(304);
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn a_clients_conditions_and_credentials_do_not_reach_a_shared_fill() {
    run(async {
        let (up, proxy) = pair().await;
        up.file("/x", File::new("0123456789").etag("\"e\"").modified(moment()));
        let headers = [
            ("If-None-Match", "\"e\""),
            ("Authorization", "Basic c2VjcmV0OnNlY3JldA=="),
            ("Cookie", "session=1"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("X-Something", "of the client"),
            ("Accept-Language", "de"),
            ("Connection", "X-Mine"),
            ("X-Mine", "1"),
            ("TE", "trailers"),
        ];
        let answer = proxy.fetch_with("files", "x", &headers).await;
        assert!(matches!(answer.status, 200 | 304), "{}", answer.status);
        up.wait_for("GET", "/x", 1).await;
        let seen = up.last("GET", "/x");
        for name in [
            "if-none-match",
            "authorization",
            "cookie",
            "x-something",
            "accept-language",
            "x-mine",
            "te",
        ] {
            assert_eq!(seen.header(name), None, "{name} went upstream: {:?}", seen.headers);
        }
        assert!(
            seen.header("user-agent")
                .is_some_and(|agent| agent.starts_with("artifactapi/")),
            "{:?}",
            seen.headers
        );
        proxy.until_cached("files", "x").await.is("cache", "0123456789");
    });
}

// What comes back and what does not

#[test]
fn headers_that_belong_to_another_connection_or_origin_stop_here() {
    run(async {
        let (up, proxy) = pair().await;
        let dressed = |reply: Reply| {
            reply
                .header("Connection", "X-Hop, keep-alive")
                .header("X-Hop", "1")
                .header("Keep-Alive", "timeout=5")
                .header("Proxy-Authenticate", "Basic realm=x")
                .header("Set-Cookie", "a=1")
                .header("Set-Cookie", "b=2")
                .header("Strict-Transport-Security", "max-age=1")
                .header("Alt-Svc", "h3=\":443\"")
                .header("Access-Control-Allow-Origin", "https://elsewhere.test")
                .header("Content-Disposition", "attachment; filename=x")
        };
        up.reply("/x", dressed(Reply::ok("x")))
            .reply("/none", dressed(Reply::new(404, "no")));
        up.reply("/odd", dressed(Reply::new(203, "odd")));
        let first = proxy.fetch("files", "x").await.ok();
        let hit = proxy.until_cached("files", "x").await;
        assert_eq!(hit.must("content-disposition"), "attachment; filename=x");
        for answer in [
            first,
            hit,
            proxy.fetch("files", "none").await,
            proxy.fetch("files", "odd").await,
        ] {
            for name in [
                "x-hop",
                "keep-alive",
                "proxy-authenticate",
                "set-cookie",
                "strict-transport-security",
                "alt-svc",
                "access-control-allow-origin",
            ] {
                assert_eq!(answer.header(name), None, "{name} came back in {:?}", answer.headers);
            }
        }
    });
}

#[test]
fn a_coding_is_not_served_to_who_did_not_accept_it() {
    run(async {
        let (up, proxy) = pair().await;
        let text = "hello ".repeat(1000);
        let packed = gzip(text.as_bytes());
        up.reply(
            "/page.txt",
            Reply::ok(packed.clone())
                .header("Content-Encoding", "gzip")
                .content_type("text/plain"),
        );
        up.reply(
            "/app.tar.gz",
            Reply::ok(packed.clone()).header("Content-Encoding", "gzip"),
        );
        up.reply("/app.tgz", Reply::ok(packed.clone()).content_type("application/gzip"));
        for _ in 0..2 {
            let identity = [("Accept-Encoding", "identity")];
            let plain = proxy.fetch_with("files", "page.txt", &identity).await.ok();
            assert_eq!((plain.header("content-encoding"), plain.text()), (None, text.clone()));
            let accepted = proxy
                .fetch_with("files", "page.txt", &[("Accept-Encoding", "gzip")])
                .await
                .ok();
            match accepted.header("content-encoding") {
                Some("gzip") => assert_eq!(gunzip(&accepted.body), text.as_bytes()),
                other => assert_eq!((other, accepted.text()), (None, text.clone())),
            }
        }
        // An archive is not an encoding, whatever its server says.
        for path in ["app.tar.gz", "app.tgz"] {
            for _ in 0..2 {
                assert_eq!(proxy.fetch("files", path).await.ok().body, packed, "{path}");
            }
        }
    });
}

#[test]
fn only_complete_200_answers_are_stored() {
    run(async {
        let (up, proxy) = pair().await;
        for status in [201, 203, 300, 400, 401, 403, 418, 429, 500, 503] {
            let path = format!("/{status}");
            up.reply(&path, Reply::new(status, "as it is"));
            for _ in 0..2 {
                let answer = proxy.fetch("files", &path).await;
                assert_eq!(
                    (answer.status, answer.source()),
                    (status, "remote"),
                    "{:?}",
                    answer.headers
                );
                assert!(!answer.cache_status().contains("stored"), "{}", answer.cache_status());
            }
            assert_eq!(up.count("GET", &path), 2, "{status}");
        }
    });
}

#[test]
fn informational_answers_do_not_disturb() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x").informational(103));
        proxy.fetch("files", "x").await.is("remote", "x");
        proxy.until_cached("files", "x").await.is("cache", "x");
    });
}

/// What follows a 101 is no longer HTTP: whoever read on took it for an answer of this proxy's.
#[test]
fn an_answer_that_is_none_is_an_error() {
    run(async {
        let (up, proxy) = pair().await;
        let behind = "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 4\r\n\r\nevil";
        for (path, head) in [
            (
                "/101",
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n".to_owned(),
            ),
            ("/bare", "HTTP/1.1 101 \r\n\r\n".to_owned()),
            ("/none", "HTTP/1.1 099 None\r\n\r\n".to_owned()),
            ("/many", "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(200)),
        ] {
            up.on(path, move |_| Reply::raw(format!("{head}{behind}").into_bytes()));
        }
        for path in ["101", "bare", "none", "many"] {
            for (method, headers) in [
                ("GET", vec![]),
                ("HEAD", vec![]),
                ("GET", vec![("Range", "bytes=0-1")]),
                ("GET", vec![("Upgrade", "x"), ("Connection", "Upgrade")]),
            ] {
                let answer = proxy.request(method, &at("files", path), &headers, b"").await;
                assert_eq!(answer.status, 502, "{method} {path} {headers:?}: {}", answer.text());
                assert!(answer.header("set-cookie").is_none());
            }
        }
        let passing = Proxy::start(&format!("npm:\n  package: npm\n  base_url: {}\n", up.base())).await;
        up.on("/-/npm/v1/security/audits/quick", move |_| {
            Reply::raw(format!("HTTP/1.1 101 Switching Protocols\r\n\r\n{behind}").into_bytes())
        });
        let audit = at("npm", "-/npm/v1/security/audits/quick");
        let answer = passing.request("POST", &audit, &[], b"{}").await;
        assert_eq!(answer.status, 502, "{}", answer.text());
    });
}

#[test]
fn interim_answers_stay_here() {
    run(async {
        let (up, proxy) = pair().await;
        let npm = format!("npm:\n  package: npm\n  base_url: {}\n", up.base());
        up.fallback(|_| Reply::ok("x").informational(103).informational(102));
        let passing = Proxy::start(&npm).await;
        for (proxy, method, target) in [
            (&proxy, "GET", at("files", "x")),
            (&proxy, "HEAD", at("files", "y")),
            (&passing, "POST", at("npm", "-/npm/v1/security/audits/quick")),
        ] {
            let mut connection = proxy.connect().await;
            connection
                .send(method, &target, &[], if method == "POST" { b"{}" } else { b"" })
                .await;
            let mut line = [0; 12];
            assert!(connection.read_exact_raw(&mut line).await, "{method}");
            assert_eq!(&line, b"HTTP/1.1 200", "{method}");
        }
    });
}

// The client's connection

#[test]
fn one_connection_carries_many_requests() {
    run(async {
        let (up, proxy) = pair().await;
        up.file("/x", File::new("0123456789").etag("\"e\""));
        up.reply("/cut", Reply::ok("x").chunked());
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        let mut connection = proxy.connect().await;
        let target = at("files", "x");
        for _ in 0..5 {
            assert_eq!(connection.get(&target).await.ok().body, "0123456789");
            connection.request("HEAD", &target, &[], b"").await.ok();
            connection
                .request("GET", &target, &[("If-None-Match", "\"e\"")], b"")
                .await
                .expect(304);
            connection
                .request("GET", &target, &[("Range", "bytes=1-2")], b"")
                .await
                .expect(206);
            connection
                .request("GET", &target, &[("Range", "bytes=99-")], b"")
                .await
                .expect(416);
            connection.get(&at("files", "none")).await.expect(404);
            connection.get(&at("unknown", "x")).await.expect(404);
            connection.get(&at("files", "cut")).await.ok();
            connection.get("/health/live").await.ok();
        }
        // Pipelined requests are answered in their order.
        connection.send("GET", &target, &[("Range", "bytes=0-0")], b"").await;
        connection.send("GET", &target, &[("Range", "bytes=1-1")], b"").await;
        assert_eq!(connection.response("GET").await.body, "0");
        assert_eq!(connection.response("GET").await.body, "1");
    });
}

#[test]
fn http_1_0_and_connection_close_are_understood() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("hello"));
        proxy.fetch("files", "x").await.ok();
        for request in [
            format!("GET {} HTTP/1.0\r\nHost: a\r\n\r\n", at("files", "x")),
            format!(
                "GET {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                at("files", "x")
            ),
        ] {
            let mut connection = proxy.connect().await;
            connection.write_raw(request.as_bytes()).await;
            assert_eq!(connection.response("GET").await.ok().body, "hello");
            assert!(connection.closes().await);
        }
    });
}

#[test]
fn http_2_without_tls() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(6, 3 * MB);
        up.file("/x", File::new(body).etag("\"e\""));
        let mut connection = H2Connection::open(proxy.address()).await;
        connection.get(&at("files", "x")).await.is("remote", body.whole());
        proxy.until_cached("files", "x").await;
        connection.get(&at("files", "x")).await.is("cache", body.whole());
        let head = connection.request("HEAD", &at("files", "x"), &[]).await.ok();
        assert_eq!(head.must("content-length"), (3 * MB).to_string());
        let part = connection
            .request("GET", &at("files", "x"), &[("range", "bytes=5-9")])
            .await
            .expect(206);
        assert_eq!(part.body, body.slice(5, 10).whole());
        connection
            .request("GET", &at("files", "x"), &[("if-none-match", "\"e\"")])
            .await
            .expect(304);
        connection.get(&at("files", "none")).await.expect(404);
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let mut stream = connection.clone();
            running.spawn(async move { stream.get(&at("files", "x")).await.ok().body });
        }
        while let Some(got) = running.join_next().await {
            assert_eq!(got.unwrap(), body.whole());
        }
        assert_eq!(up.count("GET", "/x"), 1);
    });
}

#[test]
fn ambiguous_framing_is_refused_and_the_connection_closed() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        let target = at("files", "x");
        for (what, rest) in [
            (
                "both lengths",
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
            ("two lengths", "Content-Length: 0\r\nContent-Length: 5\r\n\r\n"),
            ("a list of lengths", "Content-Length: 0, 5\r\n\r\n"),
            ("a signed length", "Content-Length: +5\r\n\r\nhello"),
            ("a negative length", "Content-Length: -1\r\n\r\n"),
            ("a length of letters", "Content-Length: five\r\n\r\n"),
            ("a space before the colon", "X-Odd : 1\r\n\r\n"),
            ("a space in a name", "X Odd: 1\r\n\r\n"),
            ("a NUL in a value", "X-Odd: a\0b\r\n\r\n"),
            ("a bare CR in a value", "X-Odd: a\rb\r\n\r\n"),
        ] {
            let mut connection = proxy.connect().await;
            connection
                .write_raw(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{rest}").as_bytes())
                .await;
            let answer = connection.try_read_head("GET").await;
            let status = answer.map(|head| head.status).unwrap_or(0);
            assert_eq!(status, 400, "{what}");
            connection.read_body().await;
            assert!(connection.closes().await, "{what}: the connection stays open");
        }
        proxy.fetch("files", "x").await.ok();
    });
}

#[test]
fn a_body_on_a_get_is_not_taken_for_the_next_request() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        let mut connection = proxy.connect().await;
        let smuggled = format!("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", at("files", "smuggled"));
        connection
            .request("GET", &at("files", "x"), &[], smuggled.as_bytes())
            .await;
        // Either it was read as the body that it is, or the connection ends.
        connection.send("GET", "/health/live", &[], b"").await;
        if let Ok(head) = connection.try_read_head("GET").await {
            assert_eq!(head.status, 200);
        }
        assert_eq!(up.count("*", "/smuggled"), 0);
    });
}

#[test]
fn methods_that_a_remote_does_not_have_are_405() {
    run(async {
        let (up, proxy) = pair().await;
        up.reply("/x", Reply::ok("x"));
        for method in ["PUT", "DELETE", "POST", "PATCH", "OPTIONS"] {
            let body: &[u8] = if method == "PUT" { b"data" } else { b"" };
            let answer = proxy.request(method, &at("files", "x"), &[], body).await.expect(405);
            assert!(answer.must("allow").contains("GET"), "{method}: {:?}", answer.headers);
        }
        assert_eq!(up.total(), 0);
    });
}

#[test]
fn a_client_without_keep_alive_in_the_middle_of_a_hit_harms_nobody() {
    run(async {
        let (up, proxy) = pair().await;
        let body = Pattern::new(7, 20 * MB);
        up.file("/x", File::new(body));
        proxy.fetch("files", "x").await.ok();
        proxy.until_cached("files", "x").await;
        for _ in 0..5 {
            let mut leaving = Connection::open_narrow(proxy.address()).await;
            leaving.send("GET", &at("files", "x"), &[], b"").await;
            leaving.read_head("GET").await;
            leaving.reset();
        }
        eventually(Duration::from_secs(10), "hits after clients have left", async || {
            proxy.fetch("files", "x").await.body == body.whole()
        })
        .await;
        assert_eq!(up.total(), 1);
    });
}
