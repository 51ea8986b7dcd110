//! Helm repositories: every kind of chart URL, provenance files, charts on other hosts, large indexes.

use std::time::Duration;

use crate::common::client::Headers;
use crate::common::packages::{Chart, gzip, helm_index};
use crate::common::server::at;
use crate::common::{File, Proxy, Reply, Response, Upstream, run, run_for};

/// The chart URLs of an index as Helm resolves them, per chart in the order of the index.
#[track_caller]
fn urls(proxy: &Proxy, index_path: &str, text: &str) -> Vec<Vec<String>> {
    let base = url::Url::parse(&proxy.url("charts", index_path)).unwrap();
    let mut out = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.trim();
        if line == "urls:" {
            out.push(Vec::new());
            inside = true;
        } else if let Some(item) = line.strip_prefix("- ").filter(|_| inside) {
            let item = item.trim_matches(['"', '\'']);
            let url = base.join(item).unwrap_or_else(|error| panic!("{item}: {error}"));
            out.last_mut().unwrap().push(url.to_string());
        } else {
            inside = false;
        }
    }
    out
}

async fn follow(proxy: &Proxy, url: &str) -> Response {
    let target = url
        .strip_prefix(&proxy.base())
        .unwrap_or_else(|| panic!("{url} leads elsewhere"));
    assert!(target.starts_with(&at("charts", "")), "{url} leaves the remote");
    proxy.request("GET", target, &[], b"").await
}

fn remote(up: &Upstream, lines: &str) -> String {
    format!(
        "charts:\n  base_url: {}/charts\n  package: helm\n  {lines}\n",
        up.base()
    )
}

fn index(text: String) -> File {
    File::new(text).etag("\"index\"").content_type("application/yaml")
}

#[test]
fn several_urls_of_every_kind_lead_here_and_ours_stands_first() {
    run(async {
        let (up, other) = (Upstream::start().await, Upstream::start().await);
        for path in [
            "/charts/app-1.0.0.tgz",
            "/charts/sub/app-1.0.0.tgz",
            "/outside/app-1.0.0.tgz",
        ] {
            up.reply(path, Reply::ok(format!("up {path}")));
        }
        other.reply("/dl/app-1.0.0.tgz", Reply::ok("other"));
        let given = [
            (up.url("/charts/app-1.0.0.tgz"), "up /charts/app-1.0.0.tgz"),
            ("sub/app-1.0.0.tgz".to_owned(), "up /charts/sub/app-1.0.0.tgz"),
            ("./app-1.0.0.tgz".to_owned(), "up /charts/app-1.0.0.tgz"),
            ("/outside/app-1.0.0.tgz".to_owned(), "up /outside/app-1.0.0.tgz"),
            (up.url("/outside/app-1.0.0.tgz"), "up /outside/app-1.0.0.tgz"),
            (other.url("/dl/app-1.0.0.tgz"), "other"),
        ];
        // Each of them first once.
        let entries = (0..given.len())
            .map(|first| {
                let mut list = given.iter().map(|(url, _)| url.as_str()).collect::<Vec<_>>();
                list.rotate_left(first);
                Chart::new(&format!("app{first}"), "1.0.0").entry(&list)
            })
            .collect::<Vec<_>>();
        up.file("/charts/index.yaml", index(helm_index(&entries)));
        let proxy = Proxy::start(&remote(&up, "verify: off")).await;
        let text = proxy.fetch("charts", "index.yaml").await.ok().text();
        for host in [&up, &other] {
            assert!(!text.contains(&host.base()), "{text}");
        }
        let lists = urls(&proxy, "index.yaml", &text);
        assert_eq!(lists.len(), given.len());
        for (first, list) in lists.iter().enumerate() {
            assert_eq!(list.len(), given.len());
            for (number, url) in list.iter().enumerate() {
                let (original, body) = &given[(first + number) % given.len()];
                assert_eq!(follow(&proxy, url).await.ok().text(), *body, "{original} became {url}");
            }
        }
    });
}

#[test]
fn oci_charts_are_left_alone() {
    run(async {
        let up = Upstream::start().await;
        let given = [
            "oci://registry.test/charts/app:1.0.0",
            "oci://registry.test:5000/a/b@sha256:00",
        ];
        let entry = Chart::new("app", "1.0.0").entry(&given);
        let original = helm_index(&[entry]);
        up.file("/charts/index.yaml", index(original.clone()));
        let proxy = Proxy::start(&remote(&up, "description: x")).await;
        for _ in 0..2 {
            // With nothing to rewrite, it is the same document.
            assert_eq!(proxy.fetch("charts", "index.yaml").await.ok().text(), original);
        }
    });
}

#[test]
fn a_provenance_file_stands_beside_every_chart() {
    run(async {
        let (up, other) = (Upstream::start().await, Upstream::start().await);
        for (host, path) in [(&up, "/charts/app-1.0.0.tgz"), (&other, "/dl/app-2.0.0.tgz")] {
            host.reply(path, Reply::ok(format!("chart {path}")));
            host.reply(&format!("{path}.prov"), Reply::ok(format!("signed {path}")));
        }
        other.reply("/dl/other.prov", Reply::ok("not of a chart"));
        other.reply("/dl/none-1.0.0.tgz.prov", Reply::ok("of a chart that no index names"));
        let entries = [
            Chart::new("app", "1.0.0").entry(&["app-1.0.0.tgz"]),
            Chart::new("far", "2.0.0").entry(&[&other.url("/dl/app-2.0.0.tgz")]),
        ];
        up.file("/charts/index.yaml", index(helm_index(&entries)));
        let proxy = Proxy::start(&remote(&up, "immutable_patterns: ['\\.tgz$']\n  verify: off")).await;
        let text = proxy.fetch("charts", "index.yaml").await.ok().text();
        for list in urls(&proxy, "index.yaml", &text) {
            // The provenance file is what `helm pull --verify` asks for first.
            let signed = follow(&proxy, &format!("{}.prov", list[0])).await.ok();
            assert!(signed.text().starts_with("signed /"), "{}", signed.text());
            let chart = follow(&proxy, &list[0]).await.ok();
            assert_eq!(signed.text()[7..], chart.text()[6..]);
            assert!(
                signed.must("cache-control").contains("immutable"),
                "governed as its chart: {:?}",
                signed.headers
            );
        }
        // What the patterns refuse, and what no index names.
        proxy.fetch("charts", "secret.txt.prov").await.expect(403);
        for path in ["/dl/other.prov", "/dl/none-1.0.0.tgz.prov"] {
            proxy
                .fetch("charts", &format!("-/host/{}{path}", other.authority()))
                .await
                .expect(403);
            assert_eq!(other.count("*", path), 0);
        }
    });
}

#[test]
fn a_chart_elsewhere_can_be_asked_for_first_and_is_known_for_good() {
    run(async {
        let (up, other) = (Upstream::start().await, Upstream::start().await);
        let chart = Chart::new("app", "1.0.0");
        other.reply("/dl/app-1.0.0.tgz", Reply::ok(chart.bytes.clone()));
        up.file(
            "/charts/index.yaml",
            index(helm_index(&[chart.entry(&[&other.url("/dl/app-1.0.0.tgz")])])),
        );
        let mut proxy = Proxy::start(&remote(&up, "description: x")).await;
        let path = format!("-/host/{}/dl/app-1.0.0.tgz", other.authority());
        proxy.fetch("charts", &path).await.is("remote", &chart.bytes);
        for _ in 0..2 {
            let unknown = format!("-/host/{}/dl/secret.tgz", other.authority());
            let refused = proxy.fetch("charts", &unknown).await.expect(403);
            assert!(refused.text().contains("file_hosts"), "{}", refused.text());
        }
        assert_eq!(up.count("GET", "/charts/index.yaml"), 1);
        assert_eq!(other.count("*", "/dl/secret.tgz"), 0);
        proxy.until_cached("charts", &path).await;
        up.switch_off().await;
        proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
        proxy.restart().await;
        proxy.fetch("charts", &path).await.is("remote", &chart.bytes);
    });
}

#[test]
fn listed_file_hosts_need_no_index() {
    run(async {
        let (up, other) = (Upstream::start().await, Upstream::start().await);
        other.reply("/dl/app-1.0.0.tgz", Reply::ok("chart"));
        let proxy = Proxy::start(&remote(
            &up,
            &format!("file_hosts: ['{}']\n  verify: off", other.base()),
        ))
        .await;
        let path = format!("-/host/{}/dl/app-1.0.0.tgz", other.authority());
        proxy.fetch("charts", &path).await.is("remote", "chart");
        assert_eq!(up.total(), 0);
    });
}

#[test]
fn a_query_of_a_chart_reaches_upstream() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/charts/app-1.0.0.tgz?raw='true'&v=2~%7e", Reply::ok("with its query"));
        let entry = Chart::new("app", "1.0.0").entry(&["app-1.0.0.tgz?raw='true'&v=2~%7e"]);
        up.file("/charts/index.yaml", index(helm_index(&[entry])));
        let proxy = Proxy::start(&remote(&up, "immutable_patterns: ['\\.tgz$']\n  verify: off")).await;
        let text = proxy.fetch("charts", "index.yaml").await.ok().text();
        let lists = urls(&proxy, "index.yaml", &text);
        // Helm drops the query of a relative URL.
        let url = url::Url::parse(&lists[0][0]).unwrap();
        let path = &url[..url::Position::AfterPath];
        assert!(path.ends_with("/app-1.0.0.tgz"), "{path}");
        assert_eq!(follow(&proxy, path).await.ok().text(), "with its query");
    });
}

#[test]
fn an_index_below_the_root_is_an_index_too() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/charts/stable/app-1.0.0.tgz", Reply::ok("stable"));
        up.reply("/charts/app-1.0.0.tgz", Reply::ok("root"));
        let entry = Chart::new("app", "1.0.0").entry(&["app-1.0.0.tgz", &up.url("/charts/app-1.0.0.tgz")]);
        up.file("/charts/stable/index.yaml", index(helm_index(&[entry])));
        let proxy = Proxy::start(&remote(&up, "verify: off")).await;
        let text = proxy.fetch("charts", "stable/index.yaml").await.ok().text();
        assert!(!text.contains(&up.base()), "{text}");
        let lists = urls(&proxy, "stable/index.yaml", &text);
        assert_eq!(lists[0].len(), 2, "{lists:?}");
        for (url, body) in lists[0].iter().zip(["stable", "root"]) {
            assert_eq!(follow(&proxy, url).await.ok().text(), body, "{url}");
        }
    });
}

#[test]
fn the_charts_of_a_redirected_index_are_where_it_was_asked_for() {
    run(async {
        let (up, other) = (Upstream::start().await, Upstream::start().await);
        up.reply(
            "/charts/index.yaml",
            Reply::redirect(302, other.url("/signed/idx?token=1")),
        );
        let text = "entries:\n  app:\n  - name: app\n    urls:\n    - app-1.0.0.tgz\n    - sub/app-1.0.0.tgz\n";
        other.file("/signed/idx", index(text.to_owned()));
        up.reply("/charts/app-1.0.0.tgz", Reply::ok("one"));
        up.reply("/charts/sub/app-1.0.0.tgz", Reply::ok("two"));
        let proxy = Proxy::start(&remote(&up, "description: x")).await;
        let text = proxy.fetch("charts", "index.yaml").await.ok().text();
        let lists = urls(&proxy, "index.yaml", &text);
        assert_eq!(lists[0].len(), 2, "{text}");
        for (url, body) in lists[0].iter().zip(["one", "two"]) {
            assert_eq!(follow(&proxy, url).await.ok().text(), body);
        }
    });
}

#[test]
fn what_stands_behind_a_coding_is_nothing() {
    run(async {
        let up = Upstream::start().await;
        let text = "entries:\n  app:\n  - urls:\n    - app-1.0.0.tgz\n";
        for (number, behind) in [&b"\0\0\0\0"[..], b"\n", b"\x1f"].into_iter().enumerate() {
            let packed = [&gzip(text.as_bytes()), behind].concat();
            up.reply(
                &format!("/charts/{number}/index.yaml"),
                Reply::ok(packed)
                    .header("Content-Encoding", "gzip")
                    .content_type("application/yaml"),
            );
        }
        let proxy = Proxy::start(&remote(&up, "description: x")).await;
        for path in ["0/index.yaml", "1/index.yaml", "2/index.yaml"] {
            for _ in 0..2 {
                let number = &path[..1];
                let expected = text.replace("app-", &format!("../{number}/app-"));
                assert_eq!(proxy.fetch("charts", path).await.ok().text(), expected, "{path}");
            }
        }
    });
}

#[test]
fn an_index_that_cannot_be_followed_is_an_error() {
    run(async {
        let up = Upstream::start().await;
        let away = "https://evil.example/app-1.0.0.tgz";
        let styles = [
            (502, format!("x: &l [{away}]\nentries: {{app: [{{urls: *l}}]}}\n")),
            (502, format!("x: &e [{{urls: [{away}]}}]\nentries: {{app: *e}}\n")),
            (200, format!("{{entries: {{app: [{{urls: [{away}]}}]}}}} # not JSON\n")),
            (
                200,
                format!("---\n{{\"entries\":{{\"app\":[{{\"urls\":[\"{away}\"]}}]}}}}"),
            ),
            (200, format!("x: &k urls\nentries:\u{85}  app:\n  - *k : [{away}]\n")),
        ];
        for (number, (_, text)) in styles.iter().enumerate() {
            up.file(&format!("/charts/{number}/index.yaml"), index(text.clone()));
        }
        let proxy = Proxy::start(&remote(&up, "description: x")).await;
        for (number, (status, text)) in styles.iter().enumerate() {
            let answer = proxy
                .fetch("charts", &format!("{number}/index.yaml"))
                .await
                .expect(*status);
            assert!(!answer.text().contains("//evil"), "{text} => {}", answer.text());
        }
    });
}

#[test]
fn a_broken_entry_does_not_break_the_rest() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/charts/good-1.0.0.tgz", Reply::ok("good"));
        let mut text = String::from("apiVersion: v1\nentries:\n");
        text.push_str(
            "  broken:\n  - name: broken\n    urls:\n    - \"http://[not a url\"\n    - ''\n    version: x\n",
        );
        text.push_str("  none:\n  - name: none\n    urls: []\n  nothing:\n  - name: nothing\n    urls: null\n");
        text.push_str(&Chart::new("good", "1.0.0").entry(&[&up.url("/charts/good-1.0.0.tgz")]));
        text.push_str("generated: \"2024-01-02T03:04:05Z\"\n");
        up.file("/charts/index.yaml", index(text));
        let proxy = Proxy::start(&remote(&up, "verify: off")).await;
        let text = proxy.fetch("charts", "index.yaml").await.ok().text();
        assert!(!text.contains(&up.base()), "{text}");
        assert!(text.contains("generated: \"2024-01-02T03:04:05Z\""), "{text}");
        let good = &text[text.find("  good:").unwrap()..];
        let lists = urls(&proxy, "index.yaml", good);
        assert_eq!(follow(&proxy, &lists[0][0]).await.ok().text(), "good");
    });
}

#[test]
fn everything_else_in_an_index_stays() {
    run(async {
        let up = Upstream::start().await;
        let original = format!(
            "# a comment with {0}/charts/x.tgz\napiVersion: v1\nentries:\n  app:\n  - &first\n    name: app\n    \
             home: {0}/charts/home\n    sources:\n    - {0}/charts/source.tgz\n    icon: {0}/charts/icon.png\n    \
             description: |\n      urls:\n      - {0}/charts/not-a-url.tgz\n    annotations:\n      urls: '{0}/charts/a.tgz'\n    \
             digest: 'abc'\n    created: 2024-01-02T03:04:05.678901234Z\n    version: 1.10\n    urls:\n    - {0}/charts/app.tgz\n  \
             - <<: *first\n    version: 1.20\n    unknown: {{a: [1, 2.50, ~]}}\ngenerated: 2024-01-02T03:04:05.678901234Z\n",
            up.base()
        );
        up.file("/charts/index.yaml", index(original.clone()));
        let proxy = Proxy::start(&remote(&up, "description: x")).await;
        let text = proxy.fetch("charts", "index.yaml").await.ok().text();
        let chart = format!("    - {}/charts/app.tgz", up.base());
        let line = text
            .lines()
            .zip(original.lines())
            .find(|(here, there)| here != there)
            .expect("one line is rewritten");
        assert_eq!(line.1, chart);
        let ours = line.0.to_owned();
        assert_eq!(text, original.replace(&chart, &ours));
    });
}

mod heavy {
    use super::*;

    #[test]
    fn a_large_index_is_rewritten_once_in_bounded_memory() {
        run_for(Duration::from_secs(180), async {
            const MB: u64 = 1_000_000;
            let (up, other) = (Upstream::start().await, Upstream::start().await);
            let filler = "x".repeat(1500);
            let mut text = String::from("apiVersion: v1\nentries:\n");
            for chart in 0..200 {
                text.push_str(&format!("  chart-{chart}:\n"));
                for version in 0..60 {
                    text.push_str(&format!(
                        "  - name: chart-{chart}\n    version: 1.0.{version}\n    description: {filler}\n    urls:\n    \
                         - {}/charts/chart-{chart}-1.0.{version}.tgz\n    - {}/dl/chart-{chart}-1.0.{version}.tgz\n",
                        up.base(),
                        other.base()
                    ));
                }
            }
            text.push_str("generated: 2024-01-02T03:04:05Z\n");
            assert!(text.len() as u64 > 18 * MB, "{}", text.len());
            up.file("/charts/index.yaml", index(text.clone()));
            other.reply("/dl/chart-199-1.0.59.tgz", Reply::ok("the last one"));
            let proxy = Proxy::settings()
                .remotes(&remote(&up, "description: x"))
                .conf("cache: {memory_bytes: 4MB}\n")
                .start()
                .await;
            let (before, _) = proxy.memory();
            let first = proxy.fetch("charts", "index.yaml").await.ok();
            let got = first.text();
            for host in [&up, &other] {
                assert!(!got.contains(&host.base()), "an upstream address is left");
            }
            assert_eq!(got.lines().count(), text.lines().count());
            let again = proxy.until_cached("charts", "index.yaml").await;
            assert_eq!(again.body, first.body);
            let packed = proxy
                .fetch_with("charts", "index.yaml", &[("Accept-Encoding", "gzip")])
                .await
                .ok();
            assert_eq!(packed.must("content-encoding"), "gzip");
            assert!(
                crate::common::packages::gunzip(&packed.body) == first.body,
                "gzip holds something else"
            );
            assert_eq!(up.count("*", "/charts/index.yaml"), 1);
            let (_, peak) = proxy.memory();
            println!(
                "{} MB index: {} MB of memory before, {} MB at most",
                text.len() as u64 / MB,
                before / MB,
                peak / MB
            );
            assert!(peak < before + 40 * MB, "from {before} to {peak}");
            let path = format!("-/host/{}/dl/chart-199-1.0.59.tgz", other.authority());
            proxy.fetch("charts", &path).await.is("remote", "the last one");
        });
    }
}
