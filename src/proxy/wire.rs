//! The one reading of a request's head (RFC 9112): what two readers could understand differently is refused here, for
//! every request of every connection, so that nothing behind has to mend it.

use std::mem::MaybeUninit;

use http::{HeaderMap, header};
use httparse::{Header, Request, Status};

use crate::session::public::is_host;

/// Fields of a head: as many as Pingora takes.
pub(super) const MOST_FIELDS: usize = 256;
/// The longest path: files have shorter names, and what is done with one may take a multiple of its length.
const LONGEST_PATH: usize = 4 << 10;
/// The longest target, its query included: signed URLs are long.
const LONGEST_TARGET: usize = 16 << 10;

/// Why a request is not answered, for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: u16,
    pub reason: &'static str,
}

/// How the end of a request's body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// What a request's head says of the bytes on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Of the head.
    pub length: usize,
    pub body: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

fn refuse<T>(status: u16, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, reason })
}

/// Reads the head at the beginning of `raw`; `None`: it goes on.
///
/// # Errors
/// The request cannot be understood, or in more than one way.
pub(super) fn read<'b, 'h>(
    raw: &'b [u8],
    fields: &'h mut [MaybeUninit<Header<'b>>],
) -> Result<Option<(Request<'h, 'b>, Head)>, Refusal> {
    let mut request = Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(raw, fields) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    check_lines(&raw[..length])?;
    let is_http_11 = request.version == Some(1);
    let target = request.path.unwrap_or_default();
    check_target(target.as_bytes())?;
    let authority = authority(request.method.unwrap_or_default(), target)?;
    let (mut host, mut body_length, mut coding, mut expects_continue) = (None, None, None, false);
    for field in request.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let again = match field.name.len() {
            4 if is("host") => host.replace(field.value).is_some(),
            6 if is("expect") => {
                expects_continue |= is_http_11 && field.value.eq_ignore_ascii_case(b"100-continue");
                false
            }
            14 if is("content-length") => body_length.replace(field.value).is_some(),
            17 if is("transfer-encoding") => coding.replace(field.value).is_some(),
            _ => false,
        };
        if again {
            return refuse(
                400,
                "the request has more than one Host, Content-Length or Transfer-Encoding",
            );
        }
    }
    if is_http_11 && host.is_none() {
        return refuse(400, "an HTTP/1.1 request needs a Host header");
    }
    check_hosts(host, authority)?;
    let body = match (body_length, coding) {
        (None, None) => Framing::Length(0),
        (Some(length), None) => Framing::Length(content_length(length)?),
        (Some(_), Some(_)) => return refuse(400, "the request has both Content-Length and Transfer-Encoding"),
        (None, Some(_)) if !is_http_11 => return refuse(400, "an HTTP/1.0 request has no Transfer-Encoding"),
        (None, Some(coding)) => chunked(coding)?,
    };
    let head = Head {
        length,
        body,
        expects_continue,
    };
    Ok(Some((request, head)))
}

/// Why a head that has become too long is refused.
pub(super) fn too_long(raw: &[u8]) -> Refusal {
    let (status, reason) = match raw.contains(&b'\n') {
        true => (431, "the request's head is too long"),
        false => (414, "the request's target is too long"),
    };
    Refusal { status, reason }
}

fn unreadable(error: httparse::Error) -> Refusal {
    let (status, reason) = match error {
        httparse::Error::TooManyHeaders => (431, "the request has too many header fields"),
        httparse::Error::Version => (400, "the request's HTTP version is none that is spoken here"),
        httparse::Error::HeaderName | httparse::Error::HeaderValue => {
            (400, "a header field of the request cannot be read")
        }
        _ => (400, "the request line is not `method target version`"),
    };
    Refusal { status, reason }
}

/// The parser takes a bare LF for the end of a line.
fn check_lines(head: &[u8]) -> Result<(), Refusal> {
    let mut previous = 0;
    for byte in head {
        if *byte == b'\n' && previous != b'\r' {
            return refuse(400, "a line of the request's head ends in a bare LF");
        }
        if previous == b'\r' && *byte != b'\n' {
            return refuse(400, "a line of the request's head has a bare CR");
        }
        previous = *byte;
    }
    Ok(())
}

/// Looks at a target, over HTTP/2 too.
///
/// # Errors
/// The target is too long, or none.
pub(super) fn check_target(target: &[u8]) -> Result<(), Refusal> {
    let path = target
        .iter()
        .position(|byte| *byte == b'?')
        .map_or(target, |at| &target[..at]);
    if target.len() > LONGEST_TARGET || path.len() > LONGEST_PATH {
        return refuse(414, "the request's target is too long: a path has 4 KiB at most");
    }
    if target.contains(&b'#') {
        return refuse(400, "the request's target has a fragment");
    }
    Ok(())
}

/// The authority of a target in absolute form.
fn authority<'a>(method: &str, target: &'a str) -> Result<Option<&'a [u8]>, Refusal> {
    let absolute = strip(target.as_bytes(), b"http://").or_else(|| strip(target.as_bytes(), b"https://"));
    match absolute {
        Some(rest) => {
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?'));
            Ok(Some(&rest[..end.unwrap_or(rest.len())]))
        }
        None if target.starts_with('/') || method == "CONNECT" || target == "*" => Ok(None),
        None => refuse(400, "the request's target is neither a path nor a URL"),
    }
}

/// RFC 9112 section 3.2 wants both the same; which of two that differ is meant nobody can tell.
fn check_hosts(host: Option<&[u8]>, authority: Option<&[u8]>) -> Result<(), Refusal> {
    let valid = |host: &[u8]| std::str::from_utf8(host).is_ok_and(is_host);
    if !host.is_none_or(valid) || !authority.is_none_or(valid) {
        return refuse(400, "the request's Host is no host");
    }
    match (host, authority) {
        (Some(host), Some(authority)) if host != authority => {
            refuse(400, "the request's Host is another than its target's")
        }
        _ => Ok(()),
    }
}

/// One number, and nothing that some reader could make another of.
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().filter(|_| digits);
    // Some count in signed numbers.
    match number.and_then(|number| number.parse().ok()) {
        Some(length) if i64::try_from(length).is_ok() => Ok(length),
        _ => refuse(400, "the request's Content-Length is no number"),
    }
}

fn chunked(coding: &[u8]) -> Result<Framing, Refusal> {
    if coding.eq_ignore_ascii_case(b"chunked") {
        return Ok(Framing::Chunked);
    }
    let mut codings = coding.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let last = codings.next_back().unwrap_or_default();
    if !last.eq_ignore_ascii_case(b"chunked") || codings.any(|coding| coding.eq_ignore_ascii_case(b"chunked")) {
        return refuse(
            400,
            "the end of the request's body cannot be told: it must be `chunked`, once and last",
        );
    }
    refuse(501, "no Transfer-Encoding is known here but `chunked`")
}

/// Looks at a request over HTTP/2, whose frames say where it ends.
///
/// # Errors
/// See [`read`].
pub(super) fn check_http2(target: &[u8], authority: Option<&str>, headers: &HeaderMap) -> Result<(), Refusal> {
    check_target(target)?;
    if !authority.is_some_and(is_host) {
        return refuse(400, "the request's authority is no host");
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        content_length(length.as_bytes())?;
    }
    match lengths.next() {
        Some(_) => refuse(400, "the request has more than one Content-Length"),
        None => Ok(()),
    }
}

/// A target in origin form: of the absolute form (RFC 9112 section 3.2.2) what follows the authority.
pub(super) fn origin_form(target: &[u8]) -> &[u8] {
    let rest = match (strip(target, b"http://"), strip(target, b"https://")) {
        (Some(rest), _) | (_, Some(rest)) => rest,
        _ => return target,
    };
    match rest.iter().position(|byte| *byte == b'/') {
        Some(at) => &rest[at..],
        None => b"/",
    }
}

fn strip<'a>(target: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = target.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(raw: &[u8]) -> Result<Option<Head>, Refusal> {
        let mut fields = [MaybeUninit::uninit(); MOST_FIELDS];
        read(raw, &mut fields).map(|read| read.map(|(_, head)| head))
    }

    fn refused(raw: &str) -> u16 {
        head(raw.as_bytes()).map_or_else(|refusal| refusal.status, |_| 200)
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let ok = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nrest";
        let plain = Head {
            length: ok.len() - 4,
            body: Framing::Length(0),
            expects_continue: false,
        };
        assert_eq!(head(ok), Ok(Some(plain)));
        for bad in [
            "GET /a HTTP/1.1\nHost: h\r\n\r\n",
            "\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /a\tb HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /a\rb HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /a\x01 HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET a HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /a HTTP/1.1\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: \r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: a:+80\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: a@b\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
            "GET http://a b/ HTTP/1.1\r\nHost: b\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4, 4\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: +4\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 9223372036854775808\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked,\r\n\r\n",
            "POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(refused(bad), 400, "{bad:?}");
        }
        let coded = "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n";
        assert_eq!(refused(coded), 501);
    }

    #[test]
    fn what_is_usual_is_read() {
        let read = |raw: &str| head(raw.as_bytes()).unwrap().unwrap();
        let empty_lines = read("\r\n\r\nGET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n");
        assert_eq!(empty_lines.body, Framing::Length(0));
        assert_eq!(read("GET / HTTP/1.0\r\n\r\n").body, Framing::Length(0));
        let chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n";
        let chunked = read(chunked);
        assert_eq!((chunked.body, chunked.expects_continue), (Framing::Chunked, true));
        let old = read("POST / HTTP/1.0\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
        assert_eq!((old.body, old.expects_continue), (Framing::Length(4), false));
        let other = read("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 200-ok\r\n\r\n");
        assert!(!other.expects_continue);
        assert_eq!(head(b"GET / HTTP/1.1\r\nHost: h\r\n"), Ok(None));
    }

    #[test]
    fn targets_have_a_longest() {
        let get = |target: &str| refused(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(get(&format!("/{}", "a".repeat(4000))), 200);
        assert_eq!(get(&format!("/{}", "a".repeat(5000))), 414);
        assert_eq!(get(&format!("/a?{}", "a".repeat(12_000))), 200);
        assert_eq!(get(&format!("/a?{}", "a".repeat(17_000))), 414);
        assert_eq!(too_long(b"GET /aaaa").status, 414);
        assert_eq!(too_long(b"GET / HTTP/1.1\r\nX: a").status, 431);
    }

    #[test]
    fn http_2_is_read_as_strictly() {
        let lengths = |values: &[&'static str]| {
            let values = values
                .iter()
                .map(|value| (header::CONTENT_LENGTH, http::HeaderValue::from_static(value)));
            values.fold(HeaderMap::new(), |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            })
        };
        let check = |authority, values| check_http2(b"/a", authority, &lengths(values)).is_ok();
        assert!(check(Some("h:80"), &[]) && check(Some("h"), &["4"]));
        assert!(!check(Some("h"), &["4", "4"]) && !check(Some("h"), &["4, 4"]));
        assert!(!check(None, &[]) && !check(Some("a b"), &[]));
    }

    #[test]
    fn absolute_form() {
        assert_eq!(origin_form(b"http://h:1/a?b"), b"/a?b");
        assert_eq!(origin_form(b"HTTP://h"), b"/");
        assert_eq!(origin_form(b"/a"), b"/a");
    }

    proptest! {
        #[test]
        fn nothing_panics(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = head(&raw);
            let _ = origin_form(&raw);
        }

        /// What Pingora's own parser would have to mend or could read otherwise never passes.
        #[test]
        fn what_passes_has_one_reading(
            target in "/[ -~\\t\\r\\n]{0,12}",
            fields in proptest::collection::vec("(Host|X|Content-Length|Transfer-Encoding): ?[0-9a-c, ]{0,4}\r?\n?", 0..4),
        ) {
            let raw = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{}\r\n", fields.concat());
            if let Ok(Some(head)) = head(raw.as_bytes()) {
                let text = &raw[..head.length];
                let lines: Vec<&str> = text.split("\r\n").collect();
                prop_assert!(!text.replace("\r\n", "").contains(['\r', '\n']));
                prop_assert_eq!(lines[0].split(' ').count(), 3);
                let named = |name: &str| lines.iter().filter(|line| line.starts_with(name)).count();
                prop_assert_eq!(named("Host"), 1);
                prop_assert!(named("Content-Length") + named("Transfer-Encoding") <= 1);
            }
        }
    }
}
