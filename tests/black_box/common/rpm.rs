//! A small real RPM repository, and dnf to install from it.

use std::path::PathBuf;

use super::clients::{Home, Output, program};

/// Builds `hello-artifact` at `version` and a repository with it in `repo`, by a `createrepo_c` with the options of `form`.
pub async fn tree(home: &Home, version: &str, createrepo: PathBuf, form: &[&str]) {
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
    let mut index = home.command(createrepo);
    index.arg("--quiet").args(form).arg("repo");
    home.run(index).await.ok();
}

/// Installs `hello-artifact` from the repository at `url` into a root of its own.
pub async fn dnf(home: &Home, root: &str, url: &str) -> Output {
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
