//! An apk client (go-apk) through the proxy, from a signed repository of a real package.

use std::path::Path;
use std::time::Duration;

use crate::common::clients::{Home, Output, tool};
use crate::common::{File, Proxy, Upstream, run_for};
use crate::verify::counted;

const ARCH: &str = "aarch64";

/// A signed repository with one package of Alpine's format; the key is `KEY.pub` in the work folder.
async fn repository(home: &Home) {
    let folder = home.work().join("repo").join(ARCH);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(
        tool("fixtures/apk/replaces-0.0.1-r0.apk"),
        folder.join("replaces-0.0.1-r0.apk"),
    )
    .unwrap();
    let apk = |args: &[&str]| {
        let mut command = home.command(tool("go/bin/apk"));
        command.args(args);
        command
    };
    home.run(apk(&["keygen", "test.rsa"])).await.ok();
    let index = format!("repo/{ARCH}/APKINDEX.tar.gz");
    home.run(apk(&[
        "index",
        "test.rsa",
        &index,
        &format!("repo/{ARCH}/replaces-0.0.1-r0.apk"),
    ]))
    .await
    .ok();
}

async fn install(home: &Home, root: &str, url: &str) -> Output {
    std::fs::create_dir_all(home.work().join(root)).unwrap();
    let mut command = home.command(tool("go/bin/apk"));
    command.args([
        "install",
        "-root",
        root,
        "-key",
        "test.rsa.pub",
        "-arch",
        ARCH,
        "-repo",
        url,
        "replaces",
    ]);
    home.run(command).await
}

#[test]
fn a_signed_package_installs_and_installs_again_without_upstream() {
    run_for(Duration::from_secs(180), async {
        let home = Home::new();
        repository(&home).await;
        let up = Upstream::start().await;
        up.directory("/alpine/", home.work().join("repo"));
        let proxy = Proxy::start(&format!(
            "alpine:\n  base_url: {}/alpine\n  package: alpine\n  immutable_patterns: ['.*/?{ARCH}/.*\\.apk$']\n  \
             cache: {{mutable_ttl: 3600}}\n",
            up.base()
        ))
        .await;
        let url = format!("{}/api/v1/remote/alpine", proxy.base());
        let installed = |output: Output| assert!(output.ok().stdout.contains("installed replaces 0.0.1-r0"));
        installed(install(&home, "one", &url).await);
        assert!(Path::new(&home.work().join("one/hello")).exists());
        up.switch_off().await;
        installed(install(&home, "two", &url).await);
        assert!(Path::new(&home.work().join("two/hello")).exists());
        let index = format!("/alpine/{ARCH}/APKINDEX.tar.gz");
        assert_eq!(up.count("GET", &index), 1);
        // Byte for byte: a signature is over the bytes.
        let stored = proxy.fetch("alpine", &format!("{ARCH}/APKINDEX.tar.gz")).await;
        assert_eq!(
            stored.body,
            std::fs::read(home.work().join(format!("repo/{ARCH}/APKINDEX.tar.gz"))).unwrap()
        );
    });
}

#[test]
fn a_package_that_the_index_does_not_know_so_is_not_installed() {
    run_for(Duration::from_secs(180), async {
        let home = Home::new();
        repository(&home).await;
        let up = Upstream::start().await;
        up.directory("/alpine/", home.work().join("repo"));
        let name = format!("{ARCH}/replaces-0.0.1-r0.apk");
        let right = std::fs::read(home.work().join("repo").join(&name)).unwrap();
        let mut wrong = right.clone();
        *wrong.last_mut().unwrap() ^= 1;
        let at = format!("/alpine/{name}");
        up.file(&at, File::new(wrong));
        let proxy = Proxy::start(&format!("r:\n  base_url: {}/alpine\n  package: alpine\n", up.base())).await;
        let url = format!("{}/api/v1/remote/r", proxy.base());
        install(&home, "one", &url).await.fails();
        assert!(!Path::new(&home.work().join("one/hello")).exists());
        counted(&proxy, up.count("GET", &at) as f64).await;
        up.file(&at, File::new(right));
        install(&home, "two", &url).await.ok();
        assert!(Path::new(&home.work().join("two/hello")).exists());
    });
}
