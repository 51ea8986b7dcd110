use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::cache::Key;

use crate::formats::testing::{read, remote};

fn asset(path: &str, accept: Option<&str>) -> Asset {
    let registry = Arc::new(remote("docker", "https://r.example/"));
    read(&registry, path, accept).unwrap_or_else(|| panic!("{path}"))
}

fn url_of(asset: Asset) -> String {
    match asset.location {
        Location::Upstream(url) => url.to_string(),
        other => panic!("{other:?}"),
    }
}

pub(super) const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn code(path: &str) -> (u16, &'static str) {
    match parse(path) {
        Ok(_) => (200, ""),
        Err(Invalid(status, code, _)) => (status, code),
    }
}

#[test]
fn paths_of_a_registry() {
    let sha512 = format!("sha512:{}", "ab".repeat(64));
    for good in [
        "a/manifests/latest",
        "a/b/c/d/e/f/manifests/v1.0_x-y",
        "manifests/manifests/manifests",
        "a/manifests/blobs/tags/list",
        &format!("a/manifests/{DIGEST}"),
        &format!("a/blobs/{DIGEST}"),
        &format!("a.b_c__d---e/blobs/{sha512}"),
        &format!("a/referrers/{DIGEST}"),
    ] {
        assert_eq!(code(good), (200, ""), "{good}");
    }
    for (bad, status, expected) in [
        ("", 404, "NAME_UNKNOWN"),
        ("a", 404, "NAME_UNKNOWN"),
        ("a/b", 404, "NAME_UNKNOWN"),
        ("a/tags/other", 404, "NAME_UNKNOWN"),
        ("a/uploads/x", 404, "NAME_UNKNOWN"),
        ("_catalog", 404, "UNSUPPORTED"),
        ("manifests/latest", 400, "NAME_INVALID"),
        ("A/manifests/latest", 400, "NAME_INVALID"),
        ("a..b/manifests/latest", 400, "NAME_INVALID"),
        ("a___b/manifests/latest", 400, "NAME_INVALID"),
        ("-a/tags/list", 400, "NAME_INVALID"),
        ("a-/tags/list", 400, "NAME_INVALID"),
        ("a/./tags/list", 400, "NAME_INVALID"),
        ("a/manifests/.x", 400, "MANIFEST_INVALID"),
        ("a/manifests/", 400, "MANIFEST_INVALID"),
        ("a/manifests/sha256:abc", 400, "DIGEST_INVALID"),
        ("a/blobs/latest", 400, "DIGEST_INVALID"),
        ("a/blobs/md5:0123", 400, "DIGEST_INVALID"),
        ("a/blobs/sha256:", 400, "DIGEST_INVALID"),
        ("a/referrers/x", 400, "DIGEST_INVALID"),
    ] {
        assert_eq!(code(bad), (status, expected), "{bad}");
    }
    assert_eq!(code(&format!("a/blobs/{}", DIGEST.to_uppercase())).1, "DIGEST_INVALID");
    assert_eq!(code(&format!("a/manifests/{}", "t".repeat(129))).1, "MANIFEST_INVALID");
    assert_eq!(code(&format!("{}/tags/list", "n".repeat(256))).1, "NAME_INVALID");
}

#[test]
fn content_is_stored_once_for_a_remote() {
    for kind in ["manifests", "blobs"] {
        let paths = [format!("a/{kind}/{DIGEST}"), format!("b/c/{kind}/{DIGEST}")];
        for path in paths {
            let content = asset(&path, None);
            assert_eq!(content.digest.as_ref().unwrap().to_string(), DIGEST);
            assert_eq!(content.shared_path, Some(format!("{kind}/{DIGEST}")));
            assert_eq!(content.key(), Key::new("r", &format!("{kind}/{DIGEST}"), None, ""));
            assert_eq!(content.name_key(), Some(Key::new("r", &path, None, "")));
            assert_eq!(content.nature, None);
            assert!(!content.is_pointer());
        }
    }
    for path in ["a/manifests/latest", "a/tags/list", &format!("a/referrers/{DIGEST}")] {
        let named = asset(path, None);
        assert_eq!(
            (named.shared_path, named.nature),
            (None, Some(Class::Mutable)),
            "{path}"
        );
    }
    assert!(asset("a/manifests/latest", None).is_pointer());
    assert!(!asset("a/tags/list", None).is_pointer());
    let content = beside("a/b/manifests/latest", DIGEST);
    assert_eq!(content, Some(format!("a/b/manifests/{DIGEST}")));
}

#[test]
fn the_accepted_types_decide_the_form_of_a_tag() {
    let form = |accept: &[&str]| asset("a/manifests/latest", Some(&accept.join(", "))).form;
    let every = form(&TYPES);
    assert_eq!(every.name, "");
    for media_type in TYPES {
        assert!(every.accept.unwrap().contains(media_type));
    }
    // Whatever order, and whoever takes anything.
    assert_eq!(form(&[DOCKER_MANIFEST, MANIFEST, DOCKER_LIST, INDEX]), every);
    assert_eq!(form(&[MANIFEST, "*/*"]), every);
    assert_eq!(form(&["application/*"]), every);
    assert_eq!(form(&["text/html"]), every);
    assert_eq!(asset("a/manifests/latest", None).form, every);
    let single = form(&[DOCKER_MANIFEST, MANIFEST]);
    assert_eq!(single.accept.unwrap(), format!("{MANIFEST}, {DOCKER_MANIFEST}"));
    assert_eq!(form(&[MANIFEST, "application/json", DOCKER_MANIFEST]), single);
    assert_ne!(form(&[MANIFEST]), single);
    assert_ne!(form(&[INDEX]).name, form(&[DOCKER_LIST]).name);
    assert_eq!(form(&[MANIFEST, &format!("{INDEX};q=0")]), form(&[MANIFEST]));
    let by_digest = asset(&format!("a/manifests/{DIGEST}"), Some(MANIFEST));
    assert_eq!(by_digest.form, every);
}

#[test]
fn upstream_is_below_v2_of_the_base_url() {
    let url = |base: &str| {
        let registry = Arc::new(remote("docker", base));
        url_of(read(&registry, "a/b/manifests/latest", None).unwrap())
    };
    assert_eq!(url("https://r.example/"), "https://r.example/v2/a/b/manifests/latest");
    assert_eq!(
        url("https://r.example/x/"),
        "https://r.example/x/v2/a/b/manifests/latest"
    );
    assert_eq!(
        url("https://r.example/v2/"),
        "https://r.example/v2/a/b/manifests/latest"
    );
    assert_eq!(
        url("https://r.example/v2/p/"),
        "https://r.example/v2/p/a/b/manifests/latest"
    );
    let version = |base: &str| version_url(&remote("docker", base)).to_string();
    assert_eq!(version("https://r.example/"), "https://r.example/v2/");
    assert_eq!(version("https://r.example/x/"), "https://r.example/x/v2/");
    assert_eq!(version("https://r.example/v2/"), "https://r.example/v2/");
    assert_eq!(version("https://r.example/v2/p/"), "https://r.example/v2/");
}

#[test]
fn a_scope_names_the_repository_as_the_registry_does() {
    let scope = |base: &str| {
        let registry = Arc::new(remote("docker", base));
        let asset = read(&registry, "a/b/manifests/latest", None).unwrap();
        asset.token_scope.unwrap()
    };
    assert_eq!(scope("https://r.example/"), "repository:a/b:pull");
    assert_eq!(scope("https://r.example/x/"), "repository:a/b:pull");
    assert_eq!(scope("https://r.example/v2/p/"), "repository:p/a/b:pull");
}

#[test]
fn official_images_are_docker_hubs_only() {
    let handled = |base: &str, path: &str| {
        let registry = Arc::new(remote("docker", base));
        read(&registry, path, None).unwrap().path.encoded
    };
    // As the remote that ships with the product has it.
    let shipped = include_str!("../../../remotes.yaml");
    let (_, hub) = shipped.split_once("\n  dockerhub:").unwrap();
    let base = format!("{}/", hub.split('\'').nth(1).unwrap());
    assert_eq!(handled(&base, "alpine/manifests/3"), "library/alpine/manifests/3");
    assert_eq!(
        handled(&base, "library/alpine/manifests/3"),
        "library/alpine/manifests/3"
    );
    assert_eq!(handled(&base, "team/app/tags/list"), "team/app/tags/list");
    assert_eq!(
        handled("https://r.example/", "alpine/manifests/3"),
        "alpine/manifests/3"
    );
    for name in HUB {
        assert!(names::is_called(&remote("docker", &base), name), "{name}");
        assert!(
            !names::is_called(&remote("docker", "https://r.example/"), name),
            "{name}"
        );
    }
    assert!(names::is_called(
        &remote("docker", "https://r.example:5000/"),
        "R.example:5000"
    ));
    assert!(!names::is_called(
        &remote("docker", "https://r.example:5000/"),
        "r.example"
    ));
}

#[test]
fn spellings_and_queries_that_mean_nothing_are_dropped() {
    let handled = |path: &str| {
        let path = asset(path, None).path;
        (path.encoded, path.query)
    };
    let encoded = format!("a/blobs/{}?x=1", DIGEST.replace(':', "%3A"));
    assert_eq!(handled(&encoded), (format!("a/blobs/{DIGEST}"), None));
    assert_eq!(
        handled("a/tags/list?n=1"),
        ("a/tags/list".to_owned(), Some("n=1".to_owned()))
    );
}

#[test]
fn errors_are_the_registrys() {
    let code = |status, path: &str| {
        let (content_type, body) = Docker.error_body(status, "why", Some(path)).unwrap();
        assert_eq!(content_type, "application/json");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["errors"][0]["message"], "why");
        body["errors"][0]["code"].as_str().unwrap().to_owned()
    };
    let blob = format!("a/blobs/{DIGEST}");
    assert_eq!(code(404, "a/manifests/x"), "MANIFEST_UNKNOWN");
    assert_eq!(code(404, &blob), "BLOB_UNKNOWN");
    assert_eq!(code(404, "a/tags/list"), "NAME_UNKNOWN");
    assert_eq!(code(400, "a/blobs/x"), "DIGEST_INVALID");
    assert_eq!(code(400, "A/tags/list"), "NAME_INVALID");
    assert_eq!(code(403, &blob), "DENIED");
    assert_eq!(code(405, &blob), "UNSUPPORTED");
    assert_eq!(code(429, &blob), "TOOMANYREQUESTS");
    assert_eq!(code(504, &blob), "UNAVAILABLE");
    assert_eq!(Docker.status_of(401), 403);
    assert_eq!(Docker.warning(403, "no \"x\"\n").unwrap(), r#"299 - "no \"x\"""#);
    assert_eq!(Docker.warning(404, "no"), None);
}

proptest! {
    #[test]
    fn any_path_is_understood_or_refused(path in any::<String>(), near in "[a-zA-Z0-9:._/-]{0,40}") {
        for path in [path.as_str(), &near, &format!("{near}/manifests/{near}"), &format!("{near}/blobs/{DIGEST}")] {
            let parsed = parse(path);
            prop_assert!(parsed.as_ref().err().is_none_or(|Invalid(status, ..)| matches!(status, 400 | 404)));
            let registry = Arc::new(remote("docker", "https://r.example/"));
            let _ = (read(&registry, path, Some(&near)), Docker.error_body(404, "", Some(path)));
        }
    }

    #[test]
    fn names_are_those_of_the_specifications_expression(name in "[a-z0-9._A/-]{1,12}") {
        let one = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*";
        let grammar = regex::Regex::new(&format!("^{one}(?:/{one})*$")).unwrap();
        prop_assert_eq!(is_name(&name), grammar.is_match(&name), "{}", name);
    }
}
