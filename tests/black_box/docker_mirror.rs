//! The proxy as a mirror: where a request belongs when its path does not name a remote, and how official images are named.

use crate::common::client::Headers;
use crate::common::image::*;
use crate::common::outbound::OutboundProxy;
use crate::common::pull::*;
use crate::common::registry::*;
use crate::common::upstream::Authority;
use crate::common::{Proxy, Response, Upstream, client, run};

/// The host of a remote that ships in `remotes.yaml`.
fn shipped_host(remote: &str) -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/remotes.yaml");
    let text = std::fs::read_to_string(file).expect("remotes.yaml");
    let section = text
        .split(&format!("\n  {remote}:\n"))
        .nth(1)
        .expect("a remote that ships");
    let line = section
        .lines()
        .find(|line| line.trim().starts_with("base_url:"))
        .expect("its base_url");
    let url = line.split_once(':').expect("a value").1.trim().trim_matches('\'');
    url::Url::parse(url)
        .expect("a URL")
        .host_str()
        .expect("a host")
        .to_owned()
}

async fn with_default(yaml: &str, remote: &str) -> Proxy {
    Proxy::settings()
        .remotes(yaml)
        .conf(&format!("docker: {{default_remote: {remote}}}\n"))
        .start()
        .await
}

/// GET of a manifest with headers and a query.
async fn ask(proxy: &Proxy, target: &str, headers: &[(&str, &str)]) -> Response {
    let headers = [&[("Accept", ACCEPT_ALL)], headers].concat();
    client::get_with(proxy.address(), target, &headers).await
}

#[test]
fn a_path_without_a_remote_belongs_to_the_default_remote() {
    run(async {
        let image = Manifest::two_platforms("app");
        let registry = Registry::with("team/app", "v1", &image).await;
        let other = Registry::with("team/app", "v1", &Manifest::image("other", "amd64", 1)).await;
        let yaml = registry.remote("hub", "") + &other.remote("other", "");
        let proxy = with_default(&yaml, "hub").await;
        // As Docker's daemon asks its mirrors.
        pull(&proxy, "team/app", "v1", &image).await;
        until_stored(&proxy, "team/app", "v1", &image).await;
        registry.switch_off().await;
        // The same content under both names.
        pull(&proxy, "hub/team/app", "v1", &image).await;
        pull(&proxy, "team/app", "v1", &image).await;
        // A remote's name goes first.
        let answer = ask(&proxy, &manifest_at("other/team/app", "v1"), &[]).await.ok();
        assert_ne!(answer.must("docker-content-digest"), image.digest);
    });
}

#[test]
fn without_a_default_remote_such_a_path_is_unknown() {
    run(async {
        let registry = Registry::with("team/app", "v1", &Manifest::image("app", "amd64", 1)).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        let answer = ask(&proxy, &manifest_at("team/app", "v1"), &[]).await;
        let message = refused(answer, 404, "NAME_UNKNOWN");
        assert!(message.contains("team"), "{message}");
        assert_eq!(registry.up.total(), 0);
    });
}

#[test]
fn the_default_remote_may_come_from_the_environment_and_must_exist() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &image).await;
        let proxy = Proxy::settings()
            .remotes(&registry.remote("hub", ""))
            .env("ARTIFACTAPI_DOCKER_DEFAULT_REMOTE", "hub")
            .start()
            .await;
        pull(&proxy, "team/app", "v1", &image).await;
        let folder = tempfile::tempdir().unwrap();
        for (name, body) in [
            ("remotes.yaml", "remotes: {files: {base_url: 'http://127.0.0.1:1'}}\n"),
            ("conf.yaml", "docker: {default_remote: files}\n"),
        ] {
            std::fs::write(folder.path().join(name), body).unwrap();
        }
        let args = ["check", "--remotes", "remotes.yaml", "--conf", "conf.yaml"];
        let ended = crate::common::server::run_binary(folder.path(), &[], &args);
        assert_ne!(ended.code, Some(0), "{}", ended.text());
        assert!(ended.text().contains("default_remote"), "{}", ended.text());
    });
}

#[test]
fn ns_chooses_the_remote_where_the_path_names_none() {
    run(async {
        let (first, second) = (
            Manifest::image("first", "amd64", 1),
            Manifest::image("second", "amd64", 1),
        );
        let one = Registry::with("team/app", "v1", &first).await;
        let two = Registry::with("team/app", "v1", &second).await;
        let proxy = with_default(&(one.remote("one", "") + &two.remote("two", "")), "one").await;
        for (registry, image) in [(&one, &first), (&two, &second)] {
            let ns = registry.up.authority();
            for _ in 0..2 {
                for reference in ["v1", &image.digest] {
                    let target = format!("{}?ns={ns}", manifest_at("team/app", reference));
                    let answer = ask(&proxy, &target, &[]).await.ok();
                    assert_eq!(answer.must("docker-content-digest"), image.digest, "{target}");
                    assert_eq!(answer.must("oci-namespace"), ns);
                }
                let target = format!("{}?ns={ns}", blob_at("team/app", &image.blobs[1].digest));
                let answer = client::get(proxy.address(), &target).await.ok();
                assert!(answer.body == image.blobs[1].bytes());
                assert_eq!(answer.must("oci-namespace"), ns);
                let head = client::head(proxy.address(), &target).await.ok();
                assert_eq!(head.must("oci-namespace"), ns);
            }
            for seen in registry.up.log() {
                assert!(!seen.path.contains("ns="), "{}", seen.path);
            }
        }
        // Another registry's image is never answered from the default remote.
        let target = format!("{}?ns=registry.test", manifest_at("team/app", "v1"));
        refused(ask(&proxy, &target, &[]).await, 404, "NAME_UNKNOWN");
    });
}

#[test]
fn ns_beside_a_remote_in_the_path_changes_nothing() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &image).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        let ns = registry.up.authority();
        for query in [String::new(), format!("?ns={ns}"), "?ns=registry.test".to_owned()] {
            let target = format!("{}{query}", manifest_at("hub/team/app", "v1"));
            let answer = ask(&proxy, &target, &[]).await.ok();
            assert!(answer.body == image.bytes);
            let target = format!("{}{query}", blob_at("hub/team/app", &image.blobs[0].digest));
            let answer = client::get(proxy.address(), &target).await.ok();
            assert!(answer.body == image.blobs[0].bytes());
        }
        for seen in registry.up.log() {
            assert!(!seen.path.contains('?'), "{}", seen.path);
        }
        // One object, whatever the query.
        assert_eq!(registry.count("GET", &blob_at("team/app", &image.blobs[0].digest)), 1);
        // A list keeps its own query.
        let target = format!("/v2/hub/team/app/tags/list?ns={ns}&n=1");
        client::get(proxy.address(), &target).await.ok();
        let asked = registry.requests("GET", "/v2/team/app/tags/list");
        assert!(
            asked.iter().all(|seen| seen.path.ends_with("/tags/list?n=1")),
            "{}",
            asked[0].path
        );
    });
}

#[test]
fn a_host_of_its_own_needs_no_remote_in_the_path() {
    run(async {
        let image = Manifest::two_platforms("app");
        let registry = Registry::with("team/app", "v1", &image).await.paged(1);
        registry.tag("team/app", "v2", &image.digest);
        let yaml = registry.remote("hub", "hosts: [mirror.test]") + &registry.remote("other", "");
        let proxy = Proxy::start(&yaml).await;
        for host in ["mirror.test", "MIRROR.test:5000"] {
            let host = [("Host", host)];
            client::get_with(proxy.address(), "/v2/", &host).await.ok();
            let answer = ask(&proxy, &manifest_at("team/app", "v1"), &host).await.ok();
            assert!(answer.body == image.bytes);
            let tags = client::get_with(proxy.address(), "/v2/team/app/tags/list", &host)
                .await
                .ok();
            let link = tags.must("link");
            assert!(
                link.contains("/v2/team/app/tags/list?") && !link.contains("hub"),
                "{link}"
            );
            // Every path belongs to the remote, also one that begins like another remote.
            let answer = ask(&proxy, &manifest_at("other/team/app", "v1"), &host)
                .await
                .expect(404);
            assert!(answer.json()["errors"][0]["code"].is_string(), "{}", answer.text());
        }
        // The same objects as by the path.
        until_cached(&proxy, &manifest_at("hub/team/app", "v1")).await;
        assert_eq!(
            registry.count("GET", &manifest_at("team/app", &image.digest))
                + registry.count("GET", &manifest_at("team/app", "v1")),
            1
        );
    });
}

/// A registry with TLS under the host of a remote that ships, reached through an outbound proxy.
async fn in_place_of(host: &str) -> (Registry, OutboundProxy, Authority) {
    let authority = Authority::new();
    let up = Upstream::start_tls_with(&authority, host, &["http/1.1"]).await;
    let outbound = OutboundProxy::start().await;
    outbound.place(&format!("{host}:443"), up.address());
    (Registry::on(up), outbound, authority)
}

#[test]
fn official_images_may_be_named_without_library_on_the_hub_only() {
    run(async {
        for (remote, official) in [("dockerhub", true), ("ghcr", false)] {
            let host = shipped_host(remote);
            let (image, team) = (
                Manifest::image("official", "amd64", 1),
                Manifest::image("team", "amd64", 1),
            );
            let (registry, outbound, authority) = in_place_of(&host).await;
            registry.push("library/alpine", "3.20", &image);
            registry.push("team/app", "v1", &team);
            let proxy = Proxy::settings()
                .remotes(&format!(
                    "{remote}:\n  base_url: https://{host}\n  package: docker\n  proxy: {}\n",
                    outbound.url()
                ))
                .conf(&format!("docker: {{default_remote: {remote}}}\n"))
                .env("SSL_CERT_FILE", authority.path().to_str().unwrap())
                .start()
                .await;
            pull(&proxy, &format!("{remote}/library/alpine"), "3.20", &image).await;
            pull(&proxy, &format!("{remote}/team/app"), "v1", &team).await;
            until_stored(&proxy, &format!("{remote}/library/alpine"), "3.20", &image).await;
            registry.up.forget();
            if official {
                pull(&proxy, "dockerhub/alpine", "3.20", &image).await;
                pull(&proxy, "alpine", "3.20", &image).await;
                pull(&proxy, "library/alpine", "3.20", &image).await;
                let tags = client::get(proxy.address(), "/v2/dockerhub/alpine/tags/list")
                    .await
                    .ok();
                assert_eq!(tags.json()["tags"], serde_json::json!(["3.20"]));
                // The client's own names for it: the registrable domain, which is what images are called by.
                let ns = host.split_once('.').unwrap().1;
                for ns in [ns.to_owned(), format!("index.{ns}"), host.clone()] {
                    let target = format!("{}?ns={ns}", manifest_at("library/alpine", "3.20"));
                    let answer = ask(&proxy, &target, &[]).await.ok();
                    assert!(answer.body == image.bytes, "{ns}");
                    assert_eq!(answer.must("oci-namespace"), ns);
                }
                // They are one and the same here.
                let asked = registry
                    .up
                    .log()
                    .iter()
                    .map(|seen| seen.path.clone())
                    .collect::<Vec<_>>();
                assert!(asked.iter().all(|path| path.contains("/tags/list")), "{asked:?}");
            } else {
                let answer = ask(&proxy, &manifest_at(&format!("{remote}/alpine"), "3.20"), &[]).await;
                answer.expect(404);
            }
            for seen in registry.up.log() {
                assert_eq!(seen.header("authorization"), None);
            }
        }
    });
}

#[test]
fn an_organisation_may_be_called_as_a_remote_is() {
    run(async {
        let (theirs, other) = (
            Manifest::image("theirs", "amd64", 1),
            Manifest::image("other", "arm64", 1),
        );
        let hub = Registry::with("quay/app", "v1", &theirs).await;
        let quay = Registry::with("app", "v1", &other).await;
        let proxy = Proxy::start(&(hub.remote("hub", "") + &quay.remote("quay", ""))).await;
        let target = |ns: &str| format!("{}?ns={ns}", manifest_at("quay/app", "v1"));
        // The organisation `quay` of the first registry, the repository `app` of the remote `quay`.
        let answer = ask(&proxy, &target(&hub.up.authority()), &[]).await.ok();
        assert!(answer.body == theirs.bytes);
        let answer = ask(&proxy, &target(&quay.up.authority()), &[]).await.ok();
        assert!(answer.body == other.bytes);
        let answer = ask(&proxy, &manifest_at("quay/app", "v1"), &[]).await.ok();
        assert!(answer.body == other.bytes);
    });
}
