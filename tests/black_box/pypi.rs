//! Python indexes as they are found in the world: `<base href>`, indexes outside `simple/`, files on other hosts, the
//! older API. A file on another host is served when an index names it, or when `file_hosts` lists the host.

use std::time::Duration;

use crate::common::client::Headers;
use crate::common::outbound::OutboundProxy;
use crate::common::packages::{IndexForm, SIMPLE_JSON, Wheel, serve_pypi};
use crate::common::server::at;
use crate::common::{File, Gate, Proxy, Reply, Response, Upstream, eventually, run, sha256};
use serde_json::json;
use tokio::task::JoinSet;

const WHEEL: &str = "pkg-1.0-py3-none-any.whl";

fn page(base: &str, links: &[&str]) -> String {
    let links = links
        .iter()
        .map(|link| format!("<a href=\"{link}\">{}</a>\n", link.rsplit('/').next().unwrap()))
        .collect::<String>();
    format!("<!DOCTYPE html><html><head>{base}<title>Links</title></head><body>\n{links}</body></html>")
}

fn html(text: String) -> Reply {
    Reply::ok(text).content_type("text/html; charset=utf-8")
}

/// The links of a page as a client resolves them, `<base href>` included; each must lead to this proxy.
#[track_caller]
fn links(proxy: &Proxy, remote: &str, path: &str, page: &str) -> Vec<url::Url> {
    let mut base = url::Url::parse(&proxy.url(remote, path)).unwrap();
    if let Some((_, rest)) = page.split_once("<base href=\"") {
        base = base.join(rest.split('"').next().unwrap()).unwrap();
    }
    let links = page.split("<a href=\"").skip(1).map(|rest| {
        let link = rest.split('"').next().unwrap().replace("&amp;", "&");
        let url = base.join(&link).unwrap();
        assert_eq!(
            url.port(),
            Some(proxy.address().port()),
            "{link} leads elsewhere:\n{page}"
        );
        assert!(
            url.path().starts_with(&at(remote, "")),
            "{link} leaves the remote: {url}"
        );
        url
    });
    let links: Vec<url::Url> = links.collect();
    assert!(!links.is_empty(), "no links:\n{page}");
    links
}

fn target(url: &url::Url) -> String {
    url[url::Position::BeforePath..url::Position::AfterQuery].to_owned()
}

async fn follow(proxy: &Proxy, url: &url::Url) -> Response {
    proxy.request("GET", &target(url), &[], b"").await
}

/// `-/host/…` of a file on another upstream.
fn foreign(other: &Upstream, path: &str) -> String {
    format!("-/host/{}{path}", other.authority())
}

#[track_caller]
fn refused_naming_file_hosts(answer: Response) {
    let answer = answer.expect(403);
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("file_hosts"), "{detail}");
}

#[test]
fn a_base_href_is_what_links_are_relative_to() {
    run(async {
        let (up, other) = (Upstream::start().await, Upstream::start().await);
        let bases = [
            ("here", format!("{}/files/deep/", up.base()), &up, "/files"),
            ("there", format!("{}/dl/deep/", other.base()), &other, "/dl"),
            ("rooted", "/files/deep/".to_owned(), &up, "/files"),
            ("relative", "../../files/deep/".to_owned(), &up, "/files"),
        ];
        let proxy = Proxy::start(&format!("py:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        for (name, base, host, folder) in &bases {
            let tag = format!("<base href=\"{base}\">");
            let names = [format!("{name}-1.0.tar.gz"), format!("{name}-2.0.tar.gz")];
            host.reply(&format!("{folder}/deep/{}", names[0]), Reply::ok(format!("{name} one")));
            host.reply(&format!("{folder}/{}", names[1]), Reply::ok(format!("{name} two")));
            let text = page(&tag, &[&names[0], &format!("../{}", names[1])]);
            up.reply(&format!("/simple/{name}/"), html(text));
            for round in 0..2 {
                let path = format!("simple/{name}/");
                let answer = proxy.fetch("py", &path).await.ok().text();
                for host in [&up, &other] {
                    assert!(!answer.contains(&format!("{}/", host.base())), "{name}: {answer}");
                }
                let links = links(&proxy, "py", &path, &answer);
                assert_eq!(links.len(), 2, "{answer}");
                for (link, text) in links.iter().zip(["one", "two"]) {
                    assert_eq!(
                        follow(&proxy, link).await.ok().text(),
                        format!("{name} {text}"),
                        "{round}: {link}"
                    );
                }
                assert_eq!(links.len(), 2);
            }
        }
    });
}

#[test]
fn an_index_outside_simple_with_files_elsewhere() {
    run(async {
        let (up, cdn) = (Upstream::start().await, Upstream::start().await);
        let cpu = "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl";
        let digest = sha256(b"from the cdn");
        up.reply(
            "/whl/cpu/torch-1.0-cp311-none-any.whl",
            Reply::ok("from the index' host"),
        );
        cdn.reply(
            &format!("/whl/cpu/{}", cpu.replace('+', "%2B")),
            Reply::ok("from the cdn"),
        );
        cdn.reply("/whl/cpu/hidden.whl", Reply::ok("not named by any index"));
        let text = page(
            "",
            &[
                "/whl/cpu/torch-1.0-cp311-none-any.whl#sha256=00",
                &format!("{}/whl/cpu/{}#sha256={digest}", cdn.base(), cpu.replace('+', "%2B")),
            ],
        );
        up.reply("/whl/cpu/torch/", html(text));
        let proxy = Proxy::start(&format!(
            "py:\n  base_url: {}\n  package: pypi\n  immutable_patterns: ['^whl/.*\\.whl$']\n",
            up.base()
        ))
        .await;
        let file = foreign(&cdn, &format!("/whl/cpu/{}", cpu.replace('+', "%2B")));
        // Before an index has named it: refused, and nobody is asked for it.
        refused_naming_file_hosts(proxy.fetch("py", &file).await);
        assert_eq!(cdn.total(), 0);
        let answer = proxy.fetch("py", "whl/cpu/torch/").await.ok();
        assert!(answer.must("content-type").starts_with("text/html"));
        assert!(
            !answer.must("cache-control").contains("immutable"),
            "{:?}",
            answer.headers
        );
        let links = links(&proxy, "py", "whl/cpu/torch/", &answer.text());
        assert_eq!(links[1].fragment(), Some(format!("sha256={digest}").as_str()));
        assert_eq!(links[0].path(), at("py", "whl/cpu/torch-1.0-cp311-none-any.whl"));
        assert!(links[1].path().starts_with(&at("py", "-/host/")), "{}", links[1]);
        assert_eq!(follow(&proxy, &links[0]).await.ok().text(), "from the index' host");
        assert_eq!(follow(&proxy, &links[1]).await.ok().text(), "from the cdn");
        proxy.until_cached("py", &file).await.is("cache", "from the cdn");
        let hit = proxy.fetch("py", &file).await.ok();
        assert!(hit.must("cache-control").contains("immutable"), "{:?}", hit.headers);
        refused_naming_file_hosts(proxy.fetch("py", &foreign(&cdn, "/whl/cpu/hidden.whl")).await);
        assert_eq!(cdn.count("*", "/whl/cpu/hidden.whl"), 0);
    });
}

#[test]
fn patterns_see_the_path_on_the_other_host() {
    run(async {
        let (up, cdn) = (Upstream::start().await, Upstream::start().await);
        cdn.fallback(|_| Reply::ok("file"));
        let named = ["/good/a-1.0.tar.gz", "/bad/b-1.0.tar.gz"].map(|path| cdn.url(path));
        up.reply("/simple/a/", html(page("", &[&named[0], &named[1]])));
        let proxy = Proxy::start(&format!(
            "py:\n  base_url: {}\n  package: pypi\n  immutable_patterns: ['^good/.*']\n",
            up.base()
        ))
        .await;
        proxy.fetch("py", "simple/a/").await.ok();
        let good = foreign(&cdn, "/good/a-1.0.tar.gz");
        eventually(Duration::from_secs(5), "the link is known", async || {
            proxy.fetch("py", &good).await.status == 200
        })
        .await;
        proxy.fetch("py", &foreign(&cdn, "/bad/b-1.0.tar.gz")).await.expect(403);
        assert_eq!(cdn.count("*", "/bad/b-1.0.tar.gz"), 0);
    });
}

#[test]
fn listed_hosts_need_no_index() {
    run(async {
        let (up, plain, tls) = (
            Upstream::start().await,
            Upstream::start().await,
            Upstream::start_tls().await,
        );
        for host in [&plain, &tls] {
            host.reply("/any/file.whl", Reply::ok("file"));
        }
        let yaml = |hosts: &str| {
            format!(
                "py:\n  base_url: {}\n  package: pypi\n  cache: {{negative_ttl: 0}}\n  file_hosts: [{hosts}]\n",
                up.base()
            )
        };
        let proxy = Proxy::settings()
            .remotes(&yaml(&format!("'{}', '{}'", tls.authority(), plain.base())))
            .env("SSL_CERT_FILE", tls.ca_file().to_str().unwrap())
            .conf("upstream: {connect_timeout: 1s}\n")
            .start()
            .await;
        for host in [&plain, &tls] {
            proxy
                .fetch("py", &foreign(host, "/any/file.whl"))
                .await
                .is("remote", "file");
            proxy.until_cached("py", &foreign(host, "/any/file.whl")).await;
        }
        assert_eq!(up.total(), 0);
        // Another port of a listed host is another host, and so is what https is not spoken on.
        let closed = Upstream::start().await;
        closed.fallback(|_| Reply::ok("secret"));
        refused_naming_file_hosts(proxy.fetch("py", &foreign(&closed, "/any/file.whl")).await);
        proxy.write_remotes(&yaml(&format!("'{}'", closed.authority())));
        proxy.reload_and_wait().await;
        let answer = proxy.fetch("py", &foreign(&closed, "/any/file.whl")).await;
        assert!(
            matches!(answer.status, 502 | 504),
            "{} {}",
            answer.status,
            answer.text()
        );
        assert_eq!(closed.total(), 0);
    });
}

/// Index and files on two hosts, no `file_hosts`.
async fn apart() -> (Upstream, Upstream, Wheel, Proxy) {
    let (index, files) = (Upstream::start().await, Upstream::start().await);
    let wheel = Wheel::new("Pkg", "1.0", &[], 1000);
    assert_eq!(wheel.file, WHEEL);
    serve_pypi(&index, &files, IndexForm::Both, std::slice::from_ref(&wheel));
    let proxy = Proxy::start(&format!("py:\n  base_url: {}\n  package: pypi\n", index.base())).await;
    (index, files, wheel, proxy)
}

#[test]
fn a_lock_file_asks_for_the_file_first() {
    run(async {
        let (index, files, wheel, proxy) = apart().await;
        let path = foreign(&files, &wheel.path());
        let mut clients = JoinSet::new();
        for _ in 0..8 {
            let (address, path) = (proxy.address(), at("py", &path));
            clients.spawn(async move { crate::common::get(address, &path).await });
        }
        while let Some(answer) = clients.join_next().await {
            assert_eq!(answer.unwrap().ok().body, wheel.bytes);
        }
        assert_eq!(index.count("GET", "/simple/pkg/"), 1);
        assert_eq!(files.count("GET", &wheel.path()), 1);
        // What goes with a file goes as the file does.
        assert_eq!(
            proxy.fetch("py", &format!("{path}.metadata")).await.ok().text(),
            wheel.metadata
        );
        // An index that is fresh is not read again for what it does not name.
        for number in 0..3 {
            let unknown = foreign(&files, &format!("/packages/aa/bb/pkg-{number}.5-py3-none-any.whl"));
            refused_naming_file_hosts(proxy.fetch("py", &unknown).await);
        }
        assert_eq!(index.count("GET", "/simple/pkg/"), 1);
        // One of a project that there is not asks once and is refused.
        for _ in 0..2 {
            refused_naming_file_hosts(proxy.fetch("py", &foreign(&files, "/p/none-1.0.tar.gz")).await);
        }
        assert_eq!(index.count("GET", "/simple/none/"), 1);
        assert_eq!(files.count("*", "/p/none-1.0.tar.gz"), 0);
    });
}

#[test]
fn metadata_asked_for_first_is_found_by_its_file() {
    run(async {
        let (index, files, wheel, proxy) = apart().await;
        let path = format!("{}.metadata", foreign(&files, &wheel.path()));
        assert_eq!(proxy.fetch("py", &path).await.ok().text(), wheel.metadata);
        assert_eq!(index.count("GET", "/simple/pkg/"), 1);
        assert_eq!(files.count("*", &wheel.path()), 0);
    });
}

#[test]
fn links_survive_a_flush_and_a_restart() {
    run(async {
        let (index, files, wheel, mut proxy) = apart().await;
        let path = foreign(&files, &wheel.path());
        proxy.fetch("py", "simple/pkg/").await.ok();
        proxy.fetch("py", &path).await.ok();
        proxy.until_cached("py", &path).await;
        index.switch_off().await;
        proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
        assert_eq!(proxy.fetch("py", &path).await.is("remote", &wheel.bytes).status, 200);
        proxy.until_cached("py", &path).await;
        proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
        proxy.restart().await;
        proxy.fetch("py", &path).await.is("remote", &wheel.bytes);
        proxy.until_cached("py", &path).await;
        // Also after a hard end, and never for what was not named.
        proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
        proxy.kill();
        proxy.launch().await;
        proxy.fetch("py", &path).await.is("remote", &wheel.bytes);
        let unknown = foreign(&files, "/packages/aa/bb/pkg-9.0-py3-none-any.whl");
        proxy.fetch("py", &unknown).await.expect(403);
    });
}

#[test]
fn the_links_of_one_remote_open_nothing_to_another() {
    run(async {
        let (index, files) = (Upstream::start().await, Upstream::start().await);
        let wheel = Wheel::new("Pkg", "1.0", &[], 1000);
        serve_pypi(&index, &files, IndexForm::Html, std::slice::from_ref(&wheel));
        let closed = Upstream::start().await;
        let proxy = Proxy::start(&format!(
            "py:\n  base_url: {}\n  package: pypi\nother:\n  base_url: {1}\n  package: pypi\nfiles:\n  base_url: {1}\n",
            index.base(),
            closed.base()
        ))
        .await;
        let path = foreign(&files, &wheel.path());
        proxy.fetch("py", "simple/pkg/").await.ok();
        proxy.fetch("py", &path).await.ok();
        refused_naming_file_hosts(proxy.fetch("other", &path).await);
        let generic = proxy.fetch("files", &path).await;
        assert!(generic.status >= 400, "{}", generic.text());
        assert_eq!(files.count("*", &wheel.path()), 1);
    });
}

#[test]
fn the_same_path_on_two_hosts_is_two_files() {
    run(async {
        let (up, one, two) = (
            Upstream::start().await,
            Upstream::start().await,
            Upstream::start().await,
        );
        for (host, text) in [(&up, "zero"), (&one, "one"), (&two, "two")] {
            host.reply("/f/pkg-1.0.tar.gz", Reply::ok(text));
        }
        let urls = [&up, &one, &two].map(|host| host.url("/f/pkg-1.0.tar.gz"));
        up.reply("/simple/pkg/", html(page("", &[&urls[0], &urls[1], &urls[2]])));
        let proxy = Proxy::start(&format!("py:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        let text = proxy.fetch("py", "simple/pkg/").await.ok().text();
        let links = links(&proxy, "py", "simple/pkg/", &text);
        assert_eq!(links.len(), 3, "{text}");
        for round in 0..2 {
            for (link, text) in links.iter().zip(["zero", "one", "two"]) {
                assert_eq!(follow(&proxy, link).await.ok().text(), text, "{round}");
            }
        }
    });
}

#[test]
fn links_that_only_some_parsers_see_lead_here_too() {
    run(async {
        let (up, away) = (Upstream::start().await, Upstream::start().await);
        let link = away.url("/f/pkg-1.0.tar.gz");
        up.reply(
            "/simple/pkg/",
            html(format!(
                "<title><base href={link}></title><noscript><a href='{link}' HREF='{link}'>a</a></noscript>\
                 <textarea><a href={link}></textarea><iframe><a href={link}></iframe><!--><a href={link}>b</a>-->"
            )),
        );
        away.reply("/f/pkg-1.0.tar.gz", Reply::ok("file"));
        let proxy = Proxy::start(&format!("py:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        for _ in 0..2 {
            let text = proxy.fetch("py", "simple/pkg/").await.ok().text();
            // What looks like a tag is one to somebody.
            assert_eq!(text.matches("<a ").count(), 2, "{text}");
            assert!(
                !text.contains("<base") && text.to_lowercase().matches("<a href=").count() == 2,
                "{text}"
            );
            for link in links(&proxy, "py", "simple/pkg/", &text) {
                assert_eq!(follow(&proxy, &link).await.ok().text(), "file");
            }
        }
    });
}

#[test]
fn a_query_is_part_of_what_an_index_names() {
    run(async {
        let (up, cdn) = (Upstream::start().await, Upstream::start().await);
        cdn.reply("/get?f=pkg-1.0.tar.gz&v=1", Reply::ok("one"));
        cdn.reply("/get?f=secret", Reply::ok("secret"));
        let link = cdn.url("/get?f=pkg-1.0.tar.gz&amp;v=1");
        up.reply("/simple/pkg/", html(page("", &[&link])));
        let proxy = Proxy::start(&format!("py:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        let text = proxy.fetch("py", "simple/pkg/").await.ok().text();
        let links = links(&proxy, "py", "simple/pkg/", &text);
        assert_eq!(follow(&proxy, &links[0]).await.ok().text(), "one");
        proxy.fetch("py", &foreign(&cdn, "/get?f=secret")).await.expect(403);
        assert_eq!(cdn.count("*", "/get?f=secret"), 0);
    });
}

#[test]
fn a_signed_query_of_an_index_reaches_the_file_host_to_the_letter() {
    run(async {
        let (up, cdn) = (Upstream::start().await, Upstream::start().await);
        let signed = "Policy=a'b~c&Sig=%27%7e+|";
        cdn.reply(&format!("/pkg-1.0.tar.gz?{signed}"), Reply::ok("there"));
        up.reply(&format!("/files/pkg-2.0.tar.gz?{signed}"), Reply::ok("here"));
        let files = [cdn.url("/pkg-1.0.tar.gz"), up.url("/files/pkg-2.0.tar.gz")];
        let urls = files.map(|file| format!("{file}?{signed}"));
        let quoted = |quote: &str, escaped: &str| {
            let link = |url: &String| {
                let url = url.replace('&', "&amp;").replace('\'', escaped);
                format!("<a href={quote}{url}{quote}>pkg</a>")
            };
            urls.iter().map(link).collect::<String>()
        };
        up.reply("/simple/double/", html(quoted("\"", "'")));
        up.reply("/simple/single/", html(quoted("'", "&#39;")));
        let listed = |url: &String| json!({"filename": "pkg", "url": url, "hashes": {}});
        let document = json!({"meta": {"api-version": "1.0"}, "files": urls.iter().map(listed).collect::<Vec<_>>()});
        let json_type = "application/vnd.pypi.simple.v1+json";
        up.reply("/simple/json/", Reply::ok(document.to_string()).content_type(json_type));
        let proxy = Proxy::start(&format!("py:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        for name in ["double", "single", "json"] {
            let accept = [("Accept", if name == "json" { json_type } else { "text/html" })];
            let text = proxy
                .fetch_with("py", &format!("simple/{name}/"), &accept)
                .await
                .ok()
                .text();
            let links: Vec<String> = match name {
                "json" => {
                    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
                    let files = document["files"].as_array().unwrap().iter();
                    files.map(|file| file["url"].as_str().unwrap().to_owned()).collect()
                }
                _ => {
                    let links = text
                        .split("<a href=\"")
                        .skip(1)
                        .map(|rest| rest.split('"').next().unwrap());
                    links
                        .map(|link| link.replace("&amp;", "&").replace("&#39;", "'"))
                        .collect()
                }
            };
            for (link, body) in links.iter().zip(["there", "here"]) {
                // As pip does: the path is resolved, the query stays.
                let (path, query) = link.split_once('?').unwrap();
                let base = url::Url::parse(&proxy.url("py", &format!("simple/{name}/"))).unwrap();
                let path = base.join(path).unwrap().path().to_owned();
                let answer = proxy.request("GET", &format!("{path}?{query}"), &[], b"").await;
                assert_eq!(answer.ok().text(), body, "{name}: {link}");
            }
            assert_eq!(links.len(), 2, "{text}");
        }
    });
}

#[test]
fn credentials_are_for_the_remotes_own_host() {
    run(async {
        let (index, files) = (Upstream::start().await, Upstream::start().await);
        let wheel = Wheel::new("Pkg", "1.0", &[], 1000);
        serve_pypi(&index, &files, IndexForm::Html, std::slice::from_ref(&wheel));
        let proxy = Proxy::start(&format!(
            "py:\n  base_url: {}\n  package: pypi\n  username: u\n  password: p\n  headers: {{X-Key: secret}}\n",
            index.base()
        ))
        .await;
        proxy.fetch("py", "simple/pkg/").await.ok();
        proxy.fetch("py", &foreign(&files, &wheel.path())).await.ok();
        let seen = index.last("GET", "/simple/pkg/");
        assert_eq!(seen.header("authorization"), Some("Basic dTpw"));
        assert_eq!(seen.header("x-key"), Some("secret"));
        let seen = files.last("GET", &wheel.path());
        assert_eq!((seen.header("authorization"), seen.header("x-key")), (None, None));
    });
}

#[test]
fn the_older_json_api() {
    run(async {
        let (index, files) = (Upstream::start().await, Upstream::start().await);
        files.reply(&format!("/packages/aa/{WHEEL}"), Reply::ok("the wheel"));
        let link = files.url(&format!("/packages/aa/{WHEEL}"));
        let file = json!({"filename": WHEEL, "url": link, "digests": {"sha256": "00"}, "size": 9, "yanked": false});
        let document = json!({
            "info": {"name": "pkg", "home_page": link, "description": format!("see {link}"), "version": "1.0"},
            "last_serial": 7,
            "releases": {"0.9": [], "1.0": [file]},
            "urls": [file],
            "vulnerabilities": [],
        });
        index.reply(
            "/pypi/pkg/json",
            Reply::ok(document.to_string()).content_type("application/json"),
        );
        index.reply(
            "/pypi/pkg/1.0/json",
            Reply::ok(document.to_string()).content_type("application/json"),
        );
        let proxy = Proxy::start(&format!(
            "py:\n  base_url: {}\n  index_url: {}\n  package: pypi\n  immutable_patterns: ['packages/.*']\n",
            files.base(),
            index.base()
        ))
        .await;
        for path in ["pypi/pkg/json", "pypi/pkg/1.0/json"] {
            for accept in ["*/*", "application/json", "text/html"] {
                let answer = proxy.fetch_with("py", path, &[("Accept", accept)]).await.ok();
                assert!(answer.must("content-type").starts_with("application/json"));
                assert!(
                    !answer.must("cache-control").contains("immutable"),
                    "{:?}",
                    answer.headers
                );
                let mut here = answer.json();
                let ours = proxy.url("py", &format!("packages/aa/{WHEEL}"));
                for place in ["/urls/0/url", "/releases/1.0/0/url"] {
                    assert_eq!(*here.pointer(place).unwrap(), json!(ours), "{place}");
                    *here.pointer_mut(place).unwrap() = json!(link);
                }
                // What is no link to a file stays as it is.
                assert_eq!(here, document);
            }
            assert_eq!(index.count("GET", &format!("/{path}")), 1);
        }
        proxy
            .fetch("py", &format!("packages/aa/{WHEEL}"))
            .await
            .is("remote", "the wheel");
        proxy.fetch("py", "pypi/none/json").await.expect(404);
    });
}

#[test]
fn the_list_of_all_projects_streams_and_leads_here() {
    run(async {
        let up = Upstream::start().await;
        let gate = Gate::new();
        let held = gate.clone();
        let names = (0..60_000)
            .map(|number| format!("project-{number}"))
            .collect::<Vec<_>>();
        let body = names
            .iter()
            .map(|name| format!("<a href=\"/simple/{name}/\">{name}</a>\n"))
            .collect::<String>();
        let text = format!("<!DOCTYPE html><html><body>\n{body}</body></html>");
        let projects = names
            .iter()
            .map(|name| json!({"name": name, "_last-serial": 1}))
            .collect::<Vec<_>>();
        let list = json!({"meta": {"api-version": "1.1", "_last-serial": 7}, "projects": projects}).to_string();
        let (html, listed) = (text.clone(), list.clone());
        up.on("/simple/", move |seen| {
            if seen.header("accept").unwrap_or_default().starts_with(SIMPLE_JSON) {
                Reply::ok(listed.clone()).content_type(SIMPLE_JSON)
            } else {
                Reply::ok(html.clone())
                    .content_type("text/html")
                    .chunked()
                    .pause_at(2_000_000, &held)
            }
        });
        up.reply(
            "/simple/project-59999/",
            Reply::ok(page("", &[])).content_type("text/html"),
        );
        let proxy = Proxy::start(&format!("py:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        let mut client = proxy.connect().await;
        client
            .send("GET", &at("py", "simple/"), &[("Accept", "text/html")], b"")
            .await;
        assert_eq!(client.read_head("GET").await.status, 200);
        // The first megabyte comes while upstream is still holding the rest back.
        let mut got = client.read_body_until(1_000_000).await;
        gate.open();
        got.extend_from_slice(&client.read_body().await);
        assert!(client.is_complete());
        let got = String::from_utf8(got).unwrap();
        let links = links(&proxy, "py", "simple/", &got);
        assert_eq!(links.len(), names.len());
        assert_eq!(links[59_999].path(), at("py", "simple/project-59999/"));
        follow(&proxy, &links[59_999]).await.ok();
        for _ in 0..2 {
            let answer = proxy.fetch_with("py", "simple/", &[("Accept", SIMPLE_JSON)]).await.ok();
            assert_eq!(answer.must("content-type"), SIMPLE_JSON);
            assert!(answer.text() == list, "the JSON list is not upstream's");
            assert!(!answer.must("cache-control").contains("immutable"));
        }
        assert_eq!(up.count("GET", "/simple/"), 2);
    });
}

#[test]
fn head_on_a_file_is_as_good_as_get() {
    run(async {
        let (_index, files, wheel, proxy) = apart().await;
        proxy.fetch("py", "simple/pkg/").await.ok();
        let path = foreign(&files, &wheel.path());
        let head = proxy
            .request("HEAD", &at("py", &path), &[("Accept-Encoding", "identity")], b"")
            .await
            .expect(200);
        assert_eq!(head.must("content-length"), wheel.bytes.len().to_string());
        assert_eq!(head.must("accept-ranges"), "bytes");
        let part = proxy
            .fetch_with("py", &path, &[("Range", "bytes=-100"), ("Accept-Encoding", "identity")])
            .await
            .expect(206);
        assert_eq!(part.body, wheel.bytes[wheel.bytes.len() - 100..]);
    });
}

#[test]
fn the_public_file_host_has_its_index_elsewhere() {
    run(async {
        // The names are the product's to know: from what ships, and from what it makes of that.
        let shipped = include_str!("../../remotes.yaml");
        let proxy = Proxy::start(shipped.split_once("remotes:\n").unwrap().1).await;
        let config = proxy.request("GET", "/config", &[], b"").await.ok().json();
        let host = |key: &str| {
            let url = config["remotes"]["pypi"][key].as_str().unwrap().to_owned();
            url.split("://").nth(1).unwrap().trim_end_matches('/').to_owned()
        };
        let (files, index) = (host("base_url"), host("index_url"));
        let asked_for = format!("{index}:443");
        let spellings = [
            format!("https://{files}"),
            format!("https://{}/", files.to_uppercase()),
            format!("http://{files}:80"),
            format!("https://{files}:443/some/path/"),
        ];
        for spelling in spellings {
            let outbound = OutboundProxy::start().await;
            let proxy = Proxy::start(&format!(
                "py:\n  base_url: \"{spelling}\"\n  package: pypi\n  proxy: \"{}\"\n",
                outbound.url()
            ))
            .await;
            for path in ["simple/pkg/", "pypi/pkg/json"] {
                // Nobody is there: it only matters whom the question is for.
                let answer = proxy.fetch("py", path).await;
                assert!(
                    matches!(answer.status, 502 | 504),
                    "{} {}",
                    answer.status,
                    answer.text()
                );
            }
            let asked = outbound.log();
            assert!(!asked.is_empty());
            for asked in asked {
                assert_eq!(
                    (asked.method.as_str(), asked.target.as_str()),
                    ("CONNECT", asked_for.as_str()),
                    "{spelling}"
                );
            }
        }
    });
}

#[test]
fn a_file_with_a_file_like_name_below_simple_is_a_file() {
    run(async {
        let up = Upstream::start().await;
        up.file(&format!("/simple/pkg/{WHEEL}"), File::new("a wheel").etag("\"w\""));
        up.reply("/simple/pkg/", html(page("", &[WHEEL])));
        let proxy = Proxy::start(&format!("py:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        let text = proxy.fetch("py", "simple/pkg/").await.ok().text();
        let links = links(&proxy, "py", "simple/pkg/", &text);
        assert_eq!(links[0].path(), at("py", &format!("simple/pkg/{WHEEL}")));
        assert_eq!(follow(&proxy, &links[0]).await.ok().text(), "a wheel");
    });
}
