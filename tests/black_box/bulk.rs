//! Artifacts brought into the cache before anybody asks for them: `POST /api/v1/artifacts`.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::common::client::Headers;
use crate::common::clients::{Home, tool};
use crate::common::h2client::H2Connection;
use crate::common::image::Manifest;
use crate::common::packages::{Chart, IndexForm, NpmVersion, Wheel, helm_index, serve_npm, serve_pypi};
use crate::common::pull::pull;
use crate::common::registry::Registry;
use crate::common::{Connection, File, Gate, Pattern, Proxy, Reply, Response, Upstream, run, run_for};

const BULK: &str = "/api/v1/artifacts";

async fn post(proxy: &Proxy, headers: &[(&str, &str)], body: &Value) -> Response {
    proxy.request("POST", BULK, headers, body.to_string().as_bytes()).await
}

fn lines(text: &str) -> Vec<Value> {
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")));
    lines.collect()
}

/// What became of each artifact, and of all.
async fn cache(proxy: &Proxy, artifacts: Value) -> (Vec<Value>, Value) {
    let answer = post(proxy, &[], &json!({"artifacts": artifacts})).await.ok();
    assert!(answer.complete, "{answer:?}");
    let mut lines = lines(&answer.text());
    let done = lines.pop().expect("a last line");
    assert_eq!(done["done"], true, "{done}");
    assert_eq!(done["total"], lines.len(), "{lines:?}");
    (lines, done)
}

/// Caches all of it, or fails.
async fn cached(proxy: &Proxy, artifacts: Value) -> Vec<String> {
    let (lines, done) = cache(proxy, artifacts).await;
    assert_eq!(done["failed"], 0, "{lines:#?}");
    let mut paths: Vec<String> = lines
        .iter()
        .map(|line| line["path"].as_str().unwrap().to_owned())
        .collect();
    paths.sort();
    paths
}

#[track_caller]
fn of<'l>(lines: &'l [Value], path: &str) -> &'l Value {
    let found: Vec<&Value> = lines.iter().filter(|line| line["path"] == path).collect();
    assert_eq!(found.len(), 1, "{path}: {lines:#?}");
    found[0]
}

async fn files(more: &str) -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    let proxy = Proxy::start(&format!("files:\n  base_url: {}\n  {more}", up.base())).await;
    (up, proxy)
}

#[test]
fn each_artifact_is_told_and_one_that_fails_ends_no_other() {
    run(async {
        let (up, proxy) = files("").await;
        let big = Pattern::new(1, 3_000_000);
        up.reply("/big", Reply::ok(big))
            .reply("/a%20b?x=1", Reply::ok("spaced"));
        up.reply("/cut", Reply::ok(Pattern::new(2, 2_000_000)).truncate_at(1_500_000));
        let artifacts = json!([
            {"remote": "files", "path": "big"},
            {"remote": "files", "path": "/a b?x=1"},
            {"remote": "files", "path": "none"},
            {"remote": "files", "path": "cut"},
            {"remote": "files", "path": "big"},
        ]);
        let (first, done) = cache(&proxy, artifacts.clone()).await;
        assert_eq!(
            of(&first, "big"),
            &json!({"remote": "files", "path": "big", "status": 200, "source": "remote", "bytes": 3_000_000, "error": null})
        );
        assert_eq!(of(&first, "a%20b?x=1")["bytes"], 6);
        let none = of(&first, "none");
        assert_eq!(
            (&none["status"], none["error"].is_string()),
            (&json!(404), true),
            "{none}"
        );
        let cut = of(&first, "cut");
        // Whether anything of it had gone out before it was cut, is a matter of moments.
        let why = cut["error"].as_str().unwrap();
        assert!(why.contains("the transfer was cut") || cut["status"] == 502, "{cut}");
        let counts = |done: &Value| ["total", "cached", "fetched", "failed"].map(|name| done[name].as_u64().unwrap());
        assert_eq!(counts(&done), [4, 0, 2, 2], "{done}");
        assert_eq!(up.count("GET", "/big"), 1);
        // All of it is there now, and nothing is fetched again.
        proxy.until_cached("files", "big").await;
        let (second, done) = cache(&proxy, artifacts).await;
        assert_eq!(of(&second, "big")["source"], "cache");
        assert_eq!(of(&second, "big")["bytes"], 3_000_000);
        assert_eq!(counts(&done), [4, 2, 0, 2], "{done}");
        assert_eq!((up.count("GET", "/big"), up.count("GET", "/a%20b?x=1")), (1, 1));
        proxy.fetch("files", "big").await.is("cache", big.whole());
    });
}

#[test]
fn the_policy_is_that_of_every_client() {
    run(async {
        let (up, proxy) = files("immutable_patterns: ['\\.zip$']\n  quarantine_new: true\n  quarantine_days: 3").await;
        up.file("/new.zip", File::new("new").modified(SystemTime::now()));
        up.file(
            "/old.zip",
            File::new("old").modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)),
        );
        up.reply("/refused.txt", Reply::ok("x"));
        let paths = ["new.zip", "old.zip", "refused.txt", "a/../b.zip"];
        let artifacts: Vec<Value> = paths
            .iter()
            .map(|path| json!({"remote": "files", "path": path}))
            .collect();
        let (told, done) = cache(&proxy, json!(artifacts)).await;
        assert_eq!((&done["fetched"], &done["failed"]), (&json!(1), &json!(3)), "{told:#?}");
        assert_eq!(of(&told, "new.zip")["status"], 404);
        assert!(
            of(&told, "new.zip")["error"].as_str().unwrap().contains("quarantine"),
            "{told:#?}"
        );
        assert_eq!(of(&told, "refused.txt")["status"], 403);
        assert!(
            of(&told, "refused.txt")["error"]
                .as_str()
                .unwrap()
                .contains("no pattern")
        );
        assert_eq!(of(&told, "a/../b.zip")["status"], 400);
        assert_eq!(up.count("GET", "/refused.txt"), 0);
    });
}

#[test]
fn only_who_may_write_may_have_artifacts_cached() {
    run(async {
        let up = Upstream::start().await;
        up.reply("/a", Reply::ok("a"));
        let remotes = format!("files:\n  base_url: {}\n", up.base());
        let proxy = Proxy::settings()
            .remotes(&remotes)
            .env("ARTIFACTAPI_ADMIN_TOKEN", "secret")
            .start()
            .await;
        let body = json!({"artifacts": [{"remote": "files", "path": "a"}]});
        post(&proxy, &[], &body).await.expect(401);
        post(&proxy, &[("Authorization", "Bearer wrong")], &body)
            .await
            .expect(401);
        assert_eq!(up.total(), 0);
        let answer = post(&proxy, &[("Authorization", "Bearer secret")], &body).await.ok();
        assert_eq!(lines(&answer.text())[1]["fetched"], 1);
        // Without a token: programs of this machine, and no website through a browser.
        let open = Proxy::start(&remotes).await;
        post(&open, &[("Origin", "http://elsewhere.test")], &body)
            .await
            .expect(401);
        post(&open, &[("X-Forwarded-For", "192.0.2.1")], &body)
            .await
            .expect(401);
        post(&open, &[], &body).await.ok();
    });
}

#[test]
fn what_cannot_be_meant_is_named_and_nothing_is_fetched() {
    run(async {
        let up = Upstream::start().await;
        let base = up.base();
        let proxy = Proxy::start(&format!(
            "files:\n  base_url: {base}\npypi:\n  base_url: {base}\n  package: pypi\nnpm:\n  base_url: {base}\n  package: npm\n  \
             mutable_patterns: ['^(?!.*\\.tgz$).*']\n"
        ))
        .await;
        let one = |entry: Value| json!({"artifacts": [entry]}).to_string();
        for (body, says) in [
            ("".to_owned(), "the body is not"),
            ("[]".to_owned(), "the body is not"),
            (
                json!({"artifacts": [], "paralel": 1}).to_string(),
                "unknown field `paralel`",
            ),
            (json!({"artifacts": [], "parallel": 33}).to_string(), "`parallel`"),
            (one(json!({"path": "a"})), "`artifacts[0]`: `remote` is missing"),
            (one(json!({"remote": "other", "path": "a"})), "there is no remote"),
            (one(json!({"remote": "files"})), "which artifact?"),
            (
                one(json!({"remote": "files", "path": "a", "x": 1})),
                "`x` is no field here",
            ),
            (
                one(json!({"remote": "files", "image": "a"})),
                "`image` is no field here; of a remote of package generic",
            ),
            (
                one(json!({"remote": "npm", "requirements": "six"})),
                "named by `path`, `package_lock`",
            ),
            (
                one(json!({"remote": "pypi", "requirements": "six\n-r b.txt"})),
                "line 2: -r names another file",
            ),
            (
                one(json!({"remote": "pypi", "requirements": "six", "lock": "x"})),
                "give one of",
            ),
        ] {
            let answer = proxy.request("POST", BULK, &[], body.as_bytes()).await.expect(400);
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(says), "{body}: {detail}");
        }
        assert_eq!(up.total(), 0);
        let nothing = post(&proxy, &[], &json!({"artifacts": []})).await.ok().json();
        assert_eq!(
            nothing,
            json!({"done": true, "total": 0, "cached": 0, "fetched": 0, "failed": 0, "bytes": 0})
        );
        let allow = proxy.request("PUT", BULK, &[], b"").await.expect(405);
        assert!(allow.text().contains("POST"), "{}", allow.text());
        let long = format!("{{\"artifacts\": [], \"x\": \"{}\"}}", "x".repeat(17 << 20));
        let mut connection = proxy.connect().await;
        connection
            .write_raw(
                format!(
                    "POST {BULK} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                    long.len()
                )
                .as_bytes(),
            )
            .await;
        connection.send_as_far_as_taken(long.as_bytes()).await;
        connection.response("POST").await.expect(413);
    });
}

/// Sends a list and gives the connection, from which its answer is to be read.
async fn begin(proxy: &Proxy, paths: &[&str], parallel: usize) -> Connection {
    let artifacts: Vec<Value> = paths
        .iter()
        .map(|path| json!({"remote": "files", "path": path}))
        .collect();
    let body = json!({"artifacts": artifacts, "parallel": parallel}).to_string();
    let mut connection = proxy.connect().await;
    connection.send("POST", BULK, &[], body.as_bytes()).await;
    connection
}

#[test]
fn an_artifact_is_told_as_it_ends_and_so_many_are_fetched_at_once() {
    run(async {
        let (up, proxy) = files("").await;
        let gates = [Gate::new(), Gate::new(), Gate::new(), Gate::new()];
        for (number, gate) in gates.iter().enumerate() {
            up.reply(
                &format!("/{number}"),
                Reply::ok(Pattern::new(3, 1000)).pause_at(500, gate),
            );
        }
        let mut connection = begin(&proxy, &["0", "1", "2", "3"], 2).await;
        assert!(
            connection
                .read_head("POST")
                .await
                .must("content-type")
                .contains("ndjson")
        );
        up.wait_in_flight(2).await;
        assert_eq!(up.total(), 2);
        gates[1].open();
        let line: Value = serde_json::from_slice(&connection.read_body_chunk().await.unwrap()).unwrap();
        assert_eq!((&line["path"], &line["bytes"]), (&json!("1"), &json!(1000)));
        up.wait_for("GET", "/2", 1).await;
        up.wait_in_flight(2).await;
        assert_eq!(up.total(), 3);
        gates.iter().for_each(Gate::open);
        let rest = lines(std::str::from_utf8(&connection.read_body().await).unwrap());
        assert_eq!(rest.len(), 4);
        assert_eq!(rest[3]["fetched"], 4);
    });
}

#[test]
fn http_2_is_told_likewise() {
    run(async {
        let (up, proxy) = files("").await;
        up.reply("/a", Reply::ok("a"));
        let body = json!({"artifacts": [{"remote": "files", "path": "a"}]}).to_string();
        let mut connection = H2Connection::open(proxy.address()).await;
        let answer = connection.send("POST", BULK, &[], body.as_bytes()).await.ok();
        assert!(answer.complete);
        assert_eq!(lines(&answer.text())[1]["fetched"], 1);
    });
}

#[test]
fn nothing_more_is_fetched_for_who_has_left() {
    run(async {
        let (up, proxy) = files("").await;
        let gate = Gate::new();
        up.reply("/0", Reply::ok(Pattern::new(3, 1000)).pause_at(500, &gate));
        up.reply("/1", Reply::ok("1"));
        let mut connection = begin(&proxy, &["0", "1"], 1).await;
        connection.read_head("POST").await;
        up.wait_in_flight(1).await;
        drop(connection);
        proxy.wait_for_log("has left").await;
        gate.open();
        // What had begun ends, as it does for every client that leaves.
        proxy.until_cached("files", "0").await;
        assert_eq!(up.count("GET", "/1"), 0);
    });
}

#[test]
fn an_instance_that_stops_finishes_what_it_has_begun_and_says_so_of_the_rest() {
    run(async {
        let (up, mut proxy) = files("").await;
        let gate = Gate::new();
        up.reply("/0", Reply::ok(Pattern::new(3, 1000)).pause_at(500, &gate));
        up.reply("/1", Reply::ok("1"));
        let mut connection = begin(&proxy, &["0", "1"], 1).await;
        connection.read_head("POST").await;
        up.wait_in_flight(1).await;
        proxy.ask_to_stop();
        proxy.wait_for_log("stopping").await;
        gate.open();
        let told = lines(std::str::from_utf8(&connection.read_body().await).unwrap());
        assert_eq!(told[0]["error"], Value::Null, "{told:?}");
        assert!(told[1]["error"].as_str().unwrap().contains("stopping"), "{told:?}");
        assert_eq!((&told[2]["fetched"], &told[2]["failed"]), (&json!(1), &json!(1)));
        assert!(proxy.ended(Duration::from_secs(20)).await.success());
        assert_eq!(up.count("GET", "/1"), 0);
    });
}

#[test]
fn an_image_is_pulled_after_its_registry_is_gone() {
    run(async {
        let image = Manifest::two_platforms("app");
        let registry = Registry::with("team/app", "1.0", &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        let arm = image.of("arm64");
        let only = cached(
            &proxy,
            json!([{"remote": "hub", "image": "team/app:1.0", "platforms": ["linux/arm64"]}]),
        )
        .await;
        // The index, one manifest, and its blobs.
        assert_eq!(only.len(), 2 + arm.blobs.len(), "{only:?}");
        let amd = &image.of("amd64").blobs[0];
        assert_eq!(
            registry.count("GET", &crate::common::registry::blob_at("team/app", &amd.digest)),
            0
        );
        let (told, done) = cache(
            &proxy,
            json!([{"remote": "hub", "image": "team/app:1.0", "platforms": ["windows/amd64"]}]),
        )
        .await;
        assert_eq!(done["failed"], 1, "{told:?}");
        assert!(
            told[0]["error"].as_str().unwrap().contains("nothing for windows/amd64"),
            "{told:?}"
        );
        cached(&proxy, json!([{"remote": "hub", "image": "team/app:1.0"}])).await;
        registry.switch_off().await;
        pull(&proxy, "hub/team/app", "1.0", &image).await;
    });
}

#[test]
fn pip_installs_after_the_index_is_gone() {
    run_for(Duration::from_secs(180), async {
        for form in [IndexForm::Both, IndexForm::Html] {
            let up = Upstream::start().await;
            let wheels = [
                Wheel::new("Demo.App", "1.0", &["demo_lib>=1"], 3000),
                Wheel::new("Demo.App", "1.1", &["demo_lib>=1.5"], 3000),
                Wheel::new("demo-lib", "1.5", &[], 1000),
            ];
            serve_pypi(&up, &up, form, &wheels);
            let proxy = Proxy::start(&format!("pypi:\n  base_url: {}\n  package: pypi\n", up.base())).await;
            let requirements = "demo-app  # the newest\ndemo_lib == 1.5 ; python_version >= '3'\n";
            let paths = cached(&proxy, json!([{"remote": "pypi", "requirements": requirements}])).await;
            for path in ["simple/demo-app/", "simple/demo-lib/", &wheels[1].path()[1..]] {
                assert!(paths.iter().any(|cached| cached == path), "{path}: {paths:?}");
            }
            assert!(!paths.iter().any(|path| path.contains("-1.0-")), "{paths:?}");
            up.switch_off().await;
            let home = Home::new();
            home.write("requirements.txt", requirements);
            let mut pip = home.command(tool("venv/bin/python"));
            pip.args([
                "-m",
                "pip",
                "install",
                "--no-cache-dir",
                "--disable-pip-version-check",
                "--retries",
                "0",
            ])
            .args([
                "--target",
                "to",
                "-r",
                "requirements.txt",
                "--index-url",
                &proxy.url("pypi", "simple"),
            ]);
            home.run(pip).await.ok();
            assert_eq!(home.read("to/demo_app/__init__.py"), "__version__ = \"1.1\"\n");
            assert_eq!(home.read("to/demo_lib/__init__.py"), "__version__ = \"1.5\"\n");
        }
    });
}

#[test]
fn a_python_lock_names_versions_and_files() {
    run(async {
        let up = Upstream::start().await;
        let wheels = [Wheel::new("demo", "1.0", &[], 100), Wheel::new("demo", "2.0", &[], 100)];
        serve_pypi(&up, &up, IndexForm::Both, &wheels);
        let proxy = Proxy::start(&format!("pypi:\n  base_url: {}\n  package: pypi\n", up.base())).await;
        let lock = format!(
            "version = 1\n[[package]]\nname = \"demo\"\nversion = \"1.0\"\nsource = {{ registry = \"https://index.test/simple\" }}\n\
             wheels = [{{ url = \"https://files.test/x/{}\" }}]\n[[package]]\nname = \"forked\"\nversion = \"1\"\n\
             source = {{ git = \"https://host.test/forked\" }}\n",
            wheels[0].file
        );
        let (told, done) = cache(&proxy, json!([{"remote": "pypi", "lock": lock}])).await;
        let path = &wheels[0].path()[1..];
        assert_eq!(of(&told, path)["source"], "remote");
        of(&told, &format!("{path}.metadata"));
        let forked = of(&told, "forked");
        assert_eq!(
            (&forked["status"], &done["failed"]),
            (&Value::Null, &json!(1)),
            "{told:?}"
        );
        assert!(
            forked["error"].as_str().unwrap().contains("repository or a URL"),
            "{forked}"
        );
        let (told, _) = cache(&proxy, json!([{"remote": "pypi", "requirements": "demo>2\nabsent"}])).await;
        let error = |path: &str| of(&told, path)["error"].as_str().unwrap().to_owned();
        assert!(
            error("simple/demo/").contains("no release of demo that is >2"),
            "{told:?}"
        );
        assert_eq!(of(&told, "simple/absent/")["status"], 404);
    });
}

#[test]
fn npm_ci_works_after_the_registry_is_gone() {
    run_for(Duration::from_secs(180), async {
        let up = Upstream::start().await;
        let versions = [
            NpmVersion::new("plain", "1.1.0", json!({"@scope/inner": "^2.0.0"})),
            NpmVersion::new("@scope/inner", "2.0.0", json!({})),
        ];
        serve_npm(&up, &up, &versions);
        let proxy = Proxy::start(&format!(
            "npm:\n  base_url: {}\n  package: npm\n  immutable_patterns: ['\\.tgz$']\n  mutable_patterns: ['^(?!.*\\.tgz$).*']\n",
            up.base()
        ))
        .await;
        let package = json!({"name": "project", "version": "1.0.0", "dependencies": {"plain": "^1.0.0"}});
        let mut packages = json!({"": package});
        for version in &versions {
            packages[format!("node_modules/{}", version.name)] = json!({
                "version": version.version,
                "resolved": format!("https://registry.test{}", version.path()),
                "integrity": version.integrity(),
                "dependencies": version.dependencies,
            });
        }
        // One that says nothing of where it was found.
        packages["node_modules/@scope/inner"]
            .as_object_mut()
            .unwrap()
            .remove("resolved");
        let lock = json!({"name": "project", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": packages});
        let paths = cached(&proxy, json!([{"remote": "npm", "package_lock": lock}])).await;
        assert_eq!(
            paths,
            [
                "@scope/inner",
                "@scope/inner/-/inner-2.0.0.tgz",
                "plain/-/plain-1.1.0.tgz"
            ]
        );
        let all = json!([{"remote": "npm", "package_lock": lock, "packuments": true}]);
        assert!(cached(&proxy, all).await.contains(&"plain".to_owned()));
        up.switch_off().await;
        let home = Home::new();
        home.write("package.json", &package.to_string());
        home.write("package-lock.json", &lock.to_string());
        home.write(
            ".npmrc",
            &format!(
                "registry={}/api/v1/remote/npm/\nreplace-registry-host=always\naudit=false\nfund=false\nupdate-notifier=false\n\
                 fetch-retries=0\n",
                proxy.base()
            ),
        );
        let mut npm = home.command(tool("node/bin/npm"));
        npm.arg("ci");
        home.run(npm).await.ok();
        for version in &versions {
            let installed = home.read(&format!("node_modules/{}/package.json", version.name));
            let installed: Value = serde_json::from_str(&installed).unwrap();
            assert_eq!(installed["version"], version.version);
        }
    });
}

#[test]
fn helm_pulls_after_the_repository_is_gone() {
    run_for(Duration::from_secs(180), async {
        let (up, other) = (Upstream::start().await, Upstream::start().await);
        let charts = [Chart::new("near", "1.2.3"), Chart::new("far", "2.0.0")];
        up.file("/charts/near-1.2.3.tgz", File::new(charts[0].bytes.clone()));
        up.file("/charts/near-1.2.3.tgz.prov", File::new("signed"));
        other.file("/dl/far-2.0.0.tgz", File::new(charts[1].bytes.clone()));
        let index = helm_index(&[
            charts[0].entry(&["near-1.2.3.tgz"]),
            charts[1].entry(&[&other.url("/dl/far-2.0.0.tgz")]),
        ]);
        up.file("/charts/index.yaml", File::new(index).content_type("text/yaml"));
        let proxy = Proxy::start(&format!("charts:\n  base_url: {}/charts\n  package: helm\n", up.base())).await;
        let paths = cached(
            &proxy,
            json!([
                {"remote": "charts", "chart": "near", "version": "^1.0", "provenance": true},
                {"remote": "charts", "chart": "far"},
            ]),
        )
        .await;
        // The index is told once, though both are found in it.
        assert_eq!(
            paths.iter().filter(|path| *path == "index.yaml").count(),
            1,
            "{paths:?}"
        );
        assert!(paths.contains(&"near-1.2.3.tgz.prov".to_owned()), "{paths:?}");
        let (told, _) = cache(&proxy, json!([{"remote": "charts", "chart": "near", "version": ">2"}])).await;
        assert!(
            told[0]["error"]
                .as_str()
                .unwrap()
                .contains("no version of the chart near"),
            "{told:?}"
        );
        up.switch_off().await;
        other.switch_off().await;
        let home = Home::new();
        let url = format!("{}/api/v1/remote/charts", proxy.base());
        for args in [
            &["repo", "add", "test", &url][..],
            &["pull", "test/near", "--version", "1.2.3"],
            &["pull", "test/far"],
        ] {
            let mut helm = home.command(tool("go/bin/helm"));
            helm.args(args);
            home.run(helm).await.ok();
        }
        for chart in &charts {
            assert_eq!(std::fs::read(home.work().join(chart.file())).unwrap(), chart.bytes);
        }
    });
}
