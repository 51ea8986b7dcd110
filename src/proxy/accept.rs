//! What a client takes, and how old it may be (RFC 9110 section 12.5, RFC 9111 section 5.2.1).

use std::borrow::Cow;

use http::header;
use pingora_proxy::Session;

use crate::fields;

/// `Accept`; several field lines are one list (RFC 9110 section 5.3).
pub(super) fn accept(session: &Session) -> Option<Cow<'_, str>> {
    let mut values = session
        .req_header()
        .headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let first = values.next()?;
    let mut all = Cow::Borrowed(first);
    for value in values {
        all.to_mut().push_str(", ");
        all.to_mut().push_str(value);
    }
    Some(all)
}

/// A client that wants no old answer: `no-cache` or `max-age=0`, or HTTP/1.0's `Pragma`.
pub(super) fn wants_fresh(session: &Session) -> bool {
    let headers = &session.req_header().headers;
    let says = |name: header::HeaderName, words: &[&str]| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| {
                value
                    .split(',')
                    .any(|word| words.contains(&word.trim().to_ascii_lowercase().as_str()))
            })
    };
    says(header::CACHE_CONTROL, &["no-cache", "max-age=0"]) || says(header::PRAGMA, &["no-cache"])
}

/// Whether the client takes content that is in a coding. One that says nothing of codings takes all (RFC 9110 section
/// 12.5.3).
pub(super) fn accepts(session: &Session, coding: &str) -> bool {
    let values = session.req_header().headers.get_all(header::ACCEPT_ENCODING);
    values.iter().next().is_none() || accepted(values.iter().filter_map(|value| value.to_str().ok()), coding)
}

/// Whether the client asks for gzip where both forms can be had.
pub(super) fn wants_gzip(session: &Session) -> bool {
    session.req_header().headers.contains_key(header::ACCEPT_ENCODING) && accepts(session, "gzip")
}

/// RFC 9110 section 12.5.3: whether values of `Accept-Encoding` allow a coding.
pub(super) fn accepted<'a>(values: impl Iterator<Item = &'a str>, wanted: &str) -> bool {
    let mut any = None;
    for value in values {
        for item in value.split(',') {
            let mut parts = item.split(';');
            let coding = parts.next().unwrap_or("").trim();
            let allowed = fields::weight(parts) > 0.0;
            if plain(coding).eq_ignore_ascii_case(plain(wanted)) {
                return allowed;
            }
            if coding == "*" {
                any = Some(allowed);
            }
        }
    }
    any.unwrap_or(false)
}

/// `x-gzip` is `gzip`, by another name (RFC 9110 section 8.4.1.3).
fn plain(coding: &str) -> &str {
    let (prefix, rest) = coding.split_at_checked(2).unwrap_or(("", coding));
    if prefix.eq_ignore_ascii_case("x-") {
        rest
    } else {
        coding
    }
}
