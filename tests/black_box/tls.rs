//! HTTPS: for clients, with certificates that are renewed while it runs, and towards upstreams of other authorities.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;

use crate::common::client::Headers;
use crate::common::clients::{Home, Output, program, tool};
use crate::common::image::Manifest;
use crate::common::packages::{NpmVersion, serve_npm};
use crate::common::registry::{Registry, Tokens};
use crate::common::server::{Settings, at};
use crate::common::upstream::Authority;
use crate::common::{File, Pattern, Proxy, Reply, Upstream, eventually, free_port, run, run_for};

/// Where certificates and keys are kept, and where HTTPS is spoken.
struct Secure {
    folder: tempfile::TempDir,
    authority: Authority,
    address: SocketAddr,
}

impl Secure {
    fn new() -> Self {
        let secure = Secure {
            folder: tempfile::tempdir().unwrap(),
            authority: Authority::new(),
            address: SocketAddr::from(([127, 0, 0, 1], free_port())),
        };
        secure.renew(&secure.authority);
        secure
    }

    /// Puts another certificate in place.
    fn renew(&self, authority: &Authority) {
        let (certificate, key) = authority.issue(&["localhost", "127.0.0.1"]);
        std::fs::write(self.folder.path().join("cert.pem"), certificate).unwrap();
        std::fs::write(self.folder.path().join("key.pem"), key).unwrap();
    }

    fn settings(&self) -> Settings {
        let folder = self.folder.path().display();
        Proxy::settings().conf(&format!(
            "tls: {{cert: {folder}/cert.pem, key: {folder}/key.pem, listen: ['{}']}}\n",
            self.address
        ))
    }

    fn url(&self, remote: &str, path: &str) -> String {
        format!("https://localhost:{}{}", self.address.port(), at(remote, path))
    }
}

async fn curl(home: &Home, authority: &Path, args: &[&str]) -> Output {
    let mut command = home.command(program("curl"));
    command
        .args(["-sS", "--fail", "--max-time", "30", "--cacert"])
        .arg(authority)
        .args(args);
    home.run(command).await
}

#[test]
fn clients_are_served_over_https_by_http_1_and_2() {
    run(async {
        let up = Upstream::start().await;
        let large = Pattern::new(1, 3_000_000);
        let middle = Pattern::new(2, 100_000);
        up.file("/large", File::new(large)).file("/middle", File::new(middle));
        up.reply("/small", Reply::ok("small"));
        let secure = Secure::new();
        let remotes = format!("files:\n  base_url: {}\n", up.base());
        let proxy = secure.settings().remotes(&remotes).start().await;
        let home = Home::new();
        for (path, body) in [
            ("large", large.whole()),
            ("middle", middle.whole()),
            ("small", "small".into()),
        ] {
            let url = secure.url("files", path);
            for version in ["--http1.1", "--http2"] {
                // The second of the two is a hit, on the same connection.
                let file = home.work().join("out");
                let written = "%{http_version} %header{x-artifact-source}\n";
                let args = [version, "-o", "out", "-w", written, &url, "-o", "out2", &url];
                let said = curl(&home, secure.authority.path(), &args).await.ok().stdout;
                let number = version.trim_start_matches("--http").trim_end_matches(".1");
                assert!(said.lines().all(|line| line.starts_with(number)), "{said}");
                assert!(std::fs::read(&file).unwrap() == body, "{path} {version}");
                assert!(
                    std::fs::read(home.work().join("out2")).unwrap() == body,
                    "{path} {version}"
                );
                proxy.until_cached("files", path).await;
            }
            let ranged = ["--http1.1", "-r", "1-3", "-o", "part", &url];
            curl(&home, secure.authority.path(), &ranged).await.ok();
            assert_eq!(std::fs::read(home.work().join("part")).unwrap(), &body[1..4]);
        }
        assert_eq!(up.total(), 3);
        // Nobody who knows another authority, and nobody in clear.
        let (other, url) = (Authority::new(), secure.url("files", "small"));
        curl(&home, other.path(), &[&url]).await.fails();
        curl(&home, other.path(), &[&url.replace("https", "http")])
            .await
            .fails();
        // Two requests sent at once are answered in order.
        let mut stream = secure.connect().await;
        let target = at("files", "small");
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream
            .write_all(format!("{request}{request}").as_bytes())
            .await
            .unwrap();
        let said = read_until(&mut stream, "small", 2).await;
        assert_eq!(said.matches("HTTP/1.1 200").count(), 2, "{said}");
    });
}

impl Secure {
    async fn connect(&self) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.authority.roots())
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }
}

/// Reads until `text` has come `times`.
async fn read_until(stream: &mut TlsStream<TcpStream>, text: &str, times: usize) -> String {
    let mut read = Vec::new();
    loop {
        let said = String::from_utf8_lossy(&read).into_owned();
        if said.matches(text).count() >= times {
            return said;
        }
        let got = stream.read_buf(&mut read).await.unwrap();
        assert!(got > 0, "closed after {said}");
    }
}

#[test]
fn links_lead_back_over_https() {
    run_for(Duration::from_secs(120), async {
        let registry = Upstream::start().await;
        serve_npm(&registry, &registry, &[NpmVersion::new("plain", "1.0.0", json!({}))]);
        registry.reply(
            "/simple/demo/",
            Reply::ok("<!DOCTYPE html><a href=\"../../demo-1.0.tar.gz\">demo-1.0.tar.gz</a>").content_type("text/html"),
        );
        let secure = Secure::new();
        let remotes = format!(
            "npm:\n  base_url: {0}\n  package: npm\n  mutable_patterns: ['^(?!.*\\.tgz$).*']\npypi:\n  base_url: {0}\n  package: pypi\n",
            registry.base()
        );
        let proxy = secure.settings().remotes(&remotes).start().await;
        let home = Home::new();
        let ca = secure.authority.path();
        let tarball = |text: &str| {
            let document: serde_json::Value = serde_json::from_str(text).unwrap();
            document["versions"]["1.0.0"]["dist"]["tarball"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let url = secure.url("npm", "plain");
        for version in ["--http1.1", "--http2", "--http1.1"] {
            let said = curl(&home, ca, &[version, &url]).await.ok().stdout;
            assert!(tarball(&said).starts_with(&secure.url("npm", "")), "{version}: {said}");
        }
        let plain = proxy.fetch("npm", "plain").await.ok().text();
        assert!(tarball(&plain).starts_with(&proxy.url("npm", "")), "{plain}");

        home.write(
            "package.json",
            &json!({"name": "p", "version": "1.0.0", "dependencies": {"plain": "1.0.0"}}).to_string(),
        );
        let npmrc = format!(
            "registry={}\ncafile={}\naudit=false\nfund=false\nupdate-notifier=false\nfetch-retries=0\n",
            secure.url("npm", ""),
            ca.display()
        );
        home.write(".npmrc", &npmrc);
        let mut npm = home.command(tool("node/bin/npm"));
        npm.arg("install");
        home.run(npm).await.ok();
        assert!(home.work().join("node_modules/plain/package.json").exists());
        let lock = home.read("package-lock.json");
        assert!(lock.contains(&secure.url("npm", "")), "{lock}");

        let mut pip = home.command(program("pip"));
        pip.args([
            "index",
            "versions",
            "demo",
            "--no-input",
            "--disable-pip-version-check",
            "--cert",
        ])
        .arg(ca);
        pip.args(["--index-url", &secure.url("pypi", "simple")]);
        assert!(home.run(pip).await.ok().text().contains("1.0"));
    });
}

#[test]
fn a_certificate_is_renewed_while_connections_live_on() {
    run(async {
        let up = Upstream::start().await;
        up.fallback(|_| Reply::ok("x"));
        let secure = Secure::new();
        let remotes = format!("files:\n  base_url: {}\n", up.base());
        let proxy = secure.settings().remotes(&remotes).start().await;
        let (home, url) = (Home::new(), secure.url("files", "x"));
        curl(&home, secure.authority.path(), &[&url]).await.ok();
        let mut held = secure.connect().await;
        let next = Authority::new();
        secure.renew(&next);
        proxy.reload_and_wait().await;
        curl(&home, next.path(), &[&url]).await.ok();
        curl(&home, secure.authority.path(), &[&url]).await.fails();
        held.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        assert!(read_until(&mut held, "\"ok\"", 1).await.starts_with("HTTP/1.1 200"));
        // A key that is not the certificate's: the one before stays, and it is said.
        let (_, key) = next.issue(&["localhost"]);
        std::fs::write(secure.folder.path().join("key.pem"), &key).unwrap();
        proxy.reload();
        proxy.wait_for_log("`tls.key` is not the key of the certificate").await;
        curl(&home, next.path(), &[&url]).await.ok();
        std::fs::write(secure.folder.path().join("cert.pem"), "").unwrap();
        proxy.reload();
        proxy.wait_for_log("holds no certificate").await;
        curl(&home, next.path(), &[&url]).await.ok();
        assert!(
            !proxy.log().contains(key.lines().nth(1).unwrap()),
            "the key is in the log"
        );
        // And back again.
        secure.renew(&secure.authority);
        proxy.reload_and_wait().await;
        curl(&home, secure.authority.path(), &[&url]).await.ok();
    });
}

#[test]
fn a_client_that_says_nothing_of_tls_is_given_up() {
    run(async {
        let secure = Secure::new();
        let folder = secure.folder.path().display();
        let conf = format!(
            "tls: {{cert: {folder}/cert.pem, key: {folder}/key.pem, listen: ['{}']}}\nclients: {{head_timeout: 500ms}}\n",
            secure.address
        );
        let proxy = Proxy::settings().remotes("").conf(&conf).start().await;
        let mut silent = TcpStream::connect(secure.address).await.unwrap();
        let mut clear = TcpStream::connect(secure.address).await.unwrap();
        clear
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        for stream in [&mut silent, &mut clear] {
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
            assert!(!said.starts_with(b"HTTP"), "{said:?}");
        }
        assert_eq!(proxy.request("GET", "/health/live", &[], b"").await.status, 200);
    });
}

#[test]
fn what_keeps_https_from_being_spoken_is_said_at_the_start_and_by_check() {
    run(async {
        let secure = Secure::new();
        let (_, other) = secure.authority.issue(&["localhost"]);
        std::fs::write(secure.folder.path().join("key.pem"), other).unwrap();
        let folder = secure.folder.path();
        std::fs::write(folder.join("conf.yaml"), "tls: {cert: cert.pem, key: key.pem}\n").unwrap();
        std::fs::write(folder.join("remotes.yaml"), "remotes: {}\n").unwrap();
        for command in ["check", "serve"] {
            let mut program = Command::new(crate::common::server::BINARY);
            program.args([
                command,
                "--conf",
                "conf.yaml",
                "--remotes",
                "remotes.yaml",
                "--listen",
                "127.0.0.1:0",
            ]);
            program.current_dir(folder);
            let failed = crate::common::clients::run(program).await.fails();
            assert!(failed.text().contains("`tls.key` is not the key"), "{}", failed.text());
        }
    });
}

#[test]
fn an_upstream_of_another_authority_is_verified_by_the_one_that_is_named() {
    run(async {
        let (authority, other) = (Authority::new(), Authority::new());
        let up = Upstream::start_tls_with(&authority, "localhost", &["h2", "http/1.1"]).await;
        up.fallback(|_| Reply::ok("x"));
        let remote = |name: &str, ca: &str| format!("{name}:\n  base_url: {}\n{ca}", up.base());
        let with = |authority: &Authority| format!("  tls: {{ca: {}}}\n", authority.path().display());
        let remotes = remote("known", &with(&authority)) + &remote("unknown", "") + &remote("other", &with(&other));
        let proxy = Proxy::start(&remotes).await;
        // No connection of one remote is another's.
        for _ in 0..2 {
            proxy.fetch("known", "x").await.is("remote", "x");
            for name in ["unknown", "other"] {
                let failed = proxy.fetch(name, "x").await.expect(502);
                assert!(
                    failed.text().to_lowercase().contains("certificate"),
                    "{}",
                    failed.text()
                );
            }
            proxy.request("PUT", "/cache/flush", &[], b"{}").await.ok();
        }
    });
}

#[test]
fn a_certificate_of_its_own_is_shown_where_the_credentials_may_go_only() {
    run(async {
        let (authority, clients) = (Authority::new(), Authority::new());
        let up = Upstream::start_tls_for(&authority, &clients).await;
        let away = Upstream::start_tls_for(&authority, &clients).await;
        up.reply("/x", Reply::ok("x"))
            .reply("/away", Reply::redirect(302, away.url("/y")));
        away.fallback(|_| Reply::ok("y"));
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = clients.issue(&["artifactapi"]);
        std::fs::write(folder.path().join("cert.pem"), certificate).unwrap();
        std::fs::write(folder.path().join("key.pem"), key).unwrap();
        let tls = |more: &str| format!("  tls: {{ca: {}{more}}}\n", authority.path().display());
        let path = folder.path().display();
        let identity = format!(", cert: {path}/cert.pem, key: {path}/key.pem");
        let remotes = format!(
            "known:\n  base_url: {0}\n{1}stranger:\n  base_url: {0}\n{2}",
            up.base(),
            tls(&identity),
            tls("")
        );
        let proxy = Proxy::start(&remotes).await;
        proxy.fetch("known", "x").await.is("remote", "x");
        proxy.fetch("stranger", "x").await.expect(502);
        proxy.fetch("known", "away").await.expect(502);
        assert_eq!(away.total(), 0);
        let config = proxy.request("GET", "/config", &[], b"").await.ok().json();
        assert!(
            config["remotes"]["known"]["tls"]["key"]
                .as_str()
                .unwrap()
                .ends_with("key.pem")
        );
        // Something that is open, and costs credentials to read elsewhere.
        eventually(Duration::from_secs(5), "the warning", async || {
            proxy.log_contains("anybody may read")
        })
        .await;
    });
}

#[test]
fn a_token_service_of_the_same_authority_is_trusted_too() {
    run(async {
        let authority = Authority::new();
        let tls = async || Upstream::start_tls_with(&authority, "localhost", &["h2", "http/1.1"]).await;
        let tokens = Tokens::on(tls().await);
        let registry = Registry::on(tls().await).guarded(&tokens);
        registry.push("team/app", "v1", &Manifest::image("app", "amd64", 1));
        let remotes = format!(
            "hub:\n  base_url: {}\n  package: docker\n  tls: {{ca: {}}}\n",
            registry.up.base(),
            authority.path().display()
        );
        let proxy = Proxy::start(&remotes).await;
        let answer = proxy
            .request("GET", "/v2/hub/team/app/manifests/v1", &[], b"")
            .await
            .ok();
        assert_eq!(answer.source(), "remote");
    });
}
