//! containerd by its `hosts.toml`, in each of the forms that are shown in README.

use std::time::Duration;

use crate::common::clients::readme_block;
use crate::common::image::*;
use crate::common::oci::{Containerd, RealRegistry};
use crate::common::registry::{Registry, blob_at};
use crate::common::{Proxy, run_for};

const LIMIT: Duration = Duration::from_secs(180);

/// `hosts.toml` as README shows it for one registry: the remote is in the path, and there is no way past the proxy.
fn for_one(proxy: &Proxy) -> String {
    let part = "server = \"http://127.0.0.1:8000/v2/dockerhub\"\n";
    readme_block(part, proxy.address(), ("dockerhub", "hub"))
}

/// `hosts.toml` as README shows it for all registries.
fn for_all(proxy: &Proxy) -> String {
    let part = "server = \"http://127.0.0.1:8000\"\n";
    readme_block(part, proxy.address(), ("dockerhub", "hub"))
}

/// Fails when somebody else than the proxy asked the registry for anything.
#[track_caller]
fn only_by_way_of_the_proxy(registry: &Registry) {
    assert!(registry.up.total() > 0);
    for seen in registry.up.log() {
        let agent = seen.header("user-agent").unwrap_or_default();
        assert!(agent.starts_with("artifactapi/"), "{agent} asked for {}", seen.path);
    }
}

async fn stored(proxy: &Proxy, repository: &str, image: &Manifest) {
    for blob in &image.blobs {
        crate::common::pull::until_cached(proxy, &blob_at(repository, &blob.digest)).await;
    }
}

#[test]
fn by_a_path_that_names_the_remote_and_again_without_upstream() {
    run_for(LIMIT, async {
        let image = Manifest::two_platforms("app");
        let mut registry = RealRegistry::with("team/app", "v1", &image).await;
        let proxy = Proxy::start(&format!("hub:\n  base_url: {}\n  package: docker\n", registry.base())).await;
        for round in ["first", "second"] {
            let containerd = Containerd::start().await;
            containerd.hosts("registry.test", &for_one(&proxy));
            let pulled = containerd.pull("registry.test/team/app:v1", &[]).await.ok();
            assert!(pulled.text().contains(&image.digest), "{round}: {}", pulled.text());
            let got = containerd.content(&image.digest).await;
            assert_eq!(got.as_bytes(), image.bytes, "{round}");
            let checked = containerd.ctr(&["images", "check"]).await.ok();
            assert!(checked.stdout.contains("complete"), "{round}: {}", checked.stdout);
            containerd
                .pull("registry.test/team/app:v1", &["--all-platforms"])
                .await
                .ok();
            for part in image.all() {
                stored(&proxy, "hub/team/app", part).await;
            }
            if round == "first" {
                for blob in image.all().iter().flat_map(|part| &part.blobs) {
                    assert_eq!(registry.count(&format!("GET /v2/team/app/blobs/{}", blob.digest)), 1);
                }
                registry.switch_off().await;
            }
        }
    });
}

#[test]
fn by_ns_without_a_remote_in_the_path() {
    run_for(LIMIT, async {
        let (first, second) = (
            Manifest::image("first", "amd64", 1),
            Manifest::image("second", "amd64", 1),
        );
        // Both could be reached by containerd itself.
        let one = Registry::with("team/app", "v1", &first).await;
        let two = Registry::with("team/app", "v1", &second).await;
        let proxy = Proxy::start(&(one.remote("one", "") + &two.remote("two", ""))).await;
        let containerd = Containerd::start().await;
        containerd.hosts("_default", &for_all(&proxy));
        for (registry, image) in [(&one, &first), (&two, &second)] {
            let name = format!("{}/team/app:v1", registry.up.authority());
            containerd.pull(&name, &[]).await.ok();
            assert_eq!(containerd.content(&image.digest).await.as_bytes(), image.bytes);
            only_by_way_of_the_proxy(registry);
        }
    });
}

#[test]
fn by_an_image_name_that_names_the_proxy_itself() {
    run_for(LIMIT, async {
        let image = Manifest::docker_image("app", "amd64");
        let registry = RealRegistry::with("team/app", "v1", &image).await;
        let proxy = Proxy::start(&format!("hub:\n  base_url: {}\n  package: docker\n", registry.base())).await;
        let containerd = Containerd::start().await;
        let name = format!("{}/hub/team/app:v1", proxy.address());
        containerd.pull(&name, &["--plain-http"]).await.ok();
        assert_eq!(containerd.content(&image.digest).await.as_bytes(), image.bytes);
    });
}

#[test]
fn what_the_proxy_refuses_or_lacks_is_not_fetched_past_it() {
    run_for(LIMIT, async {
        let image = Manifest::image("app", "amd64", 1);
        // Reachable by containerd itself, at the very name of the image.
        let registry = Registry::with("team/app", "v1", &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "immutable_patterns: ['^allowed/']")).await;
        let containerd = Containerd::start().await;
        let name = registry.up.authority();
        containerd.hosts(&name, &for_one(&proxy));
        let refused = containerd.pull(&format!("{name}/team/app:v1"), &[]).await.fails();
        assert!(refused.text().contains("403"), "{}", refused.text());
        containerd.pull(&format!("{name}/team/none:v1"), &[]).await.fails();
        only_by_way_of_the_proxy(&registry);
    });
}
