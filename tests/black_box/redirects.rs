//! Redirects are followed here, and what comes at their end is kept under the path that was asked for.

use crate::common::client::Headers;
use crate::common::{File, Pattern, Proxy, Reply, Upstream, eventually, run};
use std::time::Duration;

#[test]
fn every_kind_of_redirect_leads_to_the_final_body() {
    run(async {
        let (up, storage) = (Upstream::start().await, Upstream::start().await);
        let body = Pattern::new(1, 200_000);
        let file = File::new(body).etag("\"final\"").content_type("application/x-final");
        storage.file(
            "/blob",
            file.header("Content-Disposition", "attachment; filename=app.bin"),
        );
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        for status in [301, 302, 303, 307, 308] {
            let path = format!("/{status}");
            let signed = std::sync::atomic::AtomicUsize::new(0);
            let base = storage.base();
            up.on(&path, move |_| {
                let number = signed.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                Reply::redirect(status, format!("{base}/blob?signature={number}"))
            });
            let first = proxy.fetch("files", &path).await.is("remote", body.whole());
            let hit = proxy.until_cached("files", &path).await.is("cache", body.whole());
            for answer in [first, hit] {
                assert_eq!(
                    (answer.must("etag"), answer.must("content-type")),
                    ("\"final\"", "application/x-final")
                );
                assert_eq!(answer.must("content-disposition"), "attachment; filename=app.bin");
                assert_eq!(answer.header("location"), None);
            }
            assert_eq!(up.count("GET", &path), 1);
        }
        assert!(storage.log().iter().all(|seen| seen.host() == storage.authority()));
    });
}

#[test]
fn chains_and_relative_locations_are_followed() {
    run(async {
        let (up, other) = (Upstream::start().await, Upstream::start().await);
        up.reply("/base/a", Reply::redirect(302, "b?x=1"));
        up.reply("/base/b?x=1", Reply::redirect(301, "/c"));
        up.reply("/c", Reply::redirect(307, "../d/./e"));
        up.reply("/d/e", Reply::redirect(308, format!("//{}/f", other.authority())));
        other.reply("/f", Reply::redirect(302, up.url("/end#fragment")));
        up.reply("/end", Reply::ok("the end"));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}/base\n", up.base())).await;
        proxy.fetch("files", "a").await.is("remote", "the end");
        proxy.until_cached("files", "a").await.is("cache", "the end");
        assert_eq!(up.count("GET", "/end"), 1);
    });
}

#[test]
fn a_signed_query_is_passed_on_to_the_letter() {
    run(async {
        let (up, storage) = (Upstream::start().await, Upstream::start().await);
        let signed = "Policy=a'b~c_-!()*&Sig=%27%7e%2b+/=:@?{x}|[y]^`\\";
        storage.reply(&format!("/blob?{signed}"), Reply::ok("signed"));
        up.reply("/x", Reply::redirect(302, storage.url(&format!("/blob?{signed}#f'"))));
        up.reply("/y", Reply::redirect(307, format!("/next?{signed}")));
        up.reply(&format!("/next?{signed}"), Reply::redirect(301, format!("?{signed}&2")));
        up.reply(&format!("/next?{signed}&2"), Reply::ok("twice"));
        up.reply(&format!("/z?{signed}"), Reply::ok("asked"));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        proxy.fetch("files", "x").await.is("remote", "signed");
        proxy.fetch("files", "y").await.is("remote", "twice");
        proxy.fetch("files", &format!("z?{signed}")).await.is("remote", "asked");
        // What a request line cannot hold is encoded, and nothing else.
        storage.reply("/odd?a=%20'%C3%A9%22%3C%3E", Reply::ok("odd"));
        up.reply("/odd", Reply::redirect(302, storage.url("/odd?a= 'é\"<>")));
        proxy.fetch("files", "odd").await.is("remote", "odd");
    });
}

#[test]
fn head_and_ranges_follow_too() {
    run(async {
        let (up, storage) = (Upstream::start().await, Upstream::start().await);
        storage.file("/blob", File::new("0123456789").etag("\"e\""));
        up.reply("/x", Reply::redirect(302, storage.url("/blob")));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        let head = proxy.head("files", "x").await.ok();
        assert_eq!((head.must("content-length"), head.must("etag")), ("10", "\"e\""));
        let part = proxy
            .fetch_with("files", "x", &[("Range", "bytes=2-3")])
            .await
            .expect(206);
        assert_eq!(part.body, "23");
        proxy.until_cached("files", "x").await.is("cache", "0123456789");
    });
}

#[test]
fn an_expired_copy_is_revalidated_through_the_redirect() {
    run(async {
        let (up, storage) = (Upstream::start().await, Upstream::start().await);
        storage.file("/blob", File::new("0123456789").etag("\"e\""));
        up.reply("/x.txt", Reply::redirect(302, storage.url("/blob")));
        let yaml = format!(
            "files:\n  base_url: {}\n  mutable_patterns: ['txt$']\n  check_mutable_updates: true\n  \
             cache: {{mutable_ttl: 0}}\n",
            up.base()
        );
        let proxy = Proxy::start(&yaml).await;
        proxy.fetch("files", "x.txt").await.is("remote", "0123456789");
        eventually(Duration::from_secs(5), "an answer that was revalidated", async || {
            proxy.fetch("files", "x.txt").await.ok().source() == "cache"
        })
        .await;
        assert_eq!(storage.last("GET", "/blob").header("if-none-match"), Some("\"e\""));
    });
}

#[test]
fn loops_end() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/loop", Reply::redirect(302, "/loop"));
        up.on("/long", |_| Reply::redirect(302, "/long?1"));
        up.fallback(|seen| {
            let number: u32 = seen.path.rsplit('?').next().unwrap().parse().unwrap_or_default();
            Reply::redirect(302, format!("/long?{}", number + 1))
        });
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        for path in ["loop", "long"] {
            let answer = proxy.fetch("files", path).await.expect(502);
            assert!(
                answer.json()["detail"].as_str().unwrap().contains("redirect"),
                "{}",
                answer.text()
            );
        }
        assert!(up.total() < 60, "{} requests", up.total());
    });
}

#[test]
fn a_redirect_that_leads_nowhere_is_a_bad_gateway() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/none", Reply::status(302));
        up.reply("/empty", Reply::redirect(302, ""));
        up.reply("/scheme", Reply::redirect(302, "file:///etc/passwd"));
        up.reply("/ftp", Reply::redirect(302, "ftp://127.0.0.1/x"));
        up.reply("/nonsense", Reply::redirect(302, "http://[::bad/"));
        up.reply(
            "/refused",
            Reply::redirect(302, format!("http://{}/x", crate::common::refused())),
        );
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        for path in ["none", "empty", "scheme", "ftp", "nonsense", "refused"] {
            let answer = proxy.fetch("files", path).await;
            assert_eq!(answer.status, 502, "{path}: {}", answer.text());
        }
    });
}

#[test]
fn a_404_at_the_end_is_a_404() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/x", Reply::redirect(302, "/gone"));
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        proxy.fetch("files", "x").await.expect(404);
    });
}

#[test]
fn a_redirect_from_https_to_http_is_not_followed() {
    run(async {
        let plain = Upstream::start().await;
        plain.reply("/x", Reply::ok("in the clear"));
        let up = Upstream::start_tls().await;
        up.reply("/x", Reply::redirect(302, plain.url("/x")))
            .reply("/y", Reply::ok("safe"));
        let proxy = Proxy::settings()
            .remotes(&format!("files:\n  base_url: {}\n", up.base()))
            .env("SSL_CERT_FILE", up.ca_file().to_str().unwrap())
            .start()
            .await;
        proxy.fetch("files", "y").await.is("remote", "safe");
        proxy.fetch("files", "x").await.expect(502);
        assert_eq!(plain.total(), 0);
    });
}

#[test]
fn a_redirect_to_a_link_local_address_is_refused_with_the_reason() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        // Of IPv6, so that nothing leaves this machine even where it is not refused.
        for (path, location) in [("/a", "http://[fe80::1]/x"), ("/b", "https://[FE80:0::1]:8443/")] {
            up.reply(path, Reply::redirect(302, location));
            let answer = proxy.fetch("files", path).await.expect(502);
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains("link-local"), "{location}: {detail}");
        }
    });
}
