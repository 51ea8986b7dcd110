//! `WWW-Authenticate` (RFC 9110 section 11.6.1): what a server wants to see before it answers.

use http::{HeaderMap, header};

/// One way to authenticate that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// In lower case.
    pub scheme: String,
    /// Names in lower case, in order.
    params: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter, its quotes and escapes removed.
    pub fn param(&self, name: &str) -> Option<&str> {
        let found = self.params.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The challenges of an answer, from all its field lines. What is no challenge is passed over.
pub fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(header::WWW_AUTHENTICATE).iter();
    let texts = values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    texts.flat_map(|text| parse(&text)).collect()
}

/// Reads a list of challenges. In it a comma stands between challenges as well as between the parameters of one, so that
/// a word without `=` begins the next.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            // Not of this grammar: on to what may be.
            match rest.find(',') {
                Some(comma) => rest = &rest[comma..],
                None => return found,
            }
            continue;
        }
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        match (value, found.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, after) = param_value(value.trim_start_matches([' ', '\t']));
                challenge.params.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            // A parameter of nothing.
            (Some(value), None) => rest = param_value(value).1,
            (None, _) => {
                found.push(Challenge {
                    scheme: word.to_ascii_lowercase(),
                    params: Vec::new(),
                });
                rest = token68(after);
            }
        }
    }
}

/// RFC 9110 section 5.6.2.
fn token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

/// What follows the credentials of a scheme that has no parameters (`Negotiate abc==`), if that is what stands here.
fn token68(text: &str) -> &str {
    let start = text.trim_start_matches(' ');
    let is_68 = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
    let rest = start.trim_start_matches(is_68);
    let padded = rest.trim_start_matches('=');
    let ended = padded.trim_start_matches(' ');
    let one_word = rest.len() < start.len() && (ended.is_empty() || ended.starts_with(','));
    if one_word && text.starts_with(' ') { ended } else { text }
}

/// A token or a quoted string (RFC 9110 section 5.6.4), and what follows it.
fn param_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // More than a token allows, since some forget the quotes around a URL.
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let parsed = parse(text).into_iter();
        parsed
            .map(|challenge| {
                let params = challenge.params.iter().map(|(key, value)| format!(" {key}=<{value}>"));
                challenge.scheme.clone() + &params.collect::<String>()
            })
            .collect()
    }

    #[test]
    fn what_registries_send() {
        let usual =
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        assert_eq!(
            shown(usual),
            ["bearer realm=<https://auth.example/token> service=<registry.example> scope=<repository:a/b:pull,push>"]
        );
        assert_eq!(
            shown(r#"BEARER Scope = repository:a:pull , realm=https://a.example/t?x=1"#),
            ["bearer scope=<repository:a:pull> realm=<https://a.example/t?x=1>"]
        );
        assert_eq!(
            shown(r#"Basic realm="a \"b\" \\", Negotiate, Negotiate abc==, Bearer realm="x",error="invalid_token""#),
            [
                r#"basic realm=<a "b" \>"#,
                "negotiate",
                "negotiate",
                "bearer realm=<x> error=<invalid_token>"
            ]
        );
        assert_eq!(shown(r#"realm="x""#), Vec::<String>::new());
        assert_eq!(shown(r#"Bearer realm="x"#), ["bearer realm=<x>"]);
        assert_eq!(shown("Basic"), ["basic"]);
    }

    proptest! {
        #[test]
        fn any_value_is_read_or_passed_over(text in any::<String>()) {
            let _ = parse(&text);
        }

        #[test]
        fn any_value_of_these_characters_ends(text in r#"[a-b=," \\\t/]{0,24}"#) {
            let _ = parse(&text);
        }

        #[test]
        fn every_challenge_is_found_as_it_was_written(
            written in proptest::collection::vec(
                ("[A-Za-z][a-z0-9-]{0,8}", proptest::collection::vec(("[a-zA-Z_]{1,8}", "[ -~]{0,12}", any::<bool>()), 0..4)),
                0..4,
            ),
        ) {
            let quote = |value: &str, bare: bool| {
                let plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric());
                if plain && bare {
                    value.to_owned()
                } else {
                    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
                }
            };
            let text = written.iter().map(|(scheme, params)| {
                let params = params.iter().map(|(key, value, bare)| format!("{key}={}", quote(value, *bare)));
                format!("{scheme} {}", params.collect::<Vec<_>>().join(", "))
            });
            let text = text.collect::<Vec<_>>().join(",");
            let expected = written.iter().map(|(scheme, params)| Challenge {
                scheme: scheme.to_ascii_lowercase(),
                params: params.iter().map(|(key, value, _)| (key.to_ascii_lowercase(), value.clone())).collect(),
            });
            prop_assert_eq!(parse(&text), expected.collect::<Vec<_>>());
        }
    }
}
