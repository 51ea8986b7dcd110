use proptest::prelude::*;
use saphyr_parser::{Event, Parser};
use url::Url;

use super::*;
use crate::formats::testing::{asked, context, cut, cuts, drive, remote, request};

const BASE: &str = "https://charts.example/stable/";

fn rewrite_at(target: &str, body: &str) -> Result<(String, Vec<String>), RewriteError> {
    let remote = remote("helm", BASE);
    let path = request(target).unwrap();
    let mut rewriter = Helm.rewriter(&context(&remote, &path, &format!("{BASE}{target}"), "text/yaml"));
    let out = drive(&mut *rewriter, [body.as_bytes()])?;
    Ok((String::from_utf8(out).unwrap(), rewriter.take_foreign()))
}

fn rewrite(body: &str) -> String {
    rewrite_at("index.yaml", body).unwrap().0
}

#[test]
fn classes_and_paths() {
    for path in ["index.yaml", "deep/er/index.yaml"] {
        assert_eq!(Helm.builtin_class(path), Some(Class::Mutable));
        assert_eq!(
            Helm.has_view(&remote("helm", BASE), path),
            Some(View { absolute: false })
        );
    }
    for path in ["a-1.0.tgz", "index.yaml.asc", "index.json", ""] {
        assert_eq!(Helm.builtin_class(path), None);
        assert_eq!(Helm.has_view(&remote("helm", BASE), path), None);
    }
    assert_eq!(Helm.governing_path("a-1.0.tgz.prov"), "a-1.0.tgz");
    assert_eq!(Helm.governing_path("a-1.0.tgz"), "a-1.0.tgz");
    assert_eq!(
        Helm.index_naming(&remote("helm", BASE), "x/a-1.0.tgz").as_deref(),
        Some("index.yaml")
    );
    assert_eq!(Helm.content_type("a-1.0.tgz"), "application/gzip");
    assert_eq!(Helm.content_type("index.yaml"), "application/yaml");
}

const INDEX: &str = "apiVersion: v1
entries:
  a:
  - annotations:
      artifacthub.io/changes: |
        - kind: added
          urls:
          - https://charts.example/stable/kept.tgz
    created: \"2024-01-01T00:00:00.000000001Z\"
    digest: 00ff
    icon: https://charts.example/stable/a.png
    name: a
    sources:
    - https://charts.example/stable/source
    urls:
    - https://charts.example/stable/a-1.0.tgz
    - https://mirror.example/a-1.0.tgz
    version: 1.0
  - urls:
    - charts/a-0.9.tgz
    - 'oci://registry.example/a:0.9'
    - \"/elsewhere/a-0.9.tgz\"
    - http://charts.example/stable/a%2B1+2.tgz
    - https://charts.example:8443/x:y/a.tgz
generated: \"2024-01-01T00:00:00Z\"
";

#[test]
fn an_index() {
    let expected = INDEX
        .replace("- https://charts.example/stable/a-1.0.tgz", "- ./a-1.0.tgz")
        .replace("- https://mirror.example/", "- ./-/host/mirror.example/")
        .replace("- charts/", "- ./charts/")
        .replace("\"/elsewhere/", "\"./-/host/charts.example/elsewhere/")
        .replace(
            "http://charts.example/stable/a%2B1+2.tgz",
            "./-/host/charts.example/stable/a%2B1+2.tgz",
        )
        .replace(
            "https://charts.example:8443/x:y/a.tgz",
            "\"./-/host/charts.example:8443/x:y/a.tgz\"",
        );
    assert_eq!(rewrite(INDEX), expected);
    let (deep, foreign) = rewrite_at("deep/er/index.yaml", INDEX).unwrap();
    assert!(deep.contains("- ../../a-1.0.tgz\n") && deep.contains("- ../../deep/er/charts/a-0.9.tgz\n"));
    assert!(deep.contains("- 'oci://registry.example/a:0.9'\n"));
    assert_eq!(
        foreign,
        [
            "https://mirror.example/a-1.0.tgz",
            "https://charts.example/elsewhere/a-0.9.tgz",
            "http://charts.example/stable/a%2B1+2.tgz",
            "https://charts.example:8443/x:y/a.tgz",
        ]
    );
}

#[test]
fn an_index_in_json() {
    let body = r#" {"apiVersion":"v1","entries":{"a":[{"urls":["https:\/\/charts.example\/stable\/a.tgz","oci://x/y"],"x":{"urls":["kept"]}}]}}"#;
    let expected = body.replace(r"https:\/\/charts.example\/stable\/a.tgz", "./a.tgz");
    assert_eq!(rewrite(body), expected);
    assert!(rewrite_at("index.yaml", "{\"entries\":").is_err());
}

#[test]
fn byte_order_marks_and_what_is_no_index() {
    let expected = rewrite(INDEX);
    assert_eq!(rewrite(&format!("\u{feff}{INDEX}")), format!("\u{feff}{expected}"));
    assert_eq!(rewrite("\u{feff}{}"), "\u{feff}{}");
    for body in ["", "\n", " \n", "\u{feff}", "a"] {
        assert_eq!(rewrite(body), body);
    }
    assert!(rewrite_at("index.yaml", "\n<!DOCTYPE html>").is_err());
    let remote = remote("helm", BASE);
    let path = request("index.yaml").unwrap();
    let context = context(&remote, &path, BASE, "");
    assert!(drive(&mut *Helm.rewriter(&context), [b"\xff".as_slice(), b"\xfea\0"]).is_err());
    let blank = vec![b' '; MAX_HEAD + 1];
    assert_eq!(drive(&mut *Helm.rewriter(&context), [blank.as_slice()]).unwrap(), blank);
}

#[test]
fn queries_go_into_the_path_and_come_back() {
    let body = "entries:\n  a:\n  - urls: ['https://cdn.example/a.tgz?sig=a%2Fb+c&x=~#f', a.tgz?v=1]\n";
    let (out, foreign) = rewrite_at("deep/index.yaml", body).unwrap();
    assert!(!out.contains('?'));
    let links: Vec<&str> = out
        .split(['[', ',', ']'])
        .skip(1)
        .map(|link| link.trim().trim_matches('\''))
        .collect();
    assert!(
        links[0].starts_with("../-/query/") && links[0].ends_with("/-/host/cdn.example/a.tgz#f"),
        "{out}"
    );
    let remote = remote("helm", BASE);
    let ask = |link: &str| match Helm.handle(&remote, &Method::GET, asked("deep/index.yaml", link).unwrap()) {
        Handling::Artifact(path) => path,
        other => panic!("{other:?}"),
    };
    let path = ask(links[0]);
    assert_eq!(
        links::candidates(&path).unwrap()[0].as_str(),
        "https://cdn.example/a.tgz?sig=a%2Fb+c&x=~"
    );
    assert_eq!(foreign, ["https://cdn.example/a.tgz?sig=a%2Fb+c&x=~"]);
    assert_eq!(
        Helm.upstream_url(&remote, &ask(links[1])).as_str(),
        "https://charts.example/stable/deep/a.tgz?v=1"
    );
    for target in ["-/query/@/a.tgz", "-/query/YSBi/a.tgz", "-/query/YQ", "-/query//a"] {
        let path = request(target).unwrap();
        assert_eq!(
            Helm.handle(&remote, &Method::GET, path.clone()),
            Handling::Artifact(path)
        );
    }
}

/// The links at `entries.*[].urls[]`, read again.
fn urls(document: &str) -> Vec<String> {
    let mut depth = 0;
    let mut found = Vec::new();
    let mut list = None;
    let mut key = false;
    for event in Parser::new_from_str(document) {
        match event.unwrap().0 {
            Event::MappingStart(..) | Event::SequenceStart(..) => {
                depth += 1;
                if key && depth == 5 {
                    list = Some(depth);
                }
                key = false;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                list = list.filter(|&list| list < depth);
                depth -= 1;
            }
            Event::Scalar(text, ..) => {
                if list == Some(depth) {
                    found.push(text.to_string());
                }
                key = text == "urls" && depth == 4;
            }
            _ => {}
        }
    }
    found
}

fn link() -> impl Strategy<Value = String> {
    let start = prop_oneof![
        Just(BASE),
        Just("https://charts.example/"),
        Just("http://charts.example/stable/"),
        Just("HTTPS://Mirror.example:8443/"),
        Just("//charts.example/stable/"),
        Just("/"),
        Just("../"),
        Just(""),
    ];
    let link = (start, "[a-zA-Z0-9/._~+ %?&=#,:{}'\"é-]{0,20}").prop_map(|(start, rest)| format!("{start}{rest}"));
    link.prop_filter("a URL", |link| {
        let url = Url::parse(&format!("{BASE}index.yaml")).unwrap().join(link);
        url.is_ok_and(|url| url.scheme() == "https" || url.scheme() == "http")
    })
}

fn quoted(text: &str, style: u8) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._~+-".contains(&byte);
    match style {
        0 => format!("'{}'", text.replace('\'', "''")),
        1 if !text.is_empty() && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(plain) => {
            text.to_owned()
        }
        _ => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

proptest! {
    /// No chart of an index leads past us, each leads to what upstream's link named, and pieces make no difference.
    #[test]
    fn no_upstream_address_survives(
        charts in proptest::collection::vec(proptest::collection::vec((link(), 0..3_u8), 0..4), 1..5),
        flow: bool, json: bool, at in cuts()
    ) {
        let body = if json {
            let versions: Vec<_> = charts.iter().map(|urls| {
                serde_json::json!({"urls": urls.iter().map(|(link, _)| link).collect::<Vec<_>>()})
            }).collect();
            serde_json::json!({"entries": {"a": versions}}).to_string()
        } else {
            let mut body = "entries:\n  a:\n".to_owned();
            for urls in &charts {
                let urls: Vec<String> = urls.iter().map(|(link, style)| quoted(link, *style)).collect();
                if flow || urls.is_empty() {
                    body.push_str(&format!("  - urls: [{}]\n    name: a\n", urls.join(", ")));
                } else {
                    body.push_str(&format!("  - name: a\n    urls:\n    - {}\n", urls.join("\n    - ")));
                }
            }
            body
        };
        let remote = remote("helm", BASE);
        let path = request("index.yaml").unwrap();
        let mut rewriter = Helm.rewriter(&context(&remote, &path, &format!("{BASE}index.yaml"), ""));
        let out = String::from_utf8(drive(&mut *rewriter, cut(body.as_bytes(), &at)).unwrap()).unwrap();
        prop_assert_eq!(&out, &rewrite(&body));
        let foreign = rewriter.take_foreign();
        let links: Vec<&String> = charts.iter().flatten().map(|(link, _)| link).collect();
        let found = urls(&out);
        prop_assert_eq!(found.len(), links.len(), "{}", out);
        for (link, mapped) in links.into_iter().zip(found) {
            prop_assert!(mapped.starts_with("./") && !mapped.split('#').next().unwrap().contains('?'), "{} became {}", link, mapped);
            let asked = asked("index.yaml", &mapped).ok_or_else(|| TestCaseError::fail(mapped.clone()))?;
            let Handling::Artifact(asked) = Helm.handle(&remote, &Method::GET, asked) else {
                return Err(TestCaseError::fail(mapped));
            };
            if rewriter.escaped() > 0 {
                continue;
            }
            let meant = links::named(&Url::parse(&format!("{BASE}index.yaml")).unwrap().join(link).unwrap());
            match links::candidates(&asked) {
                Some(urls) => {
                    prop_assert!(foreign.contains(&meant));
                    prop_assert!(urls.iter().any(|url| links::named(url) == meant), "{} {:?}", meant, asked);
                }
                None => prop_assert_eq!(links::named(&Helm.upstream_url(&remote, &asked)), meant),
            }
        }
    }

    #[test]
    fn nothing_panics(path in any::<String>(), body in proptest::collection::vec(any::<u8>(), 0..200), at in cuts()) {
        let remote = remote("helm", BASE);
        for target in [path.clone(), format!("-/query/{path}"), format!("-/query/YQ/{path}")] {
            if let Some(path) = request(&target) {
                let _ = Helm.handle(&remote, &Method::GET, path);
            }
        }
        let path = request("index.yaml").unwrap();
        let mut rewriter = Helm.rewriter(&context(&remote, &path, BASE, ""));
        let _ = drive(&mut *rewriter, cut(&body, &at));
        let _ = (rewriter.take_foreign(), rewriter.escaped());
    }
}
