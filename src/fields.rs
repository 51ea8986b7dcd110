//! What the values of header fields are made of (RFC 9110 section 5.6): tokens, quoted strings, parameters, numbers. Shared
//! by all that read `Accept`, `Accept-Encoding`, `WWW-Authenticate`, `Forwarded` and `Link`.

use std::str::FromStr;

/// A token (section 5.6.2) at the start of `text`, which may be empty, and what follows it.
pub fn token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

/// What stands behind the `=` of a parameter, and what follows it: a quoted string (section 5.6.4) without its quotes and
/// escapes, or everything up to one of `ends` or whitespace, which is more than a token allows, since some senders forget
/// the quotes around a URL.
pub fn value<'a>(text: &'a str, ends: &[char]) -> (String, &'a str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c| ends.contains(&c) || c == ' ' || c == '\t');
        let (value, rest) = text.split_at(end.unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// One element of a list (section 5.6.1) and what follows its comma. A comma within a quoted string parts nothing.
pub fn element(text: &str) -> (&str, Option<&str>) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return (&text[..at], Some(&text[at + 1..])),
            _ => {}
        }
    }
    (text, None)
}

/// The weight `q` among the parameters of what a client accepts (section 12.4.2), 0 to 1: 0 refuses, and none is 1. What is
/// no weight is worth next to nothing, for nothing is refused by a mistake.
pub fn weight<'a>(mut parameters: impl Iterator<Item = &'a str>) -> f32 {
    let text = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then_some(value.trim())
    });
    let Some(text) = text else { return 1.0 };
    let weight = text.parse().ok();
    weight.filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or(0.001)
}

/// A number of ASCII digits and nothing else; Rust's own parsers take a sign as well.
pub fn number<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_digits_only() {
        assert_eq!(number::<u16>("80"), Some(80));
        for bad in ["", "+80", "-1", " 80", "8 0", "65536", "٣"] {
            assert_eq!(number::<u16>(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_comma_in_quotes_parts_nothing() {
        assert_eq!(element(r#"a="b,\",c", d"#), (r#"a="b,\",c""#, Some(" d")));
        assert_eq!(element("a"), ("a", None));
        assert_eq!(element(","), ("", Some("")));
        // A quote that never ends ends nothing.
        assert_eq!(element("\"a,b"), ("\"a,b", None));
    }

    proptest! {
        #[test]
        fn quoted_strings_are_read_as_they_were_written(text in any::<String>(), rest in "[;, a-z]{0,8}") {
            let quoted = format!("\"{}\"{rest}", text.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(value(&quoted, &[',']), (text, rest.as_str()));
        }

        #[test]
        fn elements_and_commas_make_up_the_list(text in "[ab\",\\\\é]{0,16}") {
            let (mut parts, mut rest) = (Vec::new(), Some(text.as_str()));
            while let Some(left) = rest {
                let (part, after) = element(left);
                parts.push(part);
                rest = after;
            }
            prop_assert_eq!(parts.join(","), text);
        }
    }
}
