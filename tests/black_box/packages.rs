//! Packages that upstream is not asked for: `deny_packages` and `allow_packages`, however they are asked for, stored or not.

use std::time::SystemTime;

use crate::common::client::{self, Headers};
use crate::common::image::Manifest;
use crate::common::packages::{
    Crate, IndexForm, NPM_ABBREVIATED, NpmVersion, SIMPLE_JSON, Wheel, serve_crates, serve_npm, serve_pypi,
};
use crate::common::pull::{get_blob, get_manifest, head_manifest, pull, refused, until_stored};
use crate::common::registry::Registry;
use crate::common::{File, Proxy, Response, Upstream, run};
use serde_json::json;

/// Looks whether it is refused so, and by which key; the text.
#[track_caller]
fn is_hidden(answer: Response, status: u16, key: &str) -> String {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.must("cache-control"), "no-store");
    assert_eq!(
        (answer.header("etag"), answer.header("x-artifact-source")),
        (None, None)
    );
    let text = answer.text();
    assert!(text.contains(key), "{text}");
    text
}

/// The company's project and a public one, on the public index.
async fn projects() -> (Upstream, [Wheel; 2]) {
    let up = Upstream::start().await;
    let wheels = [
        Wheel::new("corp-lib", "9.0", &[], 100),
        Wheel::new("demo", "1.0", &[], 100),
    ];
    serve_pypi(&up, &up, IndexForm::Both, &wheels);
    (up, wheels)
}

/// Asks for the company's project in every way.
async fn ask_for_all(proxy: &Proxy, wheel: &Wheel, key: &str) {
    let file = &wheel.path()[1..];
    let date = httpdate::fmt_http_date(SystemTime::now());
    for headers in [
        &[][..],
        &[("Accept", SIMPLE_JSON)],
        &[("Range", "bytes=0-1")],
        &[("If-None-Match", "*")],
        &[("If-Modified-Since", &*date)],
        &[("Accept-Encoding", "gzip"), ("Cache-Control", "no-cache")],
    ] {
        for index in ["simple/corp-lib/", "pypi/Corp_Lib/json", "simple//corp-lib/?x"] {
            is_hidden(proxy.fetch_with("pypi", index, headers).await, 404, key);
        }
        for file in [file.to_owned(), format!("{file}.metadata"), format!("{file}.asc?x")] {
            let text = is_hidden(proxy.fetch_with("pypi", &file, headers).await, 403, key);
            assert!(text.contains("package corp-lib"), "{text}");
        }
    }
    assert_eq!(proxy.head("pypi", "simple/corp-lib/").await.status, 404);
    assert_eq!(proxy.head("pypi", file).await.status, 403);
    // Another spelling of the name is sent to the right one.
    assert_eq!(proxy.fetch("pypi", "simple/Corp_Lib/").await.status, 301);
}

#[test]
fn what_is_hidden_is_neither_served_nor_asked_for() {
    run(async {
        let (up, [corp, demo]) = projects().await;
        let remote = |keys: &str| format!("pypi:\n  base_url: {}\n  package: pypi\n{keys}", up.base());
        let proxy = Proxy::start(&remote("")).await;
        // Stored, and in memory.
        for wheel in [&corp, &demo] {
            proxy.fetch("pypi", &format!("simple/{}/", wheel.project())).await.ok();
            proxy.fetch("pypi", &wheel.path()[1..]).await.ok();
            proxy.until_cached("pypi", &wheel.path()[1..]).await.ok();
        }
        up.forget();
        for (keys, key) in [
            ("  deny_packages: [Corp_*]\n", "deny_packages"),
            (
                "  deny_packages: [corp.lib]\n  allow_packages: ['*']\n",
                "deny_packages",
            ),
            ("  allow_packages: [demo]\n", "allow_packages"),
            ("  allow_packages: [demo]\n  offline: true\n", "allow_packages"),
        ] {
            proxy.write_remotes(&remote(keys));
            proxy.reload_and_wait().await;
            ask_for_all(&proxy, &corp, key).await;
            proxy.fetch("pypi", &demo.path()[1..]).await.is("cache", &demo.bytes);
            proxy.fetch("pypi", "simple/demo/").await.ok();
        }
        assert_eq!(up.total(), 0);
        // Where nothing is stored.
        let proxy = Proxy::start(&remote("  deny_packages: ['corp-*']\n")).await;
        ask_for_all(&proxy, &corp, "deny_packages").await;
        assert_eq!(up.total(), 0);
        proxy.fetch("pypi", "simple/demo/").await.ok();
        proxy.fetch("pypi", &demo.path()[1..]).await.is("remote", &demo.bytes);
        let shown = proxy.request("GET", "/config", &[], b"").await.ok().json();
        assert_eq!(shown["remotes"]["pypi"]["deny_packages"], json!(["corp-*"]));
        assert_eq!(shown["remotes"]["pypi"]["allow_packages"], json!(null));
    });
}

#[test]
fn where_some_are_allowed_the_rest_and_what_cannot_be_told_is_refused() {
    run(async {
        let (up, [corp, demo]) = projects().await;
        up.file(
            "/simple/",
            File::new("<a href=\"corp-lib/\">corp-lib</a>").content_type("text/html"),
        )
        .file("/files/notes.bin", File::new("notes"));
        let remote = format!(
            "pypi:\n  base_url: {}\n  package: pypi\n  allow_packages: [corp-lib]\n",
            up.base()
        );
        let proxy = Proxy::start(&remote).await;
        proxy.fetch("pypi", "simple/").await.ok();
        proxy.fetch("pypi", "simple/corp-lib/").await.ok();
        proxy.fetch("pypi", &corp.path()[1..]).await.is("remote", &corp.bytes);
        up.forget();
        is_hidden(proxy.fetch("pypi", "simple/demo/").await, 404, "allow_packages");
        is_hidden(proxy.fetch("pypi", &demo.path()[1..]).await, 403, "allow_packages");
        is_hidden(proxy.fetch("pypi", "files/notes.bin").await, 403, "which package");
        assert_eq!(up.total(), 0);
    });
}

#[test]
fn files_on_other_hosts_are_hidden_too() {
    run(async {
        let (index, files) = (Upstream::start().await, Upstream::start().await);
        let wheels = [
            Wheel::new("corp-lib", "9.0", &[], 100),
            Wheel::new("demo", "1.0", &[], 100),
        ];
        serve_pypi(&index, &files, IndexForm::Both, &wheels);
        let remote = format!(
            "pypi:\n  base_url: {}\n  package: pypi\n  file_hosts: ['{}']\n  deny_packages: [corp-lib]\n",
            index.base(),
            files.base()
        );
        let proxy = Proxy::start(&remote).await;
        let at = |wheel: &Wheel| format!("-/host/{}{}", files.authority(), wheel.path());
        is_hidden(proxy.fetch("pypi", &at(&wheels[0])).await, 403, "deny_packages");
        assert_eq!((index.total(), files.total()), (0, 0));
        proxy
            .fetch("pypi", &at(&wheels[1]))
            .await
            .is("remote", &wheels[1].bytes);
    });
}

#[test]
fn npm_and_its_services_in_their_form() {
    run(async {
        let up = Upstream::start().await;
        let versions = [
            NpmVersion::new("@corp/lib", "9.0.0", json!({})),
            NpmVersion::new("plain", "1.0.0", json!({})),
        ];
        serve_npm(&up, &up, &versions);
        let remote = format!(
            "npm:\n  base_url: {}\n  package: npm\n  mutable_patterns: ['^(?!.*\\.tgz$).*']\n  deny_packages: ['@corp/*']\n",
            up.base()
        );
        let proxy = Proxy::start(&remote).await;
        for path in [
            "@corp%2flib",
            "@corp/lib",
            "%40Corp%2Flib/latest",
            "@corp/lib/9.0.0",
            "-/package/@corp%2flib/dist-tags",
            "-/npm/v1/attestations/@corp%2flib@9.0.0",
        ] {
            for accept in [NPM_ABBREVIATED, "*/*"] {
                let answer = proxy.fetch_with("npm", path, &[("Accept", accept)]).await;
                let error = answer.json()["error"].clone();
                is_hidden(answer, 404, "deny_packages");
                assert!(error.as_str().unwrap().starts_with("Not found: "), "{error}");
            }
        }
        let answer = proxy.fetch("npm", &versions[0].path()[1..]).await;
        assert!(answer.json()["error"].as_str().unwrap().contains("@corp/lib"));
        is_hidden(answer, 403, "deny_packages");
        assert_eq!(up.total(), 0);
        // What tells of no package by its path passes.
        let bulk = "/api/v1/remote/npm/-/npm/v1/security/advisories/bulk";
        proxy
            .request("POST", bulk, &[("Content-Type", "application/json")], b"{}")
            .await
            .ok();
        proxy.fetch("npm", "plain").await.ok();
        proxy
            .fetch("npm", &versions[1].path()[1..])
            .await
            .is("remote", &versions[1].bytes);
    });
}

#[test]
fn images_and_crates_in_their_form() {
    run(async {
        let manifest = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("corp/app", "1.0", &manifest).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        pull(&proxy, "hub/corp/app", "1.0", &manifest).await;
        until_stored(&proxy, "hub/corp/app", "1.0", &manifest).await;
        let (index, files) = (Upstream::start().await, Upstream::start().await);
        let crates = [Crate::new("corp-lib", "9.0.0", &[]), Crate::new("open", "1.0.0", &[])];
        serve_crates(&index, &files, &crates);
        proxy.write_remotes(&format!(
            "{}crates:\n  base_url: {}/index\n  package: cargo\n  file_hosts: ['{}']\n  deny_packages: [Corp_Lib]\n",
            registry.remote("hub", "deny_packages: ['corp/*']"),
            index.base(),
            files.base(),
        ));
        proxy.reload_and_wait().await;
        registry.up.forget();
        let layer = &manifest.blobs[0].digest;
        for answer in [
            get_manifest(&proxy, "hub/corp/app", "1.0").await,
            get_manifest(&proxy, "hub/corp/app", &manifest.digest).await,
            get_manifest(&proxy, "hub/corp/app", "other").await,
            get_blob(&proxy, "hub/corp/app", layer).await,
        ] {
            assert!(answer.must("warning").contains("deny_packages"), "{:?}", answer.headers);
            assert!(refused(answer, 403, "DENIED").contains("package corp/app"));
        }
        assert_eq!(head_manifest(&proxy, "hub/corp/app", "1.0").await.status, 403);
        for list in ["tags/list".to_owned(), format!("referrers/{}", manifest.digest)] {
            let answer = client::get(proxy.address(), &format!("/v2/hub/corp/app/{list}")).await;
            refused(answer, 404, "NAME_UNKNOWN");
        }
        assert_eq!(registry.up.total(), 0);

        let config = proxy.fetch("crates", "config.json").await.ok().json();
        assert!(config["dl"].as_str().unwrap().contains("/-/host/"), "{config}");
        let host = format!("-/host/{}", files.authority());
        index.forget();
        let said = |answer: &Response| answer.json()["errors"][0]["detail"].as_str().unwrap().to_owned();
        for (path, status) in [
            (crates[0].index(), 404),
            (crates[0].index().to_uppercase(), 404),
            (format!("{host}/crates/{}", crates[0].download()), 403),
            (format!("{host}/crates/Corp_Lib/9.0.0/download"), 403),
            ("api/v1/crates/corp_lib".to_owned(), 404),
        ] {
            let answer = proxy.fetch("crates", &path).await;
            assert!(said(&answer).contains("package corp-lib"), "{path}");
            is_hidden(answer, status, "deny_packages");
        }
        assert_eq!((index.total(), files.total()), (0, 0));
        proxy.fetch("crates", &crates[1].index()).await.ok();
        let open = format!("{host}/crates/{}", crates[1].download());
        proxy.fetch("crates", &open).await.is("remote", &crates[1].bytes);
    });
}

#[test]
fn charts_and_system_packages_are_hidden_and_their_indexes_stay() {
    run(async {
        let up = Upstream::start().await;
        for path in [
            "/corp-app-1.0.0.tgz",
            "/open-1.0.0.tgz",
            "/os/Packages/corp-tool-1.0-1.x86_64.rpm",
            "/os/Packages/open-1.0-1.x86_64.rpm",
            "/v3/main/x86_64/corp-tool-1.0-r0.apk",
            "/v3/main/x86_64/open-1.0-r0.apk",
        ] {
            up.file(path, File::new("file"));
        }
        up.file("/index.yaml", File::new("apiVersion: v1\nentries: {}\n"))
            .file("/v3/main/x86_64/APKINDEX.tar.gz", File::new("index"));
        let remotes: String = ["helm", "rpm", "alpine"]
            .iter()
            .map(|package| {
                format!(
                    "{package}:\n  base_url: {}\n  package: {package}\n  allow_packages: ['*']\n  deny_packages: ['corp-*']\n",
                    up.base()
                )
            })
            .collect();
        let proxy = Proxy::start(&remotes).await;
        for (remote, path) in [
            ("helm", "corp-app-1.0.0.tgz"),
            ("helm", "corp-app-1.0.0.tgz.prov"),
            ("rpm", "os/Packages/corp-tool-1.0-1.x86_64.rpm"),
            ("alpine", "v3/main/x86_64/corp-tool-1.0-r0.apk"),
        ] {
            is_hidden(proxy.fetch(remote, path).await, 403, "deny_packages");
            assert_eq!(proxy.head(remote, path).await.status, 403, "{path}");
        }
        assert_eq!(up.total(), 0);
        for (remote, path) in [
            ("helm", "open-1.0.0.tgz"),
            ("helm", "index.yaml"),
            ("rpm", "os/Packages/open-1.0-1.x86_64.rpm"),
            ("alpine", "v3/main/x86_64/open-1.0-r0.apk"),
            ("alpine", "v3/main/x86_64/APKINDEX.tar.gz"),
        ] {
            proxy.fetch(remote, path).await.ok();
        }
    });
}
