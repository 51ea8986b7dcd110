//! pip (two versions) and uv through the proxy; and the indexes that they read.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::common::client::Headers;
use crate::common::clients::{Home, Output, tool};
use crate::common::clock::Clock;
use crate::common::packages::{IndexForm, SIMPLE_JSON, Wheel, pypi_pages, rfc3339, serve_pypi};
use crate::common::{File, Proxy, Response, Upstream, run, run_for};

/// The wheels: an application with a dependency whose name is spelled in two ways.
fn wheels() -> Vec<Wheel> {
    vec![
        Wheel::new("Demo.App", "1.0", &["demo_lib>=1"], 300_000),
        Wheel::new("Demo.App", "1.1", &["demo_lib>=1.5"], 2_000_000),
        Wheel::new("demo-lib", "1.5", &[], 1000),
    ]
}

/// A remote whose index and files are on different hosts, like the public one.
async fn apart(form: IndexForm) -> (Upstream, Upstream, Proxy) {
    let (index, files) = (Upstream::start().await, Upstream::start().await);
    serve_pypi(&index, &files, form, &wheels());
    let proxy = Proxy::start(&format!(
        "pypi:\n  base_url: {}\n  index_url: {}\n  package: pypi\n  check_mutable_updates: true\n  immutable_patterns:\n    \
         - 'packages/.*\\.whl$'\n    - 'packages/.*\\.whl\\.metadata$'\n",
        files.base(),
        index.base()
    ))
    .await;
    (index, files, proxy)
}

fn requirements() -> String {
    let wheels = wheels();
    format!(
        "demo-app==1.1 --hash=sha256:{}\ndemo-lib==1.5 --hash=sha256:{}\n",
        wheels[1].sha256(),
        wheels[2].sha256()
    )
}

async fn pip(home: &Home, python: PathBuf, index: &str, target: &str, what: &[&str]) -> Output {
    let mut command = home.command(python);
    command.args([
        "-m",
        "pip",
        "install",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--only-binary=:all:",
    ]);
    command
        .args(["--retries", "0", "--index-url", index, "--target", target])
        .args(what);
    home.run(command).await
}

async fn uv(home: &Home, index: &str, target: &str, what: &[&str]) -> Output {
    let mut command = home.command(tool("venv/bin/uv"));
    command
        .args(["pip", "install", "--no-cache", "--no-config", "--python"])
        .arg(tool("venv/bin/python"));
    command.args(["--default-index", index, "--target", target]).args(what);
    home.run(command).await
}

#[test]
fn pip_and_uv_install_with_hashes_and_again_without_upstream() {
    run_for(Duration::from_secs(240), async {
        for form in [IndexForm::Both, IndexForm::Html] {
            let (index, files, proxy) = apart(form).await;
            let url = proxy.url("pypi", "simple");
            let home = Home::new();
            home.write("requirements.txt", &requirements());
            let what = ["--require-hashes", "-r", "requirements.txt"];
            for round in ["first", "second"] {
                for (name, python) in [("new", "venv/bin/python"), ("old", "old-pip/bin/python")] {
                    let target = format!("{round}-{name}");
                    pip(&home, tool(python), &url, &target, &what).await.ok();
                    assert_eq!(
                        home.read(&format!("{target}/demo_app/__init__.py")),
                        "__version__ = \"1.1\"\n"
                    );
                }
                uv(&home, &url, &format!("{round}-uv"), &what).await.ok();
                assert_eq!(
                    home.read(&format!("{round}-uv/demo_lib/__init__.py")),
                    "__version__ = \"1.5\"\n"
                );
                index.switch_off().await;
                files.switch_off().await;
            }
            // Each file was fetched as a whole once at most; ranges ahead of a fill may have come beside.
            for wheel in wheels() {
                let whole = files
                    .log()
                    .into_iter()
                    .filter(|seen| seen.method == "GET" && seen.path == wheel.path() && seen.header("range").is_none());
                assert!(whole.count() <= 1, "{}", wheel.file);
            }
            assert!(index.log().iter().all(|seen| seen.path.starts_with("/simple/")));
        }
    });
}

#[test]
fn a_name_of_the_companys_own_comes_from_the_company_only() {
    run_for(Duration::from_secs(240), async {
        let (public, company) = (Upstream::start().await, Upstream::start().await);
        // Somebody put a newer one of this name where everybody can.
        let stranger = Wheel::new("corp-lib", "9.0", &[], 100);
        let own = Wheel::new("corp-lib", "1.0", &["demo-app"], 100);
        let mut open = wheels();
        open.push(stranger);
        serve_pypi(&public, &public, IndexForm::Both, &open);
        serve_pypi(&company, &company, IndexForm::Both, &[own]);
        let remotes = format!(
            "public:\n  base_url: {}\n  package: pypi\n  deny_packages: ['corp-*']\n\
             company:\n  base_url: {}\n  package: pypi\n  allow_packages: ['corp-*']\n",
            public.base(),
            company.base()
        );
        let proxy = Proxy::start(&remotes).await;
        let (url, extra) = (proxy.url("public", "simple"), proxy.url("company", "simple"));
        let home = Home::new();
        let what = ["--extra-index-url", &extra, "corp-lib"];
        pip(&home, tool("venv/bin/python"), &url, "pip", &what).await.ok();
        uv(&home, &url, "uv", &["--index", &extra, "corp-lib"]).await.ok();
        // The other way round, and though uv looks at the first index that has a name only.
        uv(&home, &extra, "round", &["--index", &url, "corp-lib"]).await.ok();
        for target in ["pip", "uv", "round"] {
            let said = home.read(&format!("{target}/corp_lib/__init__.py"));
            assert_eq!(said, "__version__ = \"1.0\"\n", "{target}");
            assert!(home.path("work").join(target).join("demo_app").is_dir(), "{target}");
        }
        let said = pip(&home, tool("venv/bin/python"), &url, "none", &["corp-lib"])
            .await
            .fails()
            .text();
        assert!(said.contains("No matching distribution"), "{said}");
        assert!(public.log().iter().all(|seen| !seen.path.contains("corp")));
        assert!(company.log().iter().all(|seen| !seen.path.contains("demo")));
    });
}

#[test]
fn what_is_held_is_not_chosen_until_it_is_due() {
    run_for(Duration::from_secs(240), async {
        let (index, files) = (Upstream::start().await, Upstream::start().await);
        let mut wheels = wheels();
        wheels[1] = wheels[1]
            .clone()
            .published(SystemTime::now() - Duration::from_secs(24 * 3600));
        serve_pypi(&index, &files, IndexForm::Both, &wheels);
        let data = tempfile::tempdir().unwrap();
        let remotes = format!(
            "pypi:\n  base_url: {}\n  index_url: {}\n  package: pypi\n  quarantine_new: true\n  quarantine_days: 3\n",
            files.base(),
            index.base()
        );
        let settings = Proxy::settings().remotes(&remotes).data_dir(data.path());
        let clock = Clock::new();
        for (days, version) in [(0, "1.0"), (3, "1.1")] {
            let env = clock.env(days * 24 * 3600).into_iter();
            let settings = env.fold(settings.clone(), |settings, (name, value)| settings.env(name, value));
            let mut proxy = settings.start().await;
            let url = proxy.url("pypi", "simple");
            let home = Home::new();
            for (name, python) in [("new", "venv/bin/python"), ("old", "old-pip/bin/python")] {
                pip(&home, tool(python), &url, name, &["demo-app"]).await.ok();
            }
            uv(&home, &url, "uv", &["demo-app"]).await.ok();
            for target in ["new", "old", "uv"] {
                let said = home.read(&format!("{target}/demo_app/__init__.py"));
                assert_eq!(said, format!("__version__ = \"{version}\"\n"), "{target}");
            }
            if days == 0 {
                home.write("requirements.txt", &requirements());
                let what = ["--require-hashes", "-r", "requirements.txt"];
                let said = pip(&home, tool("venv/bin/python"), &url, "pinned", &what)
                    .await
                    .fails()
                    .text();
                assert!(said.contains("demo-app==1.1"), "{said}");
                uv(&home, &url, "pinned", &what).await.fails();
                // By the file's URL, as lock files name it.
                let file = format!(
                    "{}#sha256={}",
                    proxy.url("pypi", &wheels[1].path()[1..]),
                    wheels[1].sha256()
                );
                let what = format!("demo-app @ {file}");
                let said = pip(&home, tool("venv/bin/python"), &url, "pinned", &[&what])
                    .await
                    .fails()
                    .text();
                assert!(said.contains("404"), "{said}");
            }
            proxy.stop().await;
        }
        assert_eq!(files.count("GET", &wheels[1].path()), 1);
    });
}

#[test]
fn what_came_after_a_moment_is_not_chosen_though_upstream_tells_no_dates() {
    run_for(Duration::from_secs(240), async {
        let clock = Clock::new();
        let wheels = [
            Wheel::new("demo", "1.0", &[], 1000),
            Wheel::new("demo", "1.1", &[], 1000),
        ];
        for form in [IndexForm::Html, IndexForm::Both] {
            let up = Upstream::start().await;
            let data = tempfile::tempdir().unwrap();
            let remotes = format!(
                "pypi:\n  base_url: {}\n  package: pypi\n  release_dates: filled\n",
                up.base()
            );
            let settings = Proxy::settings().remotes(&remotes).data_dir(data.path());
            // The first of them came ten days before the second.
            for (days, known) in [(-10, 1), (0, 2)] {
                serve_pypi(&up, &up, form, &wheels[..known]);
                if form == IndexForm::Both {
                    let all: Vec<&Wheel> = wheels[..known].iter().collect();
                    let page = pypi_pages("demo", &all, "").1.replace("\"upload-time\"", "\"x-time\"");
                    up.file("/simple/demo/", File::new(page).content_type(SIMPLE_JSON));
                }
                let env = clock.env(days * 24 * 3600).into_iter();
                let settings = env.fold(settings.clone(), |settings, (name, value)| settings.env(name, value));
                let mut proxy = settings.start().await;
                if days == 0 {
                    let (url, home) = (proxy.url("pypi", "simple"), Home::new());
                    let moment = rfc3339(SystemTime::now() - Duration::from_secs(3 * 24 * 3600));
                    uv(&home, &url, "uv", &["--exclude-newer", &moment, "demo"]).await.ok();
                    let python = tool("venv/bin/python");
                    pip(&home, python, &url, "pip", &["--uploaded-prior-to", &moment, "demo"])
                        .await
                        .ok();
                    uv(&home, &url, "newest", &["demo"]).await.ok();
                    for (target, version) in [("uv", "1.0"), ("pip", "1.0"), ("newest", "1.1")] {
                        let said = home.read(&format!("{target}/demo/__init__.py"));
                        assert_eq!(said, format!("__version__ = \"{version}\"\n"), "{target}");
                    }
                } else {
                    proxy
                        .fetch_with("pypi", "simple/demo/", &[("Accept", SIMPLE_JSON)])
                        .await
                        .ok();
                }
                proxy.stop().await;
            }
        }
    });
}

#[test]
fn a_file_that_is_not_what_its_index_says_is_not_installed() {
    run_for(Duration::from_secs(300), async {
        for (verify, form) in [
            ("enforce", IndexForm::Both),
            ("enforce", IndexForm::Html),
            ("warn", IndexForm::Both),
            ("off", IndexForm::Both),
        ] {
            let up = Upstream::start().await;
            let wheel = Wheel::new("demo", "1.0", &[], 200_000);
            let serve = |bytes: Vec<u8>| {
                serve_pypi(&up, &up, form, std::slice::from_ref(&wheel));
                up.file(&wheel.path(), File::new(bytes));
            };
            let mut wrong = wheel.bytes.to_vec();
            wrong[100_000] ^= 1;
            serve(wrong);
            let remotes = format!(
                "pypi:\n  base_url: {}\n  package: pypi\n  verify: {verify}\n",
                up.base()
            );
            let proxy = Proxy::start(&remotes).await;
            let (url, home) = (proxy.url("pypi", "simple"), Home::new());
            let python = || tool("venv/bin/python");
            pip(&home, python(), &url, "bad", &["demo"]).await.fails();
            uv(&home, &url, "bad", &["demo"]).await.fails();
            assert!(!home.work().join("bad/demo").exists());
            serve(wheel.bytes.to_vec());
            if verify != "enforce" {
                // What was kept is refused by who reads it, also now: it has to be flushed.
                pip(&home, python(), &url, "bad", &["demo"]).await.fails();
                proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
            }
            pip(&home, python(), &url, "pip", &["demo"]).await.ok();
            uv(&home, &url, "uv", &["demo"]).await.ok();
            for target in ["pip", "uv"] {
                assert_eq!(
                    home.read(&format!("{target}/demo/__init__.py")),
                    "__version__ = \"1.0\"\n"
                );
            }
            proxy
                .until_cached("pypi", &wheel.path()[1..])
                .await
                .is("cache", &wheel.bytes);
        }
    });
}

#[test]
fn resolution_by_metadata_needs_no_wheel() {
    run_for(Duration::from_secs(120), async {
        let (_index, files, proxy) = apart(IndexForm::Both).await;
        let home = Home::new();
        home.write("requirements.in", "Demo_App<1.1\n");
        let mut command = home.command(tool("venv/bin/uv"));
        command.args([
            "pip",
            "compile",
            "--no-cache",
            "--no-config",
            "--generate-hashes",
            "--default-index",
        ]);
        command.arg(proxy.url("pypi", "simple")).arg("requirements.in");
        command.arg("--python").arg(tool("venv/bin/python"));
        let output = home.run(command).await.ok().stdout;
        assert!(
            output.contains("demo-app==1.0") && output.contains("demo-lib==1.5"),
            "{output}"
        );
        assert!(output.contains(&wheels()[0].sha256()), "{output}");
        assert!(
            files.log().iter().all(|seen| seen.path.ends_with(".metadata")),
            "{:?}",
            files.log()
        );
    });
}

#[test]
fn an_index_and_files_on_one_host() {
    run_for(Duration::from_secs(120), async {
        let up = Upstream::start().await;
        serve_pypi(&up, &up, IndexForm::Html, &wheels());
        let proxy = Proxy::start(&format!("gitea:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        let home = Home::new();
        for round in ["first", "second"] {
            pip(
                &home,
                tool("venv/bin/python"),
                &proxy.url("gitea", "simple"),
                round,
                &["demo-app"],
            )
            .await
            .ok();
            assert_eq!(
                home.read(&format!("{round}/demo_lib/__init__.py")),
                "__version__ = \"1.5\"\n"
            );
            up.switch_off().await;
        }
    });
}

#[test]
fn an_absent_project_is_not_found_and_refused_files_are_refused() {
    run_for(Duration::from_secs(120), async {
        let (_index, _files, proxy) = apart(IndexForm::Both).await;
        let home = Home::new();
        let url = proxy.url("pypi", "simple");
        let said = uv(&home, &url, "x", &["no-such-project"]).await.fails().text();
        assert!(said.contains("not found"), "{said}");
        pip(&home, tool("venv/bin/python"), &url, "x", &["no-such-project"])
            .await
            .fails();
        proxy.fetch("pypi", "packages/aa/bb/x.exe").await.expect(403);
    });
}

// The indexes

async fn index(proxy: &Proxy, accept: &str) -> Response {
    proxy
        .fetch_with("pypi", "simple/demo-app/", &[("Accept", accept)])
        .await
}

#[test]
fn the_form_is_negotiated() {
    run(async {
        let (_index, _files, proxy) = apart(IndexForm::Both).await;
        let html = "text/html";
        for (accept, kind) in [
            (SIMPLE_JSON, SIMPLE_JSON),
            ("application/vnd.pypi.simple.latest+json", SIMPLE_JSON),
            ("application/vnd.pypi.simple.v1+json, text/html;q=0.1", SIMPLE_JSON),
            ("application/vnd.pypi.simple.v1+json;q=0.1, text/html", html),
            (
                "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01",
                SIMPLE_JSON,
            ),
            (html, html),
            ("*/*", html),
            (
                "application/vnd.pypi.simple.v1+html",
                "application/vnd.pypi.simple.v1+html",
            ),
        ] {
            for _ in 0..2 {
                let answer = index(&proxy, accept).await.ok();
                assert!(
                    answer.must("content-type").starts_with(kind),
                    "{accept}: {:?}",
                    answer.headers
                );
                assert!(
                    answer.must("vary").to_lowercase().contains("accept"),
                    "{:?}",
                    answer.headers
                );
            }
        }
        index(&proxy, "image/png").await.expect(406);
    });
}

#[test]
fn an_upstream_with_html_only_gets_it_passed_on_as_html() {
    run(async {
        let (_index, _files, proxy) = apart(IndexForm::Html).await;
        for _ in 0..2 {
            let answer = index(&proxy, &format!("{SIMPLE_JSON}, text/html;q=0.1")).await.ok();
            assert!(
                answer.must("content-type").starts_with("text/html"),
                "{:?}",
                answer.headers
            );
            assert!(answer.text().contains("<a "));
        }
    });
}

/// Resolves a link of the index as a client does and asks for it.
async fn follow(proxy: &Proxy, link: &str) -> Response {
    let base = url::Url::parse(&proxy.url("pypi", "simple/demo-app/")).unwrap();
    let url = base.join(link).unwrap();
    assert_eq!(url.port(), Some(proxy.address().port()), "{link} leads elsewhere");
    proxy
        .request(
            "GET",
            &url[url::Position::BeforePath..url::Position::AfterQuery],
            &[],
            b"",
        )
        .await
}

#[test]
fn json_keeps_every_key_and_every_link_comes_back_here() {
    run(async {
        let (up, files, proxy) = apart(IndexForm::Both).await;
        let upstream = crate::common::get_with(up.address(), "/simple/demo-app/", &[("Accept", SIMPLE_JSON)])
            .await
            .json();
        for _ in 0..2 {
            let answer = index(&proxy, SIMPLE_JSON).await.ok();
            assert!(!answer.text().contains(&files.authority()), "{}", answer.text());
            let mut here = answer.json();
            let mut there = upstream.clone();
            for number in 0..2 {
                let link = here["files"][number]["url"].take();
                let wheel = &wheels()[number];
                assert_eq!(follow(&proxy, link.as_str().unwrap()).await.ok().body, wheel.bytes);
                let metadata = follow(&proxy, &format!("{}.metadata", link.as_str().unwrap()))
                    .await
                    .ok();
                assert_eq!(metadata.text(), wheel.metadata);
                there["files"][number]["url"].take();
            }
            assert_eq!(here, there);
        }
    });
}

#[test]
fn html_keeps_fragments_and_attributes() {
    run(async {
        let (_up, files, proxy) = apart(IndexForm::Html).await;
        let text = index(&proxy, "text/html").await.ok().text();
        assert!(!text.contains(&files.authority()), "{text}");
        let wheel = &wheels()[1];
        for kept in [
            format!("#sha256={}\"", wheel.sha256()),
            "data-requires-python=\"&gt;=3.7\"".to_owned(),
            format!(
                "data-core-metadata=\"sha256={}\"",
                crate::common::sha256(wheel.metadata.as_bytes())
            ),
            "data-dist-info-metadata=".to_owned(),
            format!(">{}</a>", wheel.file),
            "pypi:repository-version".to_owned(),
        ] {
            assert!(text.contains(&kept), "{kept} is lost:\n{text}");
        }
        let link = text.split("href=\"").nth(2).unwrap().split('#').next().unwrap();
        assert_eq!(follow(&proxy, link).await.ok().body, wheel.bytes);
    });
}

#[test]
fn names_are_normalised_and_a_missing_slash_is_no_trouble() {
    run(async {
        let (up, _files, proxy) = apart(IndexForm::Both).await;
        for path in [
            "simple/Demo.App/",
            "simple/demo_app/",
            "simple/DEMO--app/",
            "simple/demo-app",
            "simple/Demo_App",
        ] {
            let answer = proxy.fetch_with("pypi", path, &[("Accept", SIMPLE_JSON)]).await;
            let answer = match answer.header("location") {
                Some(location) => {
                    assert!(
                        matches!(answer.status, 301 | 302 | 307 | 308),
                        "{path}: {}",
                        answer.status
                    );
                    let base = url::Url::parse(&proxy.url("pypi", path)).unwrap();
                    let target = base.join(location).unwrap();
                    assert_eq!(target.path(), "/api/v1/remote/pypi/simple/demo-app/", "{path}");
                    proxy
                        .request("GET", target.path(), &[("Accept", SIMPLE_JSON)], b"")
                        .await
                }
                None => panic!("{path} is answered in place: {} {:?}", answer.status, answer.headers),
            };
            assert_eq!(answer.ok().json()["name"], "demo-app");
        }
        assert!(
            up.log().iter().all(|seen| seen.path == "/simple/demo-app/"),
            "{:?}",
            up.log()
        );
        let top = proxy.fetch("pypi", "simple/").await.ok();
        assert!(top.text().contains("demo-app"));
    });
}

#[test]
fn views_have_validators_and_lengths_of_their_own() {
    run(async {
        let (up, _files, proxy) = apart(IndexForm::Both).await;
        for accept in [SIMPLE_JSON, "text/html"] {
            index(&proxy, accept).await.ok();
            let answer = {
                let path = "simple/demo-app/";
                let mut answer = proxy.fetch_with("pypi", path, &[("Accept", accept)]).await.ok();
                crate::common::eventually(Duration::from_secs(10), "the view is kept", async || {
                    answer = proxy.fetch_with("pypi", path, &[("Accept", accept)]).await.ok();
                    answer.header("etag").is_some() && answer.source() == "cache"
                })
                .await;
                answer
            };
            let original = crate::common::get_with(up.address(), "/simple/demo-app/", &[("Accept", accept)]).await;
            assert_ne!(answer.must("etag"), original.must("etag"));
            assert_eq!(answer.must("content-length"), answer.body.len().to_string());
            let again = proxy
                .fetch_with(
                    "pypi",
                    "simple/demo-app/",
                    &[("Accept", accept), ("If-None-Match", answer.must("etag"))],
                )
                .await;
            again.expect(304);
        }
    });
}
