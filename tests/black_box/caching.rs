//! The caching model: access, classes, TTLs, revalidation, stale copies, remembered errors, offline.

use std::time::{Duration, SystemTime};

use crate::common::client::Headers;
use crate::common::clock::Clock;
use crate::common::server::at;
use crate::common::{File, Gate, Proxy, Reply, Upstream, run};

/// Longer than the TTL of one second that most tests here set.
async fn one_second_passes() {
    tokio::time::sleep(Duration::from_millis(1100)).await;
}

/// A proxy with one remote, `files`, of these further lines (indented as under the remote's name).
async fn proxy(up: &Upstream, lines: &str) -> Proxy {
    Proxy::start(&remote(up, lines)).await
}

fn remote(up: &Upstream, lines: &str) -> String {
    let lines = lines
        .lines()
        .map(|line| format!("  {}\n", line.trim_start()))
        .collect::<String>();
    format!("files:\n  base_url: {}\n{lines}", up.base())
}

/// A remote that revalidates `*.txt` after a second.
const CHECKED: &str = "mutable_patterns: ['\\.txt$']\ncheck_mutable_updates: true\ncache: {mutable_ttl: 1}";
/// A remote that fetches `*.txt` again after a second.
const UNCHECKED: &str = "mutable_patterns: ['\\.txt$']\ncache: {mutable_ttl: 1}";

// Access

#[test]
fn what_no_pattern_matches_is_refused_and_upstream_not_asked() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let proxy = proxy(
            &up,
            "immutable_patterns: ['^pub/.*\\.tgz$']\nmutable_patterns: ['\\.txt$']",
        )
        .await;
        proxy.fetch("files", "pub/a.tgz").await.ok();
        proxy.fetch("files", "anywhere/b.txt").await.ok();
        for path in [
            "a.tgz",
            "pub/a.zip",
            "pub/a.tgz.sig",
            "x?y=pub/a.tgz",
            "x%3Fpub/a.tgz%23",
            "",
        ] {
            let refused = proxy.fetch("files", path).await.expect(403);
            let body = refused.json();
            assert_eq!(body["remote"], "files");
            assert!(body["detail"].is_string() && body["path"].is_string(), "{body}");
            assert_eq!(refused.must("cache-control"), "no-store");
            proxy.head("files", path).await.expect(403);
        }
        assert_eq!(up.total(), 2);
    });
}

#[test]
fn an_empty_list_allows_nothing_and_no_list_everything() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let yaml = format!(
            "none:\n  base_url: {0}\n  immutable_patterns: []\nall:\n  base_url: {0}\n\
             also-all:\n  base_url: {0}\n  immutable_patterns: null\n\
             index:\n  base_url: {0}\n  package: alpine\n  immutable_patterns: []\n",
            up.base()
        );
        let proxy = Proxy::start(&yaml).await;
        proxy.fetch("none", "x").await.expect(403);
        proxy.fetch("all", "x").await.ok();
        proxy.fetch("also-all", "x").await.ok();
        // What is mutable by nature is always served.
        proxy.fetch("index", "v3/main/x86_64/APKINDEX.tar.gz").await.ok();
        proxy.fetch("index", "v3/main/x86_64/a.apk").await.expect(403);
    });
}

#[test]
fn patterns_search_anywhere_and_may_look_around() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let lines = "immutable_patterns: ['\\.tgz$']\nmutable_patterns: ['^(?!.*\\.tgz$).*']\ncache: {mutable_ttl: 0}";
        let proxy = proxy(&up, lines).await;
        for _ in 0..2 {
            proxy.fetch("files", "deep/inside/a.tgz").await.ok();
            proxy.fetch("files", "deep/inside/a").await.ok();
        }
        assert_eq!(
            (up.count("GET", "/deep/inside/a.tgz"), up.count("GET", "/deep/inside/a")),
            (1, 2)
        );
    });
}

#[test]
fn an_unknown_remote_is_404() {
    run(async {
        let up = Upstream::start().await;
        let proxy = proxy(&up, "").await;
        let answer = proxy.fetch("nowhere", "x").await.expect(404);
        assert_eq!(answer.json()["remote"], "nowhere");
    });
}

// TTLs

#[test]
fn immutable_is_kept_and_mutable_is_fetched_again_after_its_ttl() {
    run(async {
        let up = Upstream::start().await;
        up.sequence(
            "/a.txt",
            vec![Reply::ok("one").etag("\"1\""), Reply::ok("two").etag("\"2\"")],
        );
        up.reply("/a.bin", Reply::ok("bin"));
        let proxy = proxy(&up, UNCHECKED).await;
        proxy.fetch("files", "a.txt").await.is("remote", "one");
        proxy.fetch("files", "a.bin").await.is("remote", "bin");
        one_second_passes().await;
        let again = proxy.fetch("files", "a.txt").await.is("remote", "two");
        assert_eq!(again.must("etag"), "\"2\"");
        let seen = up.last("GET", "/a.txt");
        assert_eq!(
            (seen.header("if-none-match"), seen.header("if-modified-since")),
            (None, None)
        );
        proxy.fetch("files", "a.bin").await.is("cache", "bin");
        assert_eq!((up.count("GET", "/a.txt"), up.count("GET", "/a.bin")), (2, 1));
    });
}

#[test]
fn within_its_ttl_a_mutable_file_is_a_hit_with_what_is_left() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a.txt", Reply::ok("one"));
        let proxy = proxy(&up, "mutable_patterns: ['\\.txt$']\ncache: {mutable_ttl: 100}").await;
        proxy.fetch("files", "a.txt").await.ok();
        let hit = proxy.until_cached("files", "a.txt").await;
        let left = hit
            .cache_status()
            .rsplit_once("ttl=")
            .map(|(_, left)| left.parse::<i64>().unwrap());
        assert!(matches!(left, Some(90..=100)), "{}", hit.cache_status());
    });
}

#[test]
fn a_ttl_of_zero_is_expired_at_once() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a.txt", Reply::ok("one"));
        let proxy = proxy(&up, "mutable_patterns: ['\\.txt$']\ncache: {mutable_ttl: 0}").await;
        for _ in 0..3 {
            proxy.fetch("files", "a.txt").await.is("remote", "one");
        }
        assert_eq!(up.total(), 3);
    });
}

#[test]
fn an_immutable_ttl_ends_and_the_file_is_fetched_in_full() {
    run(async {
        let up = Upstream::start().await;
        up.file("/a.bin", File::new("one").etag("\"1\""));
        let proxy = proxy(&up, "check_mutable_updates: true\ncache: {immutable_ttl: 1}").await;
        proxy.fetch("files", "a.bin").await.is("remote", "one");
        one_second_passes().await;
        proxy.fetch("files", "a.bin").await.is("remote", "one");
        assert_eq!(
            (up.total(), up.last("GET", "/a.bin").header("if-none-match")),
            (2, None)
        );
    });
}

#[test]
fn what_upstream_says_of_caching_does_not_count() {
    run(async {
        let up = Upstream::start().await;
        let reply = Reply::ok("x")
            .header("Cache-Control", "no-store, private")
            .header("Vary", "*")
            .header("Expires", "0");
        up.reply("/a.bin", reply);
        let proxy = proxy(&up, "").await;
        proxy.fetch("files", "a.bin").await.ok();
        proxy.until_cached("files", "a.bin").await;
        proxy
            .fetch_with("files", "a.bin", &[("User-Agent", "another"), ("Accept", "text/plain")])
            .await
            .is("cache", "x");
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn freshness_survives_a_restart() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a.txt", Reply::ok("text")).reply("/a.bin", Reply::ok("bin"));
        let mut proxy = proxy(&up, "mutable_patterns: ['\\.txt$']\ncache: {mutable_ttl: 60}").await;
        for path in ["a.txt", "a.bin"] {
            proxy.fetch("files", path).await.ok();
            proxy.until_cached("files", path).await;
        }
        proxy.restart().await;
        proxy.fetch("files", "a.txt").await.is("cache", "text");
        proxy.fetch("files", "a.bin").await.is("cache", "bin");
        assert_eq!(up.total(), 2);
    });
}

// Revalidation

#[test]
fn a_304_refreshes_the_ttl_without_a_download() {
    run(async {
        let up = Upstream::start().await;
        let moment = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        up.file("/a.txt", File::new("one").etag("\"1\"").modified(moment));
        let proxy = proxy(&up, CHECKED).await;
        proxy.fetch("files", "a.txt").await.is("remote", "one");
        one_second_passes().await;
        let fresh = proxy.fetch("files", "a.txt").await.is("cache", "one");
        let words = fresh.cache_words();
        assert!(words.contains(&"fwd=stale".into()), "{}", fresh.cache_status());
        assert!(words.contains(&"fwd-status=304".into()), "{}", fresh.cache_status());
        let seen = up.last("GET", "/a.txt");
        assert_eq!(seen.header("if-none-match"), Some("\"1\""));
        assert_eq!(
            seen.header("if-modified-since"),
            Some(&*httpdate::fmt_http_date(moment))
        );
        assert_eq!(fresh.must("etag"), "\"1\"");
        let hit = proxy.fetch("files", "a.txt").await.is("cache", "one");
        assert_eq!(hit.cache_words()[0], "hit");
        assert_eq!((up.count("GET", "/a.txt"), up.count("HEAD", "/a.txt")), (2, 0));
    });
}

#[test]
fn a_change_is_fetched_by_the_same_conditional_request() {
    run(async {
        let up = Upstream::start().await;
        up.sequence(
            "/a.txt",
            vec![
                Reply::ok("one").etag("\"1\""),
                Reply::ok("two").etag("\"2\""),
                Reply::status(304),
            ],
        );
        let proxy = proxy(&up, CHECKED).await;
        proxy.fetch("files", "a.txt").await.is("remote", "one");
        one_second_passes().await;
        proxy.fetch("files", "a.txt").await.is("remote", "two");
        assert_eq!(up.last("GET", "/a.txt").header("if-none-match"), Some("\"1\""));
        one_second_passes().await;
        let third = proxy.fetch("files", "a.txt").await.is("cache", "two");
        assert_eq!(third.must("etag"), "\"2\"");
        assert_eq!(up.last("GET", "/a.txt").header("if-none-match"), Some("\"2\""));
        assert_eq!(up.total(), 3);
    });
}

#[test]
fn head_on_an_expired_copy_revalidates_it() {
    run(async {
        let up = Upstream::start().await;
        up.file("/a.txt", File::new("one").etag("\"1\""));
        let proxy = proxy(&up, CHECKED).await;
        proxy.fetch("files", "a.txt").await.ok();
        one_second_passes().await;
        assert_eq!(proxy.head("files", "a.txt").await.ok().source(), "cache");
        assert_eq!(up.last("*", "/a.txt").header("if-none-match"), Some("\"1\""));
        proxy.fetch("files", "a.txt").await.is("cache", "one");
        assert_eq!(up.total(), 2);
    });
}

#[test]
fn what_is_mutable_by_nature_only_is_never_asked_conditionally() {
    run(async {
        let up = Upstream::start().await;
        let paths = ["/main/APKINDEX.tar.gz", "/main/Packages.adb"];
        for path in paths {
            up.file(path, File::new("index").etag("\"1\""));
        }
        let yaml = format!(
            "plain:\n  base_url: {0}\n  package: alpine\n  check_mutable_updates: true\n  cache: {{mutable_ttl: 1}}\n\
             own:\n  base_url: {0}\n  package: alpine\n  check_mutable_updates: true\n  \
             mutable_patterns: ['APKINDEX']\n  cache: {{mutable_ttl: 1}}\n",
            up.base()
        );
        let proxy = Proxy::start(&yaml).await;
        for path in paths {
            proxy.fetch("plain", path).await.ok();
        }
        proxy.fetch("own", paths[0]).await.ok();
        one_second_passes().await;
        up.forget();
        for path in paths {
            proxy.fetch("plain", path).await.is("remote", "index");
            assert_eq!(up.last("GET", path).header("if-none-match"), None);
        }
        // Matched by the user's own pattern too, it is.
        proxy.fetch("own", paths[0]).await.is("cache", "index");
        assert_eq!(up.last("GET", paths[0]).header("if-none-match"), Some("\"1\""));
    });
}

#[test]
fn the_same_bytes_fetched_again_are_a_refresh() {
    run(async {
        let up = Upstream::start().await;
        up.sequence(
            "/a.txt",
            vec![Reply::ok("same").etag("\"1\""), Reply::ok("same").etag("\"2\"")],
        );
        let proxy = proxy(&up, UNCHECKED).await;
        proxy.fetch("files", "a.txt").await.is("remote", "same");
        one_second_passes().await;
        proxy.fetch("files", "a.txt").await.is("remote", "same");
        assert_eq!(proxy.until_cached("files", "a.txt").await.must("etag"), "\"1\"");
    });
}

// Trouble upstream

#[test]
fn an_unreachable_upstream_serves_the_stored_copy_and_refreshes_its_ttl() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a.txt", Reply::ok("old"));
        let proxy = proxy(&up, "mutable_patterns: ['\\.txt$']\ncache: {mutable_ttl: 3}").await;
        proxy.fetch("files", "a.txt").await.is("remote", "old");
        tokio::time::sleep(Duration::from_millis(3100)).await;
        up.switch_off().await;
        let stale = proxy.fetch("files", "a.txt").await.is("cache", "old");
        assert!(
            stale.cache_words().contains(&"fwd=stale".into()),
            "{}",
            stale.cache_status()
        );
        // Back again, it is not asked before the TTL has passed.
        up.reply("/a.txt", Reply::ok("new"));
        up.switch_on().await;
        up.forget();
        proxy.fetch("files", "a.txt").await.is("cache", "old");
        assert_eq!(up.total(), 0);
        tokio::time::sleep(Duration::from_millis(3100)).await;
        proxy.fetch("files", "a.txt").await.is("remote", "new");
    });
}

#[test]
fn resets_silence_and_hang_ups_before_the_header_count_as_unreachable() {
    run(async {
        let up = Upstream::start().await;
        let proxy = Proxy::settings()
            .remotes(&remote(&up, UNCHECKED))
            .conf("upstream: {first_byte_timeout: 500ms}\n")
            .start()
            .await;
        let troubles = [
            ("reset", Reply::reset()),
            ("silence", Reply::silence()),
            ("hang-up", Reply::hang_up()),
        ];
        for (name, _) in &troubles {
            up.reply(&format!("/{name}.txt"), Reply::ok("old"));
            proxy.fetch("files", &format!("{name}.txt")).await.is("remote", "old");
        }
        one_second_passes().await;
        for (name, trouble) in troubles {
            up.reply(&format!("/{name}.txt"), trouble);
            proxy.fetch("files", &format!("{name}.txt")).await.is("cache", "old");
            proxy.fetch("files", &format!("{name}.txt")).await.is("cache", "old");
        }
    });
}

#[test]
fn a_break_after_the_header_counts_as_unreachable_as_long_as_nothing_has_gone_out() {
    run(async {
        let up = Upstream::start().await;
        let remotes = remote(&up, UNCHECKED)
            + &format!(
                "py:\n  base_url: {0}\n  package: pypi\n  cache: {{mutable_ttl: 1}}\n\
                 rpm:\n  base_url: {0}\n  package: rpm\n  cache: {{mutable_ttl: 1}}\n",
                up.base()
            );
        let proxy = Proxy::settings()
            .remotes(&remotes)
            .conf("upstream: {idle_timeout: 500ms}\n")
            .start()
            .await;
        let new = || Reply::ok("the new one, and longer");
        let page = |name: &str| Reply::ok(format!("<a href=\"{name}-1.0.zip\">{name}</a>")).content_type("text/html");
        let silent = Gate::new();
        // The path; what the break is like; how it is asked for.
        let troubles = [
            ("length", new().truncate_at(0), ("GET", None)),
            ("reset", new().reset_at(0), ("GET", None)),
            ("late", new().pause_at(0, &silent), ("GET", None)),
            ("hangs", new().hang_at(0), ("GET", None)),
            ("chunked", new().chunked().truncate_at(0), ("GET", None)),
            ("head", new().chunked().truncate_at(5), ("HEAD", None)),
            ("range", new().chunked().truncate_at(5), ("GET", Some("bytes=0-2"))),
        ];
        for (name, ..) in &troubles {
            up.reply(&format!("/{name}.txt"), Reply::ok("old"));
            proxy.fetch("files", &format!("{name}.txt")).await.is("remote", "old");
        }
        up.reply("/simple/old/", page("old"));
        let old = proxy.fetch("py", "simple/old/").await.ok().text();
        up.reply("/repodata/repomd.xml", Reply::ok("<repomd/>"));
        proxy
            .fetch("rpm", "repodata/repomd.xml")
            .await
            .is("remote", "<repomd/>");
        one_second_passes().await;
        for (name, trouble, (method, range)) in troubles {
            let path = format!("/{name}.txt");
            up.reply(&path, trouble);
            let headers: Vec<_> = range.iter().map(|range| ("Range", *range)).collect();
            let answer = proxy.request(method, &at("files", &path), &headers, b"").await;
            let (status, body) = match (method, range) {
                ("HEAD", _) => (200, ""),
                (_, Some(_)) => (206, "old"),
                _ => (200, "old"),
            };
            assert_eq!((answer.status, answer.text().as_str()), (status, body), "{name}");
            assert!(
                answer.complete && answer.source() == "cache",
                "{name}: {:?}",
                answer.headers
            );
            assert!(
                answer.cache_words().contains(&"fwd=stale".into()),
                "{}",
                answer.cache_status()
            );
            // Its TTL is refreshed: upstream is not asked again.
            proxy.fetch("files", &path).await.is("cache", "old");
            assert_eq!(up.count("GET", &path), 2, "{name}");
        }
        // Of an index that is rewritten nothing has gone out before a piece of it was understood.
        up.reply("/simple/old/", page("new").truncate_at(0));
        let stale = proxy.fetch("py", "simple/old/").await.ok();
        assert_eq!((stale.source(), stale.text()), ("cache", old));
        // A manifest is shown only once it is whole.
        up.reply(
            "/repodata/repomd.xml",
            Reply::ok("<repomd><new/></repomd>").truncate_at(12),
        );
        for _ in 0..2 {
            proxy.fetch("rpm", "repodata/repomd.xml").await.is("cache", "<repomd/>");
        }
        assert_eq!(up.count("GET", "/repodata/repomd.xml"), 2);
    });
}

#[test]
fn a_clock_that_was_ahead_leaves_nothing_fresh() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a.txt", Reply::ok("old"));
        let lines = "mutable_patterns: ['\\.txt$']\ncheck_mutable_updates: true\ncache: {mutable_ttl: 3600}";
        let mut proxy = proxy(&up, lines).await;
        proxy.fetch("files", "a.txt").await.is("remote", "old");
        proxy.until_cached("files", "a.txt").await;
        proxy.restart().await;
        proxy.fetch("files", "a.txt").await.is("cache", "old");
        // The store's own notes are of a year that is yet to come: so the clock that it ran by was wrong.
        proxy.stop().await;
        let year = Duration::from_secs(365 * 24 * 3600);
        let usage = std::fs::File::options()
            .write(true)
            .open(proxy.data_dir().join("usage"));
        usage.unwrap().set_modified(SystemTime::now() + year).unwrap();
        up.reply("/a.txt", Reply::ok("new"));
        proxy.launch().await;
        proxy.fetch("files", "a.txt").await.is("remote", "new");
        proxy.until_cached("files", "a.txt").await.is("cache", "new");
    });
}

#[test]
fn what_was_trusted_by_a_clock_that_was_ahead_is_not_after_any_later_start() {
    run(async {
        const YEAR: u64 = 365 * 24 * 3600;
        let up = Upstream::start().await;
        up.reply("/a.txt", Reply::ok("old"));
        let remote = remote(&up, "mutable_patterns: ['\\.txt$']\ncache: {mutable_ttl: 1}");
        let (data, clock) = (tempfile::tempdir().unwrap(), Clock::new());
        let node = || Proxy::settings().remotes(&remote).data_dir(data.path());
        let mut first = node().start().await;
        first.fetch("files", "a.txt").await.is("remote", "old");
        first.until_cached("files", "a.txt").await;
        first.stop().await;
        // Upstream is away, so that the copy is trusted for another while.
        up.switch_off().await;
        let [library, ahead] = clock.env(YEAR as i64);
        let mut wrong = node().env(library.0, library.1).env(ahead.0, ahead.1).start().await;
        wrong.fetch("files", "a.txt").await.is("cache", "old");
        wrong.stop().await;
        // By that clock.
        let usage = std::fs::File::options().write(true).open(data.path().join("usage"));
        let then = SystemTime::now() + Duration::from_secs(YEAR);
        usage.unwrap().set_modified(then).unwrap();
        up.switch_on().await;
        up.reply("/a.txt", Reply::ok("new"));
        node().start().await.stop().await;
        let proxy = node().start().await;
        proxy.fetch("files", "a.txt").await.is("remote", "new");
        proxy.until_cached("files", "a.txt").await.is("cache", "new");
    });
}

#[test]
fn an_error_status_is_passed_on_and_the_copy_stays() {
    run(async {
        let up = Upstream::start().await;
        for status in [401, 403, 429, 500, 503] {
            up.reply(&format!("/{status}.txt"), Reply::ok("old"));
        }
        let proxy = proxy(&up, UNCHECKED).await;
        for status in [401, 403, 429, 500, 503] {
            proxy.fetch("files", &format!("{status}.txt")).await.ok();
        }
        one_second_passes().await;
        for status in [401, 403, 429, 500, 503] {
            let path = format!("/{status}.txt");
            up.reply(&path, Reply::new(status, "trouble"));
            for _ in 0..2 {
                proxy.fetch("files", &path).await.expect(status);
            }
            assert_eq!(up.count("GET", &path), 3, "upstream is asked each time");
        }
        up.switch_off().await;
        for status in [401, 403, 429, 500, 503] {
            proxy.fetch("files", &format!("{status}.txt")).await.is("cache", "old");
        }
    });
}

#[test]
fn what_is_gone_upstream_is_gone_here() {
    run(async {
        let up = Upstream::start().await;
        let lines = "mutable_patterns: ['\\.txt$']\ncache: {mutable_ttl: 1, negative_ttl: 0}";
        let proxy = proxy(&up, lines).await;
        for status in [404, 410, 451] {
            up.reply(&format!("/{status}.txt"), Reply::ok("old"));
            proxy.fetch("files", &format!("{status}.txt")).await.ok();
        }
        one_second_passes().await;
        for status in [404, 410, 451] {
            up.reply(&format!("/{status}.txt"), Reply::new(status, "gone"));
            proxy.fetch("files", &format!("{status}.txt")).await.expect(status);
        }
        up.switch_off().await;
        for status in [404, 410, 451] {
            proxy.fetch("files", &format!("{status}.txt")).await.expect(502);
        }
    });
}

#[test]
fn a_refetch_that_is_cut_keeps_the_old_copy() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a.txt", Reply::ok("the old copy"));
        let proxy = proxy(&up, UNCHECKED).await;
        proxy.fetch("files", "a.txt").await.ok();
        one_second_passes().await;
        up.reply("/a.txt", Reply::ok("the new copy, much longer").truncate_at(5));
        let cut = proxy.fetch("files", "a.txt").await;
        assert!(
            !cut.complete || cut.status >= 500 || cut.body == "the old copy",
            "{cut:?}"
        );
        up.switch_off().await;
        proxy.fetch("files", "a.txt").await.is("cache", "the old copy");
    });
}

#[test]
fn listed_statuses_count_as_unreachable() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a.txt", Reply::ok("old")).reply("/b.txt", Reply::ok("old"));
        let lines = "mutable_patterns: ['\\.txt$']\nserve_stale_on: [503, 404]\ncache: {mutable_ttl: 1}";
        let proxy = proxy(&up, lines).await;
        proxy.fetch("files", "a.txt").await.ok();
        proxy.fetch("files", "b.txt").await.ok();
        one_second_passes().await;
        up.reply("/a.txt", Reply::status(503))
            .reply("/b.txt", Reply::status(404));
        proxy.fetch("files", "a.txt").await.is("cache", "old");
        proxy.fetch("files", "b.txt").await.is("cache", "old");
        // Nothing stored, nothing to serve.
        up.reply("/c.txt", Reply::status(503));
        let none = proxy.fetch("files", "c.txt").await;
        assert!(matches!(none.status, 502 | 503), "{}", none.status);
    });
}

// Remembered absence

#[test]
fn absence_is_remembered_for_a_short_time() {
    run(async {
        let up = Upstream::start().await;
        let proxy = proxy(&up, "cache: {negative_ttl: 1}").await;
        for status in [404, 410, 451] {
            let path = format!("/{status}");
            up.reply(&path, Reply::new(status, "gone").header("Set-Cookie", "a=b"));
            for _ in 0..3 {
                let gone = proxy.fetch("files", &path).await.expect(status);
                assert_eq!(gone.header("set-cookie"), None);
            }
            assert_eq!(up.count("GET", &path), 1);
        }
        one_second_passes().await;
        up.reply("/404", Reply::ok("there now"));
        proxy.fetch("files", "404").await.is("remote", "there now");
    });
}

#[test]
fn absence_is_not_remembered_where_that_is_switched_off() {
    run(async {
        let up = Upstream::start().await;
        let proxy = proxy(&up, "cache: {negative_ttl: 0}").await;
        proxy.fetch("files", "none").await.expect(404);
        up.reply("/none", Reply::ok("there now"));
        proxy.fetch("files", "none").await.is("remote", "there now");
    });
}

// Offline

#[test]
fn offline_serves_what_is_stored_and_504_for_the_rest() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a.txt", Reply::ok("text")).reply("/a.bin", Reply::ok("bin"));
        let proxy = proxy(&up, UNCHECKED).await;
        for path in ["a.txt", "a.bin"] {
            proxy.fetch("files", path).await.ok();
        }
        proxy.until_cached("files", "a.bin").await;
        proxy.write_remotes(&remote(&up, &format!("{UNCHECKED}\noffline: true")));
        proxy.reload_and_wait().await;
        one_second_passes().await;
        up.forget();
        proxy.fetch("files", "a.txt").await.is("cache", "text");
        proxy.fetch("files", "a.bin").await.is("cache", "bin");
        let absent = proxy.fetch("files", "b.bin").await.expect(504);
        assert!(
            absent.json()["detail"].as_str().unwrap().contains("offline"),
            "{}",
            absent.text()
        );
        proxy.head("files", "b.bin").await.expect(504);
        assert_eq!(up.total(), 0);
    });
}

#[test]
fn a_flush_while_upstream_is_asked_is_later_than_its_answer() {
    run(async {
        let up = Upstream::start().await;
        let gate = Gate::new();
        up.sequence(
            "/live/page",
            vec![
                Reply::ok("old").etag("\"1\""),
                Reply::status(304).gated(&gate),
                Reply::ok("new").etag("\"2\""),
            ],
        );
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}\n  mutable_patterns: [live]\n  check_mutable_updates: true\n",
            up.base()
        ))
        .await;
        proxy.fetch("files", "live/page").await.is("remote", "old");
        let expire = br#"{"mode": "expire"}"#;
        proxy.request("PUT", "/cache/flush", &[], expire).await.ok();
        let asked = proxy.fetch("files", "live/page");
        let flushed = async {
            up.wait_for("GET", "/live/page", 2).await;
            proxy.request("PUT", "/cache/flush", &[], expire).await.ok();
            gate.open();
        };
        let (answer, ()) = tokio::join!(asked, flushed);
        answer.is("cache", "old");
        proxy.fetch("files", "live/page").await.is("remote", "new");
    });
}
