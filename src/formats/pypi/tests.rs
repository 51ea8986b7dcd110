use std::sync::Arc;

use http::Method;
use proptest::prelude::*;

use super::*;
use crate::config::OwnValue;
use crate::formats::html::MAX_TAG;
use crate::formats::testing::{
    self, REMOTE_URL, asked, client, cut, cuts, drive, linked, many, read_by, reader, remote, request, tool,
};

/// Files on one host, the index on another.
fn split() -> Arc<Remote> {
    let mut remote = remote("pypi", "https://files.example/");
    let index = OwnValue::Url(Url::parse("https://index.example/").unwrap());
    remote.own.set(&INDEX_URL, index);
    Arc::new(remote)
}

/// Where a client is sent, or what it gets.
fn handle(target: &str, accept: Option<&str>) -> Result<Option<Asset>, String> {
    let asked = Asked {
        remote: &split(),
        method: &Method::GET,
        path: request(target).unwrap(),
        accept,
    };
    match Pypi.read(asked) {
        Reading::Artifact(asset) => Ok(Some(*asset)),
        Reading::Redirect(location) => Err(location),
        Reading::NotAcceptable => Ok(None),
        other => panic!("{other:?}"),
    }
}

fn asset(target: &str) -> Asset {
    handle(target, None).unwrap().unwrap()
}

fn url_of(remote: &Arc<Remote>, target: &str) -> String {
    match testing::read(remote, target, None).unwrap().location {
        Location::Upstream(url) => url.to_string(),
        other => panic!("{other:?}"),
    }
}

fn rewrite(remote: &Arc<Remote>, target: &str, document_url: &str, content_type: &str, body: &str) -> String {
    let path = request(target).unwrap();
    let mut reader = reader(remote, &path, document_url, content_type);
    String::from_utf8(drive(&mut *reader, [body.as_bytes()]).unwrap()).unwrap()
}

const SIMPLE: (&str, &str) = ("simple/foo/", "https://index.example/simple/foo/");

#[test]
fn names_are_normalised_by_redirect() {
    for (asked, location) in [
        ("simple", "simple/"),
        ("simple?x=%2F", "simple/?x=%2F"),
        ("simple/foo", "foo/"),
        ("simple/Foo", "foo/"),
        ("simple/Foo/", "../foo/"),
        ("simple/Foo_Bar/", "../foo-bar/"),
        ("simple/Foo._-Bar?q", "foo-bar/?q"),
        ("simple/a%20b", "a%20b/"),
        ("simple/a:b", "./a:b/"),
        ("simple/foo.whl/", "../foo-whl/"),
    ] {
        assert_eq!(handle(asked, None).unwrap_err(), location, "{asked}");
    }
    for asked in [
        "simple/",
        "simple/foo-bar/",
        "",
        "whl/cpu/Foo/",
        "simple/Foo/x.whl",
        "simple/Foo_1-2.whl",
        "pypi/Foo/json",
        "-/host/files.example/simple/Foo",
        "packages/a/Foo-1.whl",
        "simple/a%20b/",
    ] {
        assert_eq!(asset(asked).path, request(asked).unwrap(), "{asked}");
    }
}

#[test]
fn indexes_are_mutable_and_files_are_not() {
    for path in [
        "",
        "simple/",
        "simple/foo/",
        "pypi/foo/json",
        "pypi/foo/1.0/json",
        "whl/cpu/x/",
    ] {
        let index = asset(path);
        assert_eq!(index.nature, Some(Class::Mutable), "{path}");
        assert!(index.view.is_some(), "{path}");
    }
    assert!(is_index("simple/foo") && is_index("simple"));
    for path in [
        "packages/a.whl",
        "simple/foo/foo-1.0.tar.gz",
        "simple/foo/foo-1.whl.metadata",
        "pypi/json",
        "pypi//json",
        "a",
    ] {
        let file = asset(path);
        assert_eq!(file.nature, None, "{path}");
        assert!(file.view.is_none(), "{path}");
    }
    let style = |path| asset(path).view.unwrap().style;
    assert_eq!(style("simple/foo/"), Style::Relative);
    assert_eq!(style("pypi/foo/json"), Style::Absolute);
}

#[test]
fn metadata_and_signatures_go_as_their_file() {
    assert_eq!(
        governing_path("p/a-1-py3-none-any.whl.metadata"),
        "p/a-1-py3-none-any.whl"
    );
    assert_eq!(governing_path("p/a-1.tar.gz.asc"), "p/a-1.tar.gz");
    assert_eq!(governing_path("p/a-1.tar.gz"), "p/a-1.tar.gz");
}

#[test]
fn upstream_is_the_index_or_the_files_host() {
    let url = url_of;
    let split = split();
    assert_eq!(url(&split, "simple/foo/?x"), "https://index.example/simple/foo/?x");
    assert_eq!(url(&split, "pypi/foo/json"), "https://index.example/pypi/foo/json");
    assert_eq!(
        url(&split, "packages/a%2Bb.whl"),
        "https://files.example/packages/a%2Bb.whl"
    );
    assert_eq!(url(&split, "whl/cpu/"), "https://files.example/whl/cpu/");
    let one = Arc::new(remote("pypi", "https://one.example/repository/pypi/"));
    assert_eq!(
        url(&one, "simple/foo/"),
        "https://one.example/repository/pypi/simple/foo/"
    );
}

#[test]
fn negotiation() {
    let name = |accept: &str| {
        handle("simple/foo/", Some(accept))
            .unwrap()
            .map(|asset| asset.form.name)
    };
    for (accept, form) in [
        ("", "html"),
        ("*/*", "html"),
        ("application/*", "html"),
        ("text/html", "html"),
        ("application/vnd.pypi.simple.v1+json", "json"),
        ("application/vnd.pypi.simple.latest+json", "json"),
        ("application/vnd.pypi.simple.latest+html", "html"),
        (
            "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01",
            "json",
        ),
        (
            "application/vnd.pypi.simple.v1+json;q=0.2, application/vnd.pypi.simple.v1+html",
            "html",
        ),
        ("application/vnd.pypi.simple.v1+json, text/html", "json"),
        ("application/vnd.pypi.simple.v1+json, */*", "json"),
        (
            "text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8",
            "html",
        ),
        ("application/vnd.pypi.simple.v1+json;q=0, */*;q=0.1", "html"),
        ("text/html;q=0, application/vnd.pypi.simple.v1+html;q=0, */*", "json"),
    ] {
        // A wildcard still offers the aliases of what is refused by name.
        let accept = accept.replace(
            "application/vnd.pypi.simple.v1+html;q=0, */*",
            "application/vnd.pypi.simple.v1+html;q=0, application/vnd.pypi.simple.latest+html;q=0, */*",
        );
        assert_eq!(name(&accept), Some(form), "{accept}");
    }
    for accept in ["application/xml", "*/*;q=0", "text/html;q=0.0", "application/json"] {
        assert_eq!(name(accept), None, "{accept}");
    }
    let form = |target, accept| handle(target, accept).unwrap().unwrap().form;
    assert_eq!(form("simple/foo/", None), HTML);
    assert_eq!(form("packages/a.whl", Some("text/html")), Form::ONLY);
    assert_eq!(form("pypi/foo/json", Some("text/html")).name, "");
    assert!(asset("simple/").varies && !asset("pypi/foo/json").varies && !asset("packages/a.whl").varies);
}

#[test]
fn projects_of_files() {
    for (file, index) in [
        ("packages/ab/cd/Foo_Bar-1.0-py3-none-any.whl", "simple/foo-bar/"),
        ("foo_bar-1.0-1-py3-none-any.whl.metadata", "simple/foo-bar/"),
        ("p/foo-bar-1.0.tar.gz", "simple/foo-bar/"),
        ("p/foo-2-bar-1.0b1.zip", "simple/foo-2-bar/"),
        ("p/foo.bar-1.0-beta.tar.bz2.asc", "simple/foo-bar/"),
        ("p/Foo-1.0.win32-py2.7.exe", "simple/foo/"),
        ("p/foo_bar-1.0-py2.7.egg", "simple/foo-bar/"),
    ] {
        assert_eq!(index_naming(file).as_deref(), Some(index), "{file}");
    }
    for file in [
        "",
        "p/",
        "p/foo.txt",
        "p/foo.tar.gz",
        "p/foo-bar.whl/x",
        "p/a b-1.0.tar.gz",
        ".whl",
        "é-1.tar.gz",
        "aé",
    ] {
        assert_eq!(index_naming(file), None, "{file}");
    }
}

#[test]
fn an_html_index() {
    let body = r##"<!DOCTYPE html>
<html><head><meta name="pypi:repository-version" content="1.4"><title>Links for foo</title></head><body>
<h1>Links for foo &amp; co</h1>
<!-- <a href="https://files.example/no.whl">no</a> -->
<a href="https://files.example/packages/foo-1.0.whl#sha256=aa" data-requires-python="&gt;=3.8" data-dist-info-metadata="sha256=bb" data-core-metadata='sha256=bb' data-yanked>foo-1.0.whl</a><br/>
<A HREF='../../packages/foo-2.0.whl?a=1&amp;b=2#md5=cc' data-yanked="" data-provenance="https://index.example/p" data-upload-time=x>foo-2.0.whl</A>
<a class="u" href=https://cdn.example/x/foo-3.0.tar.gz>foo-3.0.tar.gz</a>
<a href="http&colon;&#x2f;&#47;old.example/foo-4.zip">x</a> <a href="/simple/bar/">bar</a> <a>none</a> <a href="">self</a>
<a href="mailto:me@files.example">mail</a> <a href="#top">top</a>
<script>"<a href='https://files.example/script.whl'>"</script>
</body></html>"##;
    let expected = body
        .replace(
            r##"href="https://files.example/packages/foo-1.0.whl#"##,
            r##"href="../../packages/foo-1.0.whl#"##,
        )
        .replace(
            "HREF='../../packages/foo-2.0.whl?a=1&amp;b=2#md5=cc'",
            r##"HREF="../../-/host/index.example/packages/foo-2.0.whl?a=1&amp;b=2#md5=cc""##,
        )
        .replace(
            "href=https://cdn.example/x/foo-3.0.tar.gz",
            r##"href="../../-/host/cdn.example/x/foo-3.0.tar.gz""##,
        )
        .replace(
            "http&colon;&#x2f;&#47;old.example/foo-4.zip",
            "../../-/host/old.example/foo-4.zip",
        )
        .replace(r##"href="/simple/bar/""##, r##"href="../../simple/bar/""##)
        .replace(r##"href="#top""##, r##"href="../../simple/foo/#top""##)
        // What is no tag looks like none.
        .replace(
            r#"<!-- <a href="https://files.example/no.whl">no</a> -->"#,
            r#"<!-- &lt;a href="https://files.example/no.whl"&gt;no&lt;/a&gt; -->"#,
        )
        .replace(
            r#""<a href='https://files.example/script.whl'>""#,
            r#""&lt;a href='https://files.example/script.whl'>""#,
        );
    let (target, url) = SIMPLE;
    for content_type in [
        "text/html; charset=utf-8",
        "TEXT/HTML",
        "application/vnd.pypi.simple.v1+html",
        "",
    ] {
        assert_eq!(rewrite(&split(), target, url, content_type, body), expected);
    }
    // Not every client looks at the type.
    assert_eq!(rewrite(&split(), target, url, "text/plain", body), expected);
    let no_index = "a text about <a href=\"https://files.example/a.whl\">";
    assert_eq!(rewrite(&split(), target, url, "text/plain", no_index), no_index);
}

#[test]
fn root_relative_links_of_another_kind_of_index() {
    let remote = Arc::new(remote("pypi", "https://whl.example/"));
    let body = r#"<a href="/whl/cpu/x-1%2Bcpu-cp312.whl#sha256=a">x</a><a href="https://cdn.example/x.whl">y</a>"#;
    let expected = r#"<a href="../../../whl/cpu/x-1%2Bcpu-cp312.whl#sha256=a">x</a><a href="../../../-/host/cdn.example/x.whl">y</a>"#;
    assert_eq!(
        rewrite(
            &remote,
            "whl/cpu/x/",
            "https://whl.example/whl/cpu/x/",
            "text/html",
            body
        ),
        expected
    );
}

#[test]
fn a_base_element_is_respected_and_neutralised() {
    let body =
        r#"<base target=x href="https://files.example/b/"><base href="https://no.example/"><a href="c.whl">c</a>"#;
    let expected = r#"<base target=x><base><a href="../../b/c.whl">c</a>"#;
    let out = rewrite(&split(), SIMPLE.0, SIMPLE.1, "text/html", body);
    assert_eq!(out, expected);
}

#[test]
fn files_kept_under_simple_on_a_split_remote_stay_distinct() {
    // Asked for plainly, this path would go to the index host.
    let out = rewrite(
        &split(),
        SIMPLE.0,
        SIMPLE.1,
        "text/html",
        r#"<a href="https://files.example/simple/a.whl">a</a>"#,
    );
    assert_eq!(out, r#"<a href="../../-/host/files.example/simple/a.whl">a</a>"#);
    let out = rewrite(
        &split(),
        SIMPLE.0,
        SIMPLE.1,
        "text/html",
        r#"<a href="https://index.example/p/a.whl">a</a>"#,
    );
    assert_eq!(out, r#"<a href="../../-/host/index.example/p/a.whl">a</a>"#);
}

#[test]
fn what_only_some_parsers_take_for_a_link() {
    let link = "https://files.example/p/a.whl";
    for (body, expected) in [
        // The first of two is one's own to browsers, the last to Python.
        ("<a href='~' HREF=~ class=a CLASS=b>", r#"<a href="^" class=a>"#),
        ("<a x y='1' x=~ href = ~/>", r#"<a x y='1' href="^/">"#),
        ("<a/href='~'/>", r#"<a href="^" />"#),
        ("<a href='~'title=\"x\">", r#"<a href="^" title="x">"#),
        ("<a \"'=~ <b href=~>", r#"<a href="^">"#),
        ("<a\u{a0}href=~><a-é><a\0 href=~>", ""),
        (
            "<a title='<a href=~>' data-requires-python=>=3.6>",
            "<a title='&lt;a href=~&gt;' data-requires-python=\"\">=3.6>",
        ),
        (
            "<noscript><a href=~></noscript><base href=~><base x>",
            r#"<noscript><a href="^"></noscript><base><base x>"#,
        ),
        (
            "<title><a href=~></title ><a href=~>",
            r#"<title>&lt;a href=~></title><a href="^">"#,
        ),
        (
            "<textarea><base href=~></TEXTAREA><script/><a href=~>",
            r#"<textarea>&lt;base href=~></TEXTAREA><script></script><a href="^">"#,
        ),
        (
            "<iframe><!--</iframe x><a href=~>",
            r#"<iframe>&lt;!--</iframe><a href="^">"#,
        ),
        (
            "<script><!--<script></script><a href=~></script>",
            r#"<script>&lt;!--&lt;script></script><a href="^"></script>"#,
        ),
        ("<plaintext></x><a href=~>", "<plaintext>&lt;/x>&lt;a href=~>"),
        (
            "<!--><a href=~><!-- -- ><a href=~>--!><a href=~>",
            r#"<!----><a href="^"><!-- -- &gt;&lt;a href=~&gt;--><a href="^">"#,
        ),
        (
            "<!--->x<!----><!-- a - b -- c --- d --->e",
            "<!---->x<!----><!-- a - b -- c --- d --->e",
        ),
        (
            "<![CDATA[><a href=~>]]><?x <a href=~>?></ x><!x>",
            r#"<a href="^">]]>?>"#,
        ),
        ("<!DOCTYPE html><!doctype <a href=~>", "<!DOCTYPE html><!DOCTYPE html>"),
        ("1 < 2 <3 </a foo=~><a href=~", "1 &lt; 2 &lt;3 </a>"),
        (
            "<a href=''><a href=' '><a href><link href=~><!--",
            "<a href=''><a href=' '><a href><link href=\"~\"><!---->",
        ),
        (
            "<a href='http://[~'>",
            "<a href=\"../../-/host/invalid/http%253A%252F%252F%255Bhttps%253A%252F%252Ffiles.example%252Fp%252Fa.whl\">",
        ),
    ] {
        let body = body.replace('~', link);
        let expected = expected.replace('~', link).replace('^', "../../p/a.whl");
        assert_eq!(
            rewrite(&split(), SIMPLE.0, SIMPLE.1, "text/html", &body),
            expected,
            "{body}"
        );
    }
}

#[test]
fn types_are_what_pip_takes_them_for() {
    let path = request(SIMPLE.0).unwrap();
    let split = split();
    let run = |content_type: &str, body: &str| {
        let mut reader = reader(&split, &path, SIMPLE.1, content_type);
        drive(&mut *reader, [body.as_bytes()]).map(|out| String::from_utf8(out).unwrap())
    };
    let html = r#"<a href="https://files.example/a.whl">"#;
    let json = r#"{"files":[{"url":"https://files.example/a.whl"}]}"#;
    for content_type in [
        "text/htmlx",
        "text/html, text/plain",
        "application/vnd.pypi.simple.v1+html+json",
        "text/html;charset=ISO-8859-15",
        "text/html; charset=\"UTF-8\"; x=y",
        "text/html; charset=windows-1252",
        "text/html; charset=gb2312",
        "text/html; charset=Shift_JIS",
        // Poetry does not look at the type.
        "text/plain",
        "binary/octet-stream",
    ] {
        assert_eq!(
            run(content_type, html).unwrap(),
            r#"<a href="../../a.whl">"#,
            "{content_type}"
        );
    }
    for content_type in [
        "application/vnd.pypi.simple.v1+jsonx",
        "application/json;x",
        "binary/octet-stream",
    ] {
        assert_eq!(
            run(content_type, json).unwrap(),
            r#"{"files":[{"url":"../../a.whl"}]}"#,
            "{content_type}"
        );
    }
    // `+ADw-` is a `<` in UTF-7.
    for content_type in [
        "text/html; charset=utf-7",
        "text/html; charset=cp037",
        "text/html; charset*0=utf; charset*1=-7",
        "text/html; charset=utf-8; charset=utf-16",
        "text/html; charset=iso-8859-1-x",
        "text/html; x=\"; charset=hz",
    ] {
        assert!(run(content_type, html).is_err(), "{content_type}");
    }
}

/// Pieces of HTML, whole and broken.
fn piece() -> impl Strategy<Value = String> {
    let link = || {
        prop_oneof![
            Just("https://files.example/a.whl"),
            Just("https://evil.example/a.whl#sha256=aa"),
            Just("//evil.example/a.whl"),
            Just("http&colon;&#47;&sol;evil.example/a"),
            Just("ht\ntps://evil.example/a"),
            Just("https:\\\\evil.example\\a"),
            Just("http://["),
            Just("/a.whl"),
            Just("a.whl?b=1&copy=2"),
        ]
    };
    let name = proptest::sample::select(
        &[
            "a",
            "A",
            "a",
            "a",
            "a",
            "a",
            "a",
            "a",
            "a",
            "a",
            "a",
            "a",
            "a",
            "a",
            "base",
            "BASE",
            "noscript",
            "title",
            "textarea",
            "iframe",
            "script",
            "style",
            "xmp",
            "plaintext",
            "noembed",
            "noframes",
            "svg",
            "math",
            "p",
            "template",
            "select",
            "option",
            "a\0",
            "é",
            "a:b",
            "a\u{a0}",
            "abase",
        ][..],
    );
    let attribute = prop_oneof![
        12 => Just("href"), 4 => Just("HREF"), 1 => Just("x"), 1 => Just("\"href"), 1 => Just("=href"), 1 => Just("href\0"), 1 => Just("<a"),
    ];
    let space = || proptest::sample::select(&[" ", " ", " ", "", "/", "\n", "\t", "\u{a0}", "\x0b", "\x0c", " / "][..]);
    let attribute = (space(), attribute, space(), 0..3_u8, space(), 0..6_u8, link()).prop_map(
        |(before, name, between, equals, after, quote, link)| {
            let equals = ["", "=", "=="][usize::from(equals)];
            let value = match quote {
                0 | 1 => format!("\"{link}\""),
                2 => format!("'{link}'"),
                3 => link.to_owned(),
                4 => format!("\"{link}"),
                _ => format!("'>{link}\""),
            };
            if equals.is_empty() {
                format!("{before}{name}")
            } else {
                format!("{before}{name}{between}{equals}{after}{value}")
            }
        },
    );
    let end = proptest::sample::select(&[">", ">", ">", "/>", " />", "", " >"][..]);
    let tag = (name.clone(), proptest::collection::vec(attribute, 0..4), end)
        .prop_map(|(name, attributes, end)| format!("<{name}{}{end}", attributes.concat()));
    let closing = (name, proptest::sample::select(&[">", " >", " x=y>", "/>", "", ">"][..]))
        .prop_map(|(name, end)| format!("</{name}{end}"));
    let rest = proptest::sample::select(
        &[
            "<!--",
            "-->",
            "--!>",
            "-- >",
            "<!-->",
            "<!--->",
            "-",
            "<![CDATA[",
            "]]>",
            "<!doctype html>",
            "<!doctype '",
            "<!",
            "<?",
            "?>",
            "</",
            "</ script>",
            ">",
            "<",
            "\"",
            "'",
            "text",
            "\n",
            "&lt;a href=https://evil.example/&gt;",
            "=",
            "/",
        ][..],
    );
    prop_oneof![4 => tag, 2 => closing, 3 => rest.prop_map(str::to_owned)]
}

/// What Python's parser reads in an index leads here, however it is written.
#[test]
fn pythons_parser_finds_no_upstream_address() {
    let written: Vec<String> = many(4000, &proptest::collection::vec(piece(), 1..14))
        .into_iter()
        .map(|pieces| rewrite(&split(), SIMPLE.0, SIMPLE.1, "text/html", &pieces.concat()))
        .collect();
    let python = tool("venv/bin/python3");
    let document = format!("{REMOTE_URL}/{}", SIMPLE.0);
    let mut found = 0;
    for (page, read) in written
        .iter()
        .zip(read_by(&python, &[&client("html_index.py"), &document], &written))
    {
        assert_eq!(read["bases"], serde_json::json!([]), "{page}");
        for link in read["links"].as_array().unwrap() {
            let link = link.as_str().unwrap();
            found += 1;
            assert!(
                link.starts_with(REMOTE_URL) || link == "unreadable:",
                "{link} in {page}"
            );
        }
    }
    assert!(found > 1000, "{found} links");
}

#[test]
fn a_json_index() {
    let body = r#"{"meta":{"api-version":"1.4","_last-serial":1},"name":"foo","versions":["1.0"],
 "files":[{"filename":"foo-1.0.whl","url":"https:\/\/files.example\/packages\/foo-1.0.whl","size":1.50,
 "core-metadata":{"sha256":"aa"},"provenance":"https://index.example/integrity/foo","upload-time":"2024-01-01T00:00:00Z","yanked":false},
 {"url":"/local/foo-1.tar.gz","x":{"url":"https://files.example/kept"}}]}"#;
    let expected = body
        .replace(
            r"https:\/\/files.example\/packages\/foo-1.0.whl",
            "../../packages/foo-1.0.whl",
        )
        .replace("/local/foo-1.tar.gz", "../../-/host/index.example/local/foo-1.tar.gz");
    for content_type in [
        "application/vnd.pypi.simple.v1+json",
        "application/json",
        "application/vnd.pypi.simple.v2+json",
    ] {
        assert_eq!(rewrite(&split(), SIMPLE.0, SIMPLE.1, content_type, body), expected);
    }
}

#[test]
fn the_older_json_is_rewritten_absolutely() {
    let body = r#"{"info":{"home_page":"https://files.example/home"},
"releases":{"1.0":[{"url":"https://files.example/packages/foo-1.0.zip"}],"2.0":[]},"urls":[{"url":"http://old.example/x.zip"}]}"#;
    let expected = body
        .replace("https://files.example/packages", &format!("{REMOTE_URL}/packages"))
        .replace("http://old.example", &format!("{REMOTE_URL}/-/host/old.example"));
    assert_eq!(
        rewrite(
            &split(),
            "pypi/foo/json",
            "https://index.example/pypi/foo/json",
            "application/json",
            body
        ),
        expected
    );
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let path = request(SIMPLE.0).unwrap();
    let split = split();
    let run = |content_type: &str, body: &[u8]| drive(&mut *reader(&split, &path, SIMPLE.1, content_type), [body]);
    assert!(run("application/vnd.pypi.simple.v1+json", b"<html></html>").is_err());
    assert!(run("text/html; charset=UTF-16LE", b"<").is_err());
    assert!(run("text/html", b"\xff\xfe<\0").is_err());
    let huge = format!("<a href=\"{}\">", "x".repeat(MAX_TAG * 2));
    let pieces = huge.as_bytes().chunks(1 << 16);
    assert!(drive(&mut *reader(&split, &path, SIMPLE.1, "text/html"), pieces).is_err());
    // Not in a tag, any length passes.
    let long = "x".repeat(MAX_TAG * 2);
    assert_eq!(run("text/html", long.as_bytes()).unwrap(), long.as_bytes());
}

#[test]
fn character_references() {
    for (text, expected) in [
        ("a&amp;b&#38;c&#x26;d", "a&b&c&d"),
        ("&ampx &amp=1 &lt", "&ampx &amp=1 <"),
        ("&colon;&sol;&period;&unknown;&copy&", ":/.&unknown;&copy&"),
        (
            "&#0;&#x110000;&#xd800;&#99999999999;&#;&#x;",
            "\u{fffd}\u{fffd}\u{fffd}\u{fffd}&#;&#x;",
        ),
        ("&#65 &#x41é", "A Aé"),
    ] {
        assert_eq!(unescape(text), expected, "{text}");
    }
}

/// A link of any kind, and how it is written: plainly, with references, or with JSON escapes.
fn link() -> impl Strategy<Value = String> {
    let start = prop_oneof![
        Just("https://files.example/"),
        Just("https://index.example/"),
        Just("http://files.example/"),
        Just("HTTPS://cdn.example:8443/"),
        Just("//files.example/"),
        Just("/"),
        Just("../../"),
        Just(""),
        Just("https://u:p@evil.example/"),
        Just("https:\\\\files.example\\"),
        Just("\thttps://files.example/"),
    ];
    let link = (start, "[a-zA-Z0-9/._~+ %?&=#'-]{0,20}").prop_map(|(start, rest)| format!("{start}{rest}"));
    link.prop_filter("a URL", |link| Url::parse(SIMPLE.1).unwrap().join(link).is_ok())
}

fn write_references(text: &str, how: u8) -> String {
    let mut out = String::new();
    for (at, character) in text.chars().enumerate() {
        match (character, (how as usize + at) % 4) {
            (':', 0) => out.push_str("&colon;"),
            ('/', 0) => out.push_str("&sol;"),
            ('.', 0) => out.push_str("&period;"),
            (_, 1) if how > 40 => out.push_str(&format!("&#{};", character as u32)),
            (_, 2) if how > 40 => out.push_str(&format!("&#x{:x};", character as u32)),
            ('&' | '"' | '\'' | '<' | '>' | ' ' | '\t' | '=' | '`' | '\\', _) => {
                out.push_str(&format!("&#{};", character as u32));
            }
            _ => out.push(character),
        }
    }
    out
}

/// The links of an index as we write it, read again.
fn hrefs(html: &str) -> Vec<String> {
    let links = html.split("<a ").skip(1).map(|tag| {
        let (_, value) = tag.split_once(" href=").or(tag.split_once("href=")).unwrap();
        let quote = value.chars().next().unwrap();
        unescape(value[1..].split(quote).next().unwrap())
    });
    links.collect()
}

proptest! {
    /// No link of an index leads past us, each leads to what upstream's link named, and pieces make no difference.
    #[test]
    fn no_upstream_address_survives_in_html(
        links in proptest::collection::vec((link(), any::<u8>(), 0..3_u8), 1..8), based: bool, at in cuts()
    ) {
        let split = split();
        let (target, url) = SIMPLE;
        let mut body = String::from(if based { "<base href='/deep/er/'>" } else { "<p>" });
        for (link, how, quote) in &links {
            let href = write_references(link, *how);
            let (open, text) = match quote { 0 => ("\"", href), 1 => ("'", href), _ if href.is_empty() => ("'", href), _ => ("", href) };
            body.push_str(&format!("<a data-x=\"&gt;\" href={open}{text}{open} data-yanked>{how} &amp;</a>\n"));
        }
        let path = request(target).unwrap();
        let mut reader = reader(&split, &path, url, "text/html");
        let out = String::from_utf8(drive(&mut *reader, cut(body.as_bytes(), &at)).unwrap()).unwrap();
        prop_assert_eq!(&out, &rewrite(&split, target, url, "text/html", &body));
        let base = Url::parse(url).unwrap();
        let base = if based { base.join("/deep/er/").unwrap() } else { base };
        let found = hrefs(&out);
        prop_assert_eq!(found.len(), links.len());
        let foreign = linked(reader.take_facts());
        for ((link, ..), href) in links.iter().zip(found) {
            if link.trim().is_empty() {
                continue;
            }
            let meant = base.join(link).unwrap();
            let asked = asked(target, &href);
            prop_assert!(asked.is_some(), "{} became {}", link, href);
            let asked = asked.unwrap();
            let named = match links::candidates(&asked) {
                Some(urls) => urls.iter().map(links::named).find(|name| foreign.contains(name)),
                None => Some(links::named(&index_url(&split, &asked).unwrap_or_else(|| links::under_base(&split, &asked)))),
            };
            if reader.escaped() == 0 {
                // Of two schemes with the same host and path, either may be named.
                let without_scheme = |name: &str| name.split_once(':').unwrap().1.to_owned();
                prop_assert_eq!(named.as_deref().map(without_scheme), Some(without_scheme(&links::named(&meant))));
            }
        }
        prop_assert_eq!(out.matches(" data-yanked>").count(), links.len());
        prop_assert_eq!(out.matches("data-x=\"&gt;\"").count(), links.len());
    }

    #[test]
    fn no_upstream_address_survives_in_json(links in proptest::collection::vec(link(), 1..8), legacy: bool, at in cuts()) {
        let split = split();
        let files: Vec<_> = links.iter().map(|link| serde_json::json!({"filename": "f", "url": link})).collect();
        let (target, url, body) = if legacy {
            ("pypi/foo/json", "https://index.example/pypi/foo/json", serde_json::json!({"releases": {"1": files}, "urls": files}))
        } else {
            (SIMPLE.0, SIMPLE.1, serde_json::json!({"files": files}))
        };
        let body = body.to_string();
        let path = request(target).unwrap();
        let mut reader = reader(&split, &path, url, "application/json");
        let out = drive(&mut *reader, cut(body.as_bytes(), &at)).unwrap();
        prop_assert_eq!(std::str::from_utf8(&out).unwrap(), rewrite(&split, target, url, "application/json", &body));
        let out: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let lists = if legacy { vec![&out["releases"]["1"], &out["urls"]] } else { vec![&out["files"]] };
        for list in lists {
            for file in list.as_array().unwrap() {
                let link = file["url"].as_str().unwrap();
                prop_assert!(asked(target, link).is_some(), "{}", link);
                prop_assert_eq!(link.starts_with(REMOTE_URL), legacy);
            }
        }
    }

    #[test]
    fn no_bytes_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        markup in proptest::collection::vec(prop_oneof![
            Just("<a href="), Just("\""), Just("'"), Just(">"), Just("<base href=x>"), Just("&#"), Just("<!--"),
            Just("</a>"), Just("<select>"), Just("<script>"), Just("https://files.example/"), Just("é"), Just("<"),
        ], 0..40),
        at in cuts()
    ) {
        let split = split();
        for target in ["simple/foo/", "pypi/foo/json", "", "packages/é.whl"] {
            let Some(path) = request(target) else { continue };
            for content_type in ["text/html", "application/json", "x"] {
                for body in [&bytes[..], markup.concat().as_bytes()] {
                    let context = testing::context(&split, &path, Style::Relative, (SIMPLE.1, content_type));
                    let mut reader = super::reader(&context);
                    let _ = drive(&mut *reader, cut(body, &at));
                    let _ = (reader.take_facts(), reader.escaped());
                }
            }
        }
    }

    #[test]
    fn no_path_panics(path in any::<String>()) {
        let _ = (is_index(&path), is_legacy(&path), index_naming(&path), governing_path(&path));
        let _ = testing::read(&split(), &path, Some(&path));
    }
}
