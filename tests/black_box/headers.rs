//! Which of upstream's header fields clients get, and what is said beside them: one rule for what is fetched, stored, asked
//! about and passed by.

use crate::common::client::Headers;
use crate::common::packages::{gunzip, gzip};
use crate::common::server::at;
use crate::common::{Proxy, Reply, Response, Upstream, run};

const KEPT: [&str; 14] = [
    "Content-Disposition",
    "Content-Language",
    "ETag",
    "Last-Modified",
    "Link",
    "Digest",
    "X-Checksum-Sha256",
    "X-Goog-Hash",
    "X-Amz-Meta-Name",
    "X-Linked-Size",
    "X-Repo-Commit",
    "X-PyPI-Last-Serial",
    "npm-notice",
    "RateLimit-Remaining",
];
/// Orders to a server in front, to a cache or to a browser, and what nobody has heard of.
const DROPPED: [&str; 19] = [
    "X-Accel-Redirect",
    "X-Accel-Expires",
    "X-Sendfile",
    "X-Lighttpd-Send-File",
    "X-Reproxy-URL",
    "Status",
    "Service-Worker-Allowed",
    "Speculation-Rules",
    "Accept-CH",
    "Some-CDN-Cache-Control",
    "X-Forwarded-Host",
    "X-Forwarded-For",
    "Set-Cookie",
    "Access-Control-Allow-Origin",
    "Content-Security-Policy-Report-Only",
    "Clear-Site-Data",
    "Refresh",
    "Server",
    "X-Unheard-Of",
];

fn dressed(mut reply: Reply) -> Reply {
    for name in KEPT {
        let value = match name {
            "ETag" => "\"e\"",
            "Last-Modified" => "Tue, 14 Nov 2023 22:13:20 GMT",
            _ => "1",
        };
        reply = reply.header(name, value);
    }
    for name in DROPPED {
        reply = reply.header(name, "/internal");
    }
    reply.header("X-Name", "kept by wish")
}

/// A proxy that must leave more free than any disk has: what has no length passes by.
async fn without_room(remotes: &str) -> Proxy {
    let settings = Proxy::settings().remotes(remotes);
    settings.conf("cache: {disk_min_free: 100%}\n").start().await
}

#[track_caller]
fn passed_by(answer: Response) -> Response {
    let answer = answer.ok();
    assert!(answer.cache_status().contains("bypass"), "{}", answer.cache_status());
    answer
}

#[track_caller]
fn is_inert(answer: &Response, what: &str) {
    assert_eq!(answer.must("x-content-type-options"), "nosniff", "{what}");
    assert_eq!(answer.must("content-security-policy"), "sandbox", "{what}");
}

#[test]
fn only_what_describes_content_reaches_clients_on_every_way() {
    run(async {
        let up = Upstream::start().await;
        up.on("/x.txt", |_| dressed(Reply::ok("text")))
            .on("/head.txt", |_| dressed(Reply::ok("text")))
            .on("/odd.txt", |_| dressed(Reply::new(203, "odd")))
            .on("/chunked.txt", |_| dressed(Reply::ok("text").chunked()))
            .on("/-/v1/search", |_| dressed(Reply::ok("{}")))
            .on("/-/npm/v1/security/audits", |_| dressed(Reply::ok("{}")));
        let remotes = format!(
            "files:\n  base_url: {0}\n  headers_keep: [X-Name]\nnpm:\n  base_url: {0}\n  package: npm\n  \
             headers_keep: [X-Name]\n  mutable_patterns: ['^']\n",
            up.base()
        );
        let (proxy, full) = (Proxy::start(&remotes).await, without_room(&remotes).await);
        let audit = at("npm", "-/npm/v1/security/audits");
        let answers = [
            ("fetched", proxy.fetch("files", "x.txt").await.ok()),
            ("stored", proxy.until_cached("files", "x.txt").await.ok()),
            ("stored, once more", proxy.fetch("files", "x.txt").await.ok()),
            ("HEAD of what is stored", proxy.head("files", "x.txt").await.ok()),
            ("HEAD that goes up", proxy.head("files", "head.txt").await.ok()),
            ("passed by", passed_by(full.fetch("files", "chunked.txt").await)),
            ("a service", proxy.fetch("npm", "-/v1/search").await.ok()),
            ("a POST", proxy.request("POST", &audit, &[], b"{}").await.ok()),
            ("not stored", proxy.fetch("files", "odd.txt").await.expect(203)),
        ];
        for (what, answer) in &answers {
            for name in DROPPED {
                assert_eq!(answer.header(name), None, "{what}: {name}");
            }
            let lost = KEPT.iter().filter(|name| answer.header(name).is_none());
            let lost: Vec<_> = lost
                .filter(|name| *what != "not stored" || !matches!(**name, "ETag" | "Last-Modified"))
                .collect();
            assert!(lost.is_empty(), "{what}: {lost:?} of {:?}", answer.headers);
            assert_eq!(answer.must("x-name"), "kept by wish", "{what}");
            is_inert(answer, what);
        }
        let page = proxy.fetch("files", "none.html").await.expect(404);
        assert_eq!(page.must("x-content-type-options"), "nosniff");
    });
}

#[test]
fn what_is_stored_is_judged_by_the_rules_of_now() {
    run(async {
        let up = Upstream::start().await;
        up.on("/x", |_| dressed(Reply::ok("x")));
        let remote = |keys: &str| format!("files:\n  base_url: {}\n  description: x\n{keys}", up.base());
        let proxy = Proxy::start(&remote("  headers_keep: [X-Name]\n")).await;
        proxy.fetch("files", "x").await.ok();
        assert_eq!(proxy.until_cached("files", "x").await.must("x-name"), "kept by wish");
        proxy.write_remotes(&remote(""));
        proxy.reload_and_wait().await;
        for _ in 0..3 {
            let hit = proxy.fetch("files", "x").await.is("cache", "x");
            assert_eq!(hit.header("x-name"), None);
            assert_eq!(hit.must("etag"), "\"e\"");
        }
    });
}

#[test]
fn artifacts_may_be_active_on_a_host_of_their_own_only() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/page.html", Reply::ok("<script>1</script>").content_type("text/html"));
        let proxy = Proxy::start(&format!(
            "site:\n  base_url: {0}\n  hosts: [site.test]\n  active_content: true\nplain:\n  base_url: {0}\n  \
             hosts: [plain.test]\n",
            up.base()
        ))
        .await;
        let shared = at("site", "page.html");
        for round in 0..3 {
            let own = proxy
                .request("GET", "/page.html", &[("Host", "site.test")], b"")
                .await
                .ok();
            assert_eq!(own.header("content-security-policy"), None, "{round}");
            assert_eq!(own.header("x-content-type-options"), None, "{round}");
            assert_eq!(own.must("content-type"), "text/html");
            is_inert(&proxy.request("GET", &shared, &[], b"").await.ok(), "the shared host");
            let plain = proxy.request("GET", "/page.html", &[("Host", "plain.test")], b"");
            is_inert(&plain.await.ok(), "not asked for");
        }
    });
}

#[test]
fn what_passes_by_says_its_type_and_what_it_varies_by() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a.json", Reply::ok("{}").chunked());
        up.reply("/b.json", Reply::ok("{}").chunked().header("Content-Encoding", "zstd"));
        let proxy = without_room(&format!("files:\n  base_url: {}\n", up.base())).await;
        let plain = passed_by(proxy.fetch("files", "a.json").await);
        assert_eq!(
            (plain.must("content-type"), plain.header("vary")),
            ("application/json", None)
        );
        let coded = passed_by(proxy.fetch("files", "b.json").await);
        let said = ["content-type", "vary", "content-encoding"].map(|name| coded.must(name));
        assert_eq!(said, ["application/json", "Accept-Encoding", "zstd"]);
    });
}

// Codings

/// What comes back for `path` on a miss and on a hit, to a client that takes any coding and to one that takes none.
async fn ways(proxy: &Proxy, path: &str) -> Vec<Response> {
    let mut answers = Vec::new();
    for headers in [
        &[][..],
        &[("Accept-Encoding", "identity")],
        &[("Accept-Encoding", "gzip;Q=0")],
    ] {
        for _ in 0..2 {
            answers.push(proxy.fetch_with("files", path, headers).await);
        }
    }
    answers
}

#[test]
fn what_is_no_coding_is_not_taken_for_one() {
    run(async {
        let up = Upstream::start().await;
        let packed = gzip("hello ".repeat(1000).as_bytes());
        let file = |coding: &str| Reply::ok(packed.clone()).header("Content-Encoding", coding);
        up.reply("/a.tar.bz2", file("bzip2"))
            .reply("/a.zst", file("zstd"))
            .reply("/upload", file("aws-chunked"))
            .reply("/upload.tar.gz", file("gzip,aws-chunked"))
            .reply("/a.tar.gz?token=1", file("gzip"))
            .reply("/a.tar.gz/download", file("x-gzip"))
            .reply(
                "/named",
                file("gzip").header("Content-Disposition", "attachment; filename=\"a.tgz\""),
            )
            .reply("/typed", file("gzip").content_type("application/gzip"))
            .reply("/latest", Reply::redirect(302, "/files/app-1.0.tar.gz?signature=1"))
            .reply("/files/app-1.0.tar.gz?signature=1", file("gzip"));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        for path in [
            "a.tar.bz2",
            "a.zst",
            "upload",
            "upload.tar.gz",
            "a.tar.gz?token=1",
            "a.tar.gz/download",
            "named",
            "typed",
            "latest",
        ] {
            for answer in ways(&proxy, path).await {
                assert_eq!(answer.status, 200, "{path}: {}", answer.text());
                assert_eq!(answer.header("content-encoding"), None, "{path}");
                assert!(answer.body == packed, "{path}: other bytes");
            }
        }
    });
}

#[test]
fn gzip_that_does_not_begin_as_gzip_is_none() {
    run(async {
        let up = Upstream::start().await;
        for path in ["/plain", "/empty", "/simple/pkg/"] {
            let body = match path {
                "/plain" => "plain text",
                "/empty" => "",
                _ => "<a href=\"pkg-1.0.tar.gz\">pkg-1.0.tar.gz</a>",
            };
            let reply = Reply::ok(body)
                .content_type("text/html")
                .header("Content-Encoding", "gzip");
            up.reply(path, reply.chunked());
        }
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {0}\npy:\n  base_url: {0}\n  package: pypi\n",
            up.base()
        ))
        .await;
        for (path, body) in [("plain", "plain text"), ("empty", "")] {
            for headers in [&[][..], &[("Accept-Encoding", "gzip")]] {
                for _ in 0..2 {
                    let answer = proxy.fetch_with("files", path, headers).await.ok();
                    assert_eq!(
                        (answer.header("content-encoding"), answer.text().as_str()),
                        (None, body)
                    );
                }
            }
        }
        let index = proxy.fetch("py", "simple/pkg/").await.ok();
        assert!(index.text().contains("pkg-1.0.tar.gz"), "{}", index.text());
    });
}

#[test]
fn gzip_that_passes_by_and_does_not_begin_as_gzip_is_none() {
    run(async {
        let up = Upstream::start().await;
        let packed = gzip(b"packed text");
        let remotes = format!(
            "files:\n  base_url: {0}\nnpm:\n  base_url: {0}\n  package: npm\n  mutable_patterns: ['^']\n",
            up.base()
        );
        let proxy = without_room(&remotes).await;
        for (body, coding) in [
            (b"plain text".as_slice(), None),
            (b"", None),
            (b"\x1f", None),
            (b"\x1fplain", None),
            (&packed, Some("gzip")),
        ] {
            let reply = Reply::ok(body).header("Content-Encoding", "gzip");
            let in_pieces = reply.clone().chunked().pieces(1);
            up.reply("/x", in_pieces.clone());
            up.reply("/-/v1/search", reply);
            up.reply("/-/npm/v1/security/audits", in_pieces);
            let audit = at("npm", "-/npm/v1/security/audits");
            for (what, answer) in [
                ("not stored", passed_by(proxy.fetch("files", "x").await)),
                ("a service", passed_by(proxy.fetch("npm", "-/v1/search").await)),
                ("a POST", passed_by(proxy.request("POST", &audit, &[], b"{}").await)),
            ] {
                assert_eq!(answer.header("content-encoding"), coding, "{what}: {body:?}");
                assert_eq!(
                    answer.header("vary"),
                    coding.map(|_| "Accept-Encoding"),
                    "{what}: {body:?}"
                );
                assert_eq!(answer.body, body, "{what}");
            }
        }
    });
}

#[test]
fn who_says_nothing_of_codings_takes_what_upstream_has() {
    run(async {
        let up = Upstream::start().await;
        let text = "hello ".repeat(1000);
        let packed = gzip(text.as_bytes());
        up.reply(
            "/page.txt",
            Reply::ok(packed.clone()).header("Content-Encoding", "gzip"),
        );
        up.reply("/page.br", Reply::ok("whatever").header("Content-Encoding", "dcb"));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        for _ in 0..2 {
            let plain = proxy.fetch("files", "page.txt").await.ok();
            assert_eq!(plain.must("content-encoding"), "gzip");
            assert_eq!(gunzip(&plain.body), text.as_bytes());
            let other = proxy.fetch("files", "page.br").await.ok();
            assert_eq!(
                (other.must("content-encoding"), other.text().as_str()),
                ("dcb", "whatever")
            );
            for refusing in ["gzip;Q=0", "gzip; q=0.0, *", "identity", ""] {
                let headers = [("Accept-Encoding", refusing)];
                let decoded = proxy.fetch_with("files", "page.txt", &headers).await.ok();
                assert_eq!(
                    (decoded.header("content-encoding"), decoded.text()),
                    (None, text.clone()),
                    "{refusing:?}"
                );
                assert_eq!(decoded.must("vary"), "Accept-Encoding");
            }
            let refused = proxy
                .fetch_with("files", "page.br", &[("Accept-Encoding", "gzip")])
                .await;
            refused.expect(502);
        }
        // A HEAD says what a GET would.
        up.reply("/other.txt", Reply::ok(packed).header("Content-Encoding", "gzip"));
        let identity = [("Accept-Encoding", "identity")];
        let head = proxy
            .request("HEAD", &at("files", "other.txt"), &identity, b"")
            .await
            .ok();
        assert_eq!(head.header("content-encoding"), None);
        assert_eq!(head.must("content-length"), text.len().to_string());
    });
}
