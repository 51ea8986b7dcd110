//! The header fields that a remote's configuration names: those that are sent to it, and those of its answers that are kept.

use http::{HeaderName, HeaderValue, header};

use super::problem::Fault;
use super::section::Section;
use crate::headers::{Names, may_be_kept};

/// Headers that the proxy itself must decide, or every cached answer would be wrong.
fn is_reserved(name: &HeaderName) -> bool {
    const RESERVED: [&str; 16] = [
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "te",
        "trailer",
        "via",
        "transfer-encoding",
        "upgrade",
    ];
    RESERVED.contains(&name.as_str()) || name.as_str().starts_with("if-")
}

/// What is sent along with every request to the remote.
pub(super) fn headers(section: &Section<'_>, has_credentials: bool) -> Vec<(HeaderName, HeaderValue)> {
    let cx = section.cx;
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for entry in section.free("headers").unwrap_or_default() {
        let Ok(name) = HeaderName::from_bytes(entry.key.as_bytes()) else {
            cx.error(
                entry.at,
                Fault::new(format!("`headers`: {:?} is no name of a header", entry.key)),
            );
            continue;
        };
        if is_reserved(&name) {
            let fault = Fault::new(format!("`headers`: {} is set by the proxy itself", entry.key));
            cx.error(entry.at, fault.hint("remove it"));
        }
        if headers.iter().any(|(other, _)| *other == name) || entry.duplicate_of.is_some() {
            cx.error(
                entry.at,
                Fault::new(format!("`headers`: {} stands here twice", entry.key)).hint("remove one"),
            );
        }
        if name == header::AUTHORIZATION && has_credentials {
            let fault = Fault::new("`headers`: Authorization and `username` are two answers to one question");
            cx.error(entry.at, fault.hint("remove one of them"));
        }
        let Some(text) = section.free_text("headers", entry) else {
            continue;
        };
        // The value may be a secret: it is not repeated.
        match HeaderValue::from_str(&text.value) {
            Ok(value) if text.value.trim() == text.value => headers.push((name, value)),
            _ => {
                let fault = Fault::new(format!(
                    "`headers`: the value of {} is not one that HTTP can carry",
                    entry.key
                ));
                cx.error(
                    text.at,
                    fault.hint("use visible ASCII characters, and no spaces around them"),
                );
            }
        }
    }
    for (_, value) in &mut headers {
        value.set_sensitive(true);
    }
    headers
}

/// Names of upstream's header fields that clients get besides those that describe content.
pub(super) fn headers_keep(section: &Section<'_>, known: &[Names]) -> Vec<HeaderName> {
    let names = section.list("headers_keep", |text| {
        let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| Fault::new("is no name of a header"))?;
        match may_be_kept(&name, known) {
            true => Ok(name),
            false => Err(
                Fault::new("is never passed on: it is the connection's, a cache's or this proxy's own")
                    .hint("remove it"),
            ),
        }
    });
    names.unwrap_or_default().into_iter().map(|(_, name)| name).collect()
}
