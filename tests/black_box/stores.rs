//! A data folder that the version before keys were typed has written (`tests/fixtures/store-0.1.0`), read by this one. Its
//! upstreams are gone, and its clock stood at the beginning of 2025.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::client::Headers;
use crate::common::server::{at, run_binary, stored_files};
use crate::common::{Proxy, eventually, run, sha256};

/// Configured as it was, but offline: whatever is served comes from the folder.
const REMOTES: &str = "
files:
  base_url: http://127.0.0.1:18080/files
  offline: true
  package: generic
  mutable_patterns: ['^live/']
python:
  base_url: http://127.0.0.1:18080/pypi
  offline: true
  package: pypi
node:
  base_url: http://127.0.0.1:18080/npm
  offline: true
  package: npm
  mutable_patterns: ['^(?!.*\\.tgz$).*']
charts:
  base_url: http://127.0.0.1:18080/helm
  offline: true
  package: helm
rpms:
  base_url: http://127.0.0.1:18080/rpm
  offline: true
  package: rpm
apks:
  base_url: http://127.0.0.1:18080/alpine
  offline: true
  package: alpine
images:
  base_url: http://127.0.0.1:18080
  offline: true
  package: docker
";

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "layer\n";
const IMAGE_CONFIG: &str = r#"{"architecture":"amd64","os":"linux"}"#;

/// The remote, the path as the catalogue lists it, and what a client of `base` reads there.
fn stored(base: &str) -> Vec<(&'static str, String, Vec<u8>)> {
    let file = |remote, path: &str, body: &str| (remote, path.to_owned(), body.as_bytes().to_vec());
    let (layer, config) = (sha256(LAYER.as_bytes()), sha256(IMAGE_CONFIG.as_bytes()));
    let manifest = format!(
        "{{\"schemaVersion\": 2, \"mediaType\": \"{MANIFEST_TYPE}\", \"config\": {{\"mediaType\": \
         \"application/vnd.oci.image.config.v1+json\", \"digest\": \"sha256:{config}\", \"size\": 37}}, \"layers\": \
         [{{\"mediaType\": \"application/vnd.oci.image.layer.v1.tar\", \"digest\": \"sha256:{layer}\", \"size\": 6}}]}}"
    );
    let (wheel, source) = ("wheel of six\n", "source of six, elsewhere\n");
    let page = format!(
        "<!DOCTYPE html>\n<html><body>\n\
         <a href=\"../../packages/six-1.0-py3-none-any.whl#sha256={}\">six-1.0-py3-none-any.whl</a>\n\
         <a href=\"../../-/host/127.0.0.1:18081/elsewhere/six-1.0.tar.gz#sha256={}\">six-1.0.tar.gz</a>\n\
         </body></html>\n",
        sha256(wheel.as_bytes()),
        sha256(source.as_bytes())
    );
    let packument = format!(
        "{{\"name\": \"leftpad\", \"dist-tags\": {{\"latest\": \"1.0.0\"}}, \"versions\": {{\"1.0.0\": {{\"name\": \"leftpad\", \
         \"version\": \"1.0.0\", \"dist\": {{\"tarball\": \"{base}/api/v1/remote/node/leftpad/-/leftpad-1.0.0.tgz\", \
         \"shasum\": \"ba4fec308bb98daa60f4c148d19ad9f166cb2078\"}}}}}}}}"
    );
    let chart = "chart of app\n";
    let charts = format!(
        "apiVersion: v1\nentries:\n  app:\n  - name: app\n    version: 1.0.0\n    digest: {}\n    urls:\n    \
         - ./charts/app-1.0.0.tgz\n",
        sha256(chart.as_bytes())
    );
    let (primary, comps) = ("<metadata packages=\"0\"/>\n", "<comps/>\n");
    let repomd = format!(
        "<?xml version=\"1.0\"?>\n<repomd xmlns=\"urn:repo\"><revision>1</revision>\n\
         <data type=\"primary\"><checksum type=\"sha256\">{}</checksum><location href=\"repodata/primary.xml\"/>\
         <size>25</size></data>\n\
         <data type=\"group\"><checksum type=\"sha256\">{}</checksum><location href=\"repodata/comps.xml\"/>\
         <size>9</size></data>\n</repomd>\n",
        sha256(primary.as_bytes()),
        sha256(comps.as_bytes())
    );
    let binary: Vec<u8> = (0..=255).cycle().take(2048).collect();
    vec![
        ("files", "dir/app.bin".to_owned(), binary),
        file("files", "get?file=a/b&rev=2", "asked for by a query\n"),
        file("files", "live/notes.txt", "mutable\n"),
        file("python", "simple/six/", &page),
        file("python", "packages/six-1.0-py3-none-any.whl", wheel),
        file("python", "-/host/127.0.0.1:18081/elsewhere/six-1.0.tar.gz", source),
        file("node", "leftpad", &packument),
        file("node", "leftpad/-/leftpad-1.0.0.tgz", "tarball of leftpad\n"),
        file("charts", "index.yaml", &charts),
        file("charts", "charts/app-1.0.0.tgz", chart),
        file("rpms", "repodata/repomd.xml", &repomd),
        file("rpms", "repodata/primary.xml", primary),
        file("rpms", "repodata/comps.xml", comps),
        file("rpms", "a-1.0-1.x86_64.rpm", "package a\n"),
        file("apks", "v3/main/x86_64/APKINDEX.tar.gz", "index of alpine\n"),
        file("apks", "v3/main/x86_64/a-1.0-r0.apk", "package of alpine\n"),
        file("images", "team/app/manifests/v1", &manifest),
        file(
            "images",
            &format!("manifests/sha256:{}", sha256(manifest.as_bytes())),
            &manifest,
        ),
        file("images", &format!("blobs/sha256:{config}"), IMAGE_CONFIG),
        file("images", &format!("blobs/sha256:{layer}"), LAYER),
    ]
}

/// Where clients ask for it.
fn target(remote: &str, path: &str) -> String {
    match remote {
        "images" if path.starts_with("team/") => format!("/v2/images/{path}"),
        // Stored once for all repositories.
        "images" => format!("/v2/images/team/app/{path}"),
        _ => at(remote, path),
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.metadata().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => fs::write(target, fs::read(entry.path()).unwrap()).unwrap(),
        }
    }
}

/// Remote and path of all that the catalogue lists, sorted.
async fn listed(proxy: &Proxy) -> Vec<(String, String)> {
    let answer = proxy.request("GET", "/api/v1/artifacts?limit=1000", &[], b"").await;
    let answer = answer.ok().json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let rows = answer["artifacts"].as_array().unwrap().iter();
    let mut rows: Vec<_> = rows.map(|row| (text(&row["remote"]), text(&row["path"]))).collect();
    rows.sort();
    rows
}

async fn fetch(proxy: &Proxy, remote: &str, path: &str) -> crate::common::Response {
    let accept = [("Accept", if remote == "images" { MANIFEST_TYPE } else { "*/*" })];
    proxy.request("GET", &target(remote, path), &accept, b"").await
}

#[test]
fn a_store_of_the_version_before_is_read() {
    run(async {
        let data = tempfile::tempdir().unwrap();
        let fixture = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-0.1.0");
        copy(&fixture, data.path());
        let files = stored_files(data.path());
        let mut proxy = Proxy::settings().remotes(REMOTES).data_dir(data.path()).start().await;

        let verified = run_binary(
            proxy.folder(),
            &[],
            &[
                "verify",
                "--data-dir",
                data.path().to_str().unwrap(),
                "--remotes",
                proxy.remotes_file().to_str().unwrap(),
            ],
        );
        let said = format!("{} objects", files.len());
        assert!(
            verified.code == Some(0) && verified.stdout.contains(&said) && verified.stdout.contains("0 damaged"),
            "{}",
            verified.text()
        );

        let expected = stored(&proxy.base());
        let mut rows: Vec<_> = expected
            .iter()
            .map(|(remote, path, _)| ((*remote).to_owned(), path.clone()))
            .collect();
        rows.sort();
        assert_eq!(listed(&proxy).await, rows);

        for start in ["first", "second"] {
            for (remote, path, body) in &expected {
                let answer = fetch(&proxy, remote, path).await.is("cache", body);
                let words = answer.cache_words();
                assert_eq!(words[0], "hit", "{start} {remote} {path}: {}", answer.cache_status());
            }
            assert_eq!(listed(&proxy).await, rows, "{start}");
            proxy.restart().await;
        }
        // A document whose links do not depend on the client is served as it was written, too.
        for file in &files {
            assert!(file.exists(), "{file:?} was written again under another name");
        }

        let flush = br#"{"remote": "files", "prefix": "get"}"#;
        let flushed = proxy.request("PUT", "/cache/flush", &[], flush).await.ok().json();
        assert_eq!(flushed["deleted"], 1, "{flushed}");
        let gone = ("files".to_owned(), "get?file=a/b&rev=2".to_owned());
        fetch(&proxy, &gone.0, &gone.1).await.expect(504);
        rows.retain(|row| *row != gone);
        assert_eq!(listed(&proxy).await, rows);
        eventually(Duration::from_secs(10), "its file is gone", async || {
            files.iter().filter(|file| !file.exists()).count() == 1
        })
        .await;
        for (remote, path, body) in expected.iter().filter(|(remote, ..)| *remote != "images") {
            if *path != gone.1 {
                fetch(&proxy, remote, path).await.is("cache", body);
            }
        }
    });
}
