use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use url::Url;

use super::*;
use crate::config::{OwnValue, Remote};
use crate::formats::testing::{
    REMOTE_URL, asked, client, cut, cuts, drive, linked, many, read, read_by, reader, remote, request, tool,
};

fn registry() -> Arc<Remote> {
    Arc::new(remote("npm", "https://registry.example/"))
}

fn handle(method: &Method, path: ArtifactPath) -> Reading {
    Npm.read(Asked {
        remote: &registry(),
        method,
        path,
        accept: None,
    })
}

/// What a GET gets.
fn asset(target: &str, accept: Option<&str>) -> Asset {
    read(&registry(), target, accept).unwrap_or_else(|| panic!("{target}"))
}

fn url_of(asset: Asset) -> Url {
    match asset.location {
        Location::Upstream(url) => url,
        other => panic!("{other:?}"),
    }
}

/// The path that a GET is served under: decoded, encoded.
fn served(target: &str) -> (String, String) {
    let path = asset(target, None).path;
    (path.decoded, path.encoded)
}

fn rewrite(target: &str, content_type: &str, body: &str) -> Result<String, IndexError> {
    let path = request(target).unwrap();
    let registry = registry();
    let url = format!("https://registry.example/{target}");
    let mut reader = reader(&registry, &path, &url, content_type);
    Ok(String::from_utf8(drive(&mut *reader, [body.as_bytes()])?).unwrap())
}

#[test]
fn scoped_names_have_one_spelling() {
    for target in [
        "@scope/name",
        "@scope%2fname",
        "@scope%2Fname",
        "%40scope%2fname",
        "%40scope/name",
    ] {
        assert_eq!(
            served(target),
            ("@scope/name".to_owned(), "@scope/name".to_owned()),
            "{target}"
        );
    }
    assert_eq!(served("@scope%2fname/1.0.0").1, "@scope/name/1.0.0");
    let tarball = "@scope/name/-/name-1.0.0.tgz";
    for target in [
        tarball,
        "@scope%2fname/-/name-1.0.0.tgz",
        "@scope%2Fname/-/name-1.0.0.tgz",
        "%40scope%2Fname/-/name-1.0.0.tgz",
        "%40scope/name/-/name-1.0.0.tgz",
    ] {
        assert_eq!(served(target), (tarball.to_owned(), tarball.to_owned()), "{target}");
    }
    // An encoded percent sign is no slash.
    assert_eq!(served("@scope%252fname").1, "@scope%252fname");
    assert_eq!(served("name").0, "name");
}

#[test]
fn upstream_urls() {
    let url = |target: &str| url_of(asset(target, None)).to_string();
    assert_eq!(url("@scope/name"), "https://registry.example/@scope%2fname");
    assert_eq!(
        url("@scope%2Fname/latest?x=1"),
        "https://registry.example/@scope%2fname/latest?x=1"
    );
    assert_eq!(
        url("@scope/name/-/name-1.0.0.tgz"),
        "https://registry.example/@scope/name/-/name-1.0.0.tgz"
    );
    assert_eq!(
        url("@scope%2fname/-/name-1.0.0.tgz"),
        "https://registry.example/@scope/name/-/name-1.0.0.tgz"
    );
    assert_eq!(url("name/1.0.0"), "https://registry.example/name/1.0.0");
    assert_eq!(
        url("a/-/a-1.0.0+b%2Bc.tgz"),
        "https://registry.example/a/-/a-1.0.0+b%2Bc.tgz"
    );
}

#[test]
fn a_doubled_prefix_reaches_the_same_document() {
    assert_eq!(served("api/v1/remote/r/name").1, "name");
    assert_eq!(served("api/v1/remote/r/@scope%2fname").1, "@scope/name");
    assert_eq!(
        served("api/v1/remote/r/api/v1/remote/r/name/-/name-1.0.0.tgz").1,
        "name/-/name-1.0.0.tgz"
    );
    assert_eq!(served("api/v1/remote/other/name").1, "api/v1/remote/other/name");
    let service = handle(&Method::GET, request("api/v1/remote/r/-/ping").unwrap());
    assert!(matches!(service, Reading::PassThrough(ping) if ping.path.encoded == "-/ping"));
}

#[test]
fn a_prefix_is_taken_off_any_number_of_times_in_one_go() {
    let times = 200_000;
    let target = format!("{}name", "api/v1/remote/r/".repeat(times));
    let path = ArtifactPath {
        decoded: target.clone(),
        encoded: target,
        query: None,
    };
    let start = std::time::Instant::now();
    let Reading::Artifact(asset) = handle(&Method::GET, path) else {
        panic!("refused")
    };
    assert_eq!(asset.path.encoded, "name");
    // Each of them copied the rest: a minute.
    assert!(start.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn services() {
    for (method, target) in [
        (Method::POST, "-/npm/v1/security/advisories/bulk"),
        (Method::POST, "-/npm/v1/security/audits/quick"),
        (Method::GET, "-/npm/v1/security/audits"),
        (Method::GET, "-/v1/search?text=x"),
        (Method::GET, "-/npm/v1/keys"),
        (Method::HEAD, "-/ping"),
        (Method::GET, "-/npm/v1/attestations/name@1.0.0"),
        (Method::GET, "-/package/name/dist-tags"),
        (Method::GET, "-/package/@scope%2fname/dist-tags"),
        (Method::GET, "-/package/@scope/name/dist-tags"),
    ] {
        let Reading::PassThrough(service) = handle(&method, request(target).unwrap()) else {
            panic!("{method} {target}");
        };
        let url = format!("https://registry.example/{}", target.replace("%2f", "%2F"));
        assert_eq!(url_of(*service).as_str(), url, "{method}");
    }
    for (method, target, status) in [
        (Method::PUT, "name", 405),
        (Method::PUT, "@scope%2fname", 405),
        (Method::DELETE, "name/-rev/1-a", 405),
        (Method::POST, "name", 405),
        (Method::PUT, "-/user/org.couchdb.user:me", 405),
        (Method::POST, "-/v1/login", 405),
        (Method::GET, "-/whoami", 403),
        (Method::GET, "-/npm/v1/user", 403),
        (Method::GET, "-/npm/v1/tokens", 405),
        (Method::PUT, "-/package/name/dist-tags/beta", 405),
        (Method::GET, "-/package/name/dist-tags/beta", 404),
        (Method::POST, "-/v1/search", 405),
        (Method::POST, "-/npm/v1/attestations/x", 405),
        (Method::GET, "-/npm/v1/hooks", 404),
        (Method::GET, "-", 404),
        (Method::GET, "-/npm/v1/security", 404),
        (Method::GET, "-/package//dist-tags", 404),
    ] {
        match handle(&method, request(target).unwrap()) {
            Reading::Refused { status: found, detail } => {
                assert_eq!(found, status, "{method} {target}");
                assert!(detail.ends_with("use the registry itself"));
            }
            other => panic!("{method} {target}: {other:?}"),
        }
    }
    assert_eq!(served("-/host/cdn.example/a.tgz").0, "-/host/cdn.example/a.tgz");
    assert_eq!(served("").0, "");
}

#[test]
fn documents_and_files() {
    let style = |asset: &Asset| asset.view.map(|view| view.style);
    for path in ["name", "@scope/name", "name.js", "-name", "name/"] {
        let document = asset(path, None);
        assert_eq!(style(&document), Some(Style::Absolute), "{path}");
        assert!(document.varies, "{path}");
    }
    for path in ["name/1.0.0", "name/latest", "@scope/name/1.0.0"] {
        let document = asset(path, Some("application/vnd.npm.install-v1+json"));
        assert_eq!(style(&document), Some(Style::Absolute), "{path}");
        assert!(!document.varies, "{path}");
        assert_eq!(document.form.name, "");
    }
    for path in ["", "-", "-/ping"] {
        assert_eq!(super::document(path), None, "{path}");
    }
    for path in [
        "",
        "name/-/name-1.tgz",
        "a.tgz",
        "@scope/a.TGZ",
        "a/b/c",
        "@s/a/b/c",
        "@scope",
        "-/host/h/name",
    ] {
        let file = asset(path, None);
        assert_eq!(style(&file), None, "{path}");
        assert_eq!(file.nature, None);
    }
    let mut upstream = remote("npm", "https://registry.example/");
    upstream.own.set(&TARBALL_URLS, OwnValue::Word("upstream"));
    let document = read(&Arc::new(upstream), "name", None).unwrap();
    assert_eq!((style(&document), document.media_type), (None, "application/json"));
    assert_eq!(asset("name/-/name-1.tgz", None).media_type, "application/gzip");
}

#[test]
fn negotiation() {
    for (accept, form) in [
        (None, "full"),
        (Some(""), "full"),
        (Some("*/*"), "full"),
        (Some("application/json"), "full"),
        (Some("application/*;q=0.1"), "full"),
        (Some("text/html"), "full"),
        (
            Some("application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*"),
            "abbreviated",
        ),
        (Some("application/vnd.npm.install-v1+json"), "abbreviated"),
        (
            Some("application/json, application/vnd.npm.install-v1+json"),
            "abbreviated",
        ),
        (
            Some("application/json; q=1.0, application/vnd.npm.install-v1+json; q=0.8, */*"),
            "full",
        ),
        (Some("application/vnd.npm.install-v1+json;q=0, */*"), "full"),
        (Some("application/vnd.npm.install-v1+json;q=0"), "full"),
    ] {
        assert_eq!(asset("name", accept).form.name, form, "{accept:?}");
    }
    let tarball = asset("name/-/name-1.tgz", Some("application/vnd.npm.install-v1+json"));
    assert_eq!(tarball.form, Form::ONLY);
}

#[test]
fn tarballs_become_ours_whatever_host_they_name() {
    let body = r#"{"_id":"name","dist-tags":{"latest":"2.0.0"},"versions":{
 "1.0.0":{"name":"name","dist":{"shasum":"aa","tarball":"https:\/\/registry.example\/name\/-\/name-1.0.0.tgz","fileCount":1.0,
  "attestations":{"url":"https://registry.example/-/npm/v1/attestations/name@1.0.0","provenance":{}}}},
 "2.0.0":{"dist":{"tarball":"http://registry.example/name/-/name-2.0.0.tgz"},"tarball":"https://registry.example/kept"},
 "3.0.0":{"dist":{"tarball":"https://cdn.example:8443/x/name-3.0.0.tgz"},"dependencies":{"dist":"https://registry.example/kept.tgz"}}},
 "policyRestrictions":{"versions":{"4.0.0":{"dist":{"tarball":"https://registry.example/name/-/name-4.0.0.tgz"}}},"message":"m"},
 "time":{"1.0.0":"2020-01-01T00:00:00.000Z"},"readme":"https://registry.example/"}"#;
    let expected = body
        .replace(
            r"https:\/\/registry.example\/name\/-\/name-1.0.0.tgz",
            &format!("{REMOTE_URL}/name/-/name-1.0.0.tgz"),
        )
        .replace(
            "http://registry.example/name",
            &format!("{REMOTE_URL}/-/host/registry.example/name"),
        )
        .replace(
            "https://cdn.example:8443/",
            &format!("{REMOTE_URL}/-/host/cdn.example:8443/"),
        )
        .replace(
            "https://registry.example/name/-/name-4",
            &format!("{REMOTE_URL}/name/-/name-4"),
        );
    for content_type in [
        "application/json",
        "application/vnd.npm.install-v1+json; charset=utf-8",
        "",
        "application/octet-stream",
    ] {
        assert_eq!(rewrite("name", content_type, body).unwrap(), expected);
    }
    let version = r#"{"name":"@s/n","dist":{"tarball":"https://registry.example/@s/n/-/n-1.0.0.tgz"}}"#;
    let expected = version.replace("https://registry.example", REMOTE_URL);
    assert_eq!(rewrite("@s/n/1.0.0", "application/json", version).unwrap(), expected);
}

#[test]
fn tarballs_under_paths_that_mean_something_else_go_by_their_host() {
    for path in [
        "-/x.tgz",
        "api/v1/remote/r/x.tgz",
        "files/name-1.0.0",
        "name",
        "@s%2Fname/-/name-1.0.0.tgz",
        "%40s/name/-/name-1.0.0.tgz",
    ] {
        let body = format!(r#"{{"dist":{{"tarball":"https://registry.example/{path}"}}}}"#);
        let expected = body
            .replace("registry.example", "")
            .replace("https:///", &format!("{REMOTE_URL}/-/host/registry.example/"));
        assert_eq!(rewrite("name/1.0.0", "application/json", &body).unwrap(), expected);
    }
}

#[test]
fn what_npm_takes_for_a_tarball() {
    for (body, expected) in [
        (r#"{"versions":[{"dist":{"tarball":"L"}}]}"#, 1),
        (r#"{"versions":{"1.0.0":{"dist":{"tarball":["L"]}}}}"#, 1),
        (r#"{"versions":{"1.0.0":{"_resolved":"L"}}}"#, 1),
        (r#"{"_resolved":"L","dist":{"tarball":[["L"]]}}"#, 2),
        (r#"{"versions":{"1.0.0":{"dist":[{"tarball":"L"}]}}}"#, 0),
    ] {
        let body = body.replace('L', "https://cdn.example/a.tgz");
        let out = rewrite("name", "application/json", &body).unwrap();
        assert_eq!(out.matches(REMOTE_URL).count(), expected, "{out}");
    }
    // Any depth, and links that are none.
    let deep = format!(
        r#"{{"x":{}{},"dist":{{"tarball":"http://["}}}}"#,
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let out = rewrite("name", "application/json", &deep).unwrap();
    assert!(
        out.ends_with(&format!("\"{REMOTE_URL}/-/host/invalid/http%253A%252F%252F%255B\"}}}}")),
        "{out}"
    );
}

/// A document of an npm registry, with lists where objects belong and the other way round.
fn document() -> impl Strategy<Value = Value> {
    const LINKS: &[&str] = &[
        "https://cdn.example/a.tgz",
        "http://registry.example/a.tgz",
        "//cdn.example/a.tgz",
        "git+https://cdn.example/a",
        "http://[",
        "a",
    ];
    let link = proptest::sample::select(LINKS).prop_map(Value::from);
    let tarball = prop_oneof![
        4 => link.clone(),
        1 => link.clone().prop_map(|link| json!([link])),
        1 => link.clone().prop_map(|link| json!([[link], []])),
        1 => link.clone().prop_map(|link| json!({"tarball": link})),
        1 => Just(json!(null)),
    ];
    let dist = prop_oneof![
        6 => tarball.clone().prop_map(|tarball| json!({"x": tarball, "tarball": tarball})),
        1 => tarball.clone().prop_map(|tarball| json!([{"tarball": tarball}])),
        1 => tarball.clone(),
    ];
    let version = prop_oneof![
        4 => dist.clone().prop_map(|dist| json!({"dist": dist})),
        1 => tarball.clone().prop_map(|link| json!({"_resolved": link})),
        1 => (dist.clone(), tarball.clone()).prop_map(|(dist, link)| json!({"_resolved": link, "dist": dist, "__proto__": dist})),
        1 => dist.clone().prop_map(|dist| json!([dist])),
    ];
    let versions = prop_oneof![
        proptest::collection::vec(version.clone(), 0..3).prop_map(Value::from),
        version
            .clone()
            .prop_map(|version| json!({"1.0.0": version, "__proto__": version})),
    ];
    (versions, version, tarball, 0..4_u8).prop_map(|(versions, version, tarball, how)| match how {
        0 => version,
        1 => json!({"versions": versions, "x": versions}),
        2 => json!({"policyRestrictions": {"versions": versions}, "_resolved": tarball}),
        _ => json!({"versions": versions, "dist": {"tarball": tarball}, "policyRestrictions": version}),
    })
}

/// A document as text: letters of strings as they are or as escapes, and space between tokens.
fn written(document: &Value, how: &[u8]) -> String {
    let mut out = String::new();
    let mut inside = false;
    for (letter, how) in document.to_string().chars().zip(how.iter().cycle()) {
        inside ^= letter == '"';
        match how {
            0..=20 if inside && letter != '"' => out.push_str(&format!("\\u{:04x}", letter as u32)),
            21..=40 if !inside && "[]{},:".contains(letter) => out.extend(['\n', letter, ' ']),
            _ => out.push(letter),
        }
    }
    out
}

/// What Node reads in a document leads here.
#[test]
fn node_finds_no_upstream_address() {
    let documents: Vec<String> = many(2000, &(document(), proptest::collection::vec(any::<u8>(), 1..60)))
        .into_iter()
        .map(|(document, how)| written(&document, &how))
        .collect();
    let written: Vec<String> = documents
        .iter()
        .map(|body| rewrite("name", "", body).unwrap_or_default())
        .collect();
    let node = tool("node/bin/node");
    let read = |documents| read_by(&node, &[&client("json.mjs")], documents);
    let mut found = 0;
    for ((before, after), document) in read(&documents).iter().zip(read(&written)).zip(&documents) {
        assert_eq!(
            before.as_array().map(Vec::len),
            after.as_array().map(Vec::len),
            "{document}"
        );
        for link in after.as_array().into_iter().flatten().filter_map(Value::as_str) {
            found += usize::from(link.starts_with(REMOTE_URL));
            let away =
                Url::parse(link).is_ok_and(|url| url.scheme().starts_with("http")) && !link.starts_with(REMOTE_URL);
            assert!(!away, "{link} in {document}");
        }
    }
    assert!(found > 1000, "{found} tarballs");
}

#[test]
fn what_is_no_document() {
    assert!(rewrite("name", "text/html", "<html></html>").is_err());
    assert!(rewrite("name", "application/json", r#"{"versions":{"#).is_err());
    assert!(rewrite("name", "application/json", "").is_err());
    // A file under a path that looks like a document passes as it is.
    assert_eq!(
        rewrite("files/name", "application/octet-stream", "\u{1}tarball").unwrap(),
        "\u{1}tarball"
    );
    assert_eq!(rewrite("files/name", "application/octet-stream", "").unwrap(), "");
}

#[test]
fn packages_of_tarballs() {
    for (path, package) in [
        ("name/-/name-1.0.0.tgz", Some("name")),
        ("@scope/name/-/name-1.0.0.tgz", Some("@scope/name")),
        ("@scope%2Fname/-/name-1.0.0.tgz", Some("@scope/name")),
        ("repository/npm/@scope/name/-/name-1.0.0.tgz", Some("@scope/name")),
        ("repository/npm/name/-/name-1.0.0.tgz", Some("name")),
        ("download/@scope/name/1.0.0/abc", Some("@scope/name")),
        ("name/1.0.0.tgz", Some("name")),
        ("name.tgz", None),
        ("-/x", None),
        ("@scope", None),
        ("na me/-/x.tgz", None),
        ("", None),
    ] {
        assert_eq!(index_naming(path).as_deref(), package, "{path}");
    }
}

#[test]
fn errors() {
    let body = |status: u16| Npm.error_body(status, "no \"such\" thing", None).unwrap().1;
    assert_eq!(body(404), r#"{"error":"Not found: no \"such\" thing"}"#);
    assert_eq!(body(403), r#"{"error":"no \"such\" thing"}"#);
}

fn link() -> impl Strategy<Value = String> {
    let start = prop_oneof![
        Just("https://registry.example/"),
        Just("http://registry.example/"),
        Just("https://REGISTRY.example:443/"),
        Just("https://cdn.example:8443/"),
        Just("http://u:p@evil.example/"),
        Just("//cdn.example/"),
        Just("/"),
        Just(""),
        Just("https://registry.example/-/"),
        Just("https://registry.example/@s%2fn/-/"),
    ];
    let link = (start, "[a-zA-Z0-9/._~+ %?&=#@\u{e9}'-]{0,20}").prop_map(|(start, rest)| format!("{start}{rest}"));
    link.prop_filter("a URL", |link| {
        Url::parse("https://registry.example/name").unwrap().join(link).is_ok()
    })
}

proptest! {
    /// No tarball of a document leads past us, each leads to what upstream's link named, pieces make no difference, and
    /// nothing else changes.
    #[test]
    fn no_upstream_address_survives(links in proptest::collection::vec(link(), 1..8), pretty: bool, at in cuts()) {
        let versions: serde_json::Map<String, Value> = links.iter().enumerate().map(|(number, link)| {
            (format!("{number}.0.0"), json!({"dist": {"tarball": link, "size": 1}, "x": link}))
        }).collect();
        let document = json!({"versions": versions, "dist": {"tarball": links[0]}, "tarball": links[0]});
        let body = if pretty { format!("{document:#}") } else { document.to_string() };
        let registry = registry();
        let path = request("name").unwrap();
        let mut reader = reader(&registry, &path, "https://registry.example/name", "application/json");
        let out = drive(&mut *reader, cut(body.as_bytes(), &at)).unwrap();
        prop_assert_eq!(std::str::from_utf8(&out).unwrap(), rewrite("name", "", &body).unwrap());
        let foreign = linked(reader.take_facts());
        let mut out: Value = serde_json::from_slice(&out).unwrap();
        let base = Url::parse("https://registry.example/name").unwrap();
        let mut restore = document.clone();
        for (number, link) in links.iter().enumerate() {
            let mapped = out["versions"][format!("{number}.0.0")]["dist"]["tarball"].take();
            let mapped = mapped.as_str().unwrap();
            prop_assert!(mapped.starts_with(REMOTE_URL), "{} became {}", link, mapped);
            let asked = asked("name", mapped).unwrap();
            restore["versions"][format!("{number}.0.0")]["dist"]["tarball"].take();
            if reader.escaped() > 0 {
                continue;
            }
            let Reading::Artifact(asked) = handle(&Method::GET, asked) else {
                return Err(TestCaseError::fail(format!("{mapped} is no file")));
            };
            prop_assert!(asked.view.is_none(), "{}", mapped);
            let meant = links::named(&base.join(link).unwrap());
            match links::candidates(&asked.path) {
                Some(urls) => {
                    prop_assert!(foreign.contains(&meant));
                    prop_assert!(urls.iter().any(|url| links::named(url) == meant));
                }
                None => prop_assert_eq!(links::named(&url_of(*asked)), meant),
            }
        }
        out["dist"]["tarball"].take();
        restore["dist"]["tarball"].take();
        prop_assert_eq!(out, restore);
    }

    #[test]
    fn nothing_panics(path in any::<String>(), body in proptest::collection::vec(any::<u8>(), 0..200), at in cuts()) {
        let registry = registry();
        let _ = (index_naming(&path), super::document(&path), negotiate(Some(&path)));
        for target in [path.clone(), format!("@{path}"), format!("%40s%2f{path}"), format!("-/{path}")] {
            if let Some(path) = request(&target) {
                let _ = handle(&Method::GET, path);
            }
        }
        let path = request("name").unwrap();
        for content_type in ["application/json", "x/y"] {
            let mut reader = reader(&registry, &path, "https://registry.example/name", content_type);
            let _ = drive(&mut *reader, cut(&body, &at));
        }
    }
}
