//! What people can do about what is held back: let one artifact through, ask why, and see who wanted what.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::common::packages::{IndexForm, SIMPLE_JSON, Wheel, rfc3339, serve_pypi};
use crate::common::postgres::Postgres;
use crate::common::server::{Ended, run_binary};
use crate::common::{File, Proxy, Response, Upstream, eventually, run};

const DAY: u64 = 24 * 3600;
const LIMIT: Duration = Duration::from_secs(20);
const HELD: &str = "quarantine_new: true\n  quarantine_days: 3";
const RELEASE: &str = "/api/v1/quarantine/release";

fn published(days_ago: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(days_ago * DAY)
}

/// When a wheel is due: three days after it was published.
fn due(wheel: &Wheel) -> String {
    let published = time::OffsetDateTime::parse(&wheel.published, &Rfc3339).expect("a date");
    rfc3339((published + Duration::from_secs(3 * DAY)).into())
}

async fn ask(proxy: &Proxy, method: &str, target: &str, headers: &[(&str, &str)], body: &Value) -> Response {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    proxy.request(method, target, headers, body.as_bytes()).await
}

async fn release(proxy: &Proxy, remote: &str, path: &str, reason: &str) -> Response {
    let body = json!({"remote": remote, "path": path, "reason": reason});
    ask(proxy, "POST", RELEASE, &[], &body).await
}

async fn get(proxy: &Proxy, target: &str) -> Value {
    ask(proxy, "GET", target, &[], &Value::Null).await.ok().json()
}

async fn explain(proxy: &Proxy, remote: &str, path: &str) -> Value {
    get(
        proxy,
        &format!("/api/v1/quarantine/explain?remote={remote}&path={path}"),
    )
    .await
}

/// Two releases of a project, the newer one a day old.
async fn wheels() -> (Upstream, [Wheel; 2], String) {
    let up = Upstream::start().await;
    let old = Wheel::new("demo", "1.0", &[], 100);
    let new = Wheel::new("demo", "2.0", &[], 100).published(published(1));
    serve_pypi(&up, &up, IndexForm::Both, &[old.clone(), new.clone()]);
    let remotes = format!("pypi:\n  base_url: {}\n  package: pypi\n  {HELD}\n", up.base());
    (up, [old, new], remotes)
}

/// Whether the index names the file, in all of its forms.
async fn is_in_the_index(proxy: &Proxy, wheel: &Wheel) -> bool {
    let mut seen = Vec::new();
    for accept in [SIMPLE_JSON, "text/html"] {
        for _ in 0..2 {
            let answer = proxy
                .fetch_with("pypi", "simple/demo/", &[("Accept", accept)])
                .await
                .ok();
            seen.push(answer.text().contains(&wheel.file));
        }
    }
    assert!(seen.iter().all(|there| *there == seen[0]), "{seen:?}");
    seen[0]
}

/// The file and its metadata are served, or neither is.
async fn is_served(proxy: &Proxy, wheel: &Wheel) -> bool {
    let path = &wheel.path()[1..];
    let mut statuses = Vec::new();
    for path in [path.to_owned(), format!("{path}.metadata")] {
        statuses.push(proxy.fetch("pypi", &path).await.status);
        statuses.push(proxy.head("pypi", &path).await.status);
    }
    assert!(statuses.iter().all(|status| *status == statuses[0]), "{statuses:?}");
    statuses[0] == 200
}

#[test]
fn what_is_released_is_served_and_named_at_once_until_it_is_taken_back() {
    run(async {
        let (up, [old, new], remotes) = wheels().await;
        let mut proxy = Proxy::start(&remotes).await;
        assert!(!is_in_the_index(&proxy, &new).await);
        assert!(!is_served(&proxy, &new).await);
        assert!(is_served(&proxy, &old).await);
        // Another spelling of the path.
        let path = new.path()[1..].replace('/', "//").replacen("demo", "%64emo", 1);
        let answer = release(&proxy, "pypi", &path, "read by ops").await.expect(201).json();
        assert_eq!(answer["path"], new.path()[1..]);
        assert_eq!(
            (&answer["reason"], &answer["by"]),
            (&json!("read by ops"), &json!("127.0.0.1"))
        );
        assert!(is_in_the_index(&proxy, &new).await);
        assert!(is_served(&proxy, &new).await);
        proxy.restart().await;
        assert!(is_in_the_index(&proxy, &new).await);
        assert!(is_served(&proxy, &new).await);
        let released = get(&proxy, "/api/v1/quarantine/released").await;
        assert_eq!(released["released"].as_array().unwrap().len(), 1);
        assert_eq!(released["released"][0], answer);
        // A second reason takes the place of the first.
        release(&proxy, "pypi", &new.path(), "read again").await.expect(201);
        let said = explain(&proxy, "pypi", &new.path()).await;
        assert_eq!(
            (&said["verdict"], &said["rule"]),
            (&json!("served"), &json!("released"))
        );
        assert_eq!(said["released"]["reason"], "read again");
        let body = json!({"remote": "pypi", "path": path});
        let removed = ask(&proxy, "DELETE", RELEASE, &[], &body).await.ok().json();
        assert_eq!(removed["removed"][0]["reason"], "read again");
        assert!(!is_in_the_index(&proxy, &new).await);
        assert!(!is_served(&proxy, &new).await);
        assert_eq!(
            get(&proxy, "/api/v1/quarantine/released").await,
            json!({"released": []})
        );
        proxy.restart().await;
        assert!(!is_served(&proxy, &new).await);
        // The same set of releases again finds the same documents again.
        release(&proxy, "pypi", &format!("{}.metadata", new.path()), "by its metadata")
            .await
            .expect(201);
        assert!(is_in_the_index(&proxy, &new).await);
        assert!(is_served(&proxy, &new).await);
        let query = format!("{RELEASE}?remote=pypi&path={}", new.path());
        ask(&proxy, "DELETE", &query, &[], &Value::Null).await.ok();
        assert!(!is_in_the_index(&proxy, &new).await);
        assert!(!is_served(&proxy, &new).await);
        assert_eq!(up.count("GET", "/simple/demo/"), 1);
    });
}

#[test]
fn only_who_may_flush_may_release_and_see_addresses() {
    run(async {
        let (_up, [_, new], remotes) = wheels().await;
        let proxy = Proxy::start(&remotes).await;
        let body = json!({"remote": "pypi", "path": new.path(), "reason": "mine"});
        for method in ["POST", "DELETE"] {
            for header in [
                ("Via", "1.1 other"),
                ("Host", "rebound.test"),
                ("X-Forwarded-For", "10.0.0.1"),
            ] {
                ask(&proxy, method, RELEASE, &[header], &body).await.expect(401);
            }
        }
        assert!(!is_served(&proxy, &new).await);
        let token = [("Authorization", "Bearer geheim")];
        let guarded = Proxy::settings()
            .remotes(&remotes)
            .env("ARTIFACTAPI_ADMIN_TOKEN", "geheim");
        let guarded = guarded.start().await;
        ask(&guarded, "POST", RELEASE, &[], &body).await.expect(401);
        assert!(!is_served(&guarded, &new).await);
        let report = get(&guarded, "/api/v1/quarantine").await;
        assert_eq!(report["artifacts"][0]["clients"], Value::Null);
        let report = ask(&guarded, "GET", "/api/v1/quarantine", &token, &Value::Null).await;
        assert_eq!(report.ok().json()["artifacts"][0]["clients"], json!(["127.0.0.1"]));
        ask(&guarded, "POST", RELEASE, &token, &body).await.expect(201);
        assert!(is_served(&guarded, &new).await);
        let path = new.path();
        assert_eq!(explain(&guarded, "pypi", &path).await["released"]["by"], Value::Null);
        ask(&guarded, "DELETE", RELEASE, &[], &body).await.expect(401);
        assert!(is_served(&guarded, &new).await);
    });
}

#[test]
fn what_cannot_be_released_is_said() {
    run(async {
        let (up, [_, new], remotes) = wheels().await;
        let remotes = format!("{remotes}free:\n  base_url: {}\n", up.base());
        let proxy = Proxy::start(&remotes).await;
        let path = new.path();
        for (remote, path, reason, status) in [
            ("nowhere", path.as_str(), "why", 404),
            ("pypi", "a/../b", "why", 400),
            ("pypi", "a%zz", "why", 400),
            ("pypi", "simple/demo/", "why", 409),
            ("free", "any", "why", 409),
            ("pypi", &path, "", 400),
            ("pypi", &path, " \n", 400),
            ("pypi", &path, &"long".repeat(300), 400),
        ] {
            let refused = release(&proxy, remote, path, reason).await.expect(status);
            assert!(refused.json()["detail"].is_string(), "{}", refused.text());
        }
        for body in [
            json!({"remote": "pypi"}),
            json!([]),
            json!({"remote": 1}),
            json!({"other": "a"}),
        ] {
            ask(&proxy, "POST", RELEASE, &[], &body).await.expect(400);
        }
        let body = json!({"remote": "pypi", "path": path});
        ask(&proxy, "DELETE", RELEASE, &[], &body).await.expect(404);
        let refused = ask(&proxy, "GET", RELEASE, &[], &Value::Null).await.expect(405);
        assert!(
            refused
                .headers
                .contains(&("allow".to_owned(), "POST, DELETE".to_owned()))
        );
        for query in [
            "",
            "remote=pypi",
            "remote=pypi&path=a&path=b",
            "remote=pypi&path=%FF",
            "other=1",
        ] {
            let target = format!("/api/v1/quarantine/explain?{query}");
            ask(&proxy, "GET", &target, &[], &Value::Null).await.expect(400);
        }
        let target = "/api/v1/quarantine?limit=0";
        ask(&proxy, "GET", target, &[], &Value::Null).await.expect(400);
        let target = "/api/v1/quarantine?remote=nowhere";
        ask(&proxy, "GET", target, &[], &Value::Null).await.expect(404);
        assert_eq!(
            get(&proxy, "/api/v1/quarantine/released").await,
            json!({"released": []})
        );
    });
}

#[test]
fn each_rule_is_explained() {
    run(async {
        let up = Upstream::start().await;
        let wheel = |name: &str, days| Wheel::new(name, "1.0", &[], 10).published(published(days));
        let (young, old) = (wheel("young", 1), wheel("old", 9));
        let (free, slow, exempt) = (wheel("free", 1), wheel("slow", 9), wheel("exempt", 1));
        let due = due(&young);
        let all = [young, old, free, slow, exempt];
        serve_pypi(&up, &up, IndexForm::Both, &all);
        let new = published(1);
        for path in ["/new.tar", "/other.tar"] {
            up.file(path, File::new("new").modified(new));
        }
        up.file("/undated.tar", File::new("undated"));
        let files = |name: &str, keys: &str| format!("{name}:\n  base_url: {}\n  {keys}\n", up.base());
        let mut remotes = files(
            "pypi",
            &format!(
                "package: pypi\n  {HELD}\n  quarantine_overrides: {{free: 0, 'slo*': 30}}\n  \
                 quarantine_exemptions: [{{package: exempt, until: 2099-01-01, reason: ours}}]"
            ),
        );
        remotes += &files(
            "files",
            &format!("{HELD}\n  mutable_patterns: ['^live/']\n  immutable_patterns: ['tar$']"),
        );
        remotes += &files("strict", &format!("{HELD}\n  quarantine_missing_date: deny"));
        remotes += &files("watched", &format!("{HELD}\n  quarantine_mode: observe"));
        remotes += &files("frozen", "freeze: 2020-01-01");
        remotes += &files("open", "description: open");
        let proxy = Proxy::start(&remotes).await;
        let [young, old, free, slow, exempt] = all.map(|wheel| wheel.path());
        for (path, verdict, rule) in [
            (&young, "held", "days"),
            (&old, "served", "days"),
            (&free, "served", "override"),
            (&slow, "held", "override"),
            (&exempt, "served", "exemption"),
        ] {
            let said = explain(&proxy, "pypi", path).await;
            assert_eq!(
                (&said["verdict"], &said["rule"]),
                (&json!(verdict), &json!(rule)),
                "{said}"
            );
            assert_eq!(
                (&said["stored"], &said["path"]),
                (&json!(false), &json!(path[1..])),
                "{said}"
            );
        }
        let said = explain(&proxy, "pypi", "simple/young/").await;
        assert_eq!(
            (&said["verdict"], &said["rule"]),
            (&json!("served"), &json!("index")),
            "{said}"
        );
        let said = explain(&proxy, "pypi", &young).await;
        assert_eq!(said["published_by"], "index simple/young/");
        assert_eq!(said["until"], due);
        assert_eq!((&said["package"], &said["version"]), (&json!("young"), &json!("1.0")));
        assert_eq!(said["period_days"], 3);
        let said = explain(&proxy, "pypi", &slow).await;
        assert_eq!((&said["override"], &said["period_days"]), (&json!("slo*"), &json!(30)));
        let said = explain(&proxy, "pypi", &exempt).await;
        assert_eq!(
            (&said["reason"], &said["until"]),
            (&json!("ours"), &json!("2099-01-01T00:00:00Z"))
        );
        // Nobody was asked for the files.
        assert_eq!(up.count("GET", &young), 0);
        for (remote, path, verdict, rule) in [
            ("files", "live/a", "served", "mutable"),
            ("files", "none.zip", "refused", "patterns"),
            ("files", "new.tar", "unknown", "missing_date"),
            ("strict", "undated.tar", "unknown", "missing_date"),
            ("frozen", "new.tar", "unknown", "missing_date"),
            ("open", "new.tar", "served", "off"),
        ] {
            let said = explain(&proxy, remote, path).await;
            assert_eq!(
                (&said["verdict"], &said["rule"]),
                (&json!(verdict), &json!(rule)),
                "{said}"
            );
        }
        assert_eq!((up.count("GET", "/new.tar"), up.count("HEAD", "/new.tar")), (0, 0));
        for (remote, path, verdict, rule) in [
            ("files", "new.tar", "held", "days"),
            ("files", "undated.tar", "served", "missing_date"),
            ("strict", "undated.tar", "held", "missing_date"),
            ("watched", "new.tar", "observed", "days"),
            ("frozen", "other.tar", "held", "freeze"),
        ] {
            let status = if verdict == "held" { 404 } else { 200 };
            proxy.fetch(remote, path).await.expect(status);
            let said = explain(&proxy, remote, path).await;
            assert_eq!(
                (&said["verdict"], &said["rule"]),
                (&json!(verdict), &json!(rule)),
                "{said}"
            );
        }
        let said = explain(&proxy, "files", "new.tar").await;
        assert_eq!(said["published_by"], "Last-Modified");
        assert_eq!((&said["stored"], &said["class"]), (&json!(true), &json!("immutable")));
        assert_eq!(
            proxy
                .metric("artifactapi_quarantine_observed_total", &["watched"])
                .await,
            1.0
        );
        assert_eq!(proxy.metric("artifactapi_quarantined_total", &["watched"]).await, 0.0);
        assert_eq!(proxy.metric("artifactapi_quarantined_total", &["strict"]).await, 1.0);
    });
}

/// The line of `path` in one of the report's lists.
#[track_caller]
fn line<'a>(report: &'a Value, list: &str, path: &str) -> &'a Value {
    let lines = report[list].as_array().expect("a list");
    let found = lines.iter().find(|line| line["path"] == path);
    found.unwrap_or_else(|| panic!("{path} is not in {report:#}"))
}

#[test]
fn the_report_says_what_is_held_and_who_asked_for_it() {
    run(async {
        let (up, [old, new], mut remotes) = wheels().await;
        up.file("/asked.tar", File::new("asked").modified(published(1)))
            .file("/stored.tar", File::new("stored").modified(published(1)))
            .file("/old.tar", File::new("old").modified(published(9)))
            .file("/undated.tar", File::new("undated"));
        for (name, mode) in [("files", "enforce"), ("watched", "observe")] {
            remotes += &format!(
                "{name}:\n  base_url: {}\n  {HELD}\n  quarantine_mode: {mode}\n",
                up.base()
            );
        }
        let data = tempfile::tempdir().unwrap();
        let settings = Proxy::settings().data_dir(data.path());
        let free = remotes.replace("quarantine_new: true", "quarantine_new: false");
        let mut proxy = settings.clone().remotes(&free).start().await;
        for path in ["stored.tar", "old.tar", "undated.tar"] {
            proxy.fetch("files", path).await.ok();
            proxy.until_cached("files", path).await;
        }
        let wheel = old.path();
        proxy.fetch("pypi", &wheel).await.ok();
        proxy.stop().await;
        let proxy = settings.remotes(&remotes).start().await;
        for number in 0..10 {
            let client = format!("192.0.2.{number}");
            let from = [("X-Forwarded-For", client.as_str())];
            proxy.fetch_with("pypi", &new.path(), &from).await.expect(404);
        }
        proxy.fetch("pypi", &new.path()).await.expect(404);
        proxy.fetch("watched", "asked.tar").await.ok();
        let report = get(&proxy, "/api/v1/quarantine").await;
        assert_eq!(report["truncated"], false, "{report:#}");
        let asked = line(&report, "artifacts", &new.path()[1..]);
        assert_eq!(
            (&asked["asked"], &asked["mode"], &asked["rule"]),
            (&json!(11), &json!("held"), &json!("days"))
        );
        assert_eq!((&asked["package"], &asked["version"]), (&json!("demo"), &json!("2.0")));
        assert_eq!(
            (&asked["published"], &asked["due"]),
            (&json!(new.published), &json!(due(&new)))
        );
        assert_eq!(asked["period_days"], 3);
        assert_eq!(asked["stored"], true);
        assert!(asked["last_asked"].is_string());
        let clients = asked["clients"].as_array().unwrap();
        assert_eq!((clients.len(), &clients[0]), (8, &json!("192.0.2.0")));
        let watched = line(&report, "artifacts", "asked.tar");
        assert_eq!((&watched["mode"], &watched["asked"]), (&json!("observed"), &json!(1)));
        assert_eq!(watched["clients"], json!(["127.0.0.1"]));
        let stored = line(&report, "artifacts", "stored.tar");
        assert_eq!((&stored["stored"], &stored["asked"]), (&json!(true), &json!(0)));
        let undated = line(&report, "undated", "undated.tar");
        assert_eq!((&undated["mode"], &undated["stored"]), (&json!("served"), &json!(true)));
        let paths = |report: &Value| {
            let lines = report["artifacts"].as_array().unwrap().iter();
            lines
                .map(|line| line["path"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        // Neither what is old enough nor what is let through is held.
        assert_eq!(paths(&report), ["stored.tar", &new.path()[1..], "asked.tar"]);
        let report = get(&proxy, "/api/v1/quarantine?remote=pypi").await;
        assert_eq!(paths(&report), [&new.path()[1..]]);
        let report = get(&proxy, "/api/v1/quarantine?limit=1").await;
        assert_eq!(report["truncated"], true);
        release(&proxy, "pypi", &new.path(), "seen").await.expect(201);
        let report = get(&proxy, "/api/v1/quarantine?remote=pypi").await;
        assert_eq!(report["artifacts"], json!([]));
    });
}

/// `artifactapi quarantine` with these arguments.
fn command(proxy: &Proxy, env: &[(&str, &str)], args: &[&str]) -> Ended {
    let base = proxy.base();
    let args: Vec<&str> = ["quarantine", "--url", &base]
        .into_iter()
        .chain(args.iter().copied())
        .collect();
    run_binary(proxy.folder(), env, &args)
}

#[test]
fn the_command_line_asks_a_running_instance() {
    run(async {
        let (_up, [_, new], remotes) = wheels().await;
        let settings = Proxy::settings()
            .remotes(&remotes)
            .env("ARTIFACTAPI_ADMIN_TOKEN", "geheim");
        let proxy = settings.start().await;
        let path = &new.path()[1..];
        let token = [("ARTIFACTAPI_ADMIN_TOKEN", "geheim")];
        let told = |args: &[&str]| command(&proxy, &token, args);
        let ended = told(&[]);
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(0), "nothing is held back\n"),
            "{ended:?}"
        );
        proxy.fetch("pypi", path).await.expect(404);
        let ended = told(&[]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let lines: Vec<Vec<&str>> = ended
            .stdout
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0][..4], ["REMOTE", "PATH", "PUBLISHED", "DUE"]);
        assert_eq!(lines[1][..3], ["pypi", path, &new.published]);
        let ended = told(&["--output", "json"]);
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        assert_eq!(report["artifacts"][0]["clients"], json!(["127.0.0.1"]));
        let ended = told(&["explain", "pypi", path]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stdout.starts_with("verdict       held\n"), "{}", ended.stdout);
        // Refused: without the token.
        let args = ["release", "pypi", path, "--reason", "read by ops"];
        let ended = command(&proxy, &[], &args);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("401"), "{ended:?}");
        let ended = told(&args);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        proxy.fetch("pypi", path).await.ok();
        let ended = told(&["released"]);
        assert!(ended.stdout.contains("read by ops"), "{ended:?}");
        let ended = told(&["unrelease", "pypi", path]);
        assert_eq!(
            (ended.code, ended.stdout),
            (Some(0), format!("held again: pypi {path}\n"))
        );
        proxy.fetch("pypi", path).await.expect(404);
        let ended = told(&["unrelease", "pypi", path]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("it is not let through"), "{ended:?}");
        for usage in [
            &["release", "pypi", path][..],
            &["explain", "pypi"],
            &["--output", "xml"],
            &["unknown"],
        ] {
            assert_eq!(told(usage).code, Some(2), "{usage:?}");
        }
        let url = format!("http://{}", crate::common::refused());
        let ended = run_binary(proxy.folder(), &[], &["quarantine", "--url", &url]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("is not reached"), "{ended:?}");
    });
}

#[test]
fn nodes_that_share_a_database_share_what_is_released() {
    run(async {
        let (_up, [_, new], remotes) = wheels().await;
        let mut server = Postgres::start();
        let settings = Proxy::settings().remotes(&remotes);
        let env = server.env().into_iter();
        let settings = env.fold(settings, |settings, (name, value)| settings.env(name, value));
        let (one, two) = (settings.clone().start().await, settings.start().await);
        for node in [&one, &two] {
            assert!(!is_in_the_index(node, &new).await);
        }
        // Away or not yet there at the start.
        eventually(LIMIT, "the first node lets it through", async || {
            release(&one, "pypi", &new.path(), "for all").await.status == 201
        })
        .await;
        assert!(is_served(&one, &new).await && is_in_the_index(&one, &new).await);
        let path = new.path();
        let status = async |node: &Proxy| node.fetch("pypi", &path).await.status;
        eventually(LIMIT, "the second node lets it through", async || {
            status(&two).await == 200
        })
        .await;
        assert!(is_in_the_index(&two, &new).await);
        server.kill();
        let refused = async || release(&one, "pypi", "other.whl", "in vain").await.status == 503;
        eventually(LIMIT, "the database is away", refused).await;
        // What was known counts on.
        for node in [&one, &two] {
            assert!(is_served(node, &new).await);
        }
        server.launch();
        let body = json!({"remote": "pypi", "path": new.path()});
        eventually(LIMIT, "it is taken back", async || {
            ask(&two, "DELETE", RELEASE, &[], &body).await.status == 200
        })
        .await;
        assert!(!is_served(&two, &new).await);
        eventually(LIMIT, "the first node holds it again", async || {
            status(&one).await == 404
        })
        .await;
        assert!(!is_in_the_index(&one, &new).await);
    });
}
