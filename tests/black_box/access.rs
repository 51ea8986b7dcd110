//! Who may do what: tokens, protected remotes, and how many connections clients may have.

use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::common::client::Headers;
use crate::common::clients::{self, Home, program};
use crate::common::h2client::H2Connection;
use crate::common::image::Manifest;
use crate::common::registry::Registry;
use crate::common::server::{BINARY, at};
use crate::common::{Connection, Proxy, Reply, Response, Upstream, eventually, head, run, run_for, sha256};
use std::time::Duration;

/// An entry of `tokens:` for this secret.
fn entry(secret: &str, rest: &str) -> String {
    format!(
        "- {{name: {secret}, hash: 'sha256:{}', {rest}}}\n",
        sha256(secret.as_bytes())
    )
}

fn tokens() -> String {
    let entries = [
        entry("reader", "scopes: [read]"),
        entry("team", "scopes: [read], remotes: ['team-*']"),
        entry("old", "scopes: [read], expires: 2020-01-01"),
        entry("writer", "scopes: [write]"),
        entry("manager", "scopes: [admin], remotes: [team-a]"),
        entry("admin", "scopes: [admin]"),
    ];
    format!("tokens:\n{}", entries.concat())
}

fn bearer(secret: &str) -> String {
    format!("Bearer {secret}")
}

fn basic(secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("anybody:{secret}")))
}

async fn ask(proxy: &Proxy, method: &str, target: &str, authorization: &str, body: &str) -> Response {
    let headers = [("Authorization", authorization)];
    let headers = if authorization.is_empty() { &[][..] } else { &headers };
    proxy.request(method, target, headers, body.as_bytes()).await
}

/// `open`, `team-a` and `secret`, the last two protected.
async fn guarded() -> (Upstream, Proxy) {
    let up = Upstream::start().await;
    up.fallback(|seen| Reply::ok(format!("bytes of {}", seen.path)));
    let remote = |name: &str, more: &str| format!("{name}:\n  base_url: {}\n{more}", up.base());
    let remotes = remote("open", "")
        + &remote("team-a", "  protected: true\n  hosts: [team.test]\n")
        + &remote("secret", "  protected: true\n");
    let proxy = Proxy::settings().remotes(&remotes).conf(&tokens()).start().await;
    (up, proxy)
}

#[test]
fn a_protected_remote_is_read_with_a_token_that_is_good_for_it() {
    run(async {
        let (up, proxy) = guarded().await;
        let target = at("team-a", "x");
        for shown in [
            bearer("reader"),
            basic("reader"),
            basic("team"),
            bearer("manager"),
            bearer("admin"),
        ] {
            ask(&proxy, "GET", &target, &shown, "").await.ok();
        }
        for (shown, status) in [
            (String::new(), 401),
            (bearer("nobody"), 401),
            (basic("nobody"), 401),
            (basic(""), 401),
            (bearer("old"), 401),
            (bearer("writer"), 403),
        ] {
            for method in ["GET", "HEAD"] {
                let refused = ask(&proxy, method, &target, &shown, "").await.expect(status);
                assert_eq!(refused.header("www-authenticate").is_some(), status == 401, "{shown}");
                assert_eq!(refused.header("cache-control"), Some("no-store"));
            }
        }
        ask(&proxy, "GET", &at("secret", "x"), &bearer("team"), "")
            .await
            .expect(403);
        ask(&proxy, "GET", &at("open", "x"), &bearer("nobody"), "").await.ok();
        // The client's own goes nowhere.
        assert!(up.log().iter().all(|seen| seen.header("authorization").is_none()));
    });
}

#[test]
fn what_is_stored_of_a_protected_remote_is_told_to_nobody_else_in_any_way() {
    run(async {
        let (_up, proxy) = guarded().await;
        let target = at("team-a", "x");
        let token = ("Authorization", bearer("team"));
        let token = (token.0, token.1.as_str());
        eventually(Duration::from_secs(10), "a hit", async || {
            let answer = proxy.fetch_with("team-a", "x", &[token]).await.ok();
            assert!(
                answer.must("cache-control").starts_with("private"),
                "{:?}",
                answer.headers
            );
            answer.source() == "cache"
        })
        .await;
        // On one connection, behind a hit that was allowed.
        let mut connection = proxy.connect().await;
        connection.request("GET", &target, &[token], b"").await.ok();
        let refused = connection.request("GET", &target, &[], b"").await.expect(401);
        assert!(!refused.text().contains("bytes of"));
        connection
            .request("GET", &target, &[token], b"")
            .await
            .is("cache", "bytes of /x");
        for headers in [
            &[("Range", "bytes=0-3")][..],
            &[("If-None-Match", "*")],
            &[("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT")],
            &[("Host", "team.test")],
        ] {
            let target = if headers[0].0 == "Host" { "/x" } else { &target };
            proxy.request("GET", target, headers, b"").await.expect(401);
        }
        assert_eq!(head(proxy.address(), &target).await.status, 401);
        let mut http2 = H2Connection::open(proxy.address()).await;
        assert_eq!(http2.get(&target).await.status, 401);
        let headers = [("authorization", token.1)];
        assert_eq!(http2.request("GET", &target, &headers).await.status, 200);
        // What was open stays public.
        assert!(
            proxy
                .fetch("open", "x")
                .await
                .ok()
                .must("cache-control")
                .starts_with("public")
        );
    });
}

#[test]
fn lists_show_each_reader_what_may_be_read() {
    run(async {
        let (_up, proxy) = guarded().await;
        for remote in ["open", "team-a", "secret"] {
            ask(&proxy, "GET", &at(remote, "x"), &bearer("admin"), "").await.ok();
        }
        eventually(Duration::from_secs(10), "all are listed", async || {
            let listed = ask(&proxy, "GET", "/api/v1/artifacts", &bearer("reader"), "")
                .await
                .ok();
            listed.json()["total"] == 3
        })
        .await;
        for (shown, expected) in [
            (String::new(), &["open"][..]),
            (bearer("nobody"), &["open"]),
            (bearer("writer"), &["open"]),
            (bearer("team"), &["open", "team-a"]),
            (basic("reader"), &["open", "secret", "team-a"]),
            (bearer("admin"), &["open", "secret", "team-a"]),
        ] {
            for query in ["", "?prefix=x", "?glob=x", "?min_size=1"] {
                let target = format!("/api/v1/artifacts{query}");
                let listed = ask(&proxy, "GET", &target, &shown, "").await.ok().json();
                let mut names: Vec<&str> = listed["artifacts"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|artifact| artifact["remote"].as_str().unwrap())
                    .collect();
                names.sort_unstable();
                assert_eq!(names, expected, "{shown} {query}");
                assert_eq!(listed["total"], expected.len(), "{shown} {query}");
            }
            let root = ask(&proxy, "GET", "/", &shown, "").await.ok().json();
            let mut names: Vec<&String> = root["remotes"].as_object().unwrap().keys().collect();
            names.sort_unstable();
            assert_eq!(names, expected, "{shown}");
            let status = if expected.contains(&"secret") { 200 } else { 401 };
            let of = |status: u16| {
                if status == 401 && shown.contains("team") || shown.contains("writer") {
                    403
                } else {
                    status
                }
            };
            ask(&proxy, "GET", "/metrics", &shown, "").await.expect(of(status));
            ask(&proxy, "GET", "/api/v1/artifacts/secret/x", &shown, "")
                .await
                .expect(of(status));
            let explain = "/api/v1/quarantine/explain?remote=secret&path=x";
            ask(&proxy, "GET", explain, &shown, "").await.expect(of(status));
        }
        let listed = ask(&proxy, "GET", "/api/v1/artifacts?remote=secret", "", "").await.ok();
        assert_eq!(listed.json()["total"], 0);
    });
}

#[test]
fn what_is_held_back_of_a_protected_remote_is_not_reported_to_others() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| {
            Reply::ok("young").header("Last-Modified", httpdate::fmt_http_date(std::time::SystemTime::now()))
        });
        let remote = |name: &str| {
            format!(
                "{name}:\n  base_url: {}\n  quarantine_new: true\n  quarantine_days: 3\n",
                up.base()
            )
        };
        let remotes = remote("open") + &remote("secret") + "  protected: true\n";
        let proxy = Proxy::settings().remotes(&remotes).conf(&tokens()).start().await;
        for remote in ["open", "secret"] {
            ask(&proxy, "GET", &at(remote, "x"), &bearer("reader"), "")
                .await
                .expect(404);
            let body = json!({"remote": remote, "path": "y", "reason": "looked at"}).to_string();
            let release = ask(&proxy, "POST", "/api/v1/quarantine/release", &bearer("admin"), &body).await;
            release.expect(201);
        }
        for (shown, expected) in [("", &["open"][..]), ("Bearer reader", &["open", "secret"])] {
            for (target, list) in [
                ("/api/v1/quarantine", "artifacts"),
                ("/api/v1/quarantine/released", "released"),
            ] {
                let answer = ask(&proxy, "GET", target, shown, "").await.ok().json();
                let artifacts = answer[list].as_array().unwrap().iter();
                let mut names: Vec<&str> = artifacts.map(|one| one["remote"].as_str().unwrap()).collect();
                names.sort_unstable();
                names.dedup();
                assert_eq!(names, expected, "{target} {shown}");
            }
        }
    });
}

#[test]
fn who_may_manage_what() {
    run(async {
        let (_up, proxy) = guarded().await;
        let flush = |remote: &str| match remote {
            "" => "{}".to_owned(),
            remote => json!({"remote": remote}).to_string(),
        };
        for (shown, of_all, of_team, of_open) in [
            (String::new(), 401, 401, 401),
            (bearer("nobody"), 401, 401, 401),
            (bearer("old"), 401, 401, 401),
            (bearer("reader"), 403, 403, 403),
            (bearer("writer"), 403, 403, 403),
            (bearer("manager"), 403, 200, 403),
            (bearer("admin"), 200, 200, 200),
            (basic("admin"), 200, 200, 200),
        ] {
            for (remote, status) in [("", of_all), ("team-a", of_team), ("open", of_open)] {
                let answer = ask(&proxy, "PUT", "/cache/flush", &shown, &flush(remote)).await;
                assert_eq!(answer.status, status, "{shown} {remote}: {}", answer.text());
            }
            let config = ask(&proxy, "GET", "/config", &shown, "").await;
            assert_eq!(config.status, of_all, "{shown}");
            assert!(!config.text().contains(&sha256(b"reader")));
        }
        // Health is for everybody, what went wrong for those who may see the configuration.
        ask(&proxy, "GET", "/health", "", "").await.ok();
        // A browser that knows the password is not led by another website.
        let headers = [
            ("Authorization", &*basic("admin")),
            ("Origin", "http://example.test"),
            ("Sec-Fetch-Site", "cross-site"),
        ];
        proxy.request("PUT", "/cache/flush", &headers, b"{}").await.expect(403);
        // An answer says which token it was, and never the secret.
        let refused = ask(&proxy, "PUT", "/cache/flush", &bearer("old"), "{}")
            .await
            .expect(401);
        assert!(refused.text().contains("expired at 2020-01-01"), "{}", refused.text());
    });
}

#[test]
fn open_writes_are_for_who_asks_for_them() {
    run(async {
        let (foreign, settings) = ([("Via", "1.1 other")], Proxy::settings().remotes(""));
        let closed = settings.clone().start().await;
        let refused = closed.request("PUT", "/cache/flush", &foreign, b"{}").await.expect(401);
        assert!(refused.text().contains("ARTIFACTAPI_ADMIN_TOKEN"));
        closed.request("GET", "/config", &foreign, b"").await.ok();
        let open = settings.env("ARTIFACTAPI_OPEN_WRITES", "true").start().await;
        open.request("PUT", "/cache/flush", &foreign, b"{}").await.ok();
        assert!(open.log_contains("ARTIFACTAPI_OPEN_WRITES"), "{}", open.log());
    });
}

/// `skopeo` with a policy that lets it work.
fn skopeo(home: &Home, args: &[&str]) -> Command {
    let mut command = home.command(program("skopeo"));
    command.arg("--insecure-policy");
    command.args(args);
    command
}

#[test]
fn a_registry_challenges_as_its_clients_understand() {
    run_for(Duration::from_secs(120), async {
        let manifest = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &manifest).await;
        let hub = format!("base_url: {}\n  package: docker\n", registry.up.base());
        let remotes = format!("hub:\n  {hub}  protected: true\nopen:\n  {hub}");
        let proxy = Proxy::settings().remotes(&remotes).conf(&tokens()).start().await;
        for target in ["/v2/", "/v2/hub/team/app/manifests/v1"] {
            let refused = ask(&proxy, "GET", target, "", "").await.expect(401);
            assert_eq!(refused.must("www-authenticate"), "Basic realm=\"artifactapi\"");
            assert_eq!(refused.must("docker-distribution-api-version"), "registry/2.0");
            assert_eq!(refused.json()["errors"][0]["code"], "UNAUTHORIZED");
            ask(&proxy, "GET", target, &basic("reader"), "").await.ok();
            ask(&proxy, "GET", target, &basic("wrong"), "").await.expect(401);
        }
        let denied = ask(&proxy, "GET", "/v2/hub/team/app/manifests/v1", &basic("team"), "")
            .await
            .expect(403);
        assert_eq!(denied.json()["errors"][0]["code"], "DENIED");
        ask(&proxy, "GET", "/v2/open/team/app/manifests/v1", "", "").await.ok();

        let home = Home::new();
        let name = |remote: &str| format!("docker://{}/{remote}/team/app:v1", proxy.address());
        let inspect = |remote: &str, more: &[&str]| {
            let mut args = vec!["inspect", "--raw", "--tls-verify=false"];
            args.extend(more);
            let name = name(remote);
            args.push(&name);
            skopeo(&home, &args)
        };
        home.run(inspect("hub", &["--creds", "ci:reader"])).await.ok();
        home.run(inspect("hub", &["--creds", "ci:wrong"])).await.fails();
        home.run(inspect("hub", &["--no-creds"])).await.fails();
        home.run(inspect("open", &["--no-creds"])).await.ok();
    });
}

#[test]
fn curl_and_pip_send_what_they_have() {
    run_for(Duration::from_secs(120), async {
        let up = Upstream::start().await;
        up.reply(
            "/simple/demo/",
            Reply::ok("<!DOCTYPE html><a href=\"../../demo-1.0.tar.gz\">demo-1.0.tar.gz</a>").content_type("text/html"),
        );
        let remotes = format!("pypi:\n  base_url: {}\n  package: pypi\n  protected: true\n", up.base());
        let proxy = Proxy::settings().remotes(&remotes).conf(&tokens()).start().await;
        let home = Home::new();
        let url = proxy.url("pypi", "simple/demo/");
        let curl = |args: &[&str]| {
            let mut command = home.command("curl");
            command.args(["-sS", "-f"]).args(args).arg(&url);
            command
        };
        home.run(curl(&[])).await.fails();
        home.run(curl(&["-u", "x:reader"])).await.ok();
        home.run(curl(&["--anyauth", "-u", "x:reader"])).await.ok();
        home.run(curl(&["-H", "Authorization: Bearer reader"])).await.ok();
        let pip = |credentials: &str| {
            let mut command = home.command(program("pip"));
            let index = format!("http://{credentials}{}{}", proxy.address(), at("pypi", "simple"));
            command.args(["index", "versions", "demo", "--no-input", "--disable-pip-version-check"]);
            command.args(["--index-url", &index]);
            command
        };
        home.run(pip("")).await.fails();
        let versions = home.run(pip("ci:reader@")).await.ok();
        assert!(versions.text().contains("1.0"), "{}", versions.text());
    });
}

#[test]
fn a_token_is_made_with_its_entry() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let mut command = Command::new(BINARY);
        command.args([
            "token",
            "ci runner",
            "--scope",
            "read",
            "--remote",
            "f*",
            "--expires",
            "2100-01-01",
        ]);
        let made = clients::bounded(command, Duration::from_secs(20)).ok().text();
        let token = made.lines().find(|line| line.starts_with("aat_")).unwrap().to_owned();
        assert_eq!(token.len(), 47);
        let entry = &made[made.find("tokens:").unwrap()..];
        assert!(!entry.contains(&token), "{entry}");
        let remotes = format!("files:\n  base_url: {}\n  protected: true\n", up.base());
        let proxy = Proxy::settings().remotes(&remotes).conf(entry).start().await;
        ask(&proxy, "GET", &at("files", "x"), &bearer(&token), "").await.ok();
        ask(&proxy, "GET", &at("files", "x"), &bearer(&token[1..]), "")
            .await
            .expect(401);
        let mut bad = Command::new(BINARY);
        bad.args(["token", "x", "--scope", "all"]);
        clients::bounded(bad, Duration::from_secs(20)).fails();
    });
}

#[test]
fn connections_beyond_the_limit_are_turned_away_and_room_comes_back() {
    run(async {
        let conf = "clients: {connections: 6, connections_per_address: 3}\ntrusted_proxies: ['127.0.0.2']\n";
        let proxy = Proxy::settings().remotes("").conf(conf).start().await;
        let is_served = async |connection: &mut Connection| {
            connection.send("GET", "/health/live", &[], b"").await;
            let answered = connection.try_read_head("GET").await;
            let is_served = answered.is_ok_and(|head| head.status == 200);
            if is_served {
                connection.read_body().await;
            }
            is_served
        };
        let mut held = Vec::new();
        // The harness's own first connection may not be gone yet.
        eventually(Duration::from_secs(10), "three are held", async || {
            let mut connection = proxy.connect().await;
            if is_served(&mut connection).await {
                held.push(connection);
            }
            held.len() == 3
        })
        .await;
        assert!(!is_served(&mut proxy.connect().await).await);
        // A proxy speaks for many.
        let mut others = Vec::new();
        for _ in 0..3 {
            let mut connection = Connection::open_from([127, 0, 0, 2].into(), proxy.address()).await;
            assert!(is_served(&mut connection).await);
            others.push(connection);
        }
        let mut seventh = Connection::open_from([127, 0, 0, 2].into(), proxy.address()).await;
        seventh.send("GET", "/health/live", &[], b"").await;
        if let Ok(head) = seventh.try_read_head("GET").await {
            assert_eq!((head.status, head.header("retry-after")), (503, Some("5")));
        }
        assert!(is_served(&mut held[0]).await, "who is there stays");
        proxy.wait_for_log("turned away").await;
        others.clear();
        held.clear();
        eventually(Duration::from_secs(10), "room came back", async || {
            is_served(&mut proxy.connect().await).await
        })
        .await;
    });
}
