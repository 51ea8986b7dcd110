//! Lists: tags page by page, what refers to a manifest, the catalogue; and artifacts that are found by them.

use crate::common::client::Headers;
use crate::common::image::*;
use crate::common::pull::*;
use crate::common::registry::*;
use crate::common::{Proxy, Reply, Response, client, run};
use serde_json::{Value, json};

const SBOM: &str = "application/vnd.test.sbom";
const SIGNATURE: &str = "application/vnd.test.signature";

async fn tagged(registry: &Registry, tags: usize) -> Vec<String> {
    let image = Manifest::image("app", "amd64", 1);
    let names = (0..tags).map(|number| format!("v{number:03}")).collect::<Vec<_>>();
    for name in &names {
        registry.push("team/app", name, &image);
    }
    names
}

/// The target that a `Link` to the next page names, seen from `target`.
fn next(answer: &Response, proxy: &Proxy, target: &str) -> Option<String> {
    let link = answer.header("link")?;
    let (url, rest) = link
        .strip_prefix('<')
        .and_then(|link| link.split_once('>'))
        .expect("a link");
    assert!(rest.contains("rel=\"next\"") || rest.contains("rel=next"), "{link}");
    let here = url::Url::parse(&format!("{}{target}", proxy.base())).unwrap();
    let there = here.join(url).expect("a URL");
    assert_eq!(there.port(), here.port(), "it leads away from the proxy: {link}");
    assert_eq!(
        there.host_str(),
        here.host_str(),
        "it leads away from the proxy: {link}"
    );
    Some(there[url::Position::BeforePath..].to_owned())
}

#[test]
fn tags_are_listed_page_by_page_through_the_proxy() {
    run(async {
        for absolute in [false, true] {
            let registry = Registry::start().await.paged(4);
            let registry = if absolute { registry.absolute_links() } else { registry };
            let names = tagged(&registry, 10).await;
            let proxy = Proxy::start(&registry.remote("hub", "")).await;
            let (mut target, mut found, mut pages) = ("/v2/hub/team/app/tags/list".to_owned(), Vec::new(), 0);
            loop {
                let answer = client::get(proxy.address(), &target).await.ok();
                assert!(answer.must("content-type").starts_with("application/json"));
                let body = answer.json();
                // As the registry knows the repository, which is what a client compares with.
                assert!(body["name"] == "team/app" || body["name"] == "hub/team/app", "{body}");
                let tags = body["tags"].as_array().expect("tags");
                found.extend(tags.iter().map(|tag| tag.as_str().unwrap().to_owned()));
                pages += 1;
                match next(&answer, &proxy, &target) {
                    Some(next) => {
                        assert!(next.starts_with("/v2/hub/team/app/tags/list?"), "{next}");
                        target = next;
                    }
                    None => break,
                }
                assert!(pages < 10, "no end");
            }
            assert_eq!((found, pages), (names, 3));
        }
    });
}

/// Has the registry write its `Link` like this; `{}` stands for the target.
fn linking(registry: &Registry, link: &'static str) {
    registry.change("/v2/team/app/tags/list", move |_, mut reply| {
        for (name, value) in &mut reply.headers {
            if name == "Link" {
                let target = value.trim_start_matches('<').split('>').next().unwrap_or_default();
                *value = link.replace("{}", target);
            }
        }
        reply
    });
}

#[test]
fn the_next_page_is_found_however_the_registry_writes_its_link() {
    run(async {
        for link in [
            "<{}>",
            "<{}>; title=\"next, of course\"",
            "{}; rel=\"next\"",
            "{}",
            "<{}>; rel='next'",
            "<{}>; rel='prev next'",
            "<{}> ; REL = Next",
            "</v2/team/app/tags/list?n=1>; rel=\"first\", <{}>; rel=\"next\"",
        ] {
            let registry = Registry::start().await.paged(2);
            let names = tagged(&registry, 5).await;
            linking(&registry, link);
            let proxy = Proxy::start(&registry.remote("hub", "")).await;
            let (mut target, mut found) = (Some("/v2/hub/team/app/tags/list".to_owned()), Vec::new());
            while let Some(here) = target {
                let answer = client::get(proxy.address(), &here).await.ok();
                let tags = answer.json()["tags"].as_array().expect("tags").clone();
                found.extend(tags.iter().map(|tag| tag.as_str().unwrap().to_owned()));
                target = next(&answer, &proxy, &here);
                assert!(found.len() <= names.len(), "no end: {link}");
            }
            assert_eq!(found, names, "{link}");
        }
    });
}

#[test]
fn a_list_whose_rest_cannot_be_found_is_an_error_and_not_complete() {
    run(async {
        for link in [
            "<{}",
            "<>; rel=\"next\"",
            "<page2>; rel=\"next\"",
            "next",
            "<?>; rel=next",
        ] {
            let registry = Registry::start().await.paged(2);
            tagged(&registry, 5).await;
            linking(&registry, link);
            let proxy = Proxy::start(&registry.remote("hub", "")).await;
            // Twice: the second time it is stored.
            for _ in 0..2 {
                let answer = client::get(proxy.address(), "/v2/hub/team/app/tags/list").await;
                let message = refused(answer, 502, "UNAVAILABLE");
                assert!(message.contains("Link"), "{link}: {message}");
            }
            // The last page has no link, and nothing is missing.
            client::get(proxy.address(), "/v2/hub/team/app/tags/list?last=v003")
                .await
                .ok();
        }
    });
}

#[test]
fn n_and_last_are_passed_on_and_each_page_is_kept_by_itself() {
    run(async {
        let registry = Registry::start().await;
        let names = tagged(&registry, 6).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        for _ in 0..2 {
            for (query, from, to) in [
                ("?n=2", 0, 2),
                ("?n=2&last=v001", 2, 4),
                ("?last=v003", 4, 6),
                ("", 0, 6),
            ] {
                let target = format!("/v2/hub/team/app/tags/list{query}");
                let answer = client::get(proxy.address(), &target).await.ok();
                assert_eq!(answer.json()["tags"], json!(names[from..to]), "{query}");
            }
        }
        let head = client::head(proxy.address(), "/v2/hub/team/app/tags/list").await.ok();
        assert!(head.must("content-type").starts_with("application/json"));
    });
}

#[test]
fn a_list_is_looked_at_again_after_its_time_and_kept_when_that_fails() {
    run(async {
        let registry = Registry::start().await;
        tagged(&registry, 1).await;
        let proxy = Proxy::start(&registry.remote("hub", "cache: {mutable_ttl: 0}")).await;
        let target = "/v2/hub/team/app/tags/list";
        let tags = async || client::get(proxy.address(), target).await.ok().json()["tags"].clone();
        assert_eq!(tags().await, json!(["v000"]));
        tagged(&registry, 2).await;
        assert_eq!(tags().await, json!(["v000", "v001"]));
        registry.switch_off().await;
        assert_eq!(tags().await, json!(["v000", "v001"]));
    });
}

#[test]
fn the_tags_of_an_unknown_repository_are_not_found() {
    run(async {
        let registry = Registry::start().await;
        tagged(&registry, 1).await;
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        let answer = client::get(proxy.address(), "/v2/hub/nobody/knows/tags/list").await;
        refused(answer, 404, "NAME_UNKNOWN");
        let answer = client::get(proxy.address(), "/v2/nowhere/team/app/tags/list").await;
        refused(answer, 404, "NAME_UNKNOWN");
    });
}

struct Referred {
    image: Manifest,
    sbom: Manifest,
    signature: Manifest,
}

fn referred() -> Referred {
    let image = Manifest::image("app", "amd64", 1);
    let sbom = Manifest::artifact(SBOM, "all that is in it", Some(&image));
    let signature = Manifest::artifact(SIGNATURE, "signed", Some(&image));
    Referred { image, sbom, signature }
}

async fn referrers(proxy: &Proxy, digest: &str, query: &str) -> Response {
    let target = format!("/v2/hub/team/app/referrers/{digest}{query}");
    client::get(proxy.address(), &target).await
}

#[track_caller]
fn digests(answer: &Response) -> Vec<String> {
    assert_eq!(answer.must("content-type"), OCI_INDEX);
    let body = answer.json();
    assert_eq!(
        (&body["schemaVersion"], &body["mediaType"]),
        (&json!(2), &json!(OCI_INDEX)),
        "{body}"
    );
    let rows = body["manifests"]
        .as_array()
        .unwrap_or_else(|| panic!("no manifests: {body}"));
    let digest = |row: &Value| row["digest"].as_str().unwrap().to_owned();
    let mut digests = rows.iter().map(digest).collect::<Vec<_>>();
    digests.sort();
    digests
}

/// What is made here says what every artifact does.
#[track_caller]
fn is_dressed(answer: &Response) {
    let names = [
        "content-security-policy",
        "x-content-type-options",
        "via",
        "cache-control",
    ];
    let said = names.map(|name| answer.must(name));
    assert_eq!(said, ["sandbox", "nosniff", "1.1 artifactapi", "no-cache"]);
}

fn sorted(manifests: &[&Manifest]) -> Vec<String> {
    let mut digests = manifests
        .iter()
        .map(|manifest| manifest.digest.clone())
        .collect::<Vec<_>>();
    digests.sort();
    digests
}

#[test]
fn what_refers_to_an_image_is_told_and_filtered_by_its_type() {
    run(async {
        let all = referred();
        let registry = Registry::with("team/app", "v1", &all.image).await;
        registry.store("team/app", &all.sbom).store("team/app", &all.signature);
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        for _ in 0..2 {
            let answer = referrers(&proxy, &all.image.digest, "").await.ok();
            assert_eq!(digests(&answer), sorted(&[&all.sbom, &all.signature]));
            assert_eq!(answer.header("oci-filters-applied"), None);
            let query = format!("?artifactType={}", SBOM.replace('/', "%2F"));
            let answer = referrers(&proxy, &all.image.digest, &query).await.ok();
            assert_eq!(digests(&answer), sorted(&[&all.sbom]));
            assert_eq!(answer.must("oci-filters-applied"), "artifactType");
            let answer = referrers(&proxy, &unknown_digest(), "").await.ok();
            assert_eq!(digests(&answer), Vec::<String>::new());
        }
        for artifact in [&all.sbom, &all.signature] {
            pull(&proxy, "hub/team/app", &artifact.digest, artifact).await;
        }
    });
}

#[test]
fn without_the_api_the_fallback_tag_tells_it() {
    run(async {
        let all = referred();
        let page = Reply::new(404, "<html>not here</html>").content_type("text/html");
        for what in ["404", "html", "redirect", "405"] {
            let registry = Registry::with("team/app", "v1", &all.image).await.without_referrers();
            registry.store("team/app", &all.sbom).store("team/app", &all.signature);
            let fallback = all.image.digest.replace(':', "-");
            registry.push("team/app", &fallback, &fallback_index(&[&all.sbom, &all.signature]));
            let path = format!("/v2/team/app/referrers/{}", all.image.digest);
            match what {
                "html" => drop(registry.instead(&path, Reply::ok("<html>welcome</html>").content_type("text/html"))),
                "redirect" => {
                    registry.up.reply("/elsewhere", page.clone());
                    registry.instead(&path, Reply::redirect(302, "/elsewhere"));
                }
                "405" => drop(registry.instead(&path, error(405, "UNSUPPORTED"))),
                _ => {}
            }
            let proxy = Proxy::start(&registry.remote("hub", "")).await;
            let answer = referrers(&proxy, &all.image.digest, "").await.ok();
            assert_eq!(digests(&answer), sorted(&[&all.sbom, &all.signature]), "{what}");
            is_dressed(&answer);
            let answer = referrers(&proxy, &all.image.digest, &format!("?artifactType={SBOM}"))
                .await
                .ok();
            is_dressed(&answer);
            match answer.header("oci-filters-applied") {
                Some("artifactType") => assert_eq!(digests(&answer), sorted(&[&all.sbom]), "{what}"),
                // A client filters for itself then.
                None => assert_eq!(digests(&answer), sorted(&[&all.sbom, &all.signature]), "{what}"),
                other => panic!("{what}: {other:?}"),
            }
            let answer = referrers(&proxy, &unknown_digest(), "").await.ok();
            assert_eq!(digests(&answer), Vec::<String>::new(), "{what}: nothing refers to it");
        }
    });
}

#[test]
fn trouble_is_not_taken_for_an_absent_api() {
    run(async {
        let all = referred();
        let registry = Registry::with("team/app", "v1", &all.image).await;
        let path = format!("/v2/team/app/referrers/{}", all.image.digest);
        let proxy = Proxy::start(&registry.remote("hub", "cache: {mutable_ttl: 0}")).await;
        for (reply, expected) in [
            (Reply::new(500, "oops"), 500..=504),
            (Reply::new(503, "later"), 500..=504),
            (Reply::reset(), 500..=504),
            (error(429, "TOOMANYREQUESTS").header("Retry-After", "5"), 429..=429),
        ] {
            registry.instead(&path, reply.clone());
            let answer = referrers(&proxy, &all.image.digest, "").await;
            assert!(expected.contains(&answer.status), "{reply:?}: {}", answer.status);
            assert!(answer.json()["errors"].is_array(), "{}", answer.text());
        }
        registry.normal(&path);
        registry.store("team/app", &all.sbom);
        let answer = referrers(&proxy, &all.image.digest, "").await.ok();
        assert_eq!(digests(&answer), sorted(&[&all.sbom]), "the trouble was remembered");
        refused(referrers(&proxy, "sha256:short", "").await, 400, "DIGEST_INVALID");
    });
}

#[test]
fn the_catalogue_asks_no_upstream_and_tells_no_more_than_what_is_here() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &image).await;
        registry.push("team/secret", "v1", &image);
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        pull(&proxy, "hub/team/app", "v1", &image).await;
        until_stored(&proxy, "hub/team/app", "v1", &image).await;
        registry.up.forget();
        for target in ["/v2/_catalog", "/v2/_catalog?n=10", "/v2/hub/_catalog"] {
            let answer = client::get(proxy.address(), target).await;
            let body = answer.json();
            if answer.status == 200 {
                let names = body["repositories"].as_array().unwrap_or_else(|| panic!("{body}"));
                assert!(
                    names.iter().all(|name| !name.as_str().unwrap().contains("secret")),
                    "{body}"
                );
            } else {
                assert!((400..500).contains(&answer.status), "{target}: {}", answer.status);
                assert!(body["errors"][0]["code"].is_string(), "{target}: {body}");
            }
        }
        assert_eq!(registry.up.total(), 0);
    });
}

#[test]
fn a_signature_under_its_tag_is_any_other_content() {
    run(async {
        let image = Manifest::image("app", "amd64", 1);
        let registry = Registry::with("team/app", "v1", &image).await;
        let simple = "application/vnd.dev.cosign.simplesigning.v1+json";
        let signature = Manifest::artifact(simple, "{\"critical\":{}}", None);
        let tag = format!("{}.sig", image.digest.replace(':', "-"));
        registry.push("team/app", &tag, &signature);
        let proxy = Proxy::start(&registry.remote("hub", "")).await;
        pull(&proxy, "hub/team/app", &tag, &signature).await;
        // An image that is not signed: the tag is just not there.
        let none = format!("{}.sig", signature.digest.replace(':', "-"));
        refused(
            get_manifest(&proxy, "hub/team/app", &none).await,
            404,
            "MANIFEST_UNKNOWN",
        );
    });
}

#[test]
fn what_refers_to_an_image_is_never_nothing_only_because_it_cannot_be_told() {
    run(async {
        let all = referred();
        let registry = Registry::with("team/app", "v1", &all.image).await.without_referrers();
        registry.store("team/app", &all.sbom).store("team/app", &all.signature);
        let fallback = all.image.digest.replace(':', "-");
        registry.push("team/app", &fallback, &fallback_index(&[&all.sbom, &all.signature]));
        let yaml = registry.remote("hub", "cache: {mutable_ttl: 0, negative_ttl: 0}")
            + &registry.remote("away", "offline: true");
        let proxy = Proxy::start(&yaml).await;
        let path = format!("/v2/away/team/app/referrers/{}", all.image.digest);
        refused(client::get(proxy.address(), &path).await, 504, "UNAVAILABLE");
        let answer = referrers(&proxy, &all.image.digest, "").await.ok();
        assert_eq!(digests(&answer), sorted(&[&all.sbom, &all.signature]));
        // What the fallback tag said is still here when the registry is not.
        registry.switch_off().await;
        let answer = referrers(&proxy, &all.image.digest, "").await.ok();
        assert_eq!(digests(&answer), sorted(&[&all.sbom, &all.signature]));
        let answer = referrers(&proxy, &unknown_digest(), "").await;
        assert_eq!(answer.status, 502, "{}", answer.text());
    });
}
