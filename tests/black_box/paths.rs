//! Paths: decoded, normalised and checked once, before any pattern; the same path goes upstream and into the key.

use crate::common::server::at;
use crate::common::{Proxy, Reply, Upstream, run};

/// An upstream that answers every path with the target as it arrived.
async fn echo() -> Upstream {
    let up = Upstream::start().await;
    up.fallback(|seen| Reply::ok(seen.path.clone()));
    up
}

#[test]
fn tricks_are_refused_before_anything_else_sees_them() {
    run(async {
        let up = echo().await;
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}/base\n  immutable_patterns: ['^public/']\n",
            up.base()
        ))
        .await;
        for path in [
            "public/../secret",
            "public/%2e%2e/secret",
            "public/%2E%2e/secret",
            "public/.%2e/secret",
            "public/./a",
            "public/%2e/a",
            "public/..",
            "public/..%2fsecret",
            "public/%2e%2e%2fsecret",
            "public/a%2f..%2f..%2fsecret",
            "public/a%2F.%2Fb",
            "../public/a",
            "..",
            "%2e%2e/%2e%2e/etc/passwd",
            "public/a%00b",
            "public/a%00.tgz",
            "public\\..\\secret",
            "public/a\\b",
            "public/a%5cb",
            "public/a%5Cb",
            "public/%5c..%5csecret",
            "public/%",
            "public/%4",
            "public/%zz",
        ] {
            let answer = proxy.fetch("files", path).await;
            assert_eq!(answer.status, 400, "{path}: {}", answer.text());
            assert!(answer.json()["detail"].is_string(), "{path}");
        }
        assert_eq!(up.total(), 0);
    });
}

#[test]
fn a_pattern_cannot_be_met_by_what_is_not_the_path() {
    run(async {
        let up = echo().await;
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {}\n  immutable_patterns: ['^public/.*\\.tgz$']\n",
            up.base()
        ))
        .await;
        for path in [
            "secret?/public/a.tgz",
            "secret?public/a.tgz",
            "secret%3Fpublic/a.tgz",
            "secret#public/a.tgz",
            "secret%23/../public/a.tgz",
            "public%2fa.tgz",
            "public%252fa.tgz",
            "PUBLIC/a.tgz",
            "public/a.tgz%0a",
            "public/a.tgz%0d%0ax",
            "x%0apublic/a.tgz",
            "public/a.tgz;x",
            "public/a.tgz/",
        ] {
            let status = proxy.fetch("files", path).await.status;
            assert!(matches!(status, 400 | 403), "{path}: {status}");
        }
        assert_eq!(up.total(), 0);
        // Empty segments collapse first, then the pattern looks.
        proxy
            .fetch("files", "//public///a.tgz")
            .await
            .is("remote", "/public/a.tgz");
    });
}

#[test]
fn spellings_of_one_path_are_one_object() {
    run(async {
        let up = echo().await;
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        proxy.fetch("files", "dir/~user/A-b_c.txt").await.ok();
        proxy.until_cached("files", "dir/~user/A-b_c.txt").await;
        for path in [
            "dir//~user/A-b_c.txt",
            "/dir/%7Euser/%41-b_c.txt",
            "dir/%7euser/A%2Db%5Fc%2Etxt",
        ] {
            proxy.fetch("files", path).await.is("cache", "/dir/~user/A-b_c.txt");
        }
        assert_eq!(up.total(), 1);
    });
}

#[test]
fn what_must_stay_encoded_arrives_upstream_encoded() {
    run(async {
        let up = echo().await;
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        for (asked, arrives) in [
            ("a%20b.txt", "/a%20b.txt"),
            ("g++-1.0~rc1.txt", "/g++-1.0~rc1.txt"),
            ("g%2B%2B.txt", "/g%2B%2B.txt"),
            ("@scope%2fname", "/@scope%2Fname"),
            ("@scope/name", "/@scope/name"),
            ("a%23b%3Fc.txt", "/a%23b%3Fc.txt"),
            ("100%25.txt", "/100%25.txt"),
            ("a%252e%252e/b", "/a%252e%252e/b"),
            ("caf%C3%A9.txt", "/caf%C3%A9.txt"),
            ("a%FFb", "/a%FFb"),
            ("a=b&c;d,e!f$g'(h)*i:j", "/a=b&c;d,e!f$g'(h)*i:j"),
            ("dir/", "/dir/"),
            ("dir/?a=%20+%2F", "/dir/?a=%20+%2F"),
            ("x?", "/x?"),
            ("...", "/..."),
            ("..a/.b", "/..a/.b"),
        ] {
            let got = proxy.fetch("files", asked).await.ok().text();
            // The case of the digits does not matter.
            assert!(
                got.eq_ignore_ascii_case(arrives) || (asked == "x?" && got == "/x"),
                "{asked}: {got}"
            );
            proxy.until_cached("files", asked).await.is("cache", &got);
        }
    });
}

#[test]
fn different_paths_are_never_the_same_object() {
    run(async {
        let up = echo().await;
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        let paths = [
            "a/b", "a%2Fb", "a%252Fb", "A/b", "a/b/", "a/b?", "a/b?x", "a%3Fb", "a+b", "a%20b", "a%2Bb",
        ];
        for path in paths {
            proxy.fetch("files", path).await.ok();
        }
        let mut bodies = Vec::new();
        for path in paths {
            bodies.push(proxy.until_cached("files", path).await.text());
        }
        bodies.retain(|body| body != "/a/b?");
        let count = bodies.len();
        bodies.sort();
        bodies.dedup();
        assert!(bodies.len() >= count.min(10), "{bodies:?}");
    });
}

#[test]
fn the_path_of_the_base_url_stands_before_and_patterns_do_not_see_it() {
    run(async {
        let up = echo().await;
        let yaml = format!(
            "one:\n  base_url: {0}/base/dir\n  immutable_patterns: ['^x$']\n\
             two:\n  base_url: {0}/base/dir/\n  immutable_patterns: ['base']\n",
            up.base()
        );
        let proxy = Proxy::start(&yaml).await;
        proxy.fetch("one", "x").await.is("remote", "/base/dir/x");
        proxy.fetch("two", "x").await.expect(403);
        proxy.fetch("two", "base").await.is("remote", "/base/dir/base");
    });
}

#[test]
fn two_remotes_never_share_an_object() {
    run(async {
        let (one, two) = (Upstream::start().await, Upstream::start().await);
        one.reply("/x", Reply::ok("one"));
        two.reply("/x", Reply::ok("two"));
        let yaml = format!("a:\n  base_url: {}\na-b:\n  base_url: {}\n", one.base(), two.base());
        let proxy = Proxy::start(&yaml).await;
        proxy.fetch("a", "x").await.is("remote", "one");
        proxy.fetch("a-b", "x").await.is("remote", "two");
        proxy.until_cached("a", "x").await.is("cache", "one");
        proxy.until_cached("a-b", "x").await.is("cache", "two");
    });
}

#[test]
fn names_that_are_long_or_look_like_ours_work() {
    run(async {
        let up = echo().await;
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        let long = format!("deep/{}", "0123456789/".repeat(300));
        let name = format!("{}.bin", "n".repeat(600));
        for path in [
            long.as_str(),
            &name,
            "api/v1/remote/files/x",
            "health",
            "-/x",
            "v2/",
            "con",
            ".hidden",
            "a.tmp",
        ] {
            proxy.fetch("files", path).await.is("remote", format!("/{path}"));
            proxy.until_cached("files", path).await.is("cache", format!("/{path}"));
        }
        // A file and a folder of the same name are no trouble.
        proxy.fetch("files", "k").await.is("remote", "/k");
        proxy.fetch("files", "k/sub").await.is("remote", "/k/sub");
        proxy.until_cached("files", "k").await.is("cache", "/k");
    });
}

#[test]
fn the_absolute_form_of_a_request_is_the_same_request() {
    run(async {
        let up = echo().await;
        let proxy = Proxy::start(&format!("files:\n  base_url: {}\n", up.base())).await;
        let target = format!("http://{}{}", proxy.address(), at("files", "x"));
        assert_eq!(proxy.request("GET", &target, &[], b"").await.ok().body, "/x");
        proxy.until_cached("files", "x").await.is("cache", "/x");
        // Somebody else's address is not for us to fetch.
        let other = proxy.request("GET", &format!("{}/stolen", up.base()), &[], b"").await;
        assert!(other.status >= 400, "{}", other.status);
        assert_eq!(up.count("*", "/stolen"), 0);
    });
}
