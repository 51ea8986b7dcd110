//! A small real RPM repository, and dnf to install from it; and scripted ones.

use std::path::PathBuf;

use super::clients::{Home, Output, program};
use super::packages::gzip;
use super::sha256;
use super::upstream::{File, Upstream};

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

/// How a repository writes its metadata.
#[derive(Clone, Copy)]
pub struct Form {
    /// The ending of the list of packages, which says how that is packed.
    pub packing: &'static str,
    /// The checksum of the packages.
    pub checksum: &'static str,
    /// Whether metadata has its checksum in its name.
    pub is_unique: bool,
}

/// What `createrepo_c` does when nobody asks for anything.
pub const USUAL: Form = Form {
    packing: ".xml.zst",
    checksum: "sha256",
    is_unique: true,
};

/// A checksum as metadata has it.
fn checksum(kind: &str, bytes: &[u8]) -> String {
    match kind {
        "sha" => sha1_smol::Sha1::from(bytes).digest().to_string(),
        "sha256" => sha256(bytes),
        // No digest at all: nothing here can tell.
        "md5" => "0123456789abcdef0123456789abcdef".to_owned(),
        other => panic!("{other}"),
    }
}

/// Where the list of packages is, below the repository.
pub fn serve_repository(up: &Upstream, root: &str, packages: &[(&str, &[u8])], form: Form) -> String {
    let mut primary = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<metadata xmlns=\"urn:common\" packages=\"{}\">\n",
        packages.len()
    );
    for (href, bytes) in packages {
        primary.push_str(&format!(
            "<package type=\"rpm\"><name>a</name><checksum type=\"{}\" pkgid=\"YES\">{}</checksum><summary>é</summary>\
             <time file=\"1700000000\" build=\"1600000000\"/><location href=\"{href}\"/><format><file>/a</file></format>\
             </package>\n",
            form.checksum,
            checksum(form.checksum, bytes)
        ));
    }
    primary.push_str("</metadata>\n");
    let packed = match form.packing {
        ".xml.gz" => gzip(primary.as_bytes()),
        ".xml.zst" => zstd::encode_all(primary.as_bytes(), 3).expect("in memory"),
        // Whatever else it claims to be is not read.
        _ => primary.into_bytes(),
    };
    let digest = sha256(&packed);
    let name = match form.is_unique {
        true => format!("{digest}-primary{}", form.packing),
        false => format!("primary{}", form.packing),
    };
    let repomd = format!(
        "<?xml version=\"1.0\"?>\n<repomd xmlns=\"urn:repo\"><revision>1</revision><data type=\"primary\">\
         <checksum type=\"sha256\">{digest}</checksum><location href=\"repodata/{name}\"/></data></repomd>\n"
    );
    let etag = format!("\"{}\"", &digest[..9]);
    up.file(&format!("/{root}repodata/repomd.xml"), File::new(repomd).etag(&etag));
    up.file(&format!("/{root}repodata/{name}"), File::new(packed));
    for (href, bytes) in packages {
        up.file(&format!("/{root}{href}"), File::new(bytes.to_vec()));
    }
    format!("repodata/{name}")
}
