//! Secrets in texts for people: whatever is logged, answered as an error or shown of the configuration goes through
//! [`hidden`], whoever wrote the text.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// What is shown in place of a secret.
pub const HIDDEN: &str = "***";

/// What names of parameters have in them whose values are secrets: signatures of S3, Google and Azure, tokens, passwords.
const TELLING: [&str; 10] = [
    "sig",
    "token",
    "secret",
    "passw",
    "pwd",
    "credential",
    "auth",
    "key",
    "jwt",
    "session",
];

/// `text` without what stands before the `@` of a URL, and without the values of a query's parameters that are secrets by
/// their names.
pub fn hidden(text: &str) -> Cow<'_, str> {
    let mut shown = Cow::Borrowed(text);
    if text.contains("://") && text.contains('@') {
        shown = Cow::Owned(without_userinfo(text));
    }
    if shown.contains('?') {
        shown = Cow::Owned(without_values(&shown));
    }
    shown
}

/// Ends a URL that stands in a text.
fn ends_url(letter: char) -> bool {
    letter.is_whitespace() || letter.is_control() || matches!(letter, '"' | '\'' | '<' | '>' | '`')
}

fn without_userinfo(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        // A password may hold anything, wrongly written; what is before the last `@` of a URL is hidden in any case.
        let end = after.find(ends_url).unwrap_or(after.len());
        let authority = after[..end].find(['/', '?', '#']).unwrap_or(end);
        let cut = after[..authority].rfind('@');
        // An unencoded slash in a password: still no host begins before the `@`.
        let cut = cut.or_else(|| after[..end].find('@').filter(|at| !after[..*at].contains(['?', '/'])));
        match cut {
            Some(cut) => {
                shown.push_str(HIDDEN);
                rest = &after[cut..];
            }
            None => rest = after,
        }
    }
    shown.push_str(rest);
    shown
}

fn without_values(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('?') {
        let (before, after) = rest.split_at(at + 1);
        shown.push_str(before);
        let end = after.find(ends_url).unwrap_or(after.len());
        let mut query = &after[..end];
        while !query.is_empty() {
            let length = query.find(['&', ';', '#', '?']).map_or(query.len(), |at| at + 1);
            let (pair, next) = query.split_at(length);
            push_pair(&mut shown, pair);
            query = next;
        }
        rest = &after[end..];
    }
    shown.push_str(rest);
    shown
}

/// Adds one parameter, with the separator that follows it.
fn push_pair(shown: &mut String, pair: &str) {
    let Some((name, value)) = pair.split_once('=') else {
        return shown.push_str(pair);
    };
    let plain = percent_decode_str(name).decode_utf8_lossy().to_ascii_lowercase();
    if !TELLING.iter().any(|word| plain.contains(word)) {
        return shown.push_str(pair);
    }
    shown.push_str(name);
    shown.push('=');
    shown.push_str(HIDDEN);
    if let Some(separator) = value
        .chars()
        .last()
        .filter(|last| matches!(last, '&' | ';' | '#' | '?'))
    {
        shown.push(separator);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_hidden_and_the_rest_is_not() {
        for (text, expected) in [
            ("GET https://h/x?a=1&b=2 failed", "GET https://h/x?a=1&b=2 failed"),
            ("http://u:p@h/x and redis://:p@h", "http://***@h/x and redis://***@h"),
            ("http://u:p@ss@h:1/x@y", "http://***@h:1/x@y"),
            ("mail me@h://x", "mail me@h://x"),
            (
                "https://h/x?X-Amz-Signature=abc&X-Amz-Date=1",
                "https://h/x?X-Amz-Signature=***&X-Amz-Date=1",
            ),
            (
                "key=r x?sv=1&sig=a%2Bb, more",
                "key=r x?sv=1&sig=***, more".replace(", more", " more").as_str(),
            ),
            ("\"https://h/?access_token=a=b\"", "\"https://h/?access_token=***\""),
            ("x?%74oken=a;API_KEY=b#token=c", "x?%74oken=***;API_KEY=***#token=***"),
            ("what? token=a", "what? token=a"),
            ("x?token", "x?token"),
        ] {
            let text = text.replace(", more", " more");
            assert_eq!(hidden(&text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_secret_is_left_whatever_stands_around_it(
            before in "[a-z ?&=/:@]{0,12}", name in "(token|sig|X-Amz-Signature|password)", secret in "[A-Z0-9%+/=]{8,20}",
            after in "( |&a=1|\"|#x)?"
        ) {
            let text = format!("{before} https://h/p?x=1&{name}={secret}{after}");
            prop_assert!(!hidden(&text).contains(&secret), "{}", hidden(&text));
            let text = format!("{before} https://user:{}@h/p{after}", secret.replace('/', ""));
            let shown = hidden(&text).into_owned();
            let password = secret.replace('/', "");
            prop_assert!(!shown.contains(&password), "{}", shown);
        }

        #[test]
        fn any_text_is_taken(text in any::<String>()) {
            let once = hidden(&text).into_owned();
            prop_assert_eq!(hidden(&once).into_owned(), once.clone());
        }
    }
}
