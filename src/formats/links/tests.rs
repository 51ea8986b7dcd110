use proptest::prelude::*;

use super::*;
use crate::formats::Location;
use crate::formats::testing::{self, asked, context, linked, remote, request};

fn map(base: &str, document: &str, style: Style, link: &str) -> Option<String> {
    let remote = remote("generic", base);
    let path = request("docs/deep/index.html").unwrap();
    LinkMap::new(&context(&remote, &path, style, (document, ""))).map(link)
}

fn relative(link: &str) -> Option<String> {
    map(
        "https://h.example/base/",
        "https://h.example/base/docs/deep/index.html",
        Style::Relative,
        link,
    )
}

#[test]
fn plain_links() {
    for (link, path) in [
        ("a.whl", "docs/deep/a.whl"),
        ("./a.whl#sha256=0f", "docs/deep/a.whl#sha256=0f"),
        ("../../x/a.whl?y=1&z", "x/a.whl?y=1&z"),
        ("/base/a.whl", "a.whl"),
        ("//h.example/base/a", "a"),
        ("https://H.Example:443/base/a+b~c%2Fd%2B", "a+b~c%2Fd%2B"),
        ("https://user:secret@h.example/base/a", "a"),
        ("https://h.example/base/%7Ea%2fb c", "~a%2Fb%20c"),
        ("https://h.example/%62ase//a//b/", "a/b/"),
        (" \tht\ntps://h.example/base/a ", "a"),
        ("https://h.example/base/", ""),
        ("https:\\\\h.example\\base\\a", "a"),
    ] {
        assert_eq!(relative(link), Some(format!("../../{path}")), "{link}");
    }
}

#[test]
fn foreign_links() {
    for (link, path) in [
        ("/other/a", "h.example/other/a"),
        ("/base", "h.example/base"),
        ("/basement/a", "h.example/basement/a"),
        ("../../../a", "h.example/a"),
        ("http://h.example/base/a", "h.example/base/a"),
        ("https://h.example:8443/base/a", "h.example:8443/base/a"),
        ("https://files.example/p/a.whl#x", "files.example/p/a.whl#x"),
        ("https://[2001:DB8::1]:80/a", "%5B2001:db8::1%5D:80/a"),
        ("https://files.example", "files.example/"),
        (
            "https://h.example/base/-/host/evil.example/a",
            "h.example/base/-/host/evil.example/a",
        ),
        (
            "https://h.example/base/-//host/evil.example/a",
            "h.example/base/-/host/evil.example/a",
        ),
        ("https://h.example/base/%2e%2e/a", "h.example/a"),
    ] {
        assert_eq!(relative(link), Some(format!("../../-/host/{path}")), "{link}");
    }
}

#[test]
fn other_schemes_are_left_and_what_is_no_url_leads_nowhere() {
    let remote = remote("generic", "https://h.example/");
    let path = request("index.html").unwrap();
    let context = context(&remote, &path, Style::Relative, ("https://h.example/index.html", ""));
    let mut map = LinkMap::new(&context);
    for link in [
        "oci://h.example/a",
        "mailto:a@h.example",
        "data:,x",
        "javascript:void(0)",
        "oci://[x",
        "ftp://a/b",
    ] {
        assert_eq!(map.map(link), None, "{link}");
    }
    assert_eq!(map.escaped(), 0);
    for link in ["https://[x/", "http://h:99999/", "https://exa mple/../a", "//%zz/"] {
        let mapped = map.map(link).unwrap();
        assert!(mapped.starts_with("./-/host/invalid/"), "{link} became {mapped}");
        assert!(asked("index.html", &mapped).is_some(), "{mapped}");
    }
    assert_eq!(map.escaped(), 4);
    assert!(map.take_facts().is_empty());
}

#[test]
fn relative_links_never_look_like_a_scheme() {
    let remote = remote("generic", "https://h.example/");
    let path = request("index.yaml").unwrap();
    let context = context(&remote, &path, Style::Relative, ("https://h.example/index.yaml", ""));
    let mut map = LinkMap::new(&context);
    assert_eq!(map.map("./a:b/c").as_deref(), Some("./a:b/c"));
    assert_eq!(map.map("https://h.example/a:b").as_deref(), Some("./a:b"));
    assert_eq!(
        map.map("https://g.example:1/a").as_deref(),
        Some("./-/host/g.example:1/a")
    );
}

#[test]
fn absolute_links_and_a_base_element() {
    let absolute = |link| {
        map(
            "https://h.example/base/",
            "https://h.example/base/docs/x",
            Style::Absolute,
            link,
        )
    };
    let root = testing::REMOTE_URL;
    assert_eq!(absolute("a").unwrap(), format!("{root}/docs/a"));
    assert_eq!(
        absolute("http://f.example/a").unwrap(),
        format!("{root}/-/host/f.example/a")
    );

    let remote = remote("generic", "https://h.example/");
    let path = request("index/").unwrap();
    let mut map = LinkMap::new(&context(
        &remote,
        &path,
        Style::Relative,
        ("https://h.example/index/", ""),
    ));
    map.set_base("javascript:alert(1)");
    map.set_base("https://[");
    assert_eq!(map.map("a").unwrap(), "../index/a");
    map.set_base("https://f.example/b/");
    assert_eq!(map.map("a").unwrap(), "../-/host/f.example/b/a");
}

#[test]
fn foreign_links_are_told_once() {
    let remote = remote("generic", "https://h.example/");
    let path = request("index/").unwrap();
    let mut map = LinkMap::new(&context(
        &remote,
        &path,
        Style::Relative,
        ("https://h.example/index/", ""),
    ));
    for link in [
        "https://f.example/%7ea#1",
        "https://f.example/~a#2",
        "a",
        "http://f.example:80/a%2fb?q='%7E",
    ] {
        assert!(map.map(link).is_some());
    }
    assert_eq!(
        linked(map.take_facts()),
        ["https://f.example/~a", "http://f.example/a%2Fb?q=%27~"]
    );
    assert!(map.map("https://f.example/~a").is_some());
    assert!(map.take_facts().is_empty());
}

#[test]
fn what_no_request_may_ask_for_leads_nowhere() {
    for link in ["a%5Cb", "a%00", "a/%2F..%2Fb", "x%2f%2e%2e"] {
        let mapped = map("https://h.example/", "https://h.example/x/", Style::Relative, link).unwrap();
        let mut path = asked("docs/deep/index.html", &mapped).unwrap();
        assert!(path.encoded.starts_with("-/host/h.example/x/"), "{mapped}");
        path.query = None;
        assert_eq!(
            candidates(&path).unwrap().map(|url| url.path().contains("%25")),
            [true, true]
        );
    }
}

#[test]
fn candidates_of_paths() {
    let of = |path: &str| {
        request(path)
            .and_then(|path| candidates(&path))
            .map(|urls| urls.map(String::from))
    };
    let both = |rest: &str| Some([format!("https://{rest}"), format!("http://{rest}")]);
    assert_eq!(of("-/host/f.example/a%2Fb+c~/?x=1"), both("f.example/a%2Fb+c~/?x=1"));
    assert_eq!(of("-/host/f.example:8080/a"), both("f.example:8080/a"));
    assert_eq!(of("-/host/%5B::1%5D:1/a"), both("[::1]:1/a"));
    assert_eq!(of("-/host/f.example"), both("f.example/"));
    for path in [
        "-/host/",
        "-/host",
        "a",
        "-/host/u@h/a",
        "-/host/h%20/a",
        "-/host/h:x/a",
        "-/host/h%2Fb/a",
    ] {
        assert_eq!(of(path), None, "{path}");
    }
    let pypi = std::sync::Arc::new(remote("pypi", "https://files.example/"));
    let metadata = testing::read(&pypi, "-/host/f.example/a.whl.metadata", None).unwrap();
    let Location::Foreign(file) = metadata.location else {
        panic!()
    };
    assert_eq!(file.named[0], "https://f.example/a.whl");
    assert_eq!(file.urls[0].as_str(), "https://f.example/a.whl.metadata");
}

#[test]
fn base_urls_are_joined_verbatim() {
    let remote = remote("generic", "https://h.example/a%2Fb/");
    let url = |path| under_base(&remote, &request(path).unwrap()).to_string();
    assert_eq!(
        url("x%2Fy/a+b%2B~%20c/?q=%7e|&x"),
        "https://h.example/a%2Fb/x%2Fy/a+b%2B~%20c/?q=%7e|&x"
    );
    assert_eq!(url(""), "https://h.example/a%2Fb/");
}

fn link() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("a"),
        Just("b.whl"),
        Just("/"),
        Just("//"),
        Just(".."),
        Just("."),
        Just("%2e"),
        Just("%2F"),
        Just("%2f"),
        Just("%5c"),
        Just("%00"),
        Just("%7E"),
        Just("%"),
        Just("%25"),
        Just("%252e"),
        Just("é"),
        Just(" "),
        Just("+"),
        Just(":"),
        Just("@"),
        Just("|"),
        Just("["),
        Just("\\"),
        Just("'"),
        Just("-"),
        Just("host"),
        Just("?"),
        Just("#"),
        Just("&"),
        Just("base/"),
        Just("h.example"),
        Just("-/host/"),
        Just("%C3%A9"),
        Just("%2D/host/e/"),
    ];
    let start = prop_oneof![
        Just(""),
        Just("/"),
        Just("/base/"),
        Just("https://h.example/base/"),
        Just("https://h.example:443/base/"),
        Just("http://h.example/base/"),
        Just("https://f.example/"),
        Just("http://f.example:8080/"),
        Just("//f.example/"),
        Just("https://u:p@f.example/"),
        Just("https://[::1]/"),
        Just("HTTPS://H.EXAMPLE/base/"),
    ];
    (start, proptest::collection::vec(piece, 0..8)).prop_map(|(start, pieces)| format!("{start}{}", pieces.concat()))
}

#[test]
fn a_template_names_what_is_below_its_fixed_part() {
    for (template, mapped, name) in [
        (
            "https://f.example/a/{x}/b",
            "-/host/f.example/a/{x}/b",
            "https://f.example/a/{+rest}",
        ),
        (
            "https://f.example/a-{x}",
            "-/host/f.example/a-{x}",
            "https://f.example/{+rest}",
        ),
        (
            "https://f.example/a?y={x}",
            "-/host/f.example/a?y={x}",
            "https://f.example/a?{+rest}",
        ),
        ("https://f.example", "-/host/f.example/", "https://f.example/{+rest}"),
        ("{x}/b", "base/{x}/b", ""),
    ] {
        let remote = remote("generic", "https://h.example/");
        let path = request("base/index").unwrap();
        let context = context(&remote, &path, Style::Relative, ("https://h.example/base/index", ""));
        let mut map = LinkMap::new(&context);
        assert_eq!(map.map_template(template, &["{x}"]), Some(format!("../{mapped}")));
        assert_eq!(linked(map.take_facts()).concat(), name, "{template}");
    }
}

#[test]
fn prefixes_are_folders_and_few() {
    let of = |name: &str| super::prefixes(name);
    assert_eq!(
        of("https://f.example/a/b?c/d"),
        [
            "https://f.example/{+rest}",
            "https://f.example/a/{+rest}",
            "https://f.example/a/b?{+rest}"
        ]
    );
    assert_eq!(of("https://f.example/"), ["https://f.example/{+rest}"]);
    assert_eq!(
        of(&format!("https://f.example/{}", "a/".repeat(1000))).len(),
        MAX_PREFIXES
    );
    // No link has such a name.
    let link = Url::parse("https://f.example/{+rest}").unwrap();
    assert_eq!(named(&link), "https://f.example/%7B+rest%7D");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What a client asks for after following a rewritten link names exactly the URL that the link named.
    #[test]
    fn following_a_rewritten_link_asks_for_what_it_named(link in link(), absolute: bool) {
        let remote = remote("generic", "https://h.example/base/");
        let document = "https://h.example/base/docs/index.html";
        let path = request("docs/index.html").unwrap();
        let style = if absolute { Style::Absolute } else { Style::Relative };
        let mut map = LinkMap::new(&context(&remote, &path, style, (document, "")));
        let Some(mapped) = map.map(&link) else { return Ok(()) };
        let asked = asked("docs/index.html", &mapped);
        let asked = asked.ok_or_else(|| TestCaseError::fail(format!("{mapped} would be refused")))?;
        let foreign = linked(map.take_facts());
        let Ok(meant) = Url::parse(document).unwrap().join(&link) else {
            prop_assert!(map.escaped() > 0 && foreign.is_empty());
            return Ok(());
        };
        if map.escaped() > 0 {
            prop_assert!(foreign.is_empty());
        } else if let Some(urls) = candidates(&asked) {
            prop_assert_eq!(&foreign, &vec![named(&meant)]);
            prop_assert!(urls.iter().any(|url| named(url) == named(&meant)), "{} {:?}", mapped, urls);
        } else {
            prop_assert!(foreign.is_empty());
            prop_assert_eq!(named(&under_base(&remote, &asked)), named(&meant));
        }
        let followed = Url::parse(testing::REMOTE_URL).unwrap().join(&mapped).unwrap();
        prop_assert_eq!(followed.fragment(), meant.fragment());
    }

    #[test]
    fn no_text_panics(link in any::<String>(), path in any::<String>()) {
        let remote = remote("generic", "https://h.example/");
        let document = request("x/").unwrap();
        let mut map = LinkMap::new(&context(&remote, &document, Style::Relative, ("https://h.example/x/", "")));
        let _ = map.map(&link);
        let _ = map.map(&format!("https://{link}"));
        let path = ArtifactPath { decoded: path.clone(), encoded: format!("-/host/{path}"), query: Some(path) };
        let _ = candidates(&path);
        let _ = under_base(&remote, &path);
        let _ = decode_once(&path.encoded);
    }
}
