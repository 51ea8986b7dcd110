//! dnf through the proxy, from a tree that createrepo_c has made.

use std::time::Duration;

use crate::common::clients::{Home, program};
use crate::common::rpm::{dnf, tree};
use crate::common::{File, Proxy, Upstream, run_for};
use crate::verify::counted;

#[test]
fn a_package_installs_and_installs_again_without_upstream() {
    run_for(Duration::from_secs(240), async {
        let home = Home::new();
        tree(&home, "1.0", program("createrepo_c"), &[]).await;
        let up = Upstream::start().await;
        up.directory("/el9/", home.work().join("repo"));
        let proxy = Proxy::start(&format!(
            "rpms:\n  base_url: {}/el9\n  package: rpm\n  immutable_patterns: ['(^|/)noarch/.*\\.rpm$']\n",
            up.base()
        ))
        .await;
        let url = format!("{}/api/v1/remote/rpms", proxy.base());
        dnf(&home, "one", &url).await.ok();
        assert_eq!(home.read("one/opt/hello/version"), "1.0\n");
        up.switch_off().await;
        dnf(&home, "two", &url).await.ok();
        assert_eq!(home.read("two/opt/hello/version"), "1.0\n");
        assert_eq!(up.count("GET", "/el9/repodata/repomd.xml"), 1);
    });
}

#[test]
fn a_new_repository_is_seen_after_the_ttl() {
    run_for(Duration::from_secs(240), async {
        let home = Home::new();
        tree(&home, "1.0", program("createrepo_c"), &[]).await;
        let up = Upstream::start().await;
        up.directory("/el9/", home.work().join("repo"));
        let yaml = format!(
            "rpms:\n  base_url: {}/el9\n  package: rpm\n  cache: {{mutable_ttl: 1}}\n",
            up.base()
        );
        let proxy = Proxy::start(&yaml).await;
        let url = format!("{}/api/v1/remote/rpms", proxy.base());
        dnf(&home, "one", &url).await.ok();
        tree(&home, "2.0", program("createrepo_c"), &[]).await;
        // The TTL passes.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        dnf(&home, "two", &url).await.ok();
        assert_eq!(home.read("two/opt/hello/version"), "2.0\n");
    });
}

#[test]
fn a_package_that_the_repository_does_not_know_so_is_not_installed() {
    run_for(Duration::from_secs(240), async {
        let home = Home::new();
        tree(&home, "1.0", program("createrepo_c"), &[]).await;
        let up = Upstream::start().await;
        up.directory("/el9/", home.work().join("repo"));
        let name = "noarch/hello-artifact-1.0-1.noarch.rpm";
        let right = std::fs::read(home.work().join("repo").join(name)).unwrap();
        let mut wrong = right.clone();
        *wrong.last_mut().unwrap() ^= 1;
        let at = format!("/el9/{name}");
        up.file(&at, File::new(wrong));
        let proxy = Proxy::start(&format!("r:\n  base_url: {}/el9\n  package: rpm\n", up.base())).await;
        let url = format!("{}/api/v1/remote/r", proxy.base());
        dnf(&home, "one", &url).await.fails();
        // dnf asks more than once; each is found out here.
        counted(&proxy, up.count("GET", &at) as f64).await;
        up.file(&at, File::new(right));
        dnf(&home, "two", &url).await.ok();
        assert_eq!(home.read("two/opt/hello/version"), "1.0\n");
    });
}
