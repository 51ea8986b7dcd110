//! dnf through the proxy, from a tree that createrepo_c has made.

mod common;

use std::time::Duration;

use common::clients::{Home, Output, program};
use common::{Proxy, Upstream, run_for};

/// Builds one package without content of note and a repository around it in `repo`.
async fn repository(home: &Home, version: &str) {
    home.write(
        "hello.spec",
        &format!(
            "Name: hello-artifact\nVersion: {version}\nRelease: 1\nSummary: A package for tests\nLicense: Apache-2.0\n\
             BuildArch: noarch\n%description\nA package for tests.\n%install\nmkdir -p %{{buildroot}}/opt/hello\n\
             echo {version} > %{{buildroot}}/opt/hello/version\n%files\n/opt/hello/version\n"
        ),
    );
    let mut build = home.command(program("rpmbuild"));
    build
        .args(["-bb", "--quiet", "hello.spec"])
        .arg("--define")
        .arg(format!("_topdir {}", home.path("rpm").display()));
    home.run(build).await.ok();
    let packages = home.work().join("repo/noarch");
    std::fs::create_dir_all(&packages).unwrap();
    let name = format!("hello-artifact-{version}-1.noarch.rpm");
    std::fs::copy(home.path("rpm/RPMS/noarch").join(&name), packages.join(&name)).unwrap();
    let mut index = home.command(program("createrepo_c"));
    index.args(["--quiet", "repo"]);
    home.run(index).await.ok();
}

async fn install(home: &Home, root: &str, url: &str) -> Output {
    let mut command = home.command(program("dnf"));
    command.arg("-y").arg("--installroot").arg(home.work().join(root));
    command.args([
        "--releasever",
        "9",
        "--setopt=reposdir=/dev/null",
        "--setopt=retries=1",
        "--nogpgcheck",
    ]);
    command.arg(format!("--setopt=cachedir={}", home.path("tmp").join(root).display()));
    command.arg(format!("--setopt=logdir={}", home.path("tmp").display()));
    command
        .arg(format!("--repofrompath=t,{url}/"))
        .args(["--repo", "t", "install", "hello-artifact"]);
    home.run(command).await
}

#[test]
fn a_package_installs_and_installs_again_without_upstream() {
    run_for(Duration::from_secs(240), async {
        let home = Home::new();
        repository(&home, "1.0").await;
        let up = Upstream::start().await;
        up.directory("/el9/", home.work().join("repo"));
        let proxy = Proxy::start(&format!(
            "rpms:\n  base_url: {}/el9\n  package: rpm\n  immutable_patterns: ['(^|/)noarch/.*\\.rpm$']\n",
            up.base()
        ))
        .await;
        let url = format!("{}/api/v1/remote/rpms", proxy.base());
        install(&home, "one", &url).await.ok();
        assert_eq!(home.read("one/opt/hello/version"), "1.0\n");
        up.switch_off().await;
        install(&home, "two", &url).await.ok();
        assert_eq!(home.read("two/opt/hello/version"), "1.0\n");
        assert_eq!(up.count("GET", "/el9/repodata/repomd.xml"), 1);
    });
}

#[test]
fn a_new_repository_is_seen_after_the_ttl() {
    run_for(Duration::from_secs(240), async {
        let home = Home::new();
        repository(&home, "1.0").await;
        let up = Upstream::start().await;
        up.directory("/el9/", home.work().join("repo"));
        let yaml = format!(
            "rpms:\n  base_url: {}/el9\n  package: rpm\n  cache: {{mutable_ttl: 1}}\n",
            up.base()
        );
        let proxy = Proxy::start(&yaml).await;
        let url = format!("{}/api/v1/remote/rpms", proxy.base());
        install(&home, "one", &url).await.ok();
        repository(&home, "2.0").await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        install(&home, "two", &url).await.ok();
        assert_eq!(home.read("two/opt/hello/version"), "2.0\n");
    });
}
