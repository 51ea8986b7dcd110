//! URLs whose query is known to the letter.
//!
//! The `url` crate spells some of a query otherwise than it was written (an apostrophe becomes `%27`, as in browsers).
//! That names the same thing to most servers, but a signature over the query no longer fits. Whatever asks upstream by a
//! URL that somebody else wrote (a redirect, an index, a challenge) keeps that query beside the parsed URL.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use url::{ParseError, Url};

/// What no request line can hold in a query; the rest goes out as it was written.
const UNSENDABLE: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>');

/// A URL and its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactUrl {
    /// With the query as the `url` crate spells it.
    pub url: Url,
    /// Letter for letter, without `?`.
    pub query: Option<String>,
}

impl ExactUrl {
    /// # Errors
    /// The text is no absolute URL.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Url::parse(text).map(|url| Self::written(url, text))
    }

    /// What `reference` leads to from `base`.
    ///
    /// # Errors
    /// The reference cannot be resolved.
    pub fn join(base: &Url, reference: &str) -> Result<Self, ParseError> {
        base.join(reference).map(|url| Self::written(url, reference))
    }

    /// `url` was read from `text`.
    fn written(url: Url, text: &str) -> Self {
        let Some(spelled) = url.query() else {
            return ExactUrl { url, query: None };
        };
        let query = written_query(text).filter(|query| query.replace('\'', "%27") == spelled.replace('\'', "%27"));
        // A reference without a query of its own may have taken that of its base.
        let query = query.unwrap_or_else(|| spelled.to_owned());
        ExactUrl {
            query: Some(query),
            url,
        }
    }
}

/// A path with its query, for logs and errors: of the query, which may be a signature, only that there is one.
pub fn shown_path(path: &str) -> Cow<'_, str> {
    match path.split_once('?') {
        Some((path, _)) => format!("{path}?…").into(),
        None => path.into(),
    }
}

/// What stands between `?` and `#`, read as the `url` crate reads a URL (<https://url.spec.whatwg.org/#url-parsing>): no
/// control characters and spaces at the ends, no tabs and line breaks anywhere.
fn written_query(text: &str) -> Option<String> {
    let text = text.trim_matches(|c: char| c <= ' ');
    let (_, query) = text.split('#').next()?.split_once('?')?;
    let query: String = query.chars().filter(|c| !matches!(c, '\t' | '\n' | '\r')).collect();
    Some(utf8_percent_encode(&query, UNSENDABLE).to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_a_query_people_are_told_that_there_is_one() {
        assert_eq!(shown_path("a/b%3Fc?d=e?f"), "a/b%3Fc?…");
        assert_eq!(shown_path("a/b"), "a/b");
    }

    #[test]
    fn a_query_stays_as_it_was_written() {
        let query = |text: &str| ExactUrl::parse(text).unwrap().query;
        for (text, expected) in [
            ("https://a.example/b?c='d'&e=%27%7e~+%2B", Some("c='d'&e=%27%7e~+%2B")),
            ("https://a.example/b?{x}|[y]^`\\?/", Some("{x}|[y]^`\\?/")),
            ("https://a.example/b?c=é\"<d e>#f?g='", Some("c=%C3%A9%22%3Cd%20e%3E")),
            (" https://a.example/b?c\n='\td' ", Some("c='d'")),
            ("https://a.example/b?", Some("")),
            ("https://a.example/b#?c='", None),
        ] {
            assert_eq!(query(text).as_deref(), expected, "{text}");
        }
        let base = Url::parse("https://a.example/b/c?old='").unwrap();
        let joined = |reference: &str| {
            let joined = ExactUrl::join(&base, reference).unwrap();
            (joined.url.path().to_owned(), joined.query.unwrap_or_default())
        };
        assert_eq!(joined("d?new='"), ("/b/d".to_owned(), "new='".to_owned()));
        assert_eq!(joined("?new='"), ("/b/c".to_owned(), "new='".to_owned()));
        assert_eq!(joined("#x?y"), ("/b/c".to_owned(), "old=%27".to_owned()));
        assert_eq!(joined("d"), ("/b/d".to_owned(), String::new()));
    }

    proptest! {
        #[test]
        fn it_differs_from_the_parsed_one_in_nothing_but_apostrophes(reference in "[ -~é\\t\\n]{0,24}") {
            let base = Url::parse("https://a.example/b/c").unwrap();
            if let Ok(ExactUrl { url, query }) = ExactUrl::join(&base, &reference) {
                prop_assert_eq!(query.as_deref().map(|query| query.replace('\'', "%27")), url.query().map(|query| query.replace('\'', "%27")));
                let sendable = |query: &String| query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
                prop_assert!(query.as_ref().is_none_or(sendable));
                prop_assert!(reference.matches('\'').count() >= query.map_or(0, |query| query.matches('\'').count()));
            }
        }
    }
}
