use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::config::Remote;
use crate::formats::links::{candidates, named};
use crate::formats::testing::{REMOTE_URL, asked, cut, cuts, drive, linked, read, reader, remote, request};

const BASE: &str = "https://index.example/of/";

fn registry() -> Arc<Remote> {
    Arc::new(remote("cargo", BASE))
}

fn asset(target: &str) -> Asset {
    read(&registry(), target, None).unwrap_or_else(|| panic!("{target}"))
}

fn handle(method: &Method, target: &str) -> Reading {
    Cargo.read(Asked {
        remote: &registry(),
        method,
        path: request(target).unwrap(),
        accept: None,
    })
}

/// The rewritten `config.json`, and what it names on other hosts.
fn rewrite_in<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(Value, Vec<String>), IndexError> {
    let path = request(CONFIG).unwrap();
    let mut reader = reader(&registry(), &path, &format!("{BASE}{CONFIG}"), "application/json");
    let out = drive(&mut *reader, pieces)?;
    assert_eq!(reader.escaped(), 0);
    Ok((serde_json::from_slice(&out).unwrap(), linked(reader.take_facts())))
}

fn rewrite(config: &Value) -> (Value, Vec<String>) {
    rewrite_in([config.to_string().as_bytes()]).unwrap()
}

/// A crate as a registry knows it.
#[derive(Debug, Clone)]
struct Crate {
    name: String,
    version: String,
    checksum: String,
}

impl Crate {
    /// Where cargo looks for its file in the index, by the reference ("Index Files").
    fn prefix(&self) -> String {
        let name = &self.name;
        match name.len() {
            1 => "1".to_owned(),
            2 => "2".to_owned(),
            3 => format!("3/{}", &name[..1]),
            _ => format!("{}/{}", &name[..2], &name[2..4]),
        }
    }

    /// What cargo makes of `dl`, by the reference ("Index Configuration").
    fn download(&self, dl: &str) -> String {
        let markers = [
            ("{crate}", self.name.clone()),
            ("{version}", self.version.clone()),
            ("{prefix}", self.prefix()),
            ("{lowerprefix}", self.prefix().to_lowercase()),
            ("{sha256-checksum}", self.checksum.clone()),
        ];
        if !markers.iter().any(|(marker, _)| dl.contains(marker)) {
            return format!("{dl}/{}/{}/download", self.name, self.version);
        }
        let replace = |url: String, (marker, value): &(&str, String)| url.replace(marker, value);
        markers.iter().fold(dl.to_owned(), replace)
    }
}

fn crates() -> impl Strategy<Value = Crate> {
    (
        "[A-Za-z][A-Za-z0-9_-]{0,9}",
        "[0-9]\\.[0-9]{1,2}\\.[0-9](-[a-z]{1,3}\\.[0-9])?(\\+[a-z0-9.]{1,4})?",
        "[0-9a-f]{64}",
    )
        .prop_map(|(name, version, checksum)| Crate {
            name,
            version,
            checksum,
        })
}

/// Values of `dl`: below the index, beside it, on other hosts, with variables anywhere behind the host.
fn templates() -> impl Strategy<Value = String> {
    let variable = prop::sample::select(VARIABLES.to_vec());
    let segment = prop_oneof![
        "[a-z~]{1,5}".boxed(),
        variable.prop_map(str::to_owned).boxed(),
        Just("{crate}-{version}.crate".to_owned()).boxed(),
        Just("a%20b".to_owned()).boxed(),
    ];
    let host = prop::sample::select(vec![
        "https://index.example/of",
        "https://index.example",
        "https://index.example/of/api/v1/crates",
        "https://files.example",
        "http://files.example:8080",
        "https://[::1]:8443",
    ]);
    let query = prop_oneof![
        3 => Just(String::new()),
        1 => "\\?[a-z]=[a-z]{0,3}".boxed(),
        1 => Just("?crate={crate}&version={version}".to_owned()).boxed(),
    ];
    (host, prop::collection::vec(segment, 0..4), query).prop_map(|(host, segments, query)| {
        let path: String = segments.iter().map(|segment| format!("/{segment}")).collect();
        // Without a variable, clients append a path, which may not stand behind a query.
        let has_variable = VARIABLES
            .iter()
            .any(|variable| path.contains(variable) || query.contains(variable));
        format!("{host}{path}{}", if has_variable { query } else { String::new() })
    })
}

#[test]
fn classes_and_types() {
    let config = asset(CONFIG);
    assert_eq!(config.nature, Some(Class::Mutable));
    assert_eq!(config.view.unwrap().style, Style::Absolute);
    assert_eq!(config.media_type, "application/json");
    let index = asset("se/rd/serde");
    assert_eq!((index.nature, index.revalidated), (Some(Class::Mutable), true));
    assert!(index.view.is_none());
    assert_eq!(index.media_type, "text/plain; charset=utf-8");
    for path in [
        "dl/serde-1.0.0.crate",
        "a/config.json",
        "config",
        "-/host/h.example/config.json",
        "",
    ] {
        let file = asset(path);
        assert_eq!((file.nature, file.revalidated), (None, false), "{path}");
        assert!(file.view.is_none());
    }
    // Folders that are not those of the name.
    for path in [
        "se/rd/other",
        "1/ab",
        "2/a",
        "3/b/abc",
        "ab/c/abc",
        "ab/cd/ab/cd",
        "x/se/rd/serde",
        "se/rd/serde/",
    ] {
        assert_eq!(asset(path).nature, None, "{path}");
    }
}

#[test]
fn a_crate_is_verified_by_the_checksum_behind_its_path() {
    let checksum = "ab".repeat(32);
    let file = asset(&format!(
        "-/host/files.example/crates/a/1.0.0/download{DIGEST}{checksum}"
    ));
    assert_eq!(file.digest, Expected::new("sha256", &checksum));
    assert_eq!(file.digest_field, None);
    assert_eq!(file.governing, "crates/a/1.0.0/download");
    assert_eq!(file.media_type, "application/gzip");
    let path = "-/host/files.example/crates/a/1.0.0/download";
    assert_eq!(file.path.encoded, path);
    // Asked for by the path that it is stored under, it is the same file.
    let again = asset(file.key().parts().path);
    assert_eq!((again.key(), again.digest), (file.key(), file.digest.clone()));
    let other = asset(&format!("{path}{DIGEST}{}", "cd".repeat(32)));
    assert_ne!(other.key(), file.key());
    assert_eq!(other.name_key(), file.name_key());
    // Whoever does not know the variable gets what there is.
    for unknown in [
        format!("{path}{DIGEST}{CHECKSUM}"),
        format!("{path}{DIGEST}%7Bsha256-checksum%7D"),
        path.to_owned(),
    ] {
        let file = asset(&unknown);
        assert_eq!((file.path.encoded.as_str(), file.digest), (path, None), "{unknown}");
    }
    for none in ["", "ab", &"AB".repeat(32), &format!("{checksum}/x")] {
        let path = format!("a/1.0.0/download{DIGEST}{none}");
        assert_eq!((asset(&path).digest, asset(&path).path.encoded), (None, path));
    }
}

#[test]
fn config_json_leads_here() {
    let (config, named) = rewrite(&json!({
        "dl": "https://files.example/crates",
        "api": "https://registry.example",
        "auth-required": true,
        "x": [1, {"dl": "https://stays.example"}],
    }));
    let dl =
        format!("{REMOTE_URL}/-/host/files.example/crates/{{crate}}/{{version}}/download/-/sha256/{{sha256-checksum}}");
    assert_eq!(
        config,
        json!({
            "dl": dl,
            "api": format!("{REMOTE_URL}/-/host/registry.example"),
            "x": [1, {"dl": "https://stays.example"}],
        })
    );
    assert_eq!(
        named,
        [
            "https://files.example/crates/{+rest}",
            "https://registry.example/api/v1/{+rest}"
        ]
    );

    let (config, named) = rewrite(&json!({"dl": format!("{BASE}dl/{{lowerprefix}}/{{crate}}"), "api": BASE}));
    let dl = format!("{REMOTE_URL}/dl/{{lowerprefix}}/{{crate}}/-/sha256/{{sha256-checksum}}");
    assert_eq!(config, json!({"dl": dl, "api": REMOTE_URL}));
    assert_eq!(named, [""; 0]);

    let (config, named) = rewrite(&json!({"dl": "http://f.example/dl?c={crate}&v={version}", "api": null}));
    let dl = format!("{REMOTE_URL}/-/host/f.example/dl/-/sha256/{{sha256-checksum}}?c={{crate}}&v={{version}}");
    assert_eq!(config, json!({"dl": dl, "api": null}));
    assert_eq!(named, ["http://f.example/dl?{+rest}"]);
}

#[test]
fn what_is_no_configuration_is_an_error() {
    let long = format!(
        "{{\"dl\": \"https://f.example\", \"x\": \"{}\"}}",
        "x".repeat(MAX_CONFIG)
    );
    for config in [
        "",
        "<html>",
        "[]",
        "{}",
        r#"{"dl": 1}"#,
        r#"{"dl": "file:///crates"}"#,
        "{\"dl\": \"\"",
        &long,
    ] {
        assert!(rewrite_in([config.as_bytes()]).is_err(), "{config:.40}");
    }
}

#[test]
fn a_template_without_a_host_of_its_own_leads_nowhere() {
    let path = request(CONFIG).unwrap();
    let config = json!({"dl": "https://{crate}.example/x"}).to_string();
    let mut reader = reader(&registry(), &path, &format!("{BASE}{CONFIG}"), "application/json");
    let out = drive(&mut *reader, [config.as_bytes()]).unwrap();
    let config: Value = serde_json::from_slice(&out).unwrap();
    assert!(
        config["dl"]
            .as_str()
            .unwrap()
            .starts_with(&format!("{REMOTE_URL}/-/host/invalid/"))
    );
    assert_eq!((reader.take_facts(), reader.escaped()), (Vec::new(), 1));
}

#[test]
fn the_web_api_is_read_and_never_written() {
    for below in ["", "-/host/registry.example/", "-/host/registry.example/some/folder/"] {
        for path in ["crates?q=x&per_page=10", "crates/serde", "crates/serde/1.0.0"] {
            let target = format!("{below}api/v1/{path}");
            assert!(
                matches!(handle(&Method::GET, &target), Reading::PassThrough(_)),
                "{target}"
            );
            let Reading::Refused { status, detail } = handle(&Method::POST, &target) else {
                panic!("{target}")
            };
            assert_eq!(status, 405);
            assert!(detail.contains("use the registry itself"), "{detail}");
        }
        for download in [
            "crates/serde/1.0.0/download",
            "elsewhere/dl/me/1.0.0/download",
            "crates/owners/1.0.0/download",
        ] {
            for checksum in [String::new(), format!("{DIGEST}{}", "ab".repeat(32))] {
                let target = format!("{below}api/v1/{download}{checksum}");
                assert!(
                    matches!(handle(&Method::GET, &target), Reading::Artifact(_)),
                    "{target}"
                );
            }
        }
        for (method, path) in [
            (Method::PUT, "crates/new"),
            (Method::DELETE, "crates/serde/1.0.0/yank"),
            (Method::PUT, "crates/serde/1.0.0/unyank"),
            (Method::PUT, "crates/serde/owners"),
        ] {
            let target = format!("{below}api/v1/{path}");
            let reading = handle(&method, &target);
            assert!(
                matches!(reading, Reading::Refused { status: 405, .. }),
                "{method} {target}"
            );
        }
        let checksum = "ab".repeat(32);
        for path in [
            "crates/serde/owners".to_owned(),
            "me".to_owned(),
            String::new(),
            "crates/serde/1.0.0/authors".to_owned(),
            // A checksum makes no crate of it.
            format!("me{DIGEST}{checksum}"),
            format!("me{DIGEST}{CHECKSUM}"),
            "crates%2Fserde%2fowners".to_owned(),
            format!("crates/serde/owners{DIGEST}{CHECKSUM}"),
            format!("crates/serde/owners{DIGEST}{checksum}"),
        ] {
            let target = format!("{below}api/v1/{path}");
            let reading = handle(&Method::GET, &target);
            assert!(matches!(reading, Reading::Refused { status: 404, .. }), "{target}");
        }
    }
}

#[test]
fn errors_are_in_cargos_form() {
    let (content_type, body) = Cargo.error_body(404, "no \"such\" crate", Some("x")).unwrap();
    assert_eq!(content_type, "application/json");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body, json!({"errors": [{"detail": "no \"such\" crate"}]}));
    // A client would send its token here, to a 401; what it takes for "no such crate" stays.
    for (upstream, status) in [
        (401, 403),
        (403, 403),
        (404, 404),
        (410, 410),
        (451, 451),
        (429, 429),
        (503, 503),
    ] {
        assert_eq!(Cargo.status_of(upstream), status);
    }
}

proptest! {
    #[test]
    fn files_of_the_index_have_one_spelling(a_crate in crates()) {
        let right = format!("{}/{}", a_crate.prefix(), a_crate.name).to_lowercase();
        for asked in [&right, &format!("{}/{}", a_crate.prefix(), a_crate.name), &right.to_uppercase()] {
            let file = asset(asked);
            prop_assert_eq!((&file.path.decoded, &file.path.encoded), (&right, &right));
            prop_assert_eq!((file.nature, file.revalidated), (Some(Class::Mutable), true));
        }
    }

    #[test]
    fn no_path_is_lost(target in "[ -~]{0,40}") {
        if let Some(path) = request(&target) {
            let Reading::Artifact(asset) = Cargo.read(Asked {
                remote: &registry(),
                method: &Method::GET,
                path: path.clone(),
                accept: None,
            }) else {
                return Ok(());
            };
            // What is asked of upstream is what was asked of us, but for the case of an index and our checksums.
            if let Location::Upstream(url) = &asset.location {
                let asked = path.encoded.rsplit_once(DIGEST).filter(|_| asset.path != path).map_or(&*path.encoded, |(path, _)| path);
                prop_assert!(url.path().eq_ignore_ascii_case(&format!("/of/{asked}")), "{} {}", url, asked);
            }
        }
    }

    /// A client that follows our `dl` gets, from where upstream's `dl` names it, the very same file, by the checksum that the
    /// index says; and on another host it may.
    #[test]
    fn every_download_template_leads_through_here(dl in templates(), a_crate in crates(), at in cuts()) {
        let text = json!({"dl": &dl, "api": "https://api.example/"}).to_string();
        let (config, known) = rewrite_in(cut(text.as_bytes(), &at)).unwrap();
        let ours = config["dl"].as_str().unwrap();
        prop_assert!(ours.starts_with(REMOTE_URL), "{}", ours);
        let path = asked(CONFIG, &a_crate.download(ours));
        prop_assert!(path.is_some(), "{}", ours);
        let asset = crate::formats::asset(&registry(), path.unwrap(), None);
        prop_assert!(asset.is_some(), "{}", ours);
        let asset = asset.unwrap();
        prop_assert_eq!(asset.digest.clone(), Expected::new("sha256", &a_crate.checksum));
        prop_assert_eq!((asset.nature, asset.view.is_none()), (None, true));
        let theirs = named(&url::Url::parse(&a_crate.download(&dl)).unwrap());
        match &asset.location {
            Location::Upstream(url) => prop_assert_eq!(named(url), theirs),
            Location::Foreign(file) => {
                let allowed: Vec<String> = file
                    .names()
                    .filter(|(name, _)| known.contains(name))
                    .map(|(_, url)| named(url))
                    .collect();
                prop_assert!(allowed.contains(&theirs), "{} not by {:?}", theirs, known);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// What a registry does not name is not allowed: neither another host nor what stands beside its folder of crates.
    #[test]
    fn a_prefix_allows_what_is_below_it_and_nothing_else(path in "(crates|other|crate)(/[a-z]{1,4}){0,4}(\\?[a-z]{0,3})?", host in "(files|other)\\.example") {
        let (_, known) = rewrite(&json!({"dl": "https://files.example/crates"}));
        let path = request(&format!("-/host/{host}/{path}")).unwrap();
        let asset = crate::formats::asset(&registry(), path.clone(), None).unwrap();
        let Location::Foreign(file) = asset.location else { panic!() };
        let is_below = path.encoded.starts_with("-/host/files.example/crates/");
        let allowed: Vec<&url::Url> = file.names().filter(|(name, _)| known.contains(name)).map(|(_, url)| url).collect();
        prop_assert_eq!(allowed.is_empty(), !is_below);
        let https = &candidates(&path).unwrap()[0];
        prop_assert!(allowed.iter().all(|url| *url == https));
    }
}
