//! npm, pnpm and both yarns through the proxy; and the documents that they read.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::common::client::Headers;
use crate::common::clients::{Home, Output, tool};
use crate::common::clock::Clock;
use crate::common::packages::{NPM_ABBREVIATED, NpmVersion, gunzip, packuments, serve_npm};
use crate::common::server::at;
use crate::common::{File, Proxy, Reply, Response, Upstream, run, run_for};
use serde_json::{Value, json};

fn versions() -> Vec<NpmVersion> {
    vec![
        NpmVersion::new("plain", "1.0.0", json!({})),
        NpmVersion::new("plain", "1.1.0", json!({"@scope/inner": "^2.0.0"})),
        NpmVersion::new("@scope/inner", "2.0.0", json!({})),
    ]
}

const REMOTE: &str = "package: npm\n  check_mutable_updates: true\n  immutable_patterns: ['\\.tgz$']\n  \
                      mutable_patterns: ['^(?!.*\\.tgz$).*']\n  cache: {mutable_ttl: 600}\n";

/// A registry whose tarballs are on another host.
async fn registry() -> (Upstream, Upstream, Proxy) {
    let (registry, tarballs) = (Upstream::start().await, Upstream::start().await);
    serve_npm(&registry, &tarballs, &versions());
    let proxy = Proxy::start(&format!("npm:\n  base_url: {}\n  {REMOTE}", registry.base())).await;
    (registry, tarballs, proxy)
}

/// A project of its own, in its own home, that wants both packages.
fn project(proxy: &Proxy) -> Home {
    let home = Home::new();
    let dependencies = json!({"plain": "^1.0.0", "@scope/inner": "2.0.0"});
    let package = json!({"name": "project", "version": "1.0.0", "private": true, "dependencies": dependencies});
    home.write("package.json", &package.to_string());
    let url = format!("{}/api/v1/remote/npm/", proxy.base());
    home.write(
        ".npmrc",
        &format!("registry={url}\naudit=false\nfund=false\nupdate-notifier=false\nfetch-retries=0\n"),
    );
    home.write(
        ".yarnrc.yml",
        &format!(
            "npmRegistryServer: \"{url}\"\nunsafeHttpWhitelist: [\"127.0.0.1\"]\nnodeLinker: node-modules\n\
             enableGlobalCache: false\nenableTelemetry: false\nnpmMinimalAgeGate: 0\nenableImmutableInstalls: false\n"
        ),
    );
    home
}

fn node(home: &Home, script: &str) -> Command {
    let mut command = home.command(tool("node/bin/node"));
    command.arg(tool(&format!("node/node_modules/{script}")));
    command
}

async fn npm(home: &Home, args: &[&str]) -> Output {
    let mut command = home.command(tool("node/bin/npm"));
    command.args(args);
    home.run(command).await
}

async fn pnpm(home: &Home, args: &[&str]) -> Output {
    let mut command = home.command(tool("node/node_modules/.bin/pnpm"));
    command.args(args);
    command.arg("--store-dir").arg(home.path("tmp").join("store"));
    let cache = home.path("tmp").join("cache");
    command.arg(format!("--config.cacheDir={}", cache.display()));
    home.run(command).await
}

#[track_caller]
fn installed(folder: &Path) {
    for (path, version) in [("plain", "1.1.0"), ("@scope/inner", "2.0.0")] {
        let file = folder.join("node_modules").join(path).join("package.json");
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["version"], version);
    }
}

/// Installs in a fresh home with the lock files of another one.
fn second(first: &Home, proxy: &Proxy, locks: &[&str]) -> Home {
    let home = project(proxy);
    for lock in locks {
        home.write(lock, &first.read(lock));
    }
    home
}

#[test]
fn what_is_held_is_not_chosen_and_says_why_where_it_is_pinned() {
    run_for(Duration::from_secs(240), async {
        let (registry, tarballs) = (Upstream::start().await, Upstream::start().await);
        let mut versions = versions();
        versions.push(
            NpmVersion::new("plain", "1.2.0", json!({})).published(SystemTime::now() - Duration::from_secs(24 * 3600)),
        );
        serve_npm(&registry, &tarballs, &versions);
        let held = "quarantine_new: true\n  quarantine_days: 3\n";
        let free = format!("npm:\n  base_url: {}\n  {REMOTE}", registry.base());
        let proxy = Proxy::start(&format!("{free}  {held}")).await;
        let home = project(&proxy);
        npm(&home, &["install"]).await.ok();
        installed(&home.work());
        let of_pnpm = project(&proxy);
        pnpm(&of_pnpm, &["install"]).await.ok();
        installed(&of_pnpm.work());
        for script in ["yarn/bin/yarn.js", "@yarnpkg/cli-dist/bin/yarn.js"] {
            let home = project(&proxy);
            home.write("yarn.lock", "");
            let mut command = node(&home, script);
            command.arg("install");
            home.run(command).await.ok();
            installed(&home.work());
        }
        // npm itself names the policy.
        let said = npm(&home, &["install", "plain@1.2.0"]).await.fails().text();
        assert!(said.contains("quarantine"), "{said}");
        // A lock file that was made where nothing is held.
        let open = Proxy::start(&free).await;
        let other = project(&open);
        npm(&other, &["install"]).await.ok();
        let lock = other.read("package-lock.json");
        assert!(lock.contains("plain-1.2.0.tgz"), "{lock}");
        let pinned = project(&proxy);
        pinned.write("package-lock.json", &lock.replace(&open.base(), &proxy.base()));
        let said = npm(&pinned, &["ci"]).await.fails().text();
        assert!(said.contains("404") && said.contains("plain-1.2.0.tgz"), "{said}");
    });
}

/// A project that wants `plain`, and what else a client is told.
fn plain_project(proxy: &Proxy, settings: &str, of_yarn: &str) -> Home {
    let home = project(proxy);
    home.write(
        "package.json",
        r#"{"name": "project", "version": "1.0.0", "private": true, "dependencies": {"plain": "^1.0.0"}}"#,
    );
    home.write(".npmrc", &(home.read(".npmrc") + settings));
    let of_yarn = home.read(".yarnrc.yml").replace("npmMinimalAgeGate: 0", of_yarn);
    home.write(".yarnrc.yml", &of_yarn);
    home
}

#[track_caller]
fn installed_plain(home: &Home, version: &str) {
    let read = home.read("node_modules/plain/package.json");
    assert_eq!(serde_json::from_str::<Value>(&read).unwrap()["version"], version);
}

#[test]
fn clients_wait_for_the_age_of_what_a_registry_does_not_date() {
    run_for(Duration::from_secs(300), async {
        let up = Upstream::start().await;
        let versions = ["1.0.0", "1.1.0"].map(|version| NpmVersion::new("plain", version, json!({})));
        let clock = Clock::new();
        let data = tempfile::tempdir().unwrap();
        let remotes = format!("npm:\n  base_url: {}\n  {REMOTE}  release_dates: filled\n", up.base());
        let settings = Proxy::settings().remotes(&remotes).data_dir(data.path());
        // The first of them came ten days before the second.
        for (days, known) in [(-10, 1), (0, 2)] {
            serve_npm(&up, &up, &versions[..known]);
            let all: Vec<&NpmVersion> = versions[..known].iter().collect();
            let mut packument = packuments(&all, &up.base()).0;
            packument.as_object_mut().unwrap().remove("time");
            up.file(
                "/plain",
                File::new(packument.to_string()).content_type("application/json"),
            );
            let env = clock.env(days * 24 * 3600).into_iter();
            let settings = env.fold(settings.clone(), |settings, (name, value)| settings.env(name, value));
            let mut proxy = settings.start().await;
            proxy.fetch("npm", "plain").await.ok();
            if days < 0 {
                proxy.stop().await;
                continue;
            }
            for (age, version) in [(true, "1.0.0"), (false, "1.1.0")] {
                let (days, minutes) = if age { (3, 3 * 24 * 60) } else { (0, 0) };
                let home = plain_project(&proxy, &format!("min-release-age={days}\n"), "");
                npm(&home, &["install"]).await.ok();
                installed_plain(&home, version);
                let home = plain_project(&proxy, "", "");
                home.write("pnpm-workspace.yaml", &format!("minimumReleaseAge: {minutes}\n"));
                pnpm(&home, &["install"]).await.ok();
                installed_plain(&home, version);
                let home = plain_project(&proxy, "", &format!("npmMinimalAgeGate: {minutes}"));
                home.write("yarn.lock", "");
                let mut command = node(&home, "@yarnpkg/cli-dist/bin/yarn.js");
                command.arg("install");
                home.run(command).await.ok();
                installed_plain(&home, version);
            }
        }
    });
}

#[test]
fn a_tarball_that_is_not_what_its_index_says_is_not_installed() {
    run_for(Duration::from_secs(240), async {
        for verify in ["enforce", "warn", "off"] {
            let up = Upstream::start().await;
            let version = NpmVersion::new("plain", "1.0.0", json!({}));
            let serve = |bytes: Vec<u8>| {
                serve_npm(&up, &up, std::slice::from_ref(&version));
                up.file(&version.path(), File::new(bytes));
            };
            let other = NpmVersion::new("plain", "1.0.0", json!({"other": "1.0.0"}));
            serve(other.bytes.to_vec());
            let remotes = format!("npm:\n  base_url: {}\n  {REMOTE}  verify: {verify}\n", up.base());
            let proxy = Proxy::start(&remotes).await;
            let install = async || {
                let home = plain_project(&proxy, "", "");
                let output = npm(&home, &["install"]).await;
                (home, output)
            };
            let (home, output) = install().await;
            output.fails();
            assert!(!home.work().join("node_modules/plain").exists());
            serve(version.bytes.to_vec());
            if verify != "enforce" {
                // npm refuses what was kept, also now: it has to be flushed.
                let said = install().await.1.fails().text();
                assert!(said.contains("EINTEGRITY"), "{said}");
                proxy.request("PUT", "/cache/flush", &[], b"").await.ok();
            }
            let (home, output) = install().await;
            output.ok();
            installed_plain(&home, "1.0.0");
            proxy
                .until_cached("npm", &version.path()[1..])
                .await
                .is("cache", &version.bytes);
        }
    });
}

#[test]
fn a_name_of_the_companys_own_is_refused_with_the_reason() {
    run_for(Duration::from_secs(240), async {
        let (registry, tarballs) = (Upstream::start().await, Upstream::start().await);
        let mut versions = versions();
        versions.push(NpmVersion::new("@corp/lib", "9.0.0", json!({})));
        serve_npm(&registry, &tarballs, &versions);
        let denied = "deny_packages: ['@corp/*']\n";
        let proxy = Proxy::start(&format!("npm:\n  base_url: {}\n  {REMOTE}  {denied}", registry.base())).await;
        let home = project(&proxy);
        npm(&home, &["install"]).await.ok();
        installed(&home.work());
        let said = npm(&home, &["install", "@corp/lib"]).await.fails().text();
        assert!(said.contains("E404") && said.contains("deny_packages"), "{said}");
        assert!(registry.log().iter().all(|seen| !seen.path.contains("corp")));
    });
}

#[test]
fn npm_installs_and_installs_from_its_lock_file_without_upstream() {
    run_for(Duration::from_secs(180), async {
        let (registry, tarballs, proxy) = registry().await;
        let first = project(&proxy);
        npm(&first, &["install"]).await.ok();
        installed(&first.work());
        registry.switch_off().await;
        tarballs.switch_off().await;
        let again = second(&first, &proxy, &["package-lock.json"]);
        npm(&again, &["ci"]).await.ok();
        installed(&again.work());
        for version in [&versions()[1], &versions()[2]] {
            assert_eq!(tarballs.count("GET", &version.path()), 1, "{}", version.path());
        }
    });
}

#[test]
fn pnpm_installs_and_installs_from_its_lock_file_without_upstream() {
    run_for(Duration::from_secs(180), async {
        let (registry, tarballs, proxy) = registry().await;
        let first = project(&proxy);
        pnpm(&first, &["install"]).await.ok();
        installed_by_pnpm(&first);
        registry.switch_off().await;
        tarballs.switch_off().await;
        let again = second(&first, &proxy, &["pnpm-lock.yaml"]);
        pnpm(&again, &["install", "--frozen-lockfile"]).await.ok();
        installed_by_pnpm(&again);
    });
}

#[track_caller]
fn installed_by_pnpm(home: &Home) {
    installed(&home.work());
}

#[test]
fn yarn_1_installs_and_installs_from_its_lock_file_without_upstream() {
    run_for(Duration::from_secs(180), async {
        let (registry, tarballs, proxy) = registry().await;
        let yarn = async |home: &Home, args: &[&str]| {
            let mut command = node(home, "yarn/bin/yarn.js");
            command
                .args(args)
                .args(["--non-interactive", "--no-progress", "--cache-folder"]);
            command.arg(home.path("tmp").join("cache"));
            home.run(command).await
        };
        let first = project(&proxy);
        yarn(&first, &["install"]).await.ok();
        installed(&first.work());
        registry.switch_off().await;
        tarballs.switch_off().await;
        let again = second(&first, &proxy, &["yarn.lock"]);
        yarn(&again, &["install", "--frozen-lockfile"]).await.ok();
        installed(&again.work());
    });
}

#[test]
fn yarn_4_installs_and_installs_from_its_lock_file_without_upstream() {
    run_for(Duration::from_secs(180), async {
        let (registry, tarballs, proxy) = registry().await;
        let yarn = async |home: &Home, args: &[&str]| {
            let mut command = node(home, "@yarnpkg/cli-dist/bin/yarn.js");
            command.args(args);
            home.run(command).await
        };
        let first = project(&proxy);
        first.write("yarn.lock", "");
        yarn(&first, &["install"]).await.ok();
        installed(&first.work());
        registry.switch_off().await;
        tarballs.switch_off().await;
        let again = second(&first, &proxy, &["yarn.lock"]);
        yarn(&again, &["install", "--immutable"]).await.ok();
        installed(&again.work());
    });
}

#[test]
fn publishing_is_refused_so_that_the_client_says_why() {
    run_for(Duration::from_secs(120), async {
        let (registry, _tarballs, proxy) = registry().await;
        let home = project(&proxy);
        home.write("package.json", "{\"name\": \"mine\", \"version\": \"1.0.0\"}");
        let token = format!("//{}/api/v1/remote/npm/:_authToken=secret-token\n", proxy.address());
        home.write(
            ".npmrc",
            &format!("registry={}/api/v1/remote/npm/\n{token}", proxy.base()),
        );
        let said = npm(&home, &["publish"]).await.fails().text();
        assert!(
            said.contains("405") || said.contains("403") || said.contains("read-only"),
            "{said}"
        );
        assert!(registry.log().iter().all(|seen| seen.method != "PUT"));
        assert!(registry.log().iter().all(|seen| seen.header("authorization").is_none()));
    });
}

#[test]
fn an_audit_is_passed_through() {
    run_for(Duration::from_secs(120), async {
        let (registry, _tarballs, proxy) = registry().await;
        let home = project(&proxy);
        npm(&home, &["install"]).await.ok();
        npm(&home, &["audit", "--audit=true"]).await.ok();
        let audit = "/-/npm/v1/security/advisories/bulk";
        registry.wait_for("POST", audit, 1).await;
        let seen = registry.last("POST", audit);
        let body = if seen.header("content-encoding") == Some("gzip") {
            gunzip(&seen.body)
        } else {
            seen.body.to_vec()
        };
        assert_eq!(
            serde_json::from_slice::<Value>(&body).unwrap()["plain"],
            json!(["1.1.0"])
        );
    });
}

// The documents

async fn packument(proxy: &Proxy, path: &str, accept: &str) -> Response {
    proxy.fetch_with("npm", path, &[("Accept", accept)]).await.ok()
}

/// Whether every tarball is this remote's and really there.
async fn tarballs_come_from_here(proxy: &Proxy, document: &Value) {
    let prefix = format!("{}/api/v1/remote/npm/", proxy.base());
    for (version, manifest) in document["versions"].as_object().unwrap() {
        let url = manifest["dist"]["tarball"].as_str().unwrap();
        assert!(url.starts_with(&prefix), "{url}");
        let body = proxy
            .request("GET", url.strip_prefix(&proxy.base()).unwrap(), &[], b"")
            .await
            .ok()
            .body;
        let name = document["name"].as_str().unwrap();
        let expected = versions()
            .into_iter()
            .find(|own| own.name == name && own.version == *version)
            .unwrap();
        assert_eq!(body, expected.bytes);
    }
}

#[test]
fn both_forms_are_kept_apart_and_rewritten_and_otherwise_untouched() {
    run(async {
        let (registry, tarballs, proxy) = registry().await;
        for (accept, kind) in [
            ("application/json", "application/json"),
            (NPM_ABBREVIATED, NPM_ABBREVIATED),
            (
                "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*",
                NPM_ABBREVIATED,
            ),
            ("*/*", "application/json"),
        ] {
            for _ in 0..2 {
                let answer = packument(&proxy, "plain", accept).await;
                assert!(
                    answer.must("content-type").starts_with(kind),
                    "{accept}: {:?}",
                    answer.headers
                );
                assert!(answer.must("vary").to_lowercase().contains("accept"));
                assert!(!answer.text().contains(&tarballs.base()), "{}", answer.text());
                tarballs_come_from_here(&proxy, &answer.json()).await;
                let original = crate::common::get_with(registry.address(), "/plain", &[("Accept", kind)])
                    .await
                    .text();
                // Apart from the tarballs it is the same text: order, numbers and all.
                let upstream = format!("{}/", tarballs.base());
                let cut = answer.text().split("\"tarball\":\"").next().unwrap().len();
                assert_eq!(answer.text()[..cut], original[..cut]);
                let (mut here, mut there) = (answer.json(), serde_json::from_str::<Value>(&original).unwrap());
                assert!(original.contains(&upstream));
                for version in ["1.0.0", "1.1.0"] {
                    here["versions"][version]["dist"]["tarball"].take();
                    there["versions"][version]["dist"]["tarball"].take();
                }
                assert_eq!(here, there);
            }
        }
    });
}

#[test]
fn scoped_names_in_every_spelling_are_one_document() {
    run(async {
        let (registry, _tarballs, proxy) = registry().await;
        registry.forget();
        for path in [
            "@scope/inner",
            "@scope%2finner",
            "@scope%2Finner",
            "%40scope%2finner",
            "@scope/inner",
        ] {
            let answer = packument(&proxy, path, NPM_ABBREVIATED).await;
            tarballs_come_from_here(&proxy, &answer.json()).await;
        }
        let asked = registry
            .log()
            .into_iter()
            .map(|seen| seen.path.to_lowercase())
            .collect::<Vec<_>>();
        assert_eq!(asked, ["/@scope%2finner"]);
    });
}

#[test]
fn a_packument_is_kept_compressed_for_who_accepts_it() {
    run(async {
        let (_registry, _tarballs, proxy) = registry().await;
        let plain = packument(&proxy, "plain", NPM_ABBREVIATED).await;
        let mut packed = None;
        crate::common::eventually(Duration::from_secs(10), "a compressed packument", async || {
            let headers = [("Accept", NPM_ABBREVIATED), ("Accept-Encoding", "gzip, deflate, br")];
            let answer = proxy.fetch_with("npm", "plain", &headers).await.ok();
            let found = answer.header("content-encoding") == Some("gzip");
            packed = Some(answer);
            found
        })
        .await;
        let packed = packed.unwrap();
        assert_eq!(gunzip(&packed.body), plain.body);
        assert!(
            packed.must("vary").to_lowercase().contains("accept-encoding"),
            "{:?}",
            packed.headers
        );
        let plain = packument(&proxy, "plain", NPM_ABBREVIATED).await;
        assert_eq!(plain.header("content-encoding"), None);
        if let (Some(one), Some(two)) = (plain.header("etag"), packed.header("etag")) {
            assert_ne!(one, two, "codings of one document differ in their ETag");
        }
    });
}

#[test]
fn links_hold_the_public_base_that_the_client_used() {
    run(async {
        let (_registry, _tarballs, proxy) = registry().await;
        let tarball = async |headers: &[(&str, &str)]| {
            let answer = proxy.fetch_with("npm", "plain", headers).await.ok().json();
            answer["versions"]["1.0.0"]["dist"]["tarball"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let path = "/api/v1/remote/npm/";
        assert!(
            tarball(&[("Host", "cache.test:8080")])
                .await
                .starts_with(&format!("http://cache.test:8080{path}"))
        );
        let forwarded = [
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "cache.test"),
            ("X-Forwarded-Prefix", "/a"),
        ];
        assert!(
            tarball(&forwarded)
                .await
                .starts_with(&format!("https://cache.test/a{path}"))
        );
        let both = [
            ("Forwarded", "for=1.2.3.4;proto=https;host=one.test"),
            ("X-Forwarded-Host", "two.test"),
        ];
        assert!(tarball(&both).await.starts_with(&format!("https://one.test{path}")));
        for bad in ["a b", "evil.test/x", "x\"y", "<script>"] {
            let answer = proxy.fetch_with("npm", "plain", &[("X-Forwarded-Host", bad)]).await;
            assert!(!answer.text().contains(bad), "{bad}");
        }
    });
}

#[test]
fn the_configured_public_url_wins() {
    run(async {
        let registry = Upstream::start().await;
        serve_npm(&registry, &registry, &versions());
        let proxy = Proxy::settings()
            .remotes(&format!("npm:\n  base_url: {}\n  {REMOTE}", registry.base()))
            .env("ARTIFACTAPI_PUBLIC_URL", "https://artifacts.test/base")
            .start()
            .await;
        let document = proxy
            .fetch_with("npm", "plain", &[("Host", "other.test")])
            .await
            .ok()
            .json();
        let url = document["versions"]["1.0.0"]["dist"]["tarball"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(
            url,
            "https://artifacts.test/base/api/v1/remote/npm/plain/-/plain-1.0.0.tgz"
        );
    });
}

#[test]
fn single_versions_are_rewritten_and_other_endpoints_pass_through() {
    run(async {
        let (registry, tarballs, proxy) = registry().await;
        let manifest = json!({"name": "plain", "version": "1.0.0", "dist": {
            "tarball": format!("{}/plain/-/plain-1.0.0.tgz", tarballs.base()),
            "attestations": {"url": format!("{}/-/npm/v1/attestations/plain@1.0.0", registry.base())}}});
        registry.reply(
            "/plain/latest",
            Reply::ok(manifest.to_string()).content_type("application/json"),
        );
        registry.reply("/-/npm/v1/attestations/plain@1.0.0", Reply::ok("{\"attestations\":[]}"));
        let answer = proxy.fetch("npm", "plain/latest").await.ok().json();
        let url = answer["dist"]["tarball"].as_str().unwrap();
        assert!(url.starts_with(&proxy.base()), "{url}");
        assert_eq!(answer["dist"]["attestations"], manifest["dist"]["attestations"]);
        let attestations = proxy.fetch("npm", "-/npm/v1/attestations/plain@1.0.0").await.ok();
        assert_eq!(attestations.text(), "{\"attestations\":[]}");
        proxy.fetch("npm", "-/ping").await.ok();
        proxy.request("POST", &at("npm", "plain"), &[], b"{}").await.expect(405);
    });
}
