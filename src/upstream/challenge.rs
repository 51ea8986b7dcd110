//! `WWW-Authenticate` (RFC 9110 section 11.6.1): what a server wants to see before it answers.

use http::{HeaderMap, header};

use crate::exact_url::ExactUrl;
use crate::fields;

/// One way to authenticate that a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case.
    pub scheme: String,
    /// Names in lower case, in order.
    params: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter, its quotes and escapes removed.
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        let found = self.params.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Where the token service is that a Bearer challenge names; `None` if it names none.
    pub(super) fn realm(&self) -> Option<ExactUrl> {
        let realm = self.param("realm").filter(|_| self.scheme == "bearer")?;
        let realm = ExactUrl::parse(realm).ok()?;
        (realm.url.has_host() && matches!(realm.url.scheme(), "http" | "https")).then_some(realm)
    }

    /// Whether both send to the same place: the same token service, or the registry itself.
    pub(super) fn leads_where(&self, other: &Challenge) -> bool {
        self.scheme == other.scheme && (self.scheme != "bearer" || self.param("realm") == other.param("realm"))
    }
}

/// Of several ways, the one to go: a token where the challenge says who gives one, else the remote's credentials. A Bearer
/// challenge without a realm is left for want of any other. `None`: none of them is known here.
pub(super) fn best(challenges: Vec<Challenge>) -> Option<Challenge> {
    let rank = |challenge: &Challenge| match challenge.scheme.as_str() {
        "bearer" if challenge.realm().is_some() => Some(0),
        "basic" => Some(1),
        "bearer" => Some(2),
        _ => None,
    };
    let ranked = challenges
        .into_iter()
        .filter_map(|challenge| Some((rank(&challenge)?, challenge)));
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, challenge)| challenge)
}

/// The challenges of an answer, from all its field lines. What is no challenge is passed over.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
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
        let (word, after) = fields::token(rest);
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
                let (value, after) = fields::value(value.trim_start_matches([' ', '\t']), &[',']);
                challenge.params.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            // A parameter of nothing.
            (Some(value), None) => rest = fields::value(value, &[',']).1,
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

    #[test]
    fn what_can_be_used_goes_before_what_cannot() {
        let chosen = |text: &str| best(parse(text)).map(|challenge| challenge.scheme);
        let usable = r#"Bearer realm="https://auth.example/token""#;
        for (text, scheme) in [
            (r#"Bearer, Basic realm="x""#.to_owned(), Some("basic")),
            (r#"Bearer realm="no URL", Basic realm="x""#.to_owned(), Some("basic")),
            (
                r#"Bearer realm="file:///etc/x", Basic realm="x""#.to_owned(),
                Some("basic"),
            ),
            (format!(r#"Basic realm="x", {usable}"#), Some("bearer")),
            (format!("Bearer, {usable}"), Some("bearer")),
            ("Negotiate abc==, Bearer".to_owned(), Some("bearer")),
            ("Negotiate abc==".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(chosen(&text).as_deref(), scheme, "{text}");
        }
        assert!(best(parse(&format!("Bearer, {usable}"))).is_some_and(|best| best.realm().is_some()));
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
