use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::formats::testing::{cut, cuts};

const PLACES: &[Place] = &[
    &[Step::Key("v"), Step::Any, Step::Key("d"), Step::Key("t")],
    &[Step::Key("d"), Step::Key("t")],
    &[Step::Key("f"), Step::Item, Step::Key("u")],
    &[Step::Key("l"), Step::Any, Step::Item],
];

fn run(pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<String>), IndexError> {
    let mut scanner = Scanner::new(PLACES);
    let mut out = Vec::new();
    let mut seen = Vec::new();
    for piece in pieces {
        scanner.write(piece, &mut out, &mut |text| {
            seen.push(text.to_owned());
            (!text.starts_with("keep")).then(|| format!("<{text}>"))
        })?;
    }
    scanner.end()?;
    Ok((out, seen))
}

fn text(document: &str) -> String {
    String::from_utf8(run(&[document.as_bytes()]).unwrap().0).unwrap()
}

#[test]
fn chosen_strings_change_and_nothing_else_does() {
    let document = r#" {"v" : {"1.0": {"n":1e400, "d":{"t":"a\/b", "u":"t"}, "t":"no"}, "2":{"d":{"t":7,"t":"\u0062"}}},
        "d":{"d":{"t":"no"},"t" :"keep\/x"},"f":[{"u":"c"},["u"],{"u":["no"]},{"u":{"u":"no"}},null],
        "l":{"x":["e","f",["no"],{}],"y":"no"},"t":"no","v":{"3":{"d":{"t":"\"q\""}}} }
"#;
    let expected = document
        .replace(r#""a\/b""#, r#""<a/b>""#)
        .replace(r#""\u0062""#, r#""<b>""#)
        .replace(r#""u":"c""#, r#""u":"<c>""#)
        .replace(r#"["e","f",["no"]"#, r#"["<e>","<f>",["<no>"]"#)
        .replace(r#"{"u":["no"]}"#, r#"{"u":["<no>"]}"#)
        .replace(r#""\"q\"""#, r#""<\"q\">""#);
    assert_eq!(text(document), expected);
}

#[test]
fn lists_where_objects_are_and_names_in_any_case() {
    let document = r#"{"v":["a",{"d":{"t":"b"}},[{"d":{"t":"no"}}],{"D":{"T":"c"}}],"d":[{"t":"no"}],"d":{"t":["d",["e"],{"t":"no"}]},"F":[{"u":"f"}]}"#;
    let mut expected = document.to_owned();
    for changed in ["b", "c", "d", "e", "f"] {
        expected = expected.replace(&format!("\"{changed}\"}}"), &format!("\"<{changed}>\"}}"));
    }
    let expected = expected.replace(r#"["d",["e"]"#, r#"["<d>",["<e>"]"#);
    assert_eq!(text(document), expected);
    for (name, wanted, same) in [
        ("urls", "urls", true),
        ("URL\u{17f}", "urls", true),
        ("\u{212a}ey", "key", true),
        ("url", "urls", false),
        ("urlß", "urls", false),
    ] {
        assert_eq!(same_name(name, wanted), same, "{name}");
    }
}

#[test]
fn escaped_keys_and_a_byte_order_mark() {
    assert_eq!(
        text("\u{feff}{\"\\u0064\":{\"\\u0074\":\"a\"}}"),
        "\u{feff}{\"\\u0064\":{\"\\u0074\":\"<a>\"}}"
    );
    let long = "k".repeat(MAX_KEY + 1);
    assert_eq!(
        text(&format!(r#"{{"l":{{"{long}":["a"]}},"{long}":0}}"#)),
        format!(r#"{{"l":{{"{long}":["<a>"]}},"{long}":0}}"#)
    );
}

#[test]
fn decoding_and_encoding() {
    assert_eq!(
        decode(br"h\u0074tp:\/\/\ud83d\ude00\n\ud83dx\ude00").unwrap(),
        "http://\u{1f600}\n\u{fffd}x\u{fffd}"
    );
    assert_eq!(decode(b"\xff").unwrap(), "\u{fffd}");
    for bad in [r"\x", r"\u12", r"\u+123", r"\"] {
        assert_eq!(decode(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn what_is_no_json_is_an_error() {
    for document in [
        "",
        " ",
        "<html></html>",
        "{",
        "[",
        "\"a",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "[1,]",
        "[1 2]",
        "{]",
        "[}",
        "{} {}",
        "1 1",
        "}",
        "{\"v\":{\"1\":{\"d\":{\"t\":\"x\"}}",
        "{\"x\":[}]}",
        "{\"d\":{\"t\":\"\\q\"}}",
        "\u{feff}",
        "{\u{feff}}",
        "nul l",
        "@",
    ] {
        assert!(run(&[document.as_bytes()]).is_err(), "{document}");
    }
    for document in ["{}", "[]", "1", "-1.5e+3", "null", "\"a\"", "[[],{}]", " true "] {
        assert_eq!(text(document), document);
    }
}

#[test]
fn bounds() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(text(&nested(100_000)), nested(100_000));
    assert_eq!(text(&nested(MAX_DEPTH)), nested(MAX_DEPTH));
    assert!(run(&[nested(MAX_DEPTH + 1).as_bytes()]).is_err());
    let skipped = format!("{{\"x\":{}}}", nested(MAX_DEPTH));
    assert!(run(&[skipped.as_bytes()]).is_err());
    let link = |length: usize| format!(r#"{{"d":{{"t":"{}"}}}}"#, "x".repeat(length));
    assert!(run(&[link(MAX_CANDIDATE).as_bytes()]).is_ok());
    assert!(run(&[link(MAX_CANDIDATE + 1).as_bytes()]).is_err());
    // A long string elsewhere is nobody's concern.
    let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(MAX_CANDIDATE * 2));
    assert_eq!(text(&long), long);
}

/// The strings by a parser that reads the whole document.
fn reference(value: &mut Value, place: &[Step], seen: &mut Vec<String>) {
    match (place, value) {
        ([], Value::String(text)) => {
            seen.push(text.clone());
            if !text.starts_with("keep") && !text.starts_with('<') {
                *text = format!("<{text}>");
            }
        }
        ([Step::Key(key), rest @ ..], Value::Object(members)) => {
            if let Some(member) = members.get_mut(*key) {
                reference(member, rest, seen);
            }
        }
        ([Step::Any, rest @ ..], Value::Object(members)) => {
            members.values_mut().for_each(|member| reference(member, rest, seen));
        }
        ([], Value::Array(items)) => items.iter_mut().for_each(|item| reference(item, &[], seen)),
        ([Step::Item | Step::Any, rest @ ..], Value::Array(items)) => {
            items.iter_mut().for_each(|item| reference(item, rest, seen));
        }
        _ => {}
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        Just(json!(true)),
        any::<i64>().prop_map(|number| json!(number)),
        "[a-z\"\\\\\u{e9}\u{1f600}\n/]{0,9}".prop_map(|text| json!(text)),
        Just(json!("keep")),
    ];
    let key = prop_oneof![
        Just("v"),
        Just("d"),
        Just("t"),
        Just("f"),
        Just("u"),
        Just("l"),
        Just("\"x\\"),
        Just("y")
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

/// Writes every character of every string as an escape.
fn escape_all(document: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    let mut characters = document.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                inside = !inside;
                out.push('"');
            }
            '\\' => out.extend([character, characters.next().unwrap()]),
            _ if inside => {
                character
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .for_each(|unit| out.push_str(&format!("\\u{unit:04X}")));
            }
            _ => out.push(character),
        }
    }
    out
}

proptest! {
    #[test]
    fn the_same_as_a_parser_that_reads_the_whole(value in value(), pretty: bool, escaped: bool, at in cuts()) {
        let plain = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let document = if escaped { escape_all(&plain) } else { plain };
        let (out, mut seen) = run(&cut(document.as_bytes(), &at)).unwrap();
        let (whole, _) = run(&[document.as_bytes()]).unwrap();
        prop_assert_eq!(&out, &whole);
        let mut expected = value;
        let mut wanted = Vec::new();
        for place in PLACES {
            reference(&mut expected, place, &mut wanted);
        }
        prop_assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
        seen.sort();
        wanted.sort();
        prop_assert_eq!(seen, wanted);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(prop_oneof![
        any::<u8>(), proptest::sample::select(b"{}[]\",:\\uvdtfl0 ".to_vec())
    ], 0..200), at in cuts()) {
        let cut_up = run(&cut(&bytes, &at));
        let whole = run(&[&bytes]);
        prop_assert_eq!(cut_up.is_ok(), whole.is_ok());
        if let (Ok(one), Ok(other)) = (cut_up, whole) {
            prop_assert_eq!(one, other);
        }
    }

    #[test]
    fn string_ends_are_found(bytes in proptest::collection::vec(prop_oneof![Just(b'a'), any::<u8>()], 0..40), at in 0_usize..40) {
        let expected = bytes.iter().skip(at).position(|byte| b"\"\\".contains(byte)).map_or(bytes.len().max(at), |found| at + found);
        prop_assert_eq!(find_either::<b'"', b'\\'>(&bytes, at), expected);
    }
}
